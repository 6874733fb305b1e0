//! What a table looks like, from SQLite's own pragmas. They are asked for each query, inside its transaction, so
//! nothing here can be old.

use rusqlite::Connection as Db;

use super::failure::of_statement as failure;
use super::work::{Answer, Work};
use crate::bridge::BridgeError;
use crate::bridge::catalogue::{ColumnInfo, IndexInfo, add_index_column};
use crate::bridge::request::{Table, Target};
use crate::bridge::sql::{Class, Column, Order, Read, Shape, Statement};

/// A column as the pragma tells of it.
struct Declared {
    name: String,
    type_name: String,
    not_null: bool,
    /// Its place in the primary key, from 1.
    key: i64,
}

/// A column of a unique index that covers all rows, with the collation that it is unique under.
struct Unique {
    index: String,
    is_key: bool,
    column: Option<String>,
    collation: String,
}

impl Work {
    pub(super) fn shape(&self, db: &Db, target: &Target) -> Result<Shape, BridgeError> {
        let table = self.table(db, target)?;
        let declared = self.declared(db, &table)?;
        let unique = self.unique(db, &table)?;
        let rowid = is_rowid(&declared, &unique);
        let columns = declared.iter().map(|column| Column {
            class: class(&column.type_name),
            nullable: !(column.not_null || rowid && column.key > 0),
            read: Read::Plain,
            order: Order::Value,
            type_name: column.type_name.clone(),
            ..Column::unknown(&column.name)
        });
        let mut sets = self.identifying(db, &table, &unique);
        if rowid {
            let key = declared.iter().filter(|column| column.key > 0);
            sets.push(key.map(|column| column.name.clone()).collect());
        }
        Ok(Shape::new(table, columns.collect(), sets, true))
    }

