//! A whole hosted system on this machine: several gateways on one PostgreSQL of their own, haproxy in front of
//! them, a customer's PostgreSQL that logs every statement, and runners. Every part can be killed, stopped,
//! cut off and started again.

pub(crate) mod load;
pub(crate) mod node;
pub(crate) mod witness;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_postgres::Client;

use super::eventually::within;
use super::fault_proxy::FaultProxy;
use super::pg_server::{self, PgServer};
use super::process::Process;
use super::rest::{Api, text};
use super::{PATIENCE, eventually, ports};
use node::{GatewayNode, RunnerNode};

/// How many rows `items` has.
pub(crate) const ITEMS: u64 = 200_000;
/// How long each row of `slow` takes.
pub(crate) const SLOW_ROW: Duration = Duration::from_millis(250);

const STORE: &str = "semilayer";
const SHOP: &str = "shop";
const OPERATOR: &str = "operator-of-the-cluster";

/// Tells about every change of a job's state, from outside of the product.
const AUDIT: &str = "
    CREATE TABLE audit (n bigserial, job text, was text, became text, attempt integer);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO audit (job, was, became, attempt) VALUES (new.id, NULL, new.status, new.attempt);
        ELSIF old.status IS DISTINCT FROM new.status OR old.attempt <> new.attempt THEN
            INSERT INTO audit (job, was, became, attempt) VALUES (new.id, old.status, new.status, new.attempt);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE ON runner_jobs FOR EACH ROW EXECUTE FUNCTION audit();";

/// What the cluster is made of.
pub(crate) struct Plan {
    pub(crate) gateways: usize,
    pub(crate) runners: usize,
    /// Intervals for the gateways, as in `SEMILAYER_TIMING`.
    pub(crate) timing: String,
    /// Options of the store's server.
    pub(crate) store_options: &'static str,
    /// Whether every change of a job's state is written down by a trigger.
    pub(crate) audit: bool,
}

/// A running one. Its parts end with it.
pub(crate) struct Cluster {
    // In the order in which they end: nobody loses what is below it before its own end.
    pub(crate) runners: Vec<Arc<Mutex<RunnerNode>>>,
    /// Between each runner and the balancer.
    pub(crate) lines: Vec<FaultProxy>,
    _balancer: Process,
    pub(crate) balancer: String,
    pub(crate) gateways: Vec<Arc<Mutex<GatewayNode>>>,
    /// Where each gateway listens, for those who do not go through the balancer.
    pub(crate) addresses: Vec<String>,
    /// Between each gateway and the store.
    pub(crate) wires: Vec<FaultProxy>,
    pub(crate) store: Arc<Mutex<PgServer>>,
    store_port: u16,
    /// The witness: its log has every statement with its job and attempt.
    pub(crate) customer: PgServer,
    pub(crate) admin_key: String,
    pub(crate) secret_key: String,
    pub(crate) runner_ids: Vec<String>,
}

impl Cluster {
    /// Starts everything and waits until every runner can be reached through every gateway that looks for it.
    pub(crate) async fn start(plan: Plan) -> Self {
        let (store, customer) = tokio::join!(
            PgServer::start(plan.store_options),
            PgServer::start("-c log_statement=all -c log_line_prefix=%p:")
        );
        store.execute("postgres", "CREATE DATABASE semilayer").await;
        fill(&customer).await;
        let (wires, gateways) = gateways(&plan, store.port).await;
        let addresses: Vec<String> = gateways.iter().map(|node| node.address.clone()).collect();
        if plan.audit {
            store.execute(STORE, AUDIT).await;
        }
        let (process, balancer) = balancer(&addresses).await;
        let store_port = store.port;
        let mut cluster = Self {
            runners: Vec::new(),
            lines: Vec::new(),
            _balancer: process,
            balancer,
            gateways: shared(gateways),
            addresses,
            wires,
            store: Arc::new(Mutex::new(store)),
            store_port,
            customer,
            admin_key: String::new(),
            secret_key: String::new(),
            runner_ids: Vec::new(),
        };
        cluster.provision(plan.runners).await;
        cluster.until_everything_is_reachable(PATIENCE * 3).await;
        cluster
    }

