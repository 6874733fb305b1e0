//! What is done to the system, at random moments and several things at a time.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::sleep;

use super::Profile;
use super::dice::Dice;
use super::revocations::Revoked;
use crate::support::cluster::Cluster;
use crate::support::cluster::load::{Ledger, Tally};
use crate::support::rest::{Api, text};

/// How many things happen at the same time at most.
const AT_ONCE: usize = 4;
/// How long a gateway or a server may take to come back.
const COMES_BACK: Duration = Duration::from_secs(60);
/// By when a gateway that could not reach its store listens for announcements again.
const HEARS_AGAIN: Duration = Duration::from_secs(6);

/// One kind of event.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    KillGateway,
    StopGateway,
    DrainGateway,
    KillRunner,
    StopRunner,
    DrainRunner,
    CutRunner,
    StallRunner,
    CrashStore,
    RestartStore,
    TerminateBackends,
    CutStoreOfGateway,
    CutAfterCommit,
    LoseNotifications,
    RevokeRunner,
    RevokeKey,
    RotateToken,
    DrainByAdmin,
}

/// How often each happens, relative to the others.
const EVENTS: &[(Event, usize)] = &[
    (Event::KillGateway, 5),
    (Event::StopGateway, 2),
    (Event::DrainGateway, 2),
    (Event::KillRunner, 5),
    (Event::StopRunner, 2),
    (Event::DrainRunner, 2),
    (Event::CutRunner, 5),
    (Event::StallRunner, 2),
    (Event::CrashStore, 1),
    (Event::RestartStore, 1),
    (Event::TerminateBackends, 3),
    (Event::CutStoreOfGateway, 3),
    (Event::CutAfterCommit, 4),
    (Event::LoseNotifications, 2),
    (Event::RevokeRunner, 3),
    (Event::RevokeKey, 2),
    (Event::RotateToken, 2),
    (Event::DrainByAdmin, 2),
];

/// The tormentor.
pub(crate) struct Chaos {
    pub(super) cluster: Arc<Cluster>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) profile: Profile,
    /// What was done how often.
    pub(crate) done: Tally,
    happened: Tally,
    /// One gateway and one runner are left alone.
    gateways: Semaphore,
    runners: Semaphore,
    /// Changes whose arrival is timed, and what would delay it.
    pub(super) admin: Mutex<()>,
    pub(super) names: AtomicU64,
}

impl Chaos {
    pub(crate) fn new(cluster: &Arc<Cluster>, ledger: &Arc<Ledger>, profile: &Profile) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            ledger: Arc::clone(ledger),
            profile: profile.clone(),
            done: Tally::default(),
            happened: Tally::default(),
            gateways: Semaphore::new(cluster.gateways.len() - 1),
            runners: Semaphore::new(cluster.runners.len() - 1),
            admin: Mutex::new(()),
            names: AtomicU64::new(0),
        }
    }

    /// Goes on for as long as the profile says, and leaves everything running.
    pub(crate) async fn run(&self, mut dice: Dice) {
        let until = Instant::now() + self.profile.length;
        let mut under_way = FuturesUnordered::new();
        let mut cards = Vec::new();
        while Instant::now() < until {
            let pause = sleep(dice.duration(Duration::from_millis(100), self.profile.pause));
            let mut pause = std::pin::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(()) = under_way.next() => {}
                }
            }
            while under_way.len() >= AT_ONCE {
                under_way.next().await;
            }
            if cards.is_empty() {
                cards = deck(&mut dice);
            }
            let Some(event) = cards.pop() else {
                continue;
            };
            under_way.push(self.happen(event, dice.split()));
        }
        while let Some(()) = under_way.next().await {}
    }
}

impl Chaos {
    /// What a run was too short for, or what no longer works in this test.
    pub(crate) fn never_happened(&self) -> Vec<Event> {
        let happened = self.happened.counts();
        let events = EVENTS.iter().map(|(event, _)| *event);
        events
            .filter(|event| !happened.contains_key(&format!("{event:?}")))
            .collect()
    }
}

