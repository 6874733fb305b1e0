//! What gateways do for each other, as the web layer asks for it: jobs from another one, and cancelling what
//! another one executes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::CancelElsewhere;
use super::dispatcher::{Dispatch, Return};
use super::peer::wire::ExecuteRequest;
use super::{ControlPlane, Job, JobSpec, ReplyStream};
use crate::ids::{GatewayId, JobId};

impl ControlPlane {
    /// Has a job executed that another gateway has accepted, by the session that it has chosen; or gives it back
    /// before anything is claimed.
    pub fn execute_for_peer(&self, request: ExecuteRequest) -> ReplyStream {
        let ExecuteRequest {
            job_id: id,
            attempt,
            session_id,
            spec,
            created_at,
            deadline_at,
            remaining_ms,
        } = request;
        let (reply, stream) = self.reply_channel(id);
        let remaining = Duration::from_millis(remaining_ms).min(self.timing.max_deadline);
        let belongs = self.belongs(&spec);
        let job = Arc::new(Job {
            id,
            spec,
            only_session: Some(session_id),
            detached: None,
            created_at,
            deadline: Instant::now() + remaining,
            deadline_at,
            reply,
        });
        let dispatch = Dispatch {
            job: job.clone(),
            attempt,
        };
        let declined = if !belongs {
            Some(Return::Unassigned)
        } else if self.dispatcher.try_send(dispatch).is_err() {
            Some(Return::Busy)
        } else {
            None
        };
        if let Some(why) = declined {
            job.hand_back(why, attempt);
        }
        stream
    }

    /// Whether a job's source is the tenant's that it names, as far as is known here.
    fn belongs(&self, spec: &JobSpec) -> bool {
        let catalogue = self.catalogue.current();
        let source = catalogue.source(spec.source_id);
        let environment = catalogue.environment(spec.environment_id);
        source.is_some_and(|source| source.environment_id == spec.environment_id)
            && environment.is_some_and(|found| found.organisation_id == spec.organisation_id)
    }

    /// Ends a job early that another gateway executes; answers whether it was under way there.
    pub async fn cancel_elsewhere(&self, gateway_id: GatewayId, job_id: JobId) -> bool {
        let cancel = CancelElsewhere { gateway_id, job_id };
        self.cluster.send(cancel).await.unwrap_or(false)
    }
}
