//! A lens: the named, typed view of one table through which callers query it. Only its declared fields can
//! be selected, filtered or ordered by; columns have no other way out.
//!
//! `primaryKey` names output fields, one or several, whose values identify a row and are never null: every
//! page is ordered by them in the end. What a lens and a source may be *called* is not decided here.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::filter::Filter;
use super::grammar::{self, GrammarError, join};
use super::grants::{Caller, Denied, Grants};
use super::suggest::{clip, did_you_mean};
use super::table::Target;

/// The most fields of a primary key.
const MAX_KEY_FIELDS: usize = 8;
/// The longest name of a field, a column or a part of a table's name, in bytes; no database allows longer ones.
const MAX_NAME: usize = 128;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// Text.
    Text,
    /// A number.
    Number,
    /// An exact number, shown as a string.
    Decimal,
    /// True or false.
    Boolean,
    /// A date or a time.
    Date,
    /// Any JSON; rows cannot be ordered by it.
    Json,
    /// One of some texts.
    Enum,
}

impl FieldType {
    /// Every type.
    pub const ALL: [Self; 7] = [
        Self::Text,
        Self::Number,
        Self::Decimal,
        Self::Boolean,
        Self::Date,
        Self::Json,
        Self::Enum,
    ];

    /// The name in a definition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "number",
            Self::Decimal => "decimal",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Json => "json",
            Self::Enum => "enum",
        }
    }
}

/// One field of a lens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name for callers.
    pub output: String,
    /// What it holds.
    pub kind: FieldType,
    /// The column that it is read from.
    pub column: String,
}

/// What happens to a query whose runner is lost before anything reached the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRunnerFailure {
    /// The caller is told.
    #[default]
    Fail,
    /// It is run once more, on another runner.
    Retry,
}

impl OnRunnerFailure {
    /// The name in a definition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Retry => "retry",
        }
    }
}

/// The definition of a lens.
#[derive(Debug, Clone, PartialEq)]
pub struct Lens {
    /// Its name.
    pub name: String,
    /// The source that it reads, by id or name.
    pub source: String,
    /// The table, `table` or `schema.table`.
    pub table: String,
    /// The output fields that identify a row.
    pub primary_key: Vec<String>,
    /// The fields, in the order in which rows have them.
    pub fields: Vec<Field>,
    /// Its relations to other lenses, as defined.
    pub relations: Map<String, Value>,
    /// Who may query it.
    pub grants: Grants,
    /// What happens when a runner is lost.
    pub on_runner_failure: OnRunnerFailure,
}

/// What a caller may see of a lens: proof that its grants were judged. Only [`Lens::admit`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    filter: Filter,
}

impl Access {
    /// The rows that the caller may see, by columns.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }
}

const MEMBERS: &[&str] = &[
    "name",
    "source",
    "sourceId",
    "table",
    "primaryKey",
    "fields",
    "relations",
    "grants",
    "onRunnerFailure",
];

impl Lens {
    /// Reads a definition; the source may stand under `source` or `sourceId`.
    ///
    /// # Errors
    ///
    /// When it is not a complete and consistent definition; the path says where.
    pub fn parse(definition: &Value) -> Result<Self, GrammarError> {
        let members = grammar::object(definition, "lens")?;
        grammar::only_known(members, "", MEMBERS)?;
        let required = |name: &str| {
            let missing = || GrammarError::invalid(name, format!("`{name}` is required"));
            members
                .get(name)
                .filter(|value| !value.is_null())
                .ok_or_else(missing)
        };
        let source = if members.contains_key("sourceId") {
            "sourceId"
        } else {
            "source"
        };
        if source == "sourceId" && members.contains_key("source") {
            return Err(GrammarError::invalid(
                "source",
                "give `source` or `sourceId`, not both",
            ));
        }
        let fields = fields(required("fields")?)?;
        let outputs: Vec<&str> = fields.iter().map(|field| field.output.as_str()).collect();
        let grants = match members.get("grants") {
            None | Some(Value::Null) => Grants::default(),
            Some(grants) => Grants::parse(grants, "grants", &outputs)?,
        };
        let relations = match members.get("relations") {
            None | Some(Value::Null) => Map::new(),
            Some(relations) => grammar::object(relations, "relations")?.clone(),
        };
        Ok(Self {
            name: non_empty(required("name")?, "name")?,
            source: non_empty(required(source)?, source)?,
            table: table(required("table")?)?,
            primary_key: primary_key(required("primaryKey")?, &fields)?,
            relations,
            grants,
            on_runner_failure: on_runner_failure(members.get("onRunnerFailure"))?,
            fields,
        })
    }

    /// The definition, complete and in normal form; [`Lens::parse`] gives the same lens back.
    pub fn to_json(&self) -> Value {
        let fields: Map<String, Value> = self
            .fields
            .iter()
            .map(|field| {
                (
                    field.output.clone(),
                    json!({ "type": field.kind.as_str(), "from": field.column }),
                )
            })
            .collect();
        json!({
            "name": self.name,
            "source": self.source,
            "table": self.table,
            "primaryKey": self.primary_key,
            "fields": fields,
            "relations": self.relations,
            "grants": self.grants.to_json(),
            "onRunnerFailure": self.on_runner_failure.as_str(),
        })
    }

