//! Tokens and keys that are revoked through one gateway while they are used at another, announced or not.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::dice::Dice;
use super::events::{Chaos, post};
use crate::support::FakeRunner;
use crate::support::rest::{Api, Runner, text};

/// By when an announced change is in force everywhere. A second is promised; the rest is for a machine whose two
/// cores are busy with everything else that goes on here.
const ANNOUNCED: Duration = Duration::from_secs(1);
const MACHINE: Duration = Duration::from_secs(3);

/// What is revoked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Revoked {
    Runner,
    Key,
}

impl Chaos {
    /// Nobody hears of changes for a while. What is changed meanwhile is in force when the next pass is over.
    pub(super) async fn lose_notifications(&self, dice: &mut Dice) -> Option<&'static str> {
        let _admin = self.admin.try_lock().ok()?;
        let lose = |on| {
            for wire in &self.cluster.wires {
                wire.lose_notifications(on);
            }
        };
        lose(true);
        let which = if dice.below(2) == 0 {
            Revoked::Runner
        } else {
            Revoked::Key
        };
        let done = self.revoked(which, dice, self.profile.unannounced).await;
        lose(false);
        done.map(|_| "notifications lost while a token was revoked")
    }

    pub(super) async fn revoke(&self, which: Revoked, dice: &mut Dice) -> Option<&'static str> {
        let _admin = self.admin.try_lock().ok()?;
        self.revoked(which, dice, ANNOUNCED).await
    }

    /// Revokes something through one gateway while it is used at another, and times how long it goes on to work.
    async fn revoked(
        &self,
        which: Revoked,
        dice: &mut Dice,
        within: Duration,
    ) -> Option<&'static str> {
        let here = dice.index(self.cluster.gateways.len());
        let there = (here + 1) % self.cluster.gateways.len();
        // Both are left alone meanwhile.
        let _here = self.cluster.gateways[here].try_lock().ok()?;
        let _there = self.cluster.gateways[there].try_lock().ok()?;
        match which {
            Revoked::Runner => self.revoke_runner(here, there, within).await,
            Revoked::Key => self.revoke_key(here, there, within).await,
        }
    }

    async fn revoke_runner(
        &self,
        here: usize,
        there: usize,
        within: Duration,
    ) -> Option<&'static str> {
        let admin = self.cluster.admin_of(there);
        let name = format!("victim-{}", self.names.fetch_add(1, Ordering::Relaxed));
        let body = json!({"name": name, "deployment": "customer"});
        let created = post(&admin, "/v1/runners", body).await?;
        let identity = Runner {
            id: text(&created, "id"),
            token: text(&created, "token"),
        };
        let address = &self.cluster.addresses[here];
        // The token is looked up in the store, so it opens a session at once; the store may be in trouble, though.
        let mut session = FakeRunner::open_at(address, &identity).await.ok()?;
        let path = format!("/v1/runners/{}/revoke", identity.id);
        post(&admin, &path, json!({})).await?;
        let revoked = Instant::now();
        let limit = within + MACHINE;
        let closed = tokio::time::timeout(limit, session.closed_somehow()).await;
        if closed.is_err() {
            self.ledger.wrong(format!(
                "the session of a runner that was revoked at another gateway is open after {limit:?}"
            ));
        }
        self.took("revoked runner's session closed", revoked.elapsed(), within);
        match FakeRunner::open_at(address, &identity).await {
            Err(401 | 403 | 429 | 503) => {}
            Err(status) => self
                .ledger
                .wrong(format!("a revoked token is answered with {status}")),
            Ok(_) => self
                .ledger
                .wrong("a revoked token opened a session".to_owned()),
        }
        Some("runner revoked through one gateway while connected to another")
    }

    async fn revoke_key(
        &self,
        here: usize,
        there: usize,
        within: Duration,
    ) -> Option<&'static str> {
        let admin = self.cluster.admin_of(there);
        let created = post(&admin, "/v1/keys", json!({"kind": "sk"})).await?;
        let key = self.cluster.admin_of(here).with_key(&text(&created, "key"));
        let limit = within + MACHINE;
        if !until(limit, async || status(&key).await == Some(200)).await {
            self.ledger.wrong(format!(
                "a key made at another gateway is not known after {limit:?}"
            ));
        }
        let path = format!("/v1/keys/{}/revoke", text(&created, "id"));
        post(&admin, &path, json!({})).await?;
        let revoked = Instant::now();
        if !until(limit, async || status(&key).await == Some(401)).await {
            self.ledger.wrong(format!(
                "a key revoked at another gateway works after {limit:?}"
            ));
        }
        self.took("revoked key refused", revoked.elapsed(), within);
        Some("key revoked through one gateway while used at another")
    }

    /// For the table: whether the promise held, or only with the allowance for the machine.
    fn took(&self, what: &str, took: Duration, within: Duration) {
        let how = if took <= within {
            "within"
        } else {
            "NOT within"
        };
        self.done.add(format!("… {what} {how} {within:?}"));
    }
}

/// What this key is answered, by a gateway that knows it or does not.
async fn status(key: &Api) -> Option<u16> {
    let request = key.request(reqwest::Method::POST, "/v1/query/items");
    let answer = request
        .timeout(Duration::from_secs(10))
        .json(&json!({"where": {"id": 1}}))
        .send()
        .await
        .ok()?;
    Some(match answer.status().as_u16() {
        // The key was accepted, whatever became of the query.
        502..=504 => 200,
        status => status,
    })
}

/// Whether it came true in time.
async fn until(patience: Duration, condition: impl AsyncFn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition().await {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
}
