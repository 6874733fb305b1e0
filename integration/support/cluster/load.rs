//! Callers: they ask for rows that nobody else asks for at that time, and check every byte of the answer.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::rest::Api;
use super::{ITEMS, title};

/// After this long without an answer a caller was forgotten. Deadlines are far below.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(100);

/// Every error that a caller may see, as documented.
const DOCUMENTED: &[(u16, &str)] = &[
    (502, "runner_failed"),
    (503, "no_runners_online"),
    (503, "runners_busy"),
    (503, "store_unavailable"),
    (503, "draining"),
    (504, "QUERY_TIMEOUT"),
];

/// One question: these ids of a lens, in order.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) lens: &'static str,
    pub(crate) ids: Range<u64>,
    pub(crate) ndjson: bool,
}

impl Question {
    /// The body of the request. The bounds are what makes it this caller's question and nobody else's.
    pub(crate) fn body(&self) -> Value {
        json!({
            "where": {"id": {"$gte": self.ids.start, "$lt": self.ids.end}},
            "orderBy": {"field": "id"},
            "limit": self.ids.end - self.ids.start,
        })
    }
}

/// What became of a question.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// Exactly the rows that were asked for; the job, where the answer names it.
    Rows(Option<String>),
    /// An error that the documentation allows, or a connection that broke; a label for the table.
    Failed(String),
    /// What must not happen.
    Wrong(String),
}

#[derive(Deserialize)]
struct Row {
    id: u64,
    title: String,
}

#[derive(Deserialize)]
struct Page {
    rows: Vec<Row>,
    meta: Meta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    job_id: String,
    count: u64,
}

/// Asks, and checks the answer to the last row.
pub(crate) async fn ask(api: &Api, question: &Question) -> Outcome {
    let mut request = api
        .request(Method::POST, &format!("/v1/query/{}", question.lens))
        .timeout(FORGOTTEN)
        .json(&question.body());
    if question.ndjson {
        request = request.header("accept", "application/x-ndjson");
    }
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return broken(&error, "no answer"),
    };
    if !response.status().is_success() {
        return refusal(response).await;
    }
    match response.text().await {
        Err(error) => broken(&error, "answer cut off"),
        Ok(text) if question.ndjson => lines(&text, question),
        Ok(text) => page(&text, question),
    }
}

/// A connection that broke, unless it was the caller who had to give up.
fn broken(error: &reqwest::Error, label: &str) -> Outcome {
    if error.is_timeout() {
        Outcome::Wrong(format!("nothing for {FORGOTTEN:?}: {error:?}"))
    } else {
        Outcome::Failed(format!("connection: {label}"))
    }
}

/// What an answer with an error says.
pub(crate) async fn refusal(response: Response) -> Outcome {
    let status = response.status().as_u16();
    let from_gateway = response.headers().contains_key("x-request-id");
    let Ok(text) = response.text().await else {
        return Outcome::Failed("connection: error cut off".to_owned());
    };
    if !from_gateway {
        return match status {
            // The balancer's own: the gateway's connection broke, or there is no gateway.
            502 | 503 => Outcome::Failed(format!("balancer: {status}")),
            // A gateway that hung for a while and then found that the request had not arrived in time.
            408 if text.is_empty() => Outcome::Failed("408, not read".to_owned()),
            _ => Outcome::Wrong(format!("the balancer answers {status}: {text}")),
        };
    }
    let body: Value = match serde_json::from_str(&text) {
        Ok(body) => body,
        Err(error) => return Outcome::Wrong(format!("{status} with `{text}`: {error}")),
    };
    let code = body["code"].as_str().unwrap_or_default();
    documented(status, code, &body)
}

fn documented(status: u16, code: &str, body: &Value) -> Outcome {
    if !DOCUMENTED.contains(&(status, code)) {
        return Outcome::Wrong(format!("{status} {body}"));
    }
    if code != "runner_failed" {
        return Outcome::Failed(format!("{status} {code}"));
    }
    let delivery = body["delivery"].as_str().unwrap_or_default();
    let known = ["not_delivered", "unknown", "started", "partial"].contains(&delivery);
    if known && body["retryable"].is_boolean() {
        Outcome::Failed(format!("{status} {code}, {delivery}"))
    } else {
        Outcome::Wrong(format!("{status} without delivery or retryable: {body}"))
    }
}

/// A whole JSON document must be the whole answer.
fn page(text: &str, question: &Question) -> Outcome {
    let page: Page = match serde_json::from_str(text) {
        Ok(page) => page,
        Err(error) => {
            return Outcome::Wrong(format!(
                "a complete 200 that is no answer to {question:?}: {error}; it ends with `{}`",
                tail(text)
            ));
        }
    };
    if page.meta.count != page.rows.len() as u64 {
        return Outcome::Wrong(format!("meta says {} rows: {question:?}", page.meta.count));
    }
    compare(page.rows.iter(), question, Some(page.meta.job_id))
}

