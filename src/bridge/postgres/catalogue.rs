//! What PostgreSQL's catalogue says of tables.

use std::sync::Arc;

use tokio_postgres::types::{Kind, Type};

use super::decode::Decoder;
use super::{Session, no_answer};
use crate::bridge::catalogue::{
    COUNT_UP_TO, ColumnInfo, Listed, add_index_column, write_target, write_targets,
};
use crate::bridge::encode::RowWriter;
use crate::bridge::request::Target;
use crate::bridge::sql::{Class, Column, Read, Shape, Statement};
use crate::bridge::{BridgeError, Outcome};

const LIST: &str = "SELECT CASE WHEN n.nspname = current_schema() THEN c.relname::text ELSE n.nspname || '.' || c.relname END, \
    c.relkind IN ('v', 'm') FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND NOT c.relispartition \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(toast_)?temp_' \
    AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT') \
    ORDER BY n.nspname <> current_schema(), 1";

const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, \
    COALESCE(a.attnum = ANY (i.indkey), false) FROM pg_catalog.pg_attribute a \
    LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
    WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

const INDEXES: &str = "SELECT c.relname::text, pg_get_indexdef(i.indexrelid, k::int, true), i.indisunique \
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
    CROSS JOIN generate_series(1, i.indnkeyatts) k WHERE i.indrelid = $1::oid ORDER BY 1, k";

impl Session<'_> {
    pub(super) async fn list_targets(
        &self,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let mut targets = Vec::new();
        for row in self.rows(LIST, &[]).await? {
            let (name, is_view) = (row.try_get(0), row.try_get(1));
            targets.push(Listed {
                name: name.map_err(|e| self.error(e))?,
                is_view: is_view.map_err(|e| self.error(e))?,
            });
        }
        write_targets(rows, targets).await
    }

    pub(super) async fn introspect(
        &self,
        target: &Target,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        // Preparing it says in the database's own words what is wrong with the target.
        self.prepare(target).await?;
        let name = target.quoted('"');
        let sql = "SELECT c.oid::text, c.reltuples::bigint, c.relkind IN ('v', 'f') FROM pg_catalog.pg_class c \
            WHERE c.oid = $1::regclass";
        let found = self.rows(sql, &[&name]).await?;
        let found = found.first().ok_or_else(no_answer)?;
        let oid: String = found.try_get(0).map_err(|e| self.error(e))?;
        let estimate: i64 = found.try_get(1).map_err(|e| self.error(e))?;
        let uncountable: bool = found.try_get(2).map_err(|e| self.error(e))?;
        let mut columns = Vec::new();
        for row in self.rows(COLUMNS, &[&oid]).await? {
            columns.push(ColumnInfo {
                name: row.try_get(0).map_err(|e| self.error(e))?,
                type_name: row.try_get(1).map_err(|e| self.error(e))?,
                nullable: row.try_get(2).map_err(|e| self.error(e))?,
                primary_key: row.try_get(3).map_err(|e| self.error(e))?,
            });
        }
        let mut indexes = Vec::new();
        for row in self.rows(INDEXES, &[&oid]).await? {
            let name = row.try_get(0).map_err(|e| self.error(e))?;
            let column: String = row.try_get(1).map_err(|e| self.error(e))?;
            let plain = column
                .strip_prefix('"')
                .and_then(|c| c.strip_suffix('"'))
                .map(|c| c.replace("\"\"", "\""));
            add_index_column(
                &mut indexes,
                name,
                plain.unwrap_or(column),
                row.try_get(2).map_err(|e| self.error(e))?,
            );
        }
        let count = match u64::try_from(estimate) {
            _ if uncountable => None,
            Ok(estimate) if estimate > COUNT_UP_TO.unsigned_abs() => Some(estimate),
            _ => {
                let sql = format!(
                    "SELECT COUNT(*) FROM (SELECT 1 FROM {name} LIMIT {COUNT_UP_TO}) AS some_rows"
                );
                Some(self.number(&Statement::fixed(sql, &[])).await?)
            }
        };
        write_target(rows, target, &columns, count, &indexes).await
    }

    /// The columns of a table.
    pub(super) async fn shape(&self, target: &Target) -> Result<Arc<Shape>, BridgeError> {
        if let Some(shape) = self.shapes.get(target) {
            return Ok(shape);
        }
        let statement = self.prepare(target).await?;
        let columns = statement.columns().iter().map(|column| Column {
            name: column.name().to_owned(),
            class: class(column.type_()),
            nullable: true,
            read: read(column.type_()),
        });
        Ok(self.shapes.put(target, Shape::new(columns.collect())))
    }

    async fn prepare(&self, target: &Target) -> Result<tokio_postgres::Statement, BridgeError> {
        let sql = format!("SELECT * FROM {}", target.quoted('"'));
        self.client
            .prepare(&self.job.tagged(&sql))
            .await
            .map_err(|error| self.error(error))
    }
}

/// How a column of that type is read: natively where there is a rule, else as text.
fn read(ty: &Type) -> Read {
    match base(ty) {
        // Without the currency sign, which is the locale's.
        &Type::MONEY => Read::Cast("numeric"),
        &Type::MONEY_ARRAY => Read::Cast("numeric[]"),
        ty if Decoder::of(ty).is_some() => Read::Plain,
        // These two are arrays only to the catalogue.
        &Type::INT2_VECTOR | &Type::OID_VECTOR => Read::Cast("text"),
        ty => match ty.kind() {
            Kind::Array(_) => Read::Cast("text[]"),
            _ => Read::Cast("text"),
        },
    }
}

fn class(ty: &Type) -> Class {
    match base(ty) {
        &Type::INT2 => Class::Integer(16),
        &Type::INT4 => Class::Integer(32),
        &Type::INT8 => Class::Integer(64),
        &Type::NUMERIC | &Type::MONEY => Class::Decimal,
        &Type::FLOAT4 | &Type::FLOAT8 => Class::Float,
        &Type::BOOL => Class::Bool,
        &Type::TEXT | &Type::VARCHAR | &Type::BPCHAR | &Type::NAME => Class::Text,
        &Type::BYTEA => Class::Bytes,
        &Type::TIMESTAMP | &Type::TIMESTAMPTZ => Class::DateTime,
        &Type::JSON | &Type::JSONB => Class::Json,
        ty if ty.name() == "citext" => Class::Text,
        ty if matches!(ty.kind(), Kind::Array(_)) => Class::Array,
        _ => Class::Other,
    }
}

/// What a domain is a domain of.
fn base(ty: &Type) -> &Type {
    match ty.kind() {
        Kind::Domain(inner) => base(inner),
        _ => ty,
    }
}
