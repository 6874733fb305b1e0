//! Runner sessions: which gateway holds which socket. A row lives as long as its socket, or until its
//! gateway is declared lost.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::Value;

use super::batch::{Batch, Texts};
use super::error::Violation;
use super::schema::{runner_sessions, runners};
use super::tombstone::{TombstoneKind, bury};
use super::types::{SessionState, serialize_stamp};
use super::{Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::{GatewayId, InstanceId, OrganisationId, RunnerId, SessionId};

/// One connection of one runner.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable, Insertable)]
#[diesel(table_name = runner_sessions)]
pub struct Session {
    pub id: SessionId,
    pub runner_id: RunnerId,
    pub organisation_id: OrganisationId,
    /// Who holds the socket.
    pub gateway_id: GatewayId,
    /// Which process of the runner; protocol 1 does not say.
    pub instance_id: Option<InstanceId>,
    pub protocol: i32,
    pub version: Option<String>,
    pub hostname: Option<String>,
    pub capabilities: Value,
    pub labels: Value,
    pub max_jobs: i32,
    pub remote_addr: Option<String>,
    pub connected_at: UtcTime,
    pub last_seen_at: UtcTime,
    /// Whether it can be given jobs, as its gateway sees it.
    pub state: SessionState,
    /// When anything but the time that it was last heard of changed.
    pub changed_at: UtcTime,
}

/// What a gateway says of a session that it holds.
#[derive(Debug, Clone, Copy, Serialize)]
struct StateMark {
    session: SessionId,
    gateway: GatewayId,
    state: SessionState,
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
}

const MARK_SESSIONS: Texts = Texts {
    postgres: "UPDATE runner_sessions SET state = b.state, changed_at = b.now \
               FROM json_to_recordset($batch::json) AS b (session text, gateway text, state text, now timestamp) \
               WHERE runner_sessions.id = b.session AND runner_sessions.gateway_id = b.gateway \
               AND runner_sessions.state <> b.state",
    sqlite: "UPDATE runner_sessions SET state = b.state, changed_at = b.now FROM \
             (SELECT value ->> '$.session' AS session, value ->> '$.gateway' AS gateway, \
             value ->> '$.state' AS state, value ->> '$.now' AS now FROM json_each($batch)) AS b \
             WHERE runner_sessions.id = b.session AND runner_sessions.gateway_id = b.gateway \
             AND runner_sessions.state <> b.state",
};

/// When a session was last heard of.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Touch {
    pub session: SessionId,
    #[serde(serialize_with = "serialize_stamp")]
    pub seen_at: UtcTime,
}

const TOUCH_SESSIONS: Texts = Texts {
    postgres: "WITH seen AS (SELECT * FROM json_to_recordset($batch::json) AS t (session text, seen_at timestamp)), \
               own AS (SELECT s.id FROM runner_sessions s JOIN seen ON seen.session = s.id \
                       ORDER BY s.id FOR UPDATE OF s SKIP LOCKED) \
               UPDATE runner_sessions SET last_seen_at = seen.seen_at FROM seen, own \
               WHERE runner_sessions.id = seen.session AND runner_sessions.id = own.id \
               AND runner_sessions.last_seen_at < seen.seen_at",
    sqlite: "UPDATE runner_sessions SET last_seen_at = seen.seen_at FROM \
             (SELECT value ->> '$.session' AS session, value ->> '$.seen_at' AS seen_at FROM json_each($batch)) AS seen \
             WHERE runner_sessions.id = seen.session AND runner_sessions.last_seen_at < seen.seen_at",
};

/// Several sessions of a runner may be held by several gateways, hence the lock that is not waited for:
/// the next pass says the same again.
const TOUCH_RUNNERS: Texts = Texts {
    postgres: "WITH seen AS (SELECT s.runner_id, max(t.seen_at) AS seen_at \
                  FROM json_to_recordset($batch::json) AS t (session text, seen_at timestamp) \
                  JOIN runner_sessions s ON s.id = t.session GROUP BY s.runner_id), \
               own AS (SELECT r.id FROM runners r JOIN seen ON seen.runner_id = r.id \
                       ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED) \
               UPDATE runners SET last_seen_at = seen.seen_at FROM seen, own \
               WHERE runners.id = seen.runner_id AND runners.id = own.id \
               AND (runners.last_seen_at IS NULL OR runners.last_seen_at < seen.seen_at)",
    sqlite: "UPDATE runners SET last_seen_at = seen.seen_at FROM \
             (SELECT s.runner_id AS runner_id, max(value ->> '$.seen_at') AS seen_at FROM json_each($batch) \
              JOIN runner_sessions s ON s.id = value ->> '$.session' GROUP BY s.runner_id) AS seen \
             WHERE runners.id = seen.runner_id \
             AND (runners.last_seen_at IS NULL OR runners.last_seen_at < seen.seen_at)",
};