/// Lines may end with one that says what went wrong; without it, they must be all. An empty one means nothing, and
/// one may say where the next page begins.
fn lines(text: &str, question: &Question) -> Outcome {
    let last = text.lines().last().unwrap_or_default();
    if let Ok(Value::Object(fields)) = serde_json::from_str(last)
        && let Some(error) = fields.get("$error")
    {
        let code = error["code"].as_str().unwrap_or("without a code");
        return Outcome::Failed(format!("200 that ends with an error: {code}"));
    }
    let rows = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("{\"$next\":"));
    let rows: Result<Vec<Row>, _> = rows.map(serde_json::from_str).collect();
    match rows {
        Ok(rows) => compare(rows.iter(), question, None),
        Err(error) => Outcome::Wrong(format!("{question:?}: {error} in `{}`", tail(text))),
    }
}

fn compare<'r>(
    rows: impl Iterator<Item = &'r Row>,
    question: &Question,
    job: Option<String>,
) -> Outcome {
    let mut expected = question.ids.clone();
    for row in rows {
        let wanted = expected.next();
        if wanted != Some(row.id) || row.title != title(row.id) {
            return Outcome::Wrong(format!(
                "{question:?}: row {} where {wanted:?} was due",
                row.id
            ));
        }
    }
    match expected.next() {
        None => Outcome::Rows(job),
        Some(id) => Outcome::Wrong(format!(
            "{question:?}: a well-formed answer ends before {id}"
        )),
    }
}

fn tail(text: &str) -> String {
    let from = text.char_indices().rev().nth(200).map_or(0, |(at, _)| at);
    text[from..].to_owned()
}

/// Checks the rows of a finished detached job.
pub(crate) fn check_result(text: &str, question: &Question) -> Outcome {
    #[derive(Deserialize)]
    struct Stored {
        rows: Vec<Row>,
    }
    match serde_json::from_str::<Stored>(text) {
        Ok(stored) => compare(stored.rows.iter(), question, None),
        Err(error) => Outcome::Wrong(format!(
            "{question:?}: {error} in the result `{}`",
            tail(text)
        )),
    }
}

/// Hands out ids so that no two callers ask for the same ones at the same time.
#[derive(Default)]
pub(crate) struct Ids(AtomicU64);

impl Ids {
    pub(crate) fn take(&self, count: u64) -> Range<u64> {
        loop {
            let start = self.0.fetch_add(count, Ordering::Relaxed) % ITEMS + 1;
            if start + count <= ITEMS + 1 {
                return start..start + count;
            }
        }
    }
}

/// What happened how often.
#[derive(Default)]
pub(crate) struct Tally(Mutex<BTreeMap<String, u64>>);

impl Tally {
    pub(crate) fn add(&self, what: impl Into<String>) {
        *self.0.lock().unwrap().entry(what.into()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap().clone()
    }
}

/// Everything that callers learnt.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By kind of request, then outcome.
    pub(crate) outcomes: Tally,
    /// Jobs that somebody was told about, and what was promised.
    pub(crate) seen: Mutex<HashMap<String, Seen>>,
    /// What must not happen.
    pub(crate) wrong: Mutex<Vec<String>>,
    pub(crate) latencies: Mutex<Vec<Duration>>,
}

/// What a caller knows about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Its rows were received.
    Answered,
    /// It was accepted as a detached job.
    Accepted,
}

impl Ledger {
    /// Records what became of a question of that kind; whether it was answered.
    pub(crate) fn record(&self, kind: &str, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Rows(job) => {
                self.outcomes.add(format!("{kind}: answered"));
                if let Some(job) = job {
                    self.seen.lock().unwrap().insert(job, Seen::Answered);
                }
                true
            }
            Outcome::Failed(label) => {
                self.outcomes.add(format!("{kind}: {label}"));
                false
            }
            Outcome::Wrong(what) => {
                self.outcomes.add(format!("{kind}: WRONG"));
                self.wrong(format!("{kind}: {what}"));
                false
            }
        }
    }

    pub(crate) fn wrong(&self, mut what: String) {
        if let Some((end, _)) = what.char_indices().nth(1500) {
            what.truncate(end);
        }
        eprintln!("violation: {what}");
        self.wrong.lock().unwrap().push(what);
    }

    /// Asks, records, and remembers how long it took.
    pub(crate) async fn ask(&self, kind: &str, api: &Api, question: &Question) -> bool {
        let asked = Instant::now();
        let outcome = ask(api, question).await;
        let answered = self.record(kind, outcome);
        if answered {
            self.latencies.lock().unwrap().push(asked.elapsed());
        }
        answered
    }

    /// The latency below which this share of the answers came.
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        let mut all = self.latencies.lock().unwrap().clone();
        all.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index below the length"
        )]
        let at = ((all.len() as f64 * share) as usize).min(all.len().saturating_sub(1));
        all.get(at).copied().unwrap_or_default()
    }
}
