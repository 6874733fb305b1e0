//! `doctor`: everything that the runner needs, checked in the order in which it needs it, each with what
//! to do when it fails. It opens a session of its own, takes no jobs in it and leaves.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::time::timeout;

use super::config::{Config, ConfigError};
use super::dial::{DialError, Dialer};
use super::executor::Executor;
use super::probe::{self, Probe};
use super::session::{ConnectError, Session};
use super::worker::Worker;
use crate::clock::Clock;
use crate::protocol::{AssignedSource, CredentialsLocation};

/// How long the gateway may take to answer a plain request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A clock that is off by more than this spoils certificates and tokens.
const SKEW: Duration = Duration::from_secs(60);

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Failed,
    /// Could not be looked at.
    Skipped,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// What became of it.
    pub verdict: Verdict,
    /// What was found, and for a cross what to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Everything that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether there is no cross.
    pub ok: bool,
    /// In the order in which the runner needs them.
    pub checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, check: impl Into<String>, verdict: Verdict, detail: impl Into<String>) {
        self.checks.push(Check {
            check: check.into(),
            verdict,
            detail: detail.into(),
        });
        self.ok = self
            .checks
            .iter()
            .all(|check| check.verdict != Verdict::Failed);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check {
            check,
            verdict,
            detail,
        } in &self.checks
        {
            let mark = match verdict {
                Verdict::Ok => '✓',
                Verdict::Failed => '✗',
                Verdict::Skipped => '–',
            };
            match (verdict, detail.as_str()) {
                (_, "") => writeln!(f, "{mark} {check}")?,
                (Verdict::Failed, detail) => writeln!(f, "{mark} {check} — {detail}")?,
                (_, detail) => writeln!(f, "{mark} {check}: {detail}")?,
            }
        }
        Ok(())
    }
}

/// Checks everything.
pub async fn examine(
    config: Result<Config, ConfigError>,
    executor: Arc<dyn Executor>,
    clock: &Clock,
) -> Report {
    let mut report = Report::default();
    let prepared = config.and_then(|config| Ok((Dialer::new(&config)?, config)));
    let (dialer, config) = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            report.add("config loaded", Verdict::Failed, e.to_string());
            return report;
        }
    };
    report.add("config loaded", Verdict::Ok, "");
    let Some(date) = reachable(&mut report, &dialer, &config).await else {
        return report;
    };
    let upgraded = match dialer.open().await {
        Ok(stream) => dialer.upgrade(stream).await,
        Err(e) => Err(e),
    };
    let worker = Arc::new(Worker::new(config, executor));
    match upgraded {
        Err(DialError::TokenRefused(why)) => {
            report.add("token accepted", Verdict::Failed, why);
            clock_skew(&mut report, date, clock);
            report.add(
                "WebSocket upgrade",
                Verdict::Skipped,
                "needs an accepted token",
            );
        }
        Err(DialError::Retry { message, .. }) => {
            report.add(
                "token accepted",
                Verdict::Skipped,
                "needs the WebSocket upgrade",
            );
            clock_skew(&mut report, date, clock);
            report.add("WebSocket upgrade", Verdict::Failed, message);
        }
        Ok(socket) => {
            let session = Session::greet(socket, &worker).await;
            let refused = session
                .as_ref()
                .err()
                .filter(|e| matches!(e, ConnectError::Fatal(_)));
            match refused {
                Some(why) => report.add("token accepted", Verdict::Failed, why.to_string()),
                None => report.add("token accepted", Verdict::Ok, ""),
            }
            clock_skew(&mut report, date, clock);
            report.add("WebSocket upgrade", Verdict::Ok, "");
            session_and_sources(&mut report, session, &worker).await;
        }
    }
    report
}

/// Whether anything answers at the gateway's address; what it says the time is.
async fn reachable(
    report: &mut Report,
    dialer: &Dialer,
    config: &Config,
) -> Option<Option<DateTime<Utc>>> {
    let mut url = config.gateway.clone();
    url.set_path("/health");
    // Both are schemes of the web, between which changing always works.
    let _ = url.set_scheme(if config.uses_tls() { "https" } else { "http" });
    match timeout(ANSWER_TIMEOUT, get(dialer, url.path())).await {
        Ok(Ok((status, headers))) => {
            report.add(
                format!("reachable {url} → {}", status.as_u16()),
                Verdict::Ok,
                "",
            );
            let date = headers
                .get(header::DATE)
                .and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok());
            Some(date.map(|date| date.to_utc()))
        }
        Ok(Err(why)) => {
            report.add(format!("reachable {url}"), Verdict::Failed, why);
            None
        }
        Err(_) => {
            let why = "connected, but no answer to a plain HTTP request; is something else listening there?";
            report.add(format!("reachable {url}"), Verdict::Failed, why);
            None
        }
    }
}