/// Every event as often as its weight says, shuffled like cards, so that the rare ones come up, too.
fn deck(dice: &mut Dice) -> Vec<Event> {
    let mut cards = Vec::new();
    for (event, times) in EVENTS {
        cards.extend(std::iter::repeat_n(*event, *times));
    }
    for last in (1..cards.len()).rev() {
        cards.swap(last, dice.index(last + 1));
    }
    cards
}

impl Chaos {
    async fn happen(&self, event: Event, mut dice: Dice) {
        let done = match event {
            Event::KillGateway | Event::StopGateway | Event::DrainGateway => {
                self.gateway(event, &mut dice).await
            }
            Event::KillRunner | Event::StopRunner | Event::DrainRunner | Event::RotateToken => {
                self.runner(event, &mut dice).await
            }
            Event::CutRunner | Event::StallRunner => self.line(event, &mut dice).await,
            Event::CrashStore => self.store("immediate").await,
            Event::RestartStore => self.store("fast").await,
            Event::TerminateBackends => self.terminate_backends().await,
            Event::CutStoreOfGateway | Event::CutAfterCommit => self.wire(event, &mut dice).await,
            Event::LoseNotifications => self.lose_notifications(&mut dice).await,
            Event::RevokeRunner => self.revoke(Revoked::Runner, &mut dice).await,
            Event::RevokeKey => self.revoke(Revoked::Key, &mut dice).await,
            Event::DrainByAdmin => self.drain_by_admin(&mut dice).await,
        };
        if let Some(what) = done {
            self.done.add(what);
            self.happened.add(format!("{event:?}"));
        }
    }