    /// The table that is meant: of all that its name may mean the first that there is.
    fn table(&self, db: &Db, target: &Target) -> Result<Table, BridgeError> {
        let readings = target.readings();
        for table in readings {
            let list = format!("\"{}\".sqlite_schema", schema(table).replace('"', "\"\""));
            let sql = format!(
                "SELECT 1 FROM {list} WHERE type IN ('table', 'view') AND name = ?1 COLLATE NOCASE"
            );
            match self.rows(db, &sql, [&table.name], |_| Ok(())) {
                Ok(found) if !found.is_empty() => return Ok(table.clone()),
                Ok(_) => {}
                // There is no such schema.
                Err(BridgeError::QueryFailed(_)) if readings.len() > 1 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(readings[0].clone())
    }

    fn declared(&self, db: &Db, table: &Table) -> Result<Vec<Declared>, BridgeError> {
        // Preparing it says in SQLite's own words what is wrong with the table.
        db.prepare_cached(&self.tagged(&format!("SELECT * FROM {}", table.quoted('"'))))
            .map_err(failure)?;
        let sql = "SELECT name, type, \"notnull\", pk FROM pragma_table_xinfo(?1, ?2) WHERE hidden <> 1 ORDER BY cid";
        self.rows(db, sql, (&table.name, schema(table)), |row| {
            Ok(Declared {
                name: row.get(0)?,
                type_name: row.get(1)?,
                not_null: row.get(2)?,
                key: row.get(3)?,
            })
        })
    }

    fn unique(&self, db: &Db, table: &Table) -> Result<Vec<Unique>, BridgeError> {
        let sql = "SELECT l.name, l.origin = 'pk', i.name, i.coll FROM pragma_index_list(?1, ?2) AS l, \
            pragma_index_xinfo(l.name, ?2) AS i WHERE l.\"unique\" AND NOT l.partial AND i.key ORDER BY l.seq, i.seqno";
        self.rows(db, sql, (&table.name, schema(table)), |row| {
            Ok(Unique {
                index: row.get(0)?,
                is_key: row.get(1)?,
                column: row.get(2)?,
                collation: row.get(3)?,
            })
        })
    }

    /// The columns of each unique index that compares them as ordering by them does.
    fn identifying(&self, db: &Db, table: &Table, unique: &[Unique]) -> Vec<Vec<String>> {
        let alike = |part: &Unique| {
            let column = part.column.as_deref()?;
            let metadata = db.column_metadata(Some(schema(table)), table.name.as_str(), column);
            let (_, collation, ..) = metadata.ok()?;
            let own = collation.map_or("BINARY".into(), |own| own.to_string_lossy());
            own.eq_ignore_ascii_case(&part.collation)
                .then(|| column.to_owned())
        };
        let indexes = unique.chunk_by(|a, b| a.index == b.index);
        indexes
            .filter_map(|parts| parts.iter().map(alike).collect())
            .collect()
    }

    pub(super) fn introspect(&self, db: &Db, target: &Target) -> Result<Answer, BridgeError> {
        let table = self.table(db, target)?;
        let declared = self.declared(db, &table)?;
        let rowid = is_rowid(&declared, &self.unique(db, &table)?);
        let mut primary_key: Vec<_> = declared.iter().filter(|column| column.key > 0).collect();
        primary_key.sort_by_key(|column| column.key);
        let primary_key = primary_key
            .iter()
            .map(|column| column.name.clone())
            .collect();
        let columns = declared.into_iter().map(|column| ColumnInfo {
            nullable: !(column.not_null || rowid && column.key > 0),
            primary_key: column.key > 0,
            name: column.name,
            type_name: match column.type_name {
                none if none.is_empty() => "TEXT".to_owned(),
                declared => declared,
            },
        });
        Ok(Answer::Target {
            columns: columns.collect(),
            primary_key,
            count: self.how_many(db, &table)?,
            indexes: self.indexes(db, &table)?,
            table,
        })
    }

    fn indexes(&self, db: &Db, table: &Table) -> Result<Vec<IndexInfo>, BridgeError> {
        let sql = "SELECT l.name, i.name, l.\"unique\" AND NOT l.partial FROM pragma_index_list(?1, ?2) AS l, \
            pragma_index_info(l.name, ?2) AS i ORDER BY l.name, i.seqno";
        let found = self.rows(db, sql, (&table.name, schema(table)), |row| {
            let column = row.get::<_, Option<String>>(1)?;
            Ok((row.get(0)?, column.unwrap_or_default(), row.get(2)?))
        })?;
        let mut indexes = Vec::new();
        for (name, column, unique) in found {
            add_index_column(&mut indexes, name, column, unique);
        }
        Ok(indexes)
    }

    /// How many rows a table has; counting those of a view may take for ever.
    fn how_many(&self, db: &Db, table: &Table) -> Result<Option<u64>, BridgeError> {
        let list = format!("\"{}\".sqlite_schema", schema(table).replace('"', "\"\""));
        let sql = format!("SELECT 1 FROM {list} WHERE type = 'table' AND name = ?1 COLLATE NOCASE");
        if self.rows(db, &sql, [&table.name], |_| Ok(()))?.is_empty() {
            return Ok(None);
        }
        let sql = format!("SELECT COUNT(*) FROM {}", table.quoted('"'));
        self.number(db, &Statement::fixed(sql, &[])).map(Some)
    }
}

fn schema(table: &Table) -> &str {
    table.schema.as_deref().unwrap_or("main")
}

/// Whether the primary key is another name of the row's own number, which is never null: only then it has no index.
fn is_rowid(declared: &[Declared], unique: &[Unique]) -> bool {
    let mut key = declared.iter().filter(|column| column.key > 0);
    let (Some(only), None) = (key.next(), key.next()) else {
        return false;
    };
    only.type_name.eq_ignore_ascii_case("INTEGER") && !unique.iter().any(|part| part.is_key)
}

/// What a declared type makes of the values that are put in.
fn class(declared: &str) -> Class {
    let declared = declared.to_ascii_uppercase();
    let has = |part| declared.contains(part);
    match () {
        () if has("JSON") => Class::Json,
        // The order is SQLite's own.
        () if has("INT") => Class::Any,
        () if has("CHAR") || has("CLOB") || has("TEXT") => Class::Text,
        () => Class::Any,
    }
}