async fn get(dialer: &Dialer, path: &str) -> Result<(StatusCode, HeaderMap), String> {
    let stream = dialer.open().await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, dialer.authority())
        .body(Empty::<Bytes>::new());
    let answer = sender
        .send_request(request.map_err(|e| e.to_string())?)
        .await;
    connection.abort();
    let (head, _) = answer
        .map_err(|e| format!("no HTTP answer: {e}"))?
        .into_parts();
    Ok((head.status, head.headers))
}

fn clock_skew(report: &mut Report, date: Option<DateTime<Utc>>, clock: &Clock) {
    let Some(date) = date else {
        report.add(
            "clock skew",
            Verdict::Skipped,
            "the gateway's answer tells no time",
        );
        return;
    };
    let skew = clock.now().get().signed_duration_since(date);
    let seconds = skew.num_seconds();
    if skew.abs().to_std().is_ok_and(|skew| skew <= SKEW) {
        report.add("clock skew", Verdict::Ok, format!("{seconds} s"));
    } else {
        let why = format!(
            "this machine's clock is {seconds} s away from the gateway's; synchronise it (NTP)"
        );
        report.add("clock skew", Verdict::Failed, why);
    }
}

async fn session_and_sources(
    report: &mut Report,
    session: Result<Session, ConnectError>,
    worker: &Arc<Worker>,
) {
    let session = match session {
        Ok(session) => session,
        Err(ConnectError::Fatal(_)) => return,
        Err(e) => {
            report.add("session", Verdict::Failed, e.to_string());
            return;
        }
    };
    report.add(
        "session",
        Verdict::Ok,
        format!("protocol {}", session.version()),
    );
    let assigned = session.assigned();
    session.leave(Arc::clone(worker)).await;
    if assigned.is_empty() {
        let why = "none are assigned to this runner: `semilayer runners assign <runner> <source>`";
        report.add("sources", Verdict::Skipped, why);
    }
    let local: Vec<_> = assigned
        .iter()
        .filter(|source| is_local(source))
        .map(|source| source.name.clone())
        .collect();
    for source in assigned.iter() {
        let check = format!("source {}", source.name);
        if !is_local(source) {
            let why = "managed: its credentials come with each job, so only the gateway can test it \
                       (`semilayer sources test`)";
            report.add(check, Verdict::Skipped, why);
            continue;
        }
        let probe = Probe {
            name: &source.name,
            bridge: &source.bridge,
            local: &local,
        };
        match probe::test(probe, &worker.credentials(), &worker.executor()).await {
            Ok(told) => report.add(check, Verdict::Ok, told),
            Err(why) => report.add(check, Verdict::Failed, why),
        }
    }
}

fn is_local(source: &AssignedSource) -> bool {
    source.credentials_location == CredentialsLocation::RunnerLocal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_mark_per_line_and_one_cross_makes_it_fail() {
        let mut report = Report::default();
        report.add("config loaded", Verdict::Ok, "");
        report.add("clock skew", Verdict::Ok, "0 s");
        report.add("source a", Verdict::Skipped, "managed");
        assert!(report.ok);
        report.add("source b", Verdict::Failed, "connection refused");
        assert!(!report.ok);
        assert_eq!(
            report.to_string(),
            "✓ config loaded\n✓ clock skew: 0 s\n– source a: managed\n✗ source b — connection refused\n"
        );
    }

    #[tokio::test]
    async fn a_clock_that_is_off_is_a_cross() {
        let gateway: DateTime<Utc> = "2026-11-21T12:00:00Z".parse().unwrap();
        for (ours, ok) in [
            ("2026-11-21T12:00:59Z", true),
            ("2026-11-21T12:01:02Z", false),
            ("2026-11-21T11:00:00Z", false),
        ] {
            let mut report = Report::default();
            clock_skew(
                &mut report,
                Some(gateway),
                &Clock::following_tokio(ours.parse().unwrap()),
            );
            assert_eq!(report.ok, ok, "{ours}");
        }
    }
}
