//! `semilayer lenses …`: name, type and open up single tables of a source.

use std::collections::{HashMap, HashSet};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::input;
use super::output::{count, text};
use super::{CliError, Connection, Session};

/// What to do with lenses.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the lenses of the environment
    List,
    /// Show one lens
    Get {
        /// Its name or id
        lens: String,
    },
    /// Create a lens from a file, or from the columns of a table
    Create(Create),
    /// Change a lens: the fields of a JSON object replace its own
    Update {
        /// Its name or id
        lens: String,
        /// The changes; `-` reads standard input
        #[arg(long)]
        file: String,
    },
    /// Delete a lens
    Delete {
        /// Its name or id
        lens: String,
    },
}

/// A new lens.
#[derive(Debug, Args)]
pub struct Create {
    /// A name, unique in the environment [default: the one in the file, or the table's]
    name: Option<String>,
    /// The whole lens as JSON; `-` reads standard input
    #[arg(long, conflicts_with_all = ["source", "table", "introspect", "grant", "on_runner_failure"])]
    file: Option<String>,
    /// The source, by name or id
    #[arg(long, required_unless_present = "file")]
    source: Option<String>,
    /// The table, `table` or `schema.table`
    #[arg(long, required_unless_present = "file")]
    table: Option<String>,
    /// Make a field of every column of the table
    #[arg(long, required_unless_present = "file")]
    introspect: bool,
    /// Who may query it with a `pk_` key: `public` or `authenticated` [default: nobody]
    #[arg(long)]
    grant: Option<String>,
    /// What happens to a query whose runner is lost: `fail` or `retry` [default: fail]
    #[arg(long)]
    on_runner_failure: Option<String>,
}

/// Carries out one verb.
pub(super) async fn run(connection: Connection, verb: Verb) -> Result<(), CliError> {
    let session = Session::new(connection)?;
    let environment = session.in_environment();
    match verb {
        Verb::List => list(&session).await,
        Verb::Get { lens } => session.output.value(
            &session
                .client
                .get(&["v1", "lenses", &lens], &environment)
                .await?,
        ),
        Verb::Create(create) => self::create(&session, create).await,
        Verb::Update { lens, file } => {
            let body = input::json_file(&file)?;
            let updated = session
                .client
                .patch(&["v1", "lenses", &lens], &environment, &body)
                .await?;
            print_warnings(&updated);
            session
                .output
                .done(&format!("lens {lens} updated"), &updated)
        }
        Verb::Delete { lens } => {
            let deleted = session
                .client
                .delete(&["v1", "lenses", &lens], &environment)
                .await?;
            session
                .output
                .done(&format!("lens {lens} deleted"), &deleted)
        }
    }
}

async fn list(session: &Session) -> Result<(), CliError> {
    let lenses = session
        .client
        .list(&["v1", "lenses"], &session.in_environment(), usize::MAX)
        .await?;
    session.output.list(
        lenses,
        &[
            ("ID", |lens| text(lens, "id")),
            ("NAME", |lens| text(lens, "name")),
            ("SOURCE", |lens| text(lens, "sourceId")),
            ("TABLE", |lens| text(lens, "table")),
            ("FIELDS", |lens| count(lens, "fields")),
            ("ON FAILURE", |lens| text(lens, "onRunnerFailure")),
        ],
        "no lenses yet: `semilayer lenses create --source <source> --table <table> --introspect` makes one",
    )
}