    /// What the operator and the admin do once, through one gateway.
    async fn provision(&mut self, runners: usize) {
        let first = Api::new(&format!("http://{}", self.addresses[0]), None);
        let organisation = first
            .with_key(OPERATOR)
            .post("/v1/organisations", json!({"slug": "acme"}))
            .await
            .expect(201);
        self.admin_key = text(&organisation, "key");
        let admin = first.with_key(&self.admin_key);
        let source = admin
            .create_source(json!({
                "name": "shop", "bridge": "@semilayer/bridge-postgres", "credentialsLocation": "managed",
                "config": {"host": "127.0.0.1", "port": self.customer.port, "database": SHOP, "user": "postgres",
                           "password": "unused"},
            }))
            .await;
        for (name, table, retry) in [
            ("items", "items", "fail"),
            ("items_retry", "items", "retry"),
            ("slow", "slow", "fail"),
            ("slow_retry", "slow", "retry"),
        ] {
            let lens = json!({
                "name": name, "sourceId": source, "table": table, "primaryKey": "id", "grants": {},
                "fields": {"id": {"type": "number"}, "title": {"type": "text"}}, "onRunnerFailure": retry,
            });
            admin.post("/v1/lenses", lens).await.expect(201);
        }
        let key = admin.post("/v1/keys", json!({"kind": "sk"})).await;
        self.secret_key = text(&key.expect(201), "key");
        let balancer: u16 = self.balancer.rsplit(':').next().unwrap().parse().unwrap();
        for n in 0..runners {
            let identity = admin.create_runner(&format!("runner-{n}")).await;
            admin.assign(&identity, &[&source]).await;
            let line = FaultProxy::start(balancer).await;
            self.runner_ids.push(identity.id.clone());
            let node = RunnerNode::start(&format!("runner-{n}"), identity, line.port);
            self.runners.push(Arc::new(Mutex::new(node)));
            self.lines.push(line);
        }
    }

    /// The admin API behind the balancer.
    pub(crate) fn admin(&self) -> Api {
        Api::new(&self.balancer, Some(&self.admin_key))
    }

    /// What callers use: the balancer.
    pub(crate) fn caller(&self) -> Api {
        Api::new(&self.balancer, Some(&self.secret_key))
    }

    /// A caller of one gateway.
    pub(crate) fn caller_of(&self, gateway: usize) -> Api {
        let url = format!("http://{}", self.addresses[gateway]);
        Api::new(&url, Some(&self.secret_key))
    }

    /// The admin API of one gateway.
    pub(crate) fn admin_of(&self, gateway: usize) -> Api {
        self.caller_of(gateway).with_key(&self.admin_key)
    }

    /// A connection of the test's own to the store, not through a proxy.
    pub(crate) async fn store_client(&self) -> Result<Client, String> {
        pg_server::connect(&pg_server::url_at(self.store_port, STORE)).await
    }

    /// The first column, as text, of what a query of the store finds.
    pub(crate) async fn store_rows(&self, sql: &str) -> Vec<Vec<String>> {
        let client = eventually("the store answers", PATIENCE, async || {
            self.store_client().await
        })
        .await;
        let found = client.simple_query(sql).await.unwrap();
        let rows = found.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| {
            (0..row.len())
                .map(|column| row.get(column).unwrap_or_default().to_owned())
                .collect()
        })
        .collect()
    }

    /// Waits until jobs that enter at any gateway reach every runner.
    pub(crate) async fn until_everything_is_reachable(&self, patience: Duration) {
        let reached = self.everything_is_reachable(patience).await;
        reached.unwrap_or_else(|late| panic!("{late}"));
    }

    /// The same for those who go on without it; `patience` is for all gateways together.
    pub(crate) async fn everything_is_reachable(&self, patience: Duration) -> Result<(), String> {
        let gateways = 0..self.addresses.len();
        let each = gateways.map(|n| self.all_runners_serve(n, &self.runner_ids, patience));
        futures_util::future::try_join_all(each).await?;
        Ok(())
    }

    /// Waits until each of these runners has answered a query that entered at this gateway.
    pub(crate) async fn all_runners_serve(
        &self,
        gateway: usize,
        runners: &[String],
        patience: Duration,
    ) -> Result<(), String> {
        let caller = self.caller_of(gateway);
        let mut missing: BTreeSet<&str> = runners.iter().map(String::as_str).collect();
        let what = format!(
            "queries that enter at {} reach every runner",
            self.addresses[gateway]
        );
        within(&what, patience, async || {
            let request = caller.request(reqwest::Method::POST, "/v1/query/items");
            let answer = request
                .timeout(Duration::from_secs(10))
                .json(&json!({"where": {"id": 1}}))
                .send()
                .await
                .map_err(|error| format!("{error:?}"))?;
            let status = answer.status();
            let body: Value = answer.json().await.map_err(|error| format!("{error:?}"))?;
            if let Some(runner) = body["meta"]["runnerId"].as_str() {
                missing.remove(runner);
            }
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("{status} {body}; not seen yet: {missing:?}"))
            }
        })
        .await
    }
}

