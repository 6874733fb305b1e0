//! The load: callers behind the balancer with all kinds of questions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use uuid::Uuid;

use super::Profile;
use super::dice::Dice;
use crate::support::cluster::Cluster;
use crate::support::cluster::load::{
    FORGOTTEN, Ids, Ledger, Outcome, Question, Seen, check_result, refusal,
};
use crate::support::rest::Api;

/// Rows of more than a mebibyte, after which an answer has begun to stream.
const LARGE: u64 = 14_000;

/// Callers that ask until they are told to finish.
pub(crate) struct Callers {
    pub(crate) ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    pub(crate) fn start(cluster: &Cluster, profile: &Profile) -> Self {
        let ledger = Arc::new(Ledger::default());
        let stop = Arc::new(AtomicBool::new(false));
        let ids = Arc::new(Ids::default());
        let mut dice = Dice::new(profile.seed ^ 0xca11_e125);
        let tasks = (0..profile.callers)
            .map(|_| {
                let mut caller = Caller {
                    api: cluster.caller(),
                    ledger: Arc::clone(&ledger),
                    ids: Arc::clone(&ids),
                    dice: dice.split(),
                };
                let (stop, rest) = (Arc::clone(&stop), profile.rest);
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        caller.ask_something().await;
                        sleep(caller.dice.duration(Duration::ZERO, rest)).await;
                    }
                })
            })
            .collect();
        Self {
            ledger,
            stop,
            tasks,
        }
    }

    /// Lets everybody finish what they do, and answers with what they learnt.
    pub(crate) async fn finish(self) -> Arc<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let done = tokio::time::timeout(FORGOTTEN * 3, task).await;
            done.expect("callers get their answers").unwrap();
        }
        self.ledger
    }
}

struct Caller {
    api: Api,
    ledger: Arc<Ledger>,
    ids: Arc<Ids>,
    dice: Dice,
}

impl Caller {
    fn question(&mut self, lens: &'static str, most: u64, ndjson: bool) -> Question {
        Question {
            lens,
            ids: self.ids.take(1 + self.dice.below(most)),
            ndjson,
        }
    }

    async fn ask_something(&mut self) {
        let (kind, question) = match self.dice.below(100) {
            0..45 => ("small", self.question("items", 20, false)),
            45..57 => ("small, retry", self.question("items_retry", 20, false)),
            57..67 => ("lines", self.question("items", 200, true)),
            67..75 => ("slow", self.question("slow", 6, false)),
            75..83 => ("slow, retry", self.question("slow_retry", 6, false)),
            83..87 => {
                let (ids, ndjson) = (self.ids.take(LARGE), self.dice.below(2) == 0);
                let lens = "items";
                ("large", Question { lens, ids, ndjson })
            }
            87..91 => return self.hang_up().await,
            _ => return self.detached().await,
        };
        self.ledger.ask(kind, &self.api, &question).await;
    }

    /// Asks for what takes a while and does not wait for it.
    async fn hang_up(&mut self) {
        let question = self.question("slow", 8, false);
        let patience = self
            .dice
            .duration(Duration::from_millis(5), Duration::from_millis(1500));
        let asking = self.ledger.ask("hang-up", &self.api, &question);
        if tokio::time::timeout(patience, asking).await.is_err() {
            self.ledger.outcomes.add("hang-up: gone before the answer");
        }
    }

    /// Leaves a question, and comes back for the rows until they are there or the job has failed.
    async fn detached(&mut self) {
        let lens = if self.dice.below(2) == 0 {
            "items"
        } else {
            "slow"
        };
        let question = self.question(lens, 5, false);
        let key = Uuid::new_v4().to_string();
        // Asking again under the same key is safe, and the only way to learn what became of a lost answer.
        let until = Instant::now() + FORGOTTEN;
        let job = loop {
            match self.submit(&question, &key).await {
                Ok(job) => break job,
                Err(outcome) => {
                    if matches!(outcome, Outcome::Wrong(_)) || Instant::now() > until {
                        self.ledger.record("detached", outcome);
                        return;
                    }
                    self.ledger.record("detached, asked again", outcome);
                    sleep(Duration::from_millis(200)).await;
                }
            }
        };
        self.ledger
            .seen
            .lock()
            .unwrap()
            .insert(job.clone(), Seen::Accepted);
        let outcome = self.collect(&job, &question, until).await;
        self.ledger.record("detached", outcome);
    }

    async fn submit(&self, question: &Question, key: &str) -> Result<String, Outcome> {
        let path = format!("/v1/query/{}", question.lens);
        let request = self.api.request(Method::POST, &path);
        let request = request
            .timeout(FORGOTTEN)
            .header("prefer", "respond-async")
            .header("idempotency-key", key)
            .json(&question.body());
        let response = request
            .send()
            .await
            .map_err(|_broken| Outcome::Failed("connection: no answer".to_owned()))?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let status = response.status().as_u16();
        let text = response
            .text()
            .await
            .map_err(|_broken| Outcome::Failed("connection: answer cut off".to_owned()))?;
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        match (status, body["jobId"].as_str()) {
            (202, Some(job)) => Ok(job.to_owned()),
            _ => Err(Outcome::Wrong(format!("{status} to respond-async: {text}"))),
        }
    }

    async fn collect(&self, job: &str, question: &Question, until: Instant) -> Outcome {
        loop {
            if let Ok(found) = self.get(&format!("/v1/jobs/{job}")).await {
                match found["state"].as_str().unwrap_or_default() {
                    "completed" => {
                        if let Some(outcome) = self.result(job, question).await {
                            return outcome;
                        }
                    }
                    state @ ("failed" | "cancelled" | "expired") => {
                        let code = found["error"]["code"].as_str().unwrap_or("without a code");
                        return Outcome::Failed(format!("{state}, {code}"));
                    }
                    _ => {}
                }
            }
            if Instant::now() > until + FORGOTTEN {
                return Outcome::Wrong(format!("detached job {job} has no end"));
            }
            sleep(Duration::from_millis(150)).await;
        }
    }

    /// `None`: nobody could say at this moment.
    async fn result(&self, job: &str, question: &Question) -> Option<Outcome> {
        let request = self
            .api
            .request(Method::GET, &format!("/v1/jobs/{job}/result"));
        let response = request.timeout(FORGOTTEN).send().await.ok()?;
        match response.status().as_u16() {
            200 => Some(check_result(&response.text().await.ok()?, question)),
            502 | 503 => None,
            status => Some(Outcome::Wrong(format!(
                "the result of completed job {job} is {status}: {}",
                response.text().await.unwrap_or_default()
            ))),
        }
    }

    async fn get(&self, path: &str) -> Result<Value, reqwest::Error> {
        let request = self.api.request(Method::GET, path).timeout(FORGOTTEN);
        request.send().await?.error_for_status()?.json().await
    }
}
