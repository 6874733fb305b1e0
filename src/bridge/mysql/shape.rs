//! What a table looks like, from the information schema: only the columns that this user may read, invisible ones
//! among them. `SELECT *` would ask for all columns, and be refused to whoever may read some.

use std::sync::Arc;

use mysql_async::Params;

use super::session::Session;
use crate::bridge::BridgeError;
use crate::bridge::request::{Table, Target};
use crate::bridge::sql::{Class, Column, Dialect, Order, Read, Shape};

const COLUMNS: &str = "SELECT CONVERT(table_name USING utf8mb4), CONVERT(column_name USING utf8mb4), \
    CONVERT(data_type USING utf8mb4), CONVERT(column_type USING utf8mb4), is_nullable = 'YES', \
    CONVERT(COALESCE(character_set_name, '') USING utf8mb4), CONVERT(COALESCE(collation_name, '') USING utf8mb4), \
    COALESCE(character_maximum_length, 0) > 8000 \
    FROM information_schema.columns WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? \
    AND privileges LIKE '%select%' ORDER BY ordinal_position";

const IS_VIEW: &str = "SELECT table_type LIKE '%VIEW%' FROM information_schema.tables \
    WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";

const UNIQUE: &str = "SELECT CONVERT(index_name USING utf8mb4), CONVERT(column_name USING utf8mb4) \
    FROM information_schema.statistics WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? \
    AND non_unique = 0 ORDER BY index_name, seq_in_index";

const JSON_CHECKS: &str = "SELECT CONVERT(check_clause USING utf8mb4) FROM information_schema.check_constraints \
    WHERE constraint_schema = COALESCE(?, DATABASE()) AND table_name = ?";

/// A column as the information schema tells of it.
pub(super) struct Declared {
    table: String,
    pub(super) name: String,
    data_type: String,
    pub(super) type_name: String,
    pub(super) nullable: bool,
    charset: String,
    collation: String,
    is_long: bool,
}

type DeclaredRow = (String, String, String, String, bool, String, String, bool);

impl Session<'_> {
    /// The columns of a table that this user may read.
    pub(super) async fn shape(&mut self, target: &Target) -> Result<Arc<Shape>, BridgeError> {
        if let Some(shape) = self.shapes.get(target) {
            return Ok(shape);
        }
        let (table, declared) = self.declared(target).await?;
        let is_view = self.is_view(&table).await?;
        let mut columns: Vec<_> = declared.iter().map(column).collect();
        for column in columns.iter_mut().filter(|_| is_view) {
            // A view's own word on it does not hold for outer joins.
            column.nullable = true;
        }
        if self.connection.dialect == Dialect::MariaDb
            && columns.iter().any(|column| column.class == Class::Text)
        {
            self.find_json(&table, &mut columns).await?;
        }
        let unique = self.unique(&table).await?;
        let shape = Shape::new(table, columns, unique, true);
        Ok(self.shapes.put(target, shape))
    }

    /// The table that is meant, of all that its name may mean the first that there is, and its columns.
    pub(super) async fn declared(
        &mut self,
        target: &Target,
    ) -> Result<(Table, Vec<Declared>), BridgeError> {
        for table in target.readings() {
            let rows: Vec<DeclaredRow> = self.rows(COLUMNS, key(table)).await?;
            let mut declared: Vec<_> = rows.into_iter().map(Declared::of).collect();
            // The schema compares names without case; where a server tells them apart, the very one counts.
            if declared.iter().any(|column| column.table == table.name) {
                declared.retain(|column| column.table == table.name);
            }
            if !declared.is_empty() {
                return Ok((table.clone(), declared));
            }
        }
        // Asking for it says in the database's own words what is wrong with the table.
        let table = &target.readings()[0];
        let sql = format!("SELECT 1 FROM {} LIMIT 0", table.quoted('`'));
        self.rows::<u8>(&sql, Params::Empty).await?;
        Err(BridgeError::QueryFailed(format!(
            "this user may read none of the columns of `{target}`"
        )))
    }

    pub(super) async fn is_view(&mut self, table: &Table) -> Result<bool, BridgeError> {
        let found: Vec<bool> = self.rows(IS_VIEW, key(table)).await?;
        Ok(found.first().copied().unwrap_or(true))
    }

    async fn unique(&mut self, table: &Table) -> Result<Vec<Vec<String>>, BridgeError> {
        let rows: Vec<(String, Option<String>)> = self.rows(UNIQUE, key(table)).await?;
        let indexes = rows.chunk_by(|a, b| a.0 == b.0);
        // A part that is an expression has no column.
        let columns = |parts: &[(String, Option<String>)]| {
            parts.iter().map(|(_, column)| column.clone()).collect()
        };
        Ok(indexes.filter_map(columns).collect())
    }

    /// MariaDB's JSON is a text with a check that it is JSON, by which it is recognised here.
    async fn find_json(
        &mut self,
        table: &Table,
        columns: &mut [Column],
    ) -> Result<(), BridgeError> {
        let checks: Vec<String> = self.rows(JSON_CHECKS, key(table)).await?;
        for column in columns
            .iter_mut()
            .filter(|column| column.class == Class::Text)
        {
            let check = format!("json_valid(`{}`)", column.name.replace('`', "``"));
            if checks
                .iter()
                .any(|clause| clause.eq_ignore_ascii_case(&check))
            {
                column.class = Class::Json;
            }
        }
        Ok(())
    }
}

