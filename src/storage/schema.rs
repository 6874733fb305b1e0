//! The tables as diesel sees them; `migrations/` is what makes them.

diesel::table! {
    organisations (id) {
        id -> Text,
        slug -> Text,
        name -> Text,
        created_at -> Timestamp,
        changed_at -> Timestamp,
    }
}

diesel::table! {
    environments (id) {
        id -> Text,
        organisation_id -> Text,
        slug -> Text,
        created_at -> Timestamp,
        changed_at -> Timestamp,
    }
}

diesel::table! {
    runner_groups (id) {
        id -> Text,
        organisation_id -> Text,
        name -> Text,
        dispatch -> Text,
        created_at -> Timestamp,
        changed_at -> Timestamp,
    }
}

diesel::table! {
    runners (id) {
        id -> Text,
        organisation_id -> Text,
        name -> Text,
        deployment -> Text,
        group_id -> Nullable<Text>,
        tainted_at -> Nullable<Timestamp>,
        drained_at -> Nullable<Timestamp>,
        revoked_at -> Nullable<Timestamp>,
        created_at -> Timestamp,
        changed_at -> Timestamp,
        last_seen_at -> Nullable<Timestamp>,
        last_version -> Nullable<Text>,
    }
}

diesel::table! {
    sources (id) {
        id -> Text,
        environment_id -> Text,
        name -> Text,
        bridge -> Text,
        credentials_location -> Text,
        config_sealed -> Nullable<Text>,
        timeout_ms -> Nullable<BigInt>,
        created_at -> Timestamp,
        changed_at -> Timestamp,
    }
}

diesel::table! {
    runner_assignments (runner_id, source_id) {
        runner_id -> Text,
        source_id -> Text,
        created_at -> Timestamp,
    }
}

diesel::table! {
    lenses (id) {
        id -> Text,
        environment_id -> Text,
        name -> Text,
        source_id -> Text,
        target -> Text,
        primary_key -> Json,
        fields -> Json,
        grants -> Json,
        relations -> Json,
        on_runner_failure -> Text,
        created_at -> Timestamp,
        changed_at -> Timestamp,
    }
}

diesel::table! {
    keys (id) {
        id -> Text,
        kind -> Text,
        organisation_id -> Text,
        environment_id -> Nullable<Text>,
        runner_id -> Nullable<Text>,
        role -> Nullable<Text>,
        name -> Nullable<Text>,
        hash -> Text,
        display -> Text,
        created_at -> Timestamp,
        expires_at -> Nullable<Timestamp>,
        revoked_at -> Nullable<Timestamp>,
        changed_at -> Timestamp,
    }
}

diesel::table! {
    gateways (id) {
        id -> Text,
        renewals -> BigInt,
        internal_url -> Nullable<Text>,
        started_at -> Timestamp,
        seen_at -> Timestamp,
    }
}

diesel::table! {
    runner_sessions (id) {
        id -> Text,
        runner_id -> Text,
        organisation_id -> Text,
        gateway_id -> Text,
        instance_id -> Nullable<Text>,
        protocol -> Integer,
        version -> Nullable<Text>,
        hostname -> Nullable<Text>,
        capabilities -> Json,
        labels -> Json,
        max_jobs -> Integer,
        remote_addr -> Nullable<Text>,
        connected_at -> Timestamp,
        last_seen_at -> Timestamp,
        state -> Text,
        changed_at -> Timestamp,
    }
}

diesel::table! {
    tombstones (kind, id) {
        kind -> Text,
        id -> Text,
        deleted_at -> Timestamp,
    }
}

diesel::table! {
    runner_jobs (id) {
        id -> Text,
        organisation_id -> Text,
        environment_id -> Text,
        source_id -> Text,
        lens -> Nullable<Text>,
        kind -> Text,
        status -> Text,
        attempt -> Integer,
        detached -> Bool,
        retry -> Bool,
        runner_id -> Nullable<Text>,
        session_id -> Nullable<Text>,
        claimed_by -> Nullable<Text>,
        claimed_at -> Nullable<Timestamp>,
        dispatched_at -> Nullable<Timestamp>,
        created_at -> Timestamp,
        deadline_at -> Timestamp,
        finished_at -> Nullable<Timestamp>,
        error_code -> Nullable<Text>,
        error_message -> Nullable<Text>,
        row_count -> Nullable<BigInt>,
        duration_ms -> Nullable<BigInt>,
        key_id -> Nullable<Text>,
        request -> Nullable<Json>,
        routing -> Nullable<Json>,
        idempotency_key -> Nullable<Text>,
        request_hash -> Nullable<Text>,
    }
}

diesel::table! {
    job_results (job_id) {
        job_id -> Text,
        organisation_id -> Text,
        environment_id -> Text,
        sealed -> Binary,
        content_type -> Text,
        created_at -> Timestamp,
        expires_at -> Timestamp,
    }
}

diesel::table! {
    settings (name) {
        name -> Text,
        value -> Text,
    }
}

diesel::joinable!(environments -> organisations (organisation_id));
diesel::joinable!(runner_groups -> organisations (organisation_id));
diesel::joinable!(runners -> organisations (organisation_id));
diesel::joinable!(runners -> runner_groups (group_id));
diesel::joinable!(sources -> environments (environment_id));
diesel::joinable!(runner_assignments -> runners (runner_id));
diesel::joinable!(runner_assignments -> sources (source_id));
diesel::joinable!(lenses -> environments (environment_id));
diesel::joinable!(lenses -> sources (source_id));
diesel::joinable!(keys -> organisations (organisation_id));
diesel::joinable!(keys -> environments (environment_id));
diesel::joinable!(keys -> runners (runner_id));
diesel::joinable!(runner_sessions -> runners (runner_id));
diesel::joinable!(runner_sessions -> gateways (gateway_id));

diesel::allow_tables_to_appear_in_same_query!(
    environments,
    gateways,
    job_results,
    keys,
    lenses,
    organisations,
    runner_assignments,
    runner_groups,
    runner_jobs,
    runner_sessions,
    runners,
    settings,
    sources,
    tombstones,
);
