//! `semilayer query <lens>`: one query from the shell, streamed as it arrives when piped.

use clap::Args;
use reqwest::{Method, header};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::input;
use super::output::{plain, table};
use super::{CliError, Connection, Session, stream};

/// A query of a lens.
#[derive(Debug, Args)]
pub struct Query {
    /// The lens
    lens: String,
    /// Which rows, as JSON, e.g. `{"total": {"$gt": 100}}`
    #[arg(long = "where", value_name = "JSON")]
    filter: Option<String>,
    /// Which fields, e.g. `id,name`
    #[arg(long, value_delimiter = ',')]
    select: Vec<String>,
    /// In which order, e.g. `placed_at:desc,id`
    #[arg(long, value_delimiter = ',')]
    order_by: Vec<String>,
    /// How many rows [default: the server's, 100]
    #[arg(long)]
    limit: Option<u64>,
    /// How many rows to leave out at the start
    #[arg(long)]
    offset: Option<u64>,
    /// Where the page before ended
    #[arg(long)]
    cursor: Option<String>,
    /// Print how many rows match instead of the rows
    #[arg(long, conflicts_with_all = ["select", "order_by", "limit", "offset", "cursor"])]
    count: bool,
    /// Do not wait: print the job's id, for `semilayer jobs result`
    #[arg(long)]
    detach: bool,
    /// With --detach: a name for this request, under which repeating it starts nothing new
    #[arg(long, value_name = "KEY", requires = "detach")]
    idempotency_key: Option<String>,
    /// An environment's key (`sk_…` or `pk_…`)
    #[arg(long, env = "SEMILAYER_KEY", value_name = "KEY", value_parser = input::secret, hide_env_values = true)]
    key: Option<SecretString>,
    /// The token of the user on whose behalf this is (with a `pk_` key)
    #[arg(long, env = "SEMILAYER_USER_TOKEN", value_name = "JWT", value_parser = input::secret, hide_env_values = true)]
    user_token: Option<SecretString>,
    #[command(flatten)]
    connection: Connection,
}

impl Query {
    fn body(&self) -> Result<Value, CliError> {
        let mut body = Map::new();
        if let Some(filter) = &self.filter {
            body.insert("where".into(), input::json_argument("--where", filter)?);
        }
        if !self.select.is_empty() {
            body.insert("select".into(), json!(self.select));
        }
        if !self.order_by.is_empty() {
            let order = self
                .order_by
                .iter()
                .map(|entry| match entry.split_once(':') {
                    Some((field, direction)) => json!({ "field": field, "dir": direction }),
                    None => json!({ "field": entry }),
                });
            body.insert("orderBy".into(), order.collect());
        }
        body.extend(self.limit.map(|limit| ("limit".into(), json!(limit))));
        body.extend(self.offset.map(|offset| ("offset".into(), json!(offset))));
        body.extend(
            self.cursor
                .as_ref()
                .map(|cursor| ("cursor".into(), json!(cursor))),
        );
        Ok(Value::Object(body))
    }
}

/// Runs the query.
pub(super) async fn run(query: Query) -> Result<(), CliError> {
    let body = query.body()?;
    // An admin key may be all that is at hand; the server says whether it is enough.
    let key = query.key.or_else(|| query.connection.admin_key.clone());
    if key.is_none() {
        return Err(CliError::usage(
            "SEMILAYER_KEY (--key) is required: a key of the environment, `semilayer keys create --type sk` makes one",
        ));
    }
    let session = Session::with_key(query.connection, key)?;
    let mut path = vec!["v1", "query", query.lens.as_str()];
    if query.count {
        path.push("count");
    }
    let mut request = session
        .client
        .request(Method::POST, &path)
        .query(&session.in_environment())
        .json(&body);
    if let Some(token) = &query.user_token {
        request = request.header("x-user-token", secrecy::ExposeSecret::expose_secret(token));
    }
    if query.detach {
        return detach(&session, request, query.idempotency_key).await;
    }
    if query.count {
        let answer: Value = session.client.send(request).await?.json().await?;
        return session.output.done(&plain(&answer["count"]), &answer);
    }
    if session.output.json || !session.output.terminal {
        let wanted = if session.output.json {
            "application/json"
        } else {
            "application/x-ndjson"
        };
        return stream::print(&session, request.header(header::ACCEPT, wanted)).await;
    }
    let answer: Value = session.client.send(request).await?.json().await?;
    print_table(&session, &answer)
}

/// Has the query executed without waiting for it.
async fn detach(
    session: &Session,
    request: reqwest::RequestBuilder,
    idempotency_key: Option<String>,
) -> Result<(), CliError> {
    let mut request = request.header("prefer", "respond-async");
    if !session.output.json && !session.output.terminal {
        // What a pipe gets later has the form that it would have got now.
        request = request.header(header::ACCEPT, "application/x-ndjson");
    }
    if let Some(key) = idempotency_key {
        request = request.header("idempotency-key", key);
    }
    let answer: Value = session.client.send(request).await?.json().await?;
    session.output.done(&plain(&answer["jobId"]), &answer)
}

fn print_table(session: &Session, answer: &Value) -> Result<(), CliError> {
    let rows = answer["rows"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if let Some(first) = rows.first().and_then(Value::as_object) {
        let titles: Vec<String> = first.keys().cloned().collect();
        let cells = |row: &Value| titles.iter().map(|title| plain(&row[title])).collect();
        session
            .output
            .line(&table(titles.clone(), rows.iter().map(cells).collect()))?;
    }
    let meta = &answer["meta"];
    let by = meta["runnerId"]
        .as_str()
        .map_or_else(|| "by the gateway".into(), |id| format!("by runner {id}"));
    eprintln!(
        "{} rows in {} ms, {by}",
        rows.len(),
        plain(&meta["durationMs"])
    );
    if let Some(cursor) = meta["nextCursor"].as_str() {
        stream::say_more(cursor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Query {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            query: Query,
        }
        let flags: Flags =
            clap::Parser::parse_from([&["query", "orders", "--key", "sk_x"], args].concat());
        flags.query
    }

    #[test]
    fn flags_become_the_body_of_the_request() {
        let query = parse(&[
            "--where",
            r#"{"total":{"$gt":100}}"#,
            "--select",
            "id,total",
            "--order-by",
            "total:desc,id",
            "--limit",
            "5",
        ]);
        assert_eq!(
            query.body().unwrap(),
            json!({
                "where": { "total": { "$gt": 100 } },
                "select": ["id", "total"],
                "orderBy": [{ "field": "total", "dir": "desc" }, { "field": "id" }],
                "limit": 5,
            })
        );
        assert_eq!(parse(&[]).body().unwrap(), json!({}));
    }

    #[test]
    fn a_where_that_is_not_json_is_refused_before_anything_is_sent() {
        assert!(parse(&["--where", "total > 100"]).body().is_err());
    }
}