async fn create(session: &Session, create: Create) -> Result<(), CliError> {
    let environment = session.in_environment();
    let lens = match (&create.file, &create.source, &create.table) {
        (Some(file), _, _) => {
            let mut lens = input::json_file(file)?;
            if let (Some(name), Some(lens)) = (&create.name, lens.as_object_mut()) {
                lens.insert("name".into(), json!(name));
            }
            lens
        }
        (None, Some(source), Some(table)) => {
            let source = session
                .client
                .get(&["v1", "sources", source], &environment)
                .await?;
            let id = text(&source, "id");
            let target = session
                .client
                .get(&["v1", "sources", &id, "targets", table], &environment)
                .await?;
            let name = create
                .name
                .as_deref()
                .unwrap_or_else(|| table.rsplit('.').next().unwrap_or(table));
            let mut lens = lens_of_target(name, &id, table, &target)?;
            if let (Some(grant), Some(lens)) = (&create.grant, lens.as_object_mut()) {
                lens.insert("grants".into(), json!({ "query": grant }));
            }
            if let (Some(choice), Some(lens)) = (&create.on_runner_failure, lens.as_object_mut()) {
                lens.insert("onRunnerFailure".into(), json!(choice));
            }
            lens
        }
        _ => {
            return Err(CliError::usage(
                "name a --file, or a --source and a --table with --introspect",
            ));
        }
    };
    let created = session
        .client
        .post(&["v1", "lenses"], &environment, &lens)
        .await?;
    print_warnings(&created);
    let name = text(&created, "name");
    session.output.done(
        &format!("lens {name} created; `semilayer query {name}` reads it"),
        &created,
    )
}

/// Tells what a lens and its table do not agree on.
fn print_warnings(lens: &Value) {
    for warning in lens["warnings"].as_array().into_iter().flatten() {
        eprintln!(
            "warning: {}: {}",
            text(warning, "path"),
            text(warning, "message")
        );
    }
}

/// The lens that shows every column of an introspected table under its own name.
pub fn lens_of_target(
    name: &str,
    source_id: &str,
    table: &str,
    target: &Value,
) -> Result<Value, CliError> {
    let columns = target["columns"]
        .as_array()
        .filter(|columns| !columns.is_empty());
    let columns = columns.ok_or_else(|| {
        CliError::Failed(format!("table {table} has no columns that can be read"))
    })?;
    let names = output_names(columns);
    let output = |name: &str| names.get(name).map_or(name, String::as_str).to_owned();
    let key = primary_key(target, columns);
    if key.is_empty() {
        return Err(CliError::Failed(format!(
            "table {table} has no primary key; write the lens into a file and use --file"
        )));
    }
    let fields = columns.iter().map(|column| {
        let field = json!({ "type": field_type(&text(column, "type")), "from": column["name"] });
        (output(&text(column, "name")), field)
    });
    Ok(json!({
        "name": name,
        "sourceId": source_id,
        "table": table,
        "primaryKey": key.iter().map(|name| output(name)).collect::<Vec<_>>(),
        "fields": Map::from_iter(fields),
        "grants": {},
    }))
}

/// The columns of the primary key, all of them: in the order of the key if the target tells it.
fn primary_key(target: &Value, columns: &[Value]) -> Vec<String> {
    let told = target["primaryKey"].as_array().into_iter().flatten();
    let told: Vec<_> = told.filter_map(Value::as_str).map(str::to_owned).collect();
    if !told.is_empty() {
        return told;
    }
    let marked = columns
        .iter()
        .filter(|column| column["primaryKey"] == json!(true));
    marked.map(|column| text(column, "name")).collect()
}

/// The name of a field for each column. A leading `$` belongs to operators, and is left out unless that is the name of
/// another column.
fn output_names(columns: &[Value]) -> HashMap<String, String> {
    let columns: Vec<_> = columns.iter().map(|column| text(column, "name")).collect();
    let (plain, others): (Vec<_>, Vec<_>) =
        columns.into_iter().partition(|name| !name.starts_with('$'));
    let mut names: HashMap<_, _> = plain.into_iter().map(|name| (name.clone(), name)).collect();
    let mut taken: HashSet<_> = names.values().cloned().collect();
    for column in others {
        let mut name = column.trim_start_matches('$').to_owned();
        while name.is_empty() || taken.contains(&name) {
            name.insert(0, '_');
        }
        taken.insert(name.clone());
        names.insert(column, name);
    }
    names
}

