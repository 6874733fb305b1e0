//! Who may look at a job: an organisation's admin at all of them, and a caller at those that its key asked.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};

use super::Front;
use super::auth::{Admin, Caller, Holder};
use super::error::{ApiError, ApiResult};
use super::job_error::Audience;
use super::lookup::Missing as _;
use crate::ids::{JobId, OrganisationId};
use crate::storage::{self, KeyKind};

/// Who asks about a job.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    /// Whoever manages the organisation.
    Admin(Admin),
    /// Whoever asked a query with this key.
    Caller(Caller),
}

impl Reader {
    /// The organisation whose jobs these are.
    pub(super) fn organisation_id(&self) -> OrganisationId {
        match self {
            Self::Admin(admin) => admin.organisation_id,
            Self::Caller(caller) => caller.organisation_id,
        }
    }

    /// How much of a database's words is for them.
    pub(super) fn audience(&self) -> Audience {
        match self {
            Self::Admin(_) => Audience::Trusted,
            Self::Caller(caller) => Audience::of(caller.kind),
        }
    }

    fn may_see(&self, job: &storage::Job) -> bool {
        match self {
            Self::Admin(_) => true,
            Self::Caller(caller) => job.key_id == Some(caller.key_id),
        }
    }

    /// The job of that id, if it is theirs to see.
    ///
    /// # Errors
    ///
    /// `not_found`, whether there is none or it is somebody else's.
    pub(super) async fn job(&self, front: &Front, reference: &str) -> ApiResult<storage::Job> {
        let unknown = || ApiError::not_found("job", reference);
        let id: JobId = reference.parse().ok().ok_or_else(unknown)?;
        let found = front.gateway.store.job_get(self.organisation_id(), id);
        let job = found.await.missing("job", reference)?;
        if self.may_see(&job) {
            Ok(job)
        } else {
            Err(unknown())
        }
    }
}

impl FromRequest for Reader {
    type Error = ApiError;
    type Future = Ready<ApiResult<Self>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let kind = Holder::from_request(request, payload).into_inner();
        ready(kind.and_then(|Holder(key)| {
            match key.kind {
                KeyKind::Secret | KeyKind::Publishable => Caller::from_request(request, payload)
                    .into_inner()
                    .map(Self::Caller),
                KeyKind::Admin | KeyKind::Runner => Admin::from_request(request, payload)
                    .into_inner()
                    .map(Self::Admin),
            }
        }))
    }
}