    async fn gateway(&self, event: Event, dice: &mut Dice) -> Option<&'static str> {
        let _one_is_left = self.gateways.try_acquire().ok()?;
        let mut node = self.cluster.gateways[dice.index(self.cluster.gateways.len())]
            .try_lock()
            .ok()?;
        let what = match event {
            Event::KillGateway => {
                node.kill().await;
                sleep(dice.duration(Duration::ZERO, self.profile.stopped)).await;
                node.start();
                "gateway killed (SIGKILL), started again"
            }
            Event::StopGateway => {
                node.signal("STOP");
                sleep(self.profile.stopped).await;
                node.signal("CONT");
                "gateway stopped for longer than its lease (SIGSTOP), continued"
            }
            _ => {
                self.expect(node.stop(self.profile.drain).await);
                node.start();
                "gateway drained (SIGTERM), started again"
            }
        };
        node.until_ready(COMES_BACK).await;
        Some(what)
    }

    async fn runner(&self, event: Event, dice: &mut Dice) -> Option<&'static str> {
        let _one_is_left = self.runners.try_acquire().ok()?;
        let n = dice.index(self.cluster.runners.len());
        let mut node = self.cluster.runners[n].try_lock().ok()?;
        match event {
            Event::KillRunner => {
                node.kill().await;
                sleep(dice.duration(Duration::ZERO, Duration::from_secs(2))).await;
                node.restart();
                Some("runner killed (SIGKILL), started again")
            }
            Event::StopRunner => {
                node.signal("STOP");
                sleep(self.profile.stopped).await;
                node.signal("CONT");
                Some("runner stopped until it counts as lost (SIGSTOP), continued")
            }
            Event::RotateToken => {
                let path = format!("/v1/runners/{}/rotate", node.identity.id);
                let rotated = self.change(&path, json!({})).await?;
                let code = node.until_ended(COMES_BACK).await;
                if code != Some(3) {
                    self.ledger.wrong(format!(
                        "runner-{n} with a token that was replaced ended with {code:?} instead of 3"
                    ));
                }
                node.use_token(&text(&rotated, "token"));
                node.restart();
                Some("runner's token rotated without grace, started with the new one")
            }
            _ => {
                self.expect(node.stop(self.profile.drain).await);
                node.restart();
                Some("runner drained (SIGTERM), started again")
            }
        }
    }

    fn expect(&self, done: Result<(), String>) {
        if let Err(how) = done {
            self.ledger.wrong(how);
        }
    }

    async fn line(&self, event: Event, dice: &mut Dice) -> Option<&'static str> {
        let line = &self.cluster.lines[dice.index(self.cluster.lines.len())];
        if matches!(event, Event::CutRunner) {
            line.cut();
            return Some("runner's socket cut in the middle of a frame");
        }
        line.stall(true);
        sleep(dice.duration(Duration::from_millis(500), self.profile.stopped)).await;
        line.stall(false);
        Some("runner's socket held back, let go")
    }

    async fn store(&self, mode: &str) -> Option<&'static str> {
        // What is timed elsewhere needs the store.
        let _admin = self.admin.try_lock().ok()?;
        self.cluster.store.lock().await.restart(mode).await;
        sleep(HEARS_AGAIN).await;
        Some(if mode == "immediate" {
            "the store's PostgreSQL crashed (immediate), restarted"
        } else {
            "the store's PostgreSQL restarted (fast)"
        })
    }

    async fn terminate_backends(&self) -> Option<&'static str> {
        let _admin = self.admin.try_lock().ok()?;
        let client = self.cluster.store_client().await.ok()?;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = 'semilayer' AND pid <> pg_backend_pid()";
        client.query(sql, &[]).await.ok()?;
        sleep(HEARS_AGAIN).await;
        Some("all of the gateways' backends terminated")
    }

    async fn wire(&self, event: Event, dice: &mut Dice) -> Option<&'static str> {
        let _admin = self.admin.try_lock().ok()?;
        let wire = &self.cluster.wires[dice.index(self.cluster.wires.len())];
        if matches!(event, Event::CutStoreOfGateway) {
            wire.cut();
            sleep(HEARS_AGAIN).await;
            return Some("a gateway's connections to the store cut in the middle of a message");
        }
        wire.cut_after_commit();
        let until = Instant::now() + Duration::from_secs(5);
        while wire.is_armed() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
        if wire.disarm() {
            return None;
        }
        Some("a gateway's COMMIT delivered, its answer lost")
    }

    /// A drained runner gets nothing, and afterwards it does again.
    async fn drain_by_admin(&self, dice: &mut Dice) -> Option<&'static str> {
        let _one_is_left = self.runners.try_acquire().ok()?;
        let n = dice.index(self.cluster.runners.len());
        let _node = self.cluster.runners[n].try_lock().ok()?;
        let id = &self.cluster.runner_ids[n];
        self.change(&format!("/v1/runners/{id}/drain"), json!({}))
            .await?;
        sleep(dice.duration(Duration::from_millis(200), Duration::from_secs(3))).await;
        // It must not stay drained, so this is repeated until it is said to be done.
        while self
            .change(&format!("/v1/runners/{id}/resume"), json!({}))
            .await
            .is_none()
        {}
        Some("runner drained and resumed by an admin")
    }

    /// A change through the balancer, which may fail at any time and is repeated; `None`: it did not get through.
    async fn change(&self, path: &str, body: Value) -> Option<Value> {
        let admin = self.cluster.admin();
        let until = Instant::now() + COMES_BACK;
        loop {
            if let Some(done) = post(&admin, path, body.clone()).await {
                return Some(done);
            }
            if Instant::now() > until {
                self.ledger
                    .wrong(format!("POST {path} fails for {COMES_BACK:?}"));
                return None;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

pub(super) async fn post(api: &Api, path: &str, body: Value) -> Option<Value> {
    let request = api
        .request(reqwest::Method::POST, path)
        .timeout(Duration::from_secs(10));
    let answer = request.json(&body).send().await.ok()?;
    let text = answer.error_for_status().ok()?.text().await.ok()?;
    Some(serde_json::from_str(&text).unwrap_or_default())
}