impl Store {
    /// Writes down a session that a gateway has accepted.
    ///
    /// A gateway that has been declared lost cannot: its row is gone, and the answer is a conflict.
    pub async fn session_open(&self, session: Session) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            let runner = runners::table
                .find(session.runner_id)
                .filter(runners::organisation_id.eq(session.organisation_id).and(runners::revoked_at.is_null()));
            // That it was seen for the first time is news; that it was seen again is not.
            diesel::update(runner.filter(runners::last_seen_at.is_null()))
                .set(runners::changed_at.eq(session.changed_at))
                .execute(connection)
                .await?;
            let seen = diesel::update(runner)
                .set((
                    runners::last_seen_at.eq(session.connected_at),
                    runners::last_version.eq(session.version.clone()),
                ))
                .execute(connection)
                .await?;
            super::organisation::found(seen)?;
            diesel::insert_into(runner_sessions::table)
                .values(&session)
                .execute(connection)
                .await
                .if_bound("this gateway has been declared lost")?;
            Ok(())
        })
    }

    /// Removes a session, if it is there and held by that gateway.
    pub async fn session_close(
        &self,
        gateway: GatewayId,
        id: SessionId,
        now: UtcTime,
    ) -> Result<bool, StoreError> {
        unit!(self, Change, connection => {
            let own = runner_sessions::table.find(id).filter(runner_sessions::gateway_id.eq(gateway));
            if diesel::delete(own).execute(connection).await? == 0 {
                return Ok(false);
            }
            bury!(connection, TombstoneKind::Session, id, now);
            Ok(true)
        })
    }

    /// Says which of a gateway's sessions can be given jobs; one that it does not hold is left alone.
    pub async fn session_mark(
        &self,
        gateway: GatewayId,
        states: Vec<(SessionId, SessionState)>,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        if states.is_empty() {
            return Ok(());
        }
        let mut marks: Vec<StateMark> = states
            .into_iter()
            .map(|(session, state)| StateMark {
                session,
                gateway,
                state,
                now,
            })
            .collect();
        marks.sort_by_key(|mark| mark.session);
        let mark: Batch = Batch::new(MARK_SESSIONS, &marks)?;
        unit!(self, Change, connection => {
            mark.execute(connection).await?;
            Ok(())
        })
    }

    /// Writes down when sessions, and through them runners, were last heard of; never moves it back.
    pub async fn session_touch(&self, touches: Vec<Touch>) -> Result<(), StoreError> {
        if touches.is_empty() {
            return Ok(());
        }
        let sessions: Batch = Batch::new(TOUCH_SESSIONS, &touches)?;
        let runners: Batch = Batch::new(TOUCH_RUNNERS, &touches)?;
        unit!(self, Transaction, connection => {
            sessions.execute(connection).await?;
            runners.execute(connection).await?;
            Ok(())
        })
    }

    /// The sessions of a runner, oldest first.
    pub async fn session_list(
        &self,
        organisation: OrganisationId,
        runner: RunnerId,
    ) -> Result<Vec<Session>, StoreError> {
        unit!(self, Read, connection => {
            Ok(runner_sessions::table
                .filter(runner_sessions::organisation_id.eq(organisation).and(runner_sessions::runner_id.eq(runner)))
                .select(Session::as_select())
                .order(runner_sessions::id)
                .load(connection)
                .await?)
        })
    }

    /// The sessions of the whole cluster, of all tenants.
    pub async fn session_list_all(&self) -> Result<Vec<Session>, StoreError> {
        unit!(self, Read, connection => {
            Ok(runner_sessions::table.select(Session::as_select()).order(runner_sessions::id).load(connection).await?)
        })
    }
}