    /// The names of all fields.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.output.as_str())
    }

    /// The field of that name.
    ///
    /// # Errors
    ///
    /// When there is none; the message names the closest.
    pub fn field(&self, output: &str) -> Result<&Field, String> {
        let unknown = || {
            format!(
                "unknown field `{}`{}",
                clip(output),
                did_you_mean(output, self.outputs())
            )
        };
        self.fields
            .iter()
            .find(|field| field.output == output)
            .ok_or_else(unknown)
    }

    /// The columns of the primary key.
    pub fn key_columns(&self) -> Vec<String> {
        let column = |name: &String| {
            self.fields
                .iter()
                .find(|f| f.output == *name)
                .map(|f| f.column.clone())
        };
        self.primary_key.iter().filter_map(column).collect()
    }

    /// Judges whether the caller may query this lens, and which of its rows.
    ///
    /// # Errors
    ///
    /// When it may not, with the reason.
    pub fn admit(&self, caller: &Caller<'_>) -> Result<Access, Denied> {
        let filter = self.grants.row_filter(caller)?;
        let column = |output: &str| self.field(output).map(|field| field.column.clone());
        let filter = filter
            .map_fields(column)
            .map_err(|reason| Denied { reason })?;
        Ok(Access { filter })
    }
}

fn non_empty(value: &Value, path: &str) -> Result<String, GrammarError> {
    let text = grammar::text(value, path)?;
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(GrammarError::invalid(
            path,
            format!("must be 1 to {MAX_NAME} bytes long"),
        ));
    }
    Ok(text.to_owned())
}

fn table(value: &Value) -> Result<String, GrammarError> {
    let text = grammar::text(value, "table")?;
    match Target::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(message) => Err(GrammarError::invalid("table", message)),
    }
}

fn fields(value: &Value) -> Result<Vec<Field>, GrammarError> {
    let members = grammar::object(value, "fields")?;
    if members.is_empty() {
        return Err(GrammarError::invalid(
            "fields",
            "must declare at least one field",
        ));
    }
    members
        .iter()
        .map(|(output, definition)| field(output, definition))
        .collect()
}

fn field(output: &str, definition: &Value) -> Result<Field, GrammarError> {
    let path = join("fields", output);
    if output.is_empty()
        || output.len() > MAX_NAME
        || output.starts_with('$')
        || output.contains('\0')
    {
        let message = format!(
            "a field name is 1 to {MAX_NAME} bytes long, without NUL bytes or a leading `$`"
        );
        return Err(GrammarError::invalid(path, message));
    }
    let members = grammar::object(definition, &path)?;
    grammar::only_known(members, &path, &["type", "from"])?;
    let type_path = join(&path, "type");
    let name = members
        .get("type")
        .ok_or_else(|| GrammarError::invalid(&type_path, "`type` is required"))?;
    let name = grammar::text(name, &type_path)?;
    let names = FieldType::ALL.map(FieldType::as_str);
    let kind = FieldType::ALL
        .into_iter()
        .find(|kind| kind.as_str() == name)
        .ok_or_else(|| {
            let message = format!(
                "must be one of {}{}",
                names.join(", "),
                did_you_mean(name, names)
            );
            GrammarError::invalid(&type_path, message)
        })?;
    let column = match members.get("from") {
        None | Some(Value::Null) => output.to_owned(),
        Some(column) => non_empty(column, &join(&path, "from"))?,
    };
    Ok(Field {
        output: output.to_owned(),
        kind,
        column,
    })
}

fn primary_key(value: &Value, fields: &[Field]) -> Result<Vec<String>, GrammarError> {
    let path = "primaryKey";
    let names = match value {
        Value::Array(names) => names.as_slice(),
        one => std::slice::from_ref(one),
    };
    if names.is_empty() || names.len() > MAX_KEY_FIELDS {
        return Err(GrammarError::invalid(
            path,
            format!("must name 1 to {MAX_KEY_FIELDS} fields"),
        ));
    }
    let mut key: Vec<String> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let path = if value.is_array() {
            format!("{path}[{index}]")
        } else {
            path.to_owned()
        };
        let name = grammar::text(name, &path)?;
        match fields.iter().find(|field| field.output == name) {
            None => {
                let known = fields.iter().map(|field| field.output.as_str());
                return Err(GrammarError::unknown_field(path, name, known));
            }
            Some(field) if field.kind == FieldType::Json => {
                return Err(GrammarError::invalid(
                    path,
                    "a json field cannot identify a row",
                ));
            }
            Some(_) if key.iter().any(|seen| seen == name) => {
                return Err(GrammarError::invalid(path, "named twice"));
            }
            Some(_) => key.push(name.to_owned()),
        }
    }
    Ok(key)
}

