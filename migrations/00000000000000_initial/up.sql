-- What every gateway of this store must agree on.
CREATE TABLE settings (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

CREATE TABLE organisations (
    id TEXT PRIMARY KEY NOT NULL,
    slug TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    changed_at TIMESTAMP NOT NULL
);
CREATE INDEX organisations_changed_at ON organisations (changed_at);

CREATE TABLE environments (
    id TEXT PRIMARY KEY NOT NULL,
    organisation_id TEXT NOT NULL REFERENCES organisations (id),
    slug TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    UNIQUE (organisation_id, slug)
);
CREATE INDEX environments_changed_at ON environments (changed_at);

CREATE TABLE runner_groups (
    id TEXT PRIMARY KEY NOT NULL,
    organisation_id TEXT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    dispatch TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    UNIQUE (organisation_id, name)
);
CREATE INDEX runner_groups_changed_at ON runner_groups (changed_at);

CREATE TABLE runners (
    id TEXT PRIMARY KEY NOT NULL,
    organisation_id TEXT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    deployment TEXT NOT NULL,
    group_id TEXT REFERENCES runner_groups (id),
    tainted_at TIMESTAMP,
    drained_at TIMESTAMP,
    revoked_at TIMESTAMP,
    created_at TIMESTAMP NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    last_seen_at TIMESTAMP,
    last_version TEXT,
    UNIQUE (organisation_id, name)
);
CREATE INDEX runners_changed_at ON runners (changed_at);

CREATE TABLE sources (
    id TEXT PRIMARY KEY NOT NULL,
    environment_id TEXT NOT NULL REFERENCES environments (id),
    name TEXT NOT NULL,
    bridge TEXT NOT NULL,
    credentials_location TEXT NOT NULL,
    config_sealed TEXT,
    timeout_ms BIGINT,
    created_at TIMESTAMP NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    UNIQUE (environment_id, name)
);
CREATE INDEX sources_changed_at ON sources (changed_at);

CREATE TABLE runner_assignments (
    runner_id TEXT NOT NULL REFERENCES runners (id) ON DELETE CASCADE,
    source_id TEXT NOT NULL REFERENCES sources (id) ON DELETE CASCADE,
    created_at TIMESTAMP NOT NULL,
    PRIMARY KEY (runner_id, source_id)
);
CREATE INDEX runner_assignments_source_id ON runner_assignments (source_id);
CREATE INDEX runner_assignments_created_at ON runner_assignments (created_at);

CREATE TABLE lenses (
    id TEXT PRIMARY KEY NOT NULL,
    environment_id TEXT NOT NULL REFERENCES environments (id),
    name TEXT NOT NULL,
    source_id TEXT NOT NULL REFERENCES sources (id),
    target TEXT NOT NULL,
    primary_key JSON NOT NULL,
    fields JSON NOT NULL,
    grants JSON NOT NULL,
    relations JSON NOT NULL,
    on_runner_failure TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    UNIQUE (environment_id, name)
);
CREATE INDEX lenses_source_id ON lenses (source_id);
CREATE INDEX lenses_changed_at ON lenses (changed_at);

CREATE TABLE keys (
    id TEXT PRIMARY KEY NOT NULL,
    kind TEXT NOT NULL,
    organisation_id TEXT NOT NULL REFERENCES organisations (id) ON DELETE CASCADE,
    environment_id TEXT REFERENCES environments (id) ON DELETE CASCADE,
    runner_id TEXT REFERENCES runners (id) ON DELETE CASCADE,
    role TEXT,
    name TEXT,
    hash TEXT NOT NULL UNIQUE,
    display TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    expires_at TIMESTAMP,
    revoked_at TIMESTAMP,
    changed_at TIMESTAMP NOT NULL
);
CREATE INDEX keys_organisation_id ON keys (organisation_id, id);
CREATE INDEX keys_runner_id ON keys (runner_id);
CREATE INDEX keys_changed_at ON keys (changed_at);

CREATE TABLE gateways (
    id TEXT PRIMARY KEY NOT NULL,
    renewals BIGINT NOT NULL,
    internal_url TEXT,
    started_at TIMESTAMP NOT NULL,
    seen_at TIMESTAMP NOT NULL
);

CREATE TABLE runner_sessions (
    id TEXT PRIMARY KEY NOT NULL,
    runner_id TEXT NOT NULL REFERENCES runners (id) ON DELETE CASCADE,
    organisation_id TEXT NOT NULL,
    gateway_id TEXT NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
    instance_id TEXT,
    protocol INTEGER NOT NULL,
    version TEXT,
    hostname TEXT,
    capabilities JSON NOT NULL,
    labels JSON NOT NULL,
    max_jobs INTEGER NOT NULL,
    remote_addr TEXT,
    connected_at TIMESTAMP NOT NULL,
    last_seen_at TIMESTAMP NOT NULL,
    state TEXT NOT NULL,
    changed_at TIMESTAMP NOT NULL
);
CREATE INDEX runner_sessions_runner_id ON runner_sessions (runner_id);
CREATE INDEX runner_sessions_gateway_id ON runner_sessions (gateway_id);
CREATE INDEX runner_sessions_changed_at ON runner_sessions (changed_at);

-- What was deleted, for those who read only what has changed.
CREATE TABLE tombstones (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    deleted_at TIMESTAMP NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX tombstones_deleted_at ON tombstones (deleted_at);

-- History outlives what it is about, hence no foreign keys; and no index on anything that a
-- transition writes, so that PostgreSQL can update a row in place.
CREATE TABLE runner_jobs (
    id TEXT PRIMARY KEY NOT NULL,
    organisation_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    source_id TEXT NOT NULL,
    lens TEXT,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    detached BOOLEAN NOT NULL,
    retry BOOLEAN NOT NULL,
    runner_id TEXT,
    session_id TEXT,
    claimed_by TEXT,
    claimed_at TIMESTAMP,
    dispatched_at TIMESTAMP,
    created_at TIMESTAMP NOT NULL,
    deadline_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP,
    error_code TEXT,
    error_message TEXT,
    row_count BIGINT,
    duration_ms BIGINT,
    key_id TEXT,
    request JSON,
    routing JSON,
    idempotency_key TEXT,
    request_hash TEXT
);
CREATE INDEX runner_jobs_environment_id ON runner_jobs (environment_id, id);
CREATE INDEX runner_jobs_unfinished ON runner_jobs (deadline_at) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX runner_jobs_idempotency_key ON runner_jobs (environment_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- What detached jobs answered, sealed. Gone long before the job is.
CREATE TABLE job_results (
    job_id TEXT PRIMARY KEY NOT NULL,
    organisation_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    content_type TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    expires_at TIMESTAMP NOT NULL
);
CREATE INDEX job_results_expires_at ON job_results (expires_at);