/// The type of a lens's field for a database's own type, e.g. `number` for `numeric(10,2)`.
fn field_type(native: &str) -> &'static str {
    let native = native.to_ascii_lowercase();
    let is = |names: &[&str]| names.iter().any(|name| native.starts_with(name));
    if native.ends_with("[]") || is(&["json", "_"]) {
        "json"
    } else if is(&["bool"]) || native == "tinyint(1)" {
        "boolean"
    } else if is(&[
        "interval",
        "int4range",
        "int8range",
        "int4multirange",
        "int8multirange",
        "daterange",
        "datemultirange",
    ]) {
        "text"
    } else if is(&["numeric", "decimal", "money", "dec("]) || native == "dec" {
        "decimal"
    } else if is(&[
        "int",
        "bigint",
        "smallint",
        "mediumint",
        "tinyint",
        "serial",
        "bigserial",
        "real",
        "double",
        "float",
        "number",
        "year",
        "oid",
    ]) {
        "number"
    } else if is(&["date", "timestamp"]) {
        "date"
    } else {
        "text"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_becomes_a_lens_with_a_field_per_column() {
        let target = json!({ "name": "orders", "columns": [
            { "name": "id", "type": "INTEGER", "primaryKey": true },
            { "name": "$total", "type": "numeric(10,2)" },
            { "name": "placed_at", "type": "timestamp with time zone" },
            { "name": "paid", "type": "boolean" },
            { "name": "note", "type": "TEXT" },
        ]});
        let lens = lens_of_target("orders", "0190", "public.orders", &target).unwrap();
        assert_eq!(lens["primaryKey"], json!(["id"]));
        assert_eq!(
            lens["fields"],
            json!({
                "id": { "type": "number", "from": "id" },
                "total": { "type": "decimal", "from": "$total" },
                "placed_at": { "type": "date", "from": "placed_at" },
                "paid": { "type": "boolean", "from": "paid" },
                "note": { "type": "text", "from": "note" },
            })
        );
    }

    #[test]
    fn every_column_has_a_name_of_its_own() {
        let columns = ["error", "$error", "_error", "$next", "$", "$$"];
        let columns: Vec<_> = columns.iter().map(|name| json!({ "name": name })).collect();
        let names = output_names(&columns);
        for (column, name) in [
            ("error", "error"),
            ("$error", "__error"),
            ("_error", "_error"),
            ("$next", "next"),
            ("$", "_"),
            ("$$", "__"),
        ] {
            assert_eq!(names[column], name, "{column}");
        }
    }

    #[test]
    fn a_key_of_several_columns_is_taken_whole_and_in_its_order() {
        let column =
            |name: &str, key: bool| json!({ "name": name, "type": "int", "primaryKey": key });
        let columns = json!([column("b", true), column("a", true), column("c", false)]);
        let key = |target: Value| {
            lens_of_target("t", "0190", "t", &target).unwrap()["primaryKey"].clone()
        };
        assert_eq!(key(json!({ "columns": columns })), json!(["b", "a"]));
        assert_eq!(
            key(json!({ "columns": columns, "primaryKey": ["a", "b"] })),
            json!(["a", "b"])
        );
    }

    #[test]
    fn native_types_find_their_field_type() {
        for (native, expected) in [
            ("bigint unsigned", "number"),
            ("int4", "number"),
            ("double precision", "number"),
            ("tinyint(1)", "boolean"),
            ("tinyint(4)", "number"),
            ("decimal(36,18)", "decimal"),
            ("money", "decimal"),
            ("int4range", "text"),
            ("jsonb", "json"),
            ("text[]", "json"),
            ("date", "date"),
            ("datetime(6)", "date"),
            ("time", "text"),
            ("interval", "text"),
            ("uuid", "text"),
            ("bytea", "text"),
            ("character varying(80)", "text"),
        ] {
            assert_eq!(field_type(native), expected, "{native}");
        }
    }

    #[test]
    fn a_table_without_a_key_is_not_guessed_at() {
        let target = json!({ "columns": [{ "name": "a", "type": "text" }] });
        let error = lens_of_target("t", "0190", "t", &target)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no primary key"), "{error}");
    }
}