fn on_runner_failure(value: Option<&Value>) -> Result<OnRunnerFailure, GrammarError> {
    match value {
        None | Some(Value::Null) => Ok(OnRunnerFailure::default()),
        Some(Value::String(name)) if name == "fail" => Ok(OnRunnerFailure::Fail),
        Some(Value::String(name)) if name == "retry" => Ok(OnRunnerFailure::Retry),
        Some(_) => Err(GrammarError::invalid(
            "onRunnerFailure",
            "must be `fail` or `retry`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({
            "name": "products",
            "source": "shop",
            "table": "public.products",
            "primaryKey": "id",
            "fields": {
                "id": {"type": "number"},
                "title": {"type": "text", "from": "product_title"},
                "tenantId": {"type": "text", "from": "tenant_id"},
                "extra": {"type": "json"},
            },
            "grants": {"query": {"filter": {"tenantId": "$claims.tenant"}}},
        })
    }

    fn with(path: &str, value: Value) -> Value {
        let mut definition = definition();
        *definition.pointer_mut(path).unwrap() = value;
        definition
    }

    #[test]
    fn a_definition_survives_being_written() {
        let lens = Lens::parse(&definition()).unwrap();
        assert_eq!(lens.field("title").unwrap().column, "product_title");
        assert_eq!(lens.field("id").unwrap().column, "id");
        assert_eq!(lens.key_columns(), ["id"]);
        assert_eq!(
            lens.outputs().collect::<Vec<_>>(),
            ["id", "title", "tenantId", "extra"]
        );
        assert_eq!(lens.on_runner_failure, OnRunnerFailure::Fail);
        assert_eq!(Lens::parse(&lens.to_json()), Ok(lens));
    }

    #[test]
    fn mistakes_name_their_path() {
        let mut unknown = definition();
        unknown["fileds"] = json!({});
        let mut both = definition();
        both["sourceId"] = json!("x");
        let mut incomplete = definition();
        incomplete.as_object_mut().unwrap().remove("table");
        let mut eager = definition();
        eager["onRunnerFailure"] = json!("always");
        for (definition, path, message) in [
            (json!(1), "lens", "must be an object, not a number"),
            (
                unknown,
                "fileds",
                "unknown member `fileds`; did you mean `fields`?",
            ),
            (both, "source", "give `source` or `sourceId`, not both"),
            (incomplete, "table", "`table` is required"),
            (eager, "onRunnerFailure", "must be `fail` or `retry`"),
            (
                with("/name", json!("")),
                "name",
                "must be 1 to 128 bytes long",
            ),
            (
                with("/table", json!("a.\"b")),
                "table",
                "a part in double quotes must end with one, and only a dot and one more part may follow; a quote within is doubled",
            ),
            (with("/table", json!("")), "table", "must not be empty"),
            (
                with("/table", json!("a\0")),
                "table",
                "must not contain a NUL byte",
            ),
            (
                with("/fields", json!({})),
                "fields",
                "must declare at least one field",
            ),
            (
                with("/fields", json!({"$a": {"type": "text"}})),
                "fields.$a",
                "a field name is 1 to 128 bytes long, without NUL bytes or a leading `$`",
            ),
            (
                with("/fields/id", json!({})),
                "fields.id.type",
                "`type` is required",
            ),
            (
                with("/fields/id/type", json!("nubmer")),
                "fields.id.type",
                "must be one of text, number, boolean, date, json, enum; did you mean `number`?",
            ),
            (
                with("/fields/title", json!({"type": "text", "form": "x"})),
                "fields.title.form",
                "unknown member `form`; did you mean `from`?",
            ),
            (
                with("/fields/title/from", json!(5)),
                "fields.title.from",
                "must be a string, not a number",
            ),
            (
                with("/primaryKey", json!([])),
                "primaryKey",
                "must name 1 to 8 fields",
            ),
            (
                with("/primaryKey", json!(["id", "id"])),
                "primaryKey[1]",
                "named twice",
            ),
            (
                with("/primaryKey", json!("tittle")),
                "primaryKey",
                "unknown field `tittle`; did you mean `title`?",
            ),
            (
                with("/primaryKey", json!("extra")),
                "primaryKey",
                "a json field cannot identify a row",
            ),
        ] {
            let error = Lens::parse(&definition).unwrap_err();
            assert_eq!(
                (error.path.as_str(), error.message.as_str()),
                (path, message)
            );
        }
    }

    #[test]
    fn admission_gives_the_row_filter_in_columns() {
        let lens = Lens::parse(&definition()).unwrap();
        let claims = json!({"tenant": "t1"});
        let access = lens
            .admit(&Caller::Publishable {
                claims: claims.as_object(),
            })
            .unwrap();
        assert_eq!(access.filter().to_json(), json!({"tenant_id": "t1"}));
        assert!(lens.admit(&Caller::Publishable { claims: None }).is_err());
        assert!(
            lens.admit(&Caller::Secret)
                .unwrap()
                .filter()
                .is_everything()
        );
    }
}
