//! What a lens and its table do not agree on, told to whoever creates or changes the lens. The table is looked at if
//! the source answers at once; a lens can be made while nobody can ask its source.

use std::time::Duration;

use serde_json::Value;

use super::targets::{Question, ask};
use crate::ids::SourceId;
use crate::query::lens::Lens;
use crate::query::operation::Kind;
use crate::query::suggest::did_you_mean;
use crate::web::Front;
use crate::web::auth::Scope;
use crate::web::error::Code;
use crate::web::types::{LensWarning, TargetDetails};

/// How long the source has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks at the table of a lens.
pub(super) async fn warnings(
    front: &Front,
    scope: &Scope,
    source: SourceId,
    lens: &Lens,
) -> Vec<LensWarning> {
    let question = Question {
        source,
        kind: Kind::IntrospectTarget,
        target: Some(lens.table.clone()),
        runner: None,
        timeout: Some(PATIENCE),
    };
    match ask::<TargetDetails>(front, scope, question).await {
        Ok(found) => found
            .first()
            .map_or_else(Vec::new, |table| compared(lens, table)),
        // The source answered, and it has no such table, or shows it to nobody.
        Err(error) if matches!(error.code(), Code::SourceQueryFailed | Code::InvalidRequest) => {
            vec![warning("table", error.message())]
        }
        Err(_) => Vec::new(),
    }
}

/// What of a lens is not as its table is.
fn compared(lens: &Lens, table: &TargetDetails) -> Vec<LensWarning> {
    let columns = || table.columns.iter().map(|column| column.name.as_str());
    let has = |name: &str| columns().any(|column| column.eq_ignore_ascii_case(name));
    let missing = lens.fields.iter().filter(|field| !has(&field.column));
    let mut warnings: Vec<_> = missing
        .map(|field| {
            let hint = did_you_mean(&field.column, columns());
            let message = format!(
                "table `{}` has no column `{}`{hint}",
                lens.table, field.column
            );
            warning(&format!("fields.{}", field.output), &message)
        })
        .collect();
    if !is_identified(&lens.key_columns(), table) {
        warnings.push(warning(
            "primaryKey",
            "no unique index over columns that cannot be null covers these fields: rows that share them are told apart by all that is read of them, which takes longer, and cannot be where that changes by itself (such as `now()` in a view)",
        ));
    }
    warnings
}

/// Whether these columns cover the primary key or a unique index, none of whose columns can be null.
fn is_identified(key: &[String], table: &TargetDetails) -> bool {
    let covers = |columns: &[String]| {
        !columns.is_empty()
            && columns.iter().all(|name| {
                let column = table.columns.iter().find(|column| column.name == *name);
                key.iter().any(|key| key.eq_ignore_ascii_case(name))
                    && column.is_some_and(|column| !column.nullable)
            })
    };
    let marked = table.columns.iter().filter(|column| column.primary_key);
    let primary: Vec<String> = marked.map(|column| column.name.clone()).collect();
    let unique = table
        .indexes
        .iter()
        .filter(|index| index["unique"] == Value::Bool(true));
    covers(&primary)
        || unique.into_iter().any(|index| {
            let columns = index["columns"].as_array().into_iter().flatten();
            covers(
                &columns
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
        })
}

fn warning(path: &str, message: &str) -> LensWarning {
    LensWarning {
        path: path.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lens(primary_key: Value) -> Lens {
        Lens::parse(&json!({
            "name": "l", "source": "s", "table": "orders", "primaryKey": primary_key,
            "fields": {"id": {"type": "number"}, "line": {"type": "number"}, "total": {"type": "number", "from": "totl"}},
        }))
        .unwrap()
    }

    fn table(nullable: bool, indexes: Value) -> TargetDetails {
        serde_json::from_value(json!({
            "name": "orders", "indexes": indexes,
            "columns": [
                {"name": "id", "type": "int", "nullable": nullable, "primaryKey": true},
                {"name": "line", "type": "int", "nullable": false, "primaryKey": true},
                {"name": "total", "type": "int"},
            ],
        }))
        .unwrap()
    }

    fn paths(lens: &Lens, table: &TargetDetails) -> Vec<String> {
        compared(lens, table)
            .into_iter()
            .map(|warning| warning.path)
            .collect()
    }

    #[test]
    fn what_the_table_does_not_have_is_told_with_what_it_has() {
        let found = compared(&lens(json!(["id", "line"])), &table(false, json!([])));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "fields.total");
        assert!(
            found[0].message.ends_with("did you mean `total`?"),
            "{}",
            found[0].message
        );
    }

    #[test]
    fn a_key_that_may_repeat_is_told() {
        let both = ["fields.total", "primaryKey"];
        let unique = |columns: Value, unique: bool| json!([{"name": "i", "columns": columns, "unique": unique}]);
        assert_eq!(
            paths(&lens(json!("id")), &table(false, json!([]))),
            both,
            "half a key"
        );
        assert_eq!(
            paths(&lens(json!(["id", "line"])), &table(true, json!([]))),
            both,
            "a key with nulls"
        );
        assert_eq!(
            paths(
                &lens(json!("line")),
                &table(true, unique(json!(["line"]), true))
            ),
            ["fields.total"]
        );
        assert_eq!(
            paths(
                &lens(json!("line")),
                &table(true, unique(json!(["line"]), false))
            ),
            both
        );
        assert_eq!(
            paths(
                &lens(json!("id")),
                &table(true, unique(json!(["id"]), true))
            ),
            both,
            "a unique column with nulls"
        );
    }
}
