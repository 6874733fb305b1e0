//! The usual scene of a test: a gateway, a database with `products`, a source, lenses, and maybe a runner.

use serde_json::{Value, json};

use super::databases::{Database, Engine};
use super::gateway::Gateway;
use super::rest::Runner;
use super::runner::{RunnerBuilder, RunnerProcess};

/// The scene.
pub(crate) struct Stage {
    // Ends before the gateway and the database do, so that its log shows what the test was about.
    pub(crate) runners: Vec<RunnerProcess>,
    pub(crate) gateway: Gateway,
    pub(crate) database: Database,
    /// The source's id.
    pub(crate) source: String,
}

impl Stage {
    /// A gateway with one source, `warehouse`, without assignments, and the lens `products` on it.
    pub(crate) async fn inline(engine: Engine) -> Self {
        Self::on(Gateway::start().await, engine).await
    }

    /// The same on a gateway that the test has started.
    pub(crate) async fn on(gateway: Gateway, engine: Engine) -> Self {
        let database = Database::with_products(engine).await;
        let source = gateway
            .admin()
            .create_source(managed("warehouse", &database))
            .await;
        let stage = Self {
            runners: Vec::new(),
            gateway,
            database,
            source,
        };
        stage
            .add_lens(json!({
                "name": "products", "sourceId": stage.source, "table": "products", "primaryKey": "id",
                "fields": {
                    "id": {"type": "number"},
                    "title": {"type": "text"},
                    "price": {"type": "number", "from": "price_cents"},
                    "category": {"type": "text"},
                },
                "grants": {},
            }))
            .await;
        stage
    }

    /// Adds an identity that may serve the source, without a process.
    pub(crate) async fn add_identity(&self, name: &str) -> Runner {
        let admin = self.gateway.admin();
        let runner = admin.create_runner(name).await;
        admin.assign(&runner, &[&self.source]).await;
        runner
    }

    /// Adds an identity and its process.
    pub(crate) async fn add_runner(&mut self, name: &str) -> Runner {
        self.add_runner_as(name, |builder| builder).await
    }

    /// Adds an identity and its process, started as `adapt` says.
    pub(crate) async fn add_runner_as(
        &mut self,
        name: &str,
        adapt: impl FnOnce(RunnerBuilder) -> RunnerBuilder,
    ) -> Runner {
        let runner = self.add_identity(name).await;
        self.runners
            .push(adapt(RunnerProcess::builder(&self.gateway, &runner)).spawn());
        self.gateway.until_runner_is(&runner, "online").await;
        runner
    }

    /// Adds a lens.
    pub(crate) async fn add_lens(&self, lens: Value) {
        self.gateway
            .admin()
            .post("/v1/lenses", lens)
            .await
            .expect(201);
    }

    /// Adds a lens on a table that has the columns `id` and `title`.
    pub(crate) async fn add_titles_lens(&self, name: &str, source: &str, table: &str) {
        let fields = json!({"id": {"type": "number"}, "title": {"type": "text"}});
        self.add_lens(json!({
            "name": name, "sourceId": source, "table": table, "primaryKey": "id", "fields": fields, "grants": {},
        }))
        .await;
    }

    /// Adds the view `slow`, which takes a minute, and the lens `slow` on it.
    pub(crate) async fn add_slow_lens(&self) {
        self.database.add_slow_view(60).await;
        self.add_titles_lens("slow", &self.source, "slow").await;
    }

    /// Adds the table `wide` and the lens `wide` on it.
    pub(crate) async fn add_wide_lens(&self, rows: u64) {
        self.database.add_wide_table(rows).await;
        self.add_titles_lens("wide", &self.source, "wide").await;
    }

    /// Asserts that a query of one product answers with that product.
    pub(crate) async fn assert_serves(&self) {
        let rows = self
            .gateway
            .caller()
            .query("products", json!({"where": {"id": 7}}))
            .await
            .rows();
        assert_eq!(rows, [super::databases::product(7)]);
    }
}

/// A managed source on that database, as it is created.
pub(crate) fn managed(name: &str, database: &Database) -> Value {
    json!({
        "name": name,
        "bridge": database.engine.bridge(),
        "credentialsLocation": "managed",
        "config": database.config(),
    })
}