/// The table as the information schema is asked for it.
pub(super) fn key(table: &Table) -> Params {
    Params::from((table.schema.clone(), table.name.clone()))
}

impl Declared {
    fn of(row: DeclaredRow) -> Self {
        let (table, name, data_type, type_name, nullable, charset, collation, is_long) = row;
        Self {
            table,
            name,
            data_type: data_type.to_ascii_lowercase(),
            type_name,
            nullable,
            charset,
            collation,
            is_long,
        }
    }
}

fn column(declared: &Declared) -> Column {
    let labels = || labels(&declared.type_name);
    let (class, order) = match declared.data_type.as_str() {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "year" | "bit" => {
            (Class::Integer, Order::Value)
        }
        "decimal" => (Class::Decimal, Order::Value),
        "float" => (Class::Single, Order::Value),
        "double" => (Class::Double, Order::Value),
        "enum" => (Class::Enum(labels().into()), Order::Ordinal),
        "set" => (Class::Set(labels().into()), Order::Ordinal),
        "date" => (Class::Date, Order::Value),
        "datetime" => (Class::DateTime { zone: false }, Order::Value),
        "timestamp" => (Class::DateTime { zone: true }, Order::Value),
        "time" => (Class::Time { zone: false }, Order::Value),
        "json" => (Class::Json, Order::Unspoken),
        "uuid" => (Class::Uuid, Order::Value),
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "vector" => {
            (Class::Bytes, Order::Value)
        }
        "inet4" | "inet6" => (Class::Other, Order::Value),
        // Of these collations the server's order is not what its own comparison says.
        _ if declared.collation.starts_with("big5_")
            || declared.collation.ends_with("_czech_cs") =>
        {
            (Class::Text, Order::Unspoken)
        }
        _ if !declared.charset.is_empty() => (Class::Text, Order::Value),
        _ => (Class::Other, Order::Unspoken),
    };
    let spatial = (&class, order) == (&Class::Other, Order::Unspoken);
    let read = match spatial {
        true => Read::Function("ST_AsText"),
        false => Read::Plain,
    };
    Column {
        class,
        nullable: declared.nullable,
        read,
        order,
        is_long: declared.is_long,
        has_equality: !spatial,
        type_name: declared.data_type.clone(),
        charset: (!declared.charset.is_empty())
            .then(|| (declared.charset.clone(), declared.collation.clone())),
        ..Column::unknown(&declared.name)
    }
}

/// The texts of `enum('a','it''s')`, in order.
fn labels(declared: &str) -> Vec<String> {
    let mut labels = Vec::new();
    let mut chars = declared.chars().peekable();
    while chars.by_ref().any(|c| c == '\'') {
        let mut label = String::new();
        while let Some(c) = chars.next() {
            match c {
                '\'' if chars.next_if_eq(&'\'').is_none() => break,
                '\\' => label.extend(chars.next().map(unescaped)),
                c => label.push(c),
            }
        }
        labels.push(label);
    }
    labels
}

/// What stands behind a backslash, as MySQL shows texts.
fn unescaped(c: char) -> char {
    match c {
        'n' => '\n',
        'r' => '\r',
        '0' => '\0',
        'Z' => '\x1a',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_an_enum_are_read_with_their_quotes_and_commas() {
        assert_eq!(
            labels("enum('z','it''s','a,b','')"),
            ["z", "it's", "a,b", ""]
        );
        assert_eq!(labels("set('''')"), ["'"]);
        assert_eq!(labels(r"enum('a\\b','l\nb')"), ["a\\b", "l\nb"]);
        assert!(labels("int(11)").is_empty());
    }
}
