//! `semilayer jobs …`: what ran where, how long, and why it failed.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::output::{ago, text};
use super::{CliError, Connection, Session};

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List jobs, the latest first
    List(List),
    /// Show one job and how it was routed
    Get {
        /// Its id
        job: String,
    },
    /// Print what a job answered that was started with `semilayer query --detach`
    Result {
        /// Its id
        job: String,
    },
    /// Cancel a job, down to its database
    Cancel {
        /// Its id
        job: String,
    },
}

/// Which jobs.
#[derive(Debug, Args)]
pub struct List {
    /// `pending`, `claimed`, `dispatched`, `completed`, `failed`, `cancelled` or `expired`
    #[arg(long)]
    state: Option<String>,
    /// Of one source, by name or id
    #[arg(long)]
    source: Option<String>,
    /// Of one runner, by name or id
    #[arg(long)]
    runner: Option<String>,
    /// Accepted at this time or later, e.g. `2026-01-31T08:00:00Z`
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// How many
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

/// Carries out one verb.
pub(super) async fn run(connection: Connection, verb: Verb) -> Result<(), CliError> {
    let session = Session::new(connection)?;
    match verb {
        Verb::List(list) => self::list(&session, list).await,
        Verb::Get { job } => session.output.value(
            &session
                .client
                .get(&["v1", "jobs", &job], &session.in_environment())
                .await?,
        ),
        Verb::Result { job } => {
            let path = ["v1", "jobs", &job, "result"];
            let request = session.client.request(Method::GET, &path);
            super::stream::print(&session, request.query(&session.in_environment())).await
        }
        Verb::Cancel { job } => {
            let path = ["v1", "jobs", &job, "cancel"];
            let cancelled = session
                .client
                .post(&path, &session.in_environment(), &json!({}))
                .await?;
            session
                .output
                .done(&format!("job {job} is being cancelled"), &cancelled)
        }
    }
}

async fn list(session: &Session, list: List) -> Result<(), CliError> {
    let mut query = session.in_environment();
    let filters = [
        ("state", list.state),
        ("source", list.source),
        ("runner", list.runner),
        ("since", list.since),
    ];
    query.extend(
        filters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let jobs = session
        .client
        .list(&["v1", "jobs"], &query, list.limit)
        .await?;
    session.output.list(
        jobs,
        &[
            ("ID", |job| text(job, "id")),
            ("STATE", |job| text(job, "state")),
            ("KIND", |job| text(job, "kind")),
            ("LENS", |job| text(job, "lens")),
            ("SOURCE", |job| text(&job["source"], "name")),
            ("RUNNER", |job| text(&job["runner"], "name")),
            ("ROWS", |job| text(job, "rows")),
            ("MS", |job| text(job, "durationMs")),
            ("ERROR", |job| text(&job["error"], "code")),
            ("CREATED", |job| ago(job, "createdAt")),
        ],
        "no such jobs",
    )
}
