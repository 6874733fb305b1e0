//! Taking in a detached job: once, however often its caller says the same.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::batch::Batch;
use super::super::schema::runner_jobs;
use super::super::{Store, StoreError, unit};
use super::steps::INSERT_PENDING;
use super::{Job, NewJob};

/// By what a caller's repetition of a request is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// What the caller calls it; unique in its environment.
    pub key: String,
    /// What it asks for.
    pub request_hash: String,
}

/// A detached job to take in.
#[derive(Debug, Clone)]
pub struct NewSubmission {
    /// With its request, which whoever takes it will need.
    pub job: NewJob,
    /// None: every request is another one.
    pub idempotency: Option<Idempotency>,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// It is recorded, to be taken by whoever has room.
    New,
    /// It had been before; this is how far it has come. After an uncertain commit it may be the same id.
    Known(Box<Job>),
    /// Its key was used for another request.
    OtherRequest,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    job: &'a NewJob,
    idempotency_key: Option<&'a str>,
    request_hash: Option<&'a str>,
}

impl Store {
    /// Records a detached job, unless it is recorded already.
    pub async fn job_submit(&self, new: NewSubmission) -> Result<Submitted, StoreError> {
        let NewSubmission { job, idempotency } = new;
        if !job.detached || job.request.is_none() {
            return Err(StoreError::Internal(
                "only a detached job with its request is submitted".into(),
            ));
        }
        let row = Row {
            job: &job,
            idempotency_key: idempotency.as_ref().map(|known| known.key.as_str()),
            request_hash: idempotency
                .as_ref()
                .map(|known| known.request_hash.as_str()),
        };
        let insert: Batch = Batch::new(INSERT_PENDING, &[row])?;
        unit!(self, Transaction, connection => {
            // Whoever comes second waits here for the first, and then has nothing to insert.
            if insert.execute(connection).await? == 1 {
                return Ok(Submitted::New);
            }
            let of_environment = runner_jobs::table.filter(runner_jobs::environment_id.eq(job.environment_id));
            let known = match &idempotency {
                Some(Idempotency { key, .. }) => {
                    let same = of_environment.filter(runner_jobs::idempotency_key.eq(key));
                    same.select(Job::as_select()).first(connection).await.optional()?
                }
                None => {
                    let same = of_environment.filter(runner_jobs::id.eq(job.id));
                    same.select(Job::as_select()).first(connection).await.optional()?
                }
            };
            let hash = idempotency.map(|known| known.request_hash);
            match known {
                Some(known) if known.request_hash == hash => Ok(Submitted::Known(Box::new(known))),
                Some(_) => Ok(Submitted::OtherRequest),
                // It was pruned in between.
                None => Err(StoreError::unavailable("the job of that key has just gone")),
            }
        })
    }
}