fn shared<T>(nodes: Vec<T>) -> Vec<Arc<Mutex<T>>> {
    nodes
        .into_iter()
        .map(|node| Arc::new(Mutex::new(node)))
        .collect()
}

/// The gateways, each with its own way to the store.
async fn gateways(plan: &Plan, store: u16) -> (Vec<FaultProxy>, Vec<GatewayNode>) {
    let (mut wires, mut nodes) = (Vec::new(), Vec::new());
    for n in 0..plan.gateways {
        let wire = FaultProxy::start(store).await;
        let mut node = GatewayNode::new(
            &format!("gateway-{n}"),
            vec![
                (
                    "SEMILAYER_DATABASE_URL",
                    pg_server::url_at(wire.port, STORE),
                ),
                ("SEMILAYER_OPERATOR_TOKEN", OPERATOR.to_owned()),
                ("SEMILAYER_TIMING", plan.timing.clone()),
            ],
        );
        // All at once: migrations have to stand that.
        node.start();
        wires.push(wire);
        nodes.push(node);
    }
    for node in &mut nodes {
        node.until_ready(Duration::from_secs(60)).await;
    }
    (wires, nodes)
}

/// haproxy with the configuration that the hosted topology uses.
async fn balancer(gateways: &[String]) -> (Process, String) {
    let address = format!("127.0.0.1:{}", ports::stable_port());
    let mut command = Process::command("haproxy");
    command
        .args(["-db", "-f"])
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/integration/haproxy.cfg"
        ))
        .env("BALANCER_LISTEN", &address);
    for (n, gateway) in gateways.iter().enumerate() {
        command.env(format!("GATEWAY_{}", n + 1), gateway);
    }
    let mut process = Process::start("balancer", command);
    let url = format!("http://{address}");
    let api = Api::new(&url, None);
    eventually("the balancer answers", PATIENCE, async || {
        assert!(process.ended().is_none(), "haproxy: {}", process.log());
        let request = api.request(reqwest::Method::GET, "/ready").send().await;
        let answer = request.map_err(|error| format!("{error:?}"))?;
        super::eventually::holds(answer.status().is_success(), answer.status())
    })
    .await;
    (process, url)
}

/// The customer's data. `slow` is `items`, but takes its time for each row.
async fn fill(customer: &PgServer) {
    customer.execute("postgres", "CREATE DATABASE shop").await;
    let sql = format!(
        "SET log_statement = 'none';
         CREATE TABLE items AS SELECT n AS id, repeat('x', 100) || n AS title FROM generate_series(1, {ITEMS}) n;
         ALTER TABLE items ADD PRIMARY KEY (id);
         CREATE VIEW slow AS SELECT items.id, items.title FROM items CROSS JOIN LATERAL
           (SELECT items.id, pg_sleep({})) late",
        SLOW_ROW.as_secs_f64()
    );
    customer.execute(SHOP, &sql).await;
}

/// The title of an item.
pub(crate) fn title(id: u64) -> String {
    format!("{}{id}", "x".repeat(100))
}

/// Waits for its turn: two clusters at a time are too much for a small machine.
pub(crate) async fn one_at_a_time() -> tokio::sync::MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
