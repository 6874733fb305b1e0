//! What a table looks like, from PostgreSQL's catalogue: only the columns that this role may read, so that it is
//! asked for nothing that the query itself does not need. Nothing is prepared: a pooler could lose it.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::decode::Decoder;
use super::session::{Session, no_answer};
use crate::bridge::BridgeError;
use crate::bridge::request::{Table, Target};
use crate::bridge::sql::{Class, Column, Order, Read, Shape};

/// The table, of all that its name may mean the first that there is, and each of its columns: with the type that is
/// behind its domain, whether that type has an order and equality, and whether this role may read it.
///
/// A type has an order if it has a default operator class for B-trees: its own, that of a type that it is
/// binary-coercible to, or that of all arrays, enums, ranges and rows, as far as their elements have one.
const COLUMNS: &str = "WITH RECURSIVE target AS ( \
      SELECT c.oid, c.relname, n.nspname, t.named, \
        c.relkind = 'f' OR (c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid)) AS loose FROM unnest($1::text[], $2::bool[]) WITH ORDINALITY AS t(name, named, place) \
      JOIN pg_catalog.pg_class c ON c.oid = to_regclass(t.name) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
      WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') ORDER BY t.place LIMIT 1), \
    behind(num, type) AS ( \
      SELECT a.attnum, a.atttypid FROM pg_catalog.pg_attribute a JOIN target ON a.attrelid = target.oid WHERE a.attnum > 0 AND NOT a.attisdropped \
      UNION ALL SELECT b.num, t.typbasetype FROM behind b JOIN pg_catalog.pg_type t ON t.oid = b.type WHERE t.typtype = 'd'), \
    used AS (SELECT DISTINCT type FROM behind), \
    elements AS ( \
      SELECT u.type, t.typelem AS element FROM used u JOIN pg_catalog.pg_type t ON t.oid = u.type WHERE t.typelem <> 0 AND t.typlen = -1 AND t.typcategory = 'A' \
      UNION ALL SELECT u.type, a.atttypid FROM used u JOIN pg_catalog.pg_type t ON t.oid = u.type AND t.typtype = 'c' \
        JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), \
    single AS (SELECT type FROM used UNION SELECT element FROM elements), \
    based AS (SELECT s.type, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE s.type END AS base FROM single s JOIN pg_catalog.pg_type t ON t.oid = s.type), \
    methods AS ( \
      SELECT b.type, m.amname FROM based b JOIN pg_catalog.pg_type t ON t.oid = b.base \
      JOIN pg_catalog.pg_opclass k ON k.opcdefault JOIN pg_catalog.pg_am m ON m.oid = k.opcmethod AND m.amname IN ('btree', 'hash') \
      WHERE k.opcintype = b.base OR (t.typtype = 'e' AND k.opcintype = 'anyenum'::regtype) OR (t.typtype = 'r' AND k.opcintype = 'anyrange'::regtype) \
        OR (t.typtype = 'm' AND k.opcintype = to_regtype('anymultirange')) OR (b.base = 'int2vector'::regtype AND k.opcintype = 'anyarray'::regtype) \
        OR k.opcintype IN (SELECT x.casttarget FROM pg_catalog.pg_cast x WHERE x.castsource = b.base AND x.castmethod = 'b' AND x.castcontext = 'i')), \
    able AS ( \
      SELECT u.type, m.amname FROM used u CROSS JOIN (VALUES ('btree'), ('hash')) AS m(amname) WHERE (u.type, m.amname) IN (SELECT type, amname FROM methods) \
        OR (u.type IN (SELECT type FROM elements) AND NOT EXISTS ( \
          SELECT FROM elements e WHERE e.type = u.type AND (e.element, m.amname) NOT IN (SELECT type, amname FROM methods)))) \
    SELECT CASE WHEN target.named THEN target.nspname::text END, target.relname::text, target.oid::text, a.attname::text, \
      t.oid::bigint, t.typtype::text, format_type(t.oid, -1), format_type(a.atttypid, a.atttypmod), NOT a.attnotnull OR target.loose, \
      has_column_privilege(target.oid, a.attnum, 'SELECT'), \
      t.oid IN (SELECT type FROM able WHERE amname = 'btree'), t.oid IN (SELECT type FROM able), \
      CASE WHEN t.typsend <> 0 THEN (SELECT quote_ident(n.nspname) || '.' || quote_ident(p.proname) FROM pg_catalog.pg_proc p \
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = t.typsend) END, \
      (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), \
      COALESCE((SELECT NOT l.collisdeterministic FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation), false), \
      CASE WHEN t.typcategory = 'A' AND t.typlen = -1 THEN t.typelem::bigint END, \
      current_setting('server_encoding') = 'UTF8', \
      (SELECT array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY x.amopstrategy) FROM pg_catalog.pg_opclass k \
        JOIN pg_catalog.pg_am m ON m.oid = k.opcmethod AND m.amname = 'btree' \
        JOIN pg_catalog.pg_amop x ON x.amopfamily = k.opcfamily AND x.amoplefttype = k.opcintype AND x.amoprighttype = k.opcintype \
        JOIN pg_catalog.pg_operator o ON o.oid = x.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace \
        WHERE k.opcdefault AND k.opcintype = t.oid AND t.typnamespace <> 'pg_catalog'::regnamespace) \
    FROM target LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = target.oid AND a.attnum > 0 AND NOT a.attisdropped \
    LEFT JOIN behind b ON b.num = a.attnum LEFT JOIN pg_catalog.pg_type t ON t.oid = b.type \
    WHERE t.typtype IS DISTINCT FROM 'd' ORDER BY a.attnum";

/// The columns of each unique index that covers all rows, compared as the columns themselves are. The index of a table
/// that others inherit from says nothing of their rows.
const UNIQUE: &str = "SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_catalog.pg_index i \
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(num, place) \
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num \
    LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
    WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL \
      AND k.place <= i.indnkeyatts AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class c ON c.oid = h.inhparent \
        WHERE h.inhparent = i.indrelid AND c.relkind = 'r') \
    GROUP BY i.indexrelid, i.indcollation, i.indclass \
    HAVING bool_and(i.indclass[k.place - 1] IN (SELECT o.oid FROM pg_catalog.pg_opclass o WHERE o.opcdefault \
        AND (o.opcintype = COALESCE(NULLIF(t.typbasetype, 0), t.oid) OR NOT EXISTS (SELECT FROM pg_catalog.pg_opclass d \
          WHERE d.opcmethod = o.opcmethod AND d.opcdefault AND d.opcintype = COALESCE(NULLIF(t.typbasetype, 0), t.oid))))) \
      AND bool_and(i.indcollation[array_position(i.indkey::int2[], a.attnum) - array_lower(i.indkey::int2[], 1)] = a.attcollation) \
    ORDER BY i.indexrelid";

/// What changes when a table does, in its columns, its unique indexes, or what inherits from it.
const STAMP: &str = "SELECT concat_ws(' ', t.oid, \
      (SELECT string_agg(concat_ws(':', a.attnum, a.xmin), ',') FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0), \
      (SELECT string_agg(concat_ws(':', i.indexrelid, i.xmin), ',') FROM pg_catalog.pg_index i WHERE i.indrelid = t.oid), \
      (SELECT count(*) FROM pg_catalog.pg_inherits h WHERE h.inhparent = t.oid)) \
    FROM (SELECT to_regclass($1)::oid AS oid OFFSET 0) t";

/// A column and what introspection tells of it beyond that.
pub(super) struct Found {
    pub(super) column: Column,
    pub(super) declared: String,
}

/// A table that was found.
pub(super) struct Described {
    pub(super) oid: String,
    pub(super) table: Table,
    pub(super) columns: Vec<Found>,
    pub(super) unique: Vec<Vec<String>>,
    is_utf8: bool,
}

impl Session<'_> {
    /// The columns of a table that this role may read.
    pub(super) async fn shape(&self, target: &Target) -> Result<Arc<Shape>, BridgeError> {
        if let Some(shape) = self.shapes.get(target) {
            return Ok(shape);
        }
        let found = self.describe(target).await?;
        let columns = found.columns.into_iter().map(|found| found.column);
        let mut shape = Shape::new(found.table, columns.collect(), found.unique, false);
        shape.is_utf8 = found.is_utf8;
        shape.stamp = self.stamp(&shape.table).await?;
        Ok(self.shapes.put(target, shape))
    }

    /// Whether a remembered shape is still the table's. Asked for beside the query itself, it takes no time of its own.
    pub(super) async fn is_current(&self, shape: &Shape) -> Result<bool, BridgeError> {
        Ok(self.stamp(&shape.table).await? == shape.stamp)
    }

    async fn stamp(&self, table: &Table) -> Result<String, BridgeError> {
        let rows = self.rows(STAMP, &[&table.quoted('"')]).await?;
        let stamp = rows.first().map(|row| self.get(row, 0)).transpose()?;
        Ok(stamp.unwrap_or_default())
    }

    pub(super) async fn describe(&self, target: &Target) -> Result<Described, BridgeError> {
        let readings = target.readings();
        let list = |each: &dyn Fn(&Table) -> String| {
            let each: Vec<_> = readings.iter().map(each).collect();
            format!("{{{}}}", each.join(","))
        };
        let names = list(&|table| {
            let name = table.quoted('"').replace('\\', "\\\\").replace('"', "\\\"");
            format!("\"{name}\"")
        });
        let named = list(&|table| table.schema.is_some().to_string());
        let rows = self.rows(COLUMNS, &[&names, &named]).await?;
        let Some(first) = rows.first() else {
            return Err(BridgeError::QueryFailed(format!(
                "relation \"{target}\" does not exist, or this role may not use its schema"
            )));
        };
        let oid: String = self.get(first, 2)?;
        let is_utf8 = self.get(first, 16)?;
        let table = Table {
            schema: self.get(first, 0)?,
            name: self.get(first, 1)?,
        };
        let mut columns = Vec::with_capacity(rows.len());
        for row in &rows {
            columns.extend(self.found(row)?);
        }
        if columns.is_empty() {
            return Err(BridgeError::QueryFailed(format!(
                "permission denied for relation \"{target}\": this role may read none of its columns"
            )));
        }
        let mut unique = Vec::new();
        for row in self.rows(UNIQUE, &[&oid]).await? {
            unique.push(self.get(&row, 0)?);
        }
        Ok(Described {
            oid,
            table,
            columns,
            unique,
            is_utf8,
        })
    }

    fn found(&self, row: &Row) -> Result<Option<Found>, BridgeError> {
        let readable: Option<bool> = self.get(row, 9)?;
        if readable != Some(true) {
            return Ok(None);
        }
        let oid: i64 = self.get(row, 4)?;
        let known = u32::try_from(oid).ok().and_then(Type::from_oid);
        let kind: String = self.get(row, 5)?;
        let labels: Option<Vec<String>> = self.get(row, 13)?;
        // These two are arrays only to the catalogue; the server does not even read its own binary form of them.
        let vector = matches!(known, Some(Type::INT2_VECTOR | Type::OID_VECTOR));
        let element: Option<i64> = self.get::<Option<i64>>(row, 15)?.filter(|_| !vector);
        let type_name: String = self.get(row, 6)?;
        let (ordered, equality): (bool, bool) = (self.get(row, 10)?, self.get(row, 11)?);
        let send: Option<String> = self.get(row, 12)?;
        let class = match (labels, element) {
            (Some(labels), _) => Class::Enum(labels.into()),
            (None, Some(element)) => {
                let element = u32::try_from(element).ok().and_then(Type::from_oid);
                Class::Array(Box::new(element.map_or(Class::Other, |ty| class(&ty))))
            }
            (None, None) if kind == "e" => Class::Enum(Arc::default()),
            (None, None) if type_name == "citext" || type_name.ends_with(".citext") => Class::Text,
            (None, None) => known.as_ref().map_or(Class::Other, class),
        };
        let column = Column {
            name: self.get(row, 3)?,
            read: known
                .as_ref()
                .map_or_else(|| Read::Cast(text_form(element.is_some())), read),
            class,
            nullable: self.get(row, 8)?,
            order: match (ordered, &known, &send) {
                (false, ..) => Order::None,
                // Without a binary form there is nothing to compare with, and a row of nulls is null in a comparison only.
                (true, None, None) => Order::Unspoken,
                _ if kind == "c" || vector => Order::Unspoken,
                (true, ..) => Order::Value,
            },
            has_equality: equality && !vector,
            type_name,
            send: send.filter(|_| known.is_none()),
            is_loose: self.get(row, 14)?,
            operators: self
                .get::<Option<Vec<String>>>(row, 17)?
                .and_then(|operators| operators.try_into().ok())
                .map(Arc::new),
            ..Column::unknown("")
        };
        let declared = self.get(row, 7)?;
        Ok(Some(Found { column, declared }))
    }

    fn get<'r, T: tokio_postgres::types::FromSql<'r>>(
        &self,
        row: &'r Row,
        at: usize,
    ) -> Result<T, BridgeError> {
        row.try_get(at).map_err(|error| {
            log::debug!("PostgreSQL's catalogue has an unexpected form: {error}");
            no_answer()
        })
    }
}

fn text_form(is_array: bool) -> &'static str {
    if is_array { "text[]" } else { "text" }
}

/// How a column of that type is read: natively where there is a rule, else as text.
fn read(ty: &Type) -> Read {
    match ty {
        // Without the currency sign, which is the locale's.
        &Type::MONEY => Read::Cast("numeric"),
        &Type::MONEY_ARRAY => Read::Cast("numeric[]"),
        // One byte, of which one is no character: its text form knows how it is written.
        &Type::CHAR => Read::Cast("text"),
        ty if Decoder::of(ty).is_some() => Read::Plain,
        // These two are arrays only to the catalogue.
        &Type::INT2_VECTOR | &Type::OID_VECTOR => Read::Cast("text"),
        ty => Read::Cast(text_form(matches!(
            ty.kind(),
            tokio_postgres::types::Kind::Array(_)
        ))),
    }
}

fn class(ty: &Type) -> Class {
    match ty {
        &Type::INT2 | &Type::INT4 | &Type::INT8 => Class::Integer,
        &Type::NUMERIC => Class::Decimal,
        &Type::MONEY => Class::Money,
        &Type::FLOAT4 => Class::Single,
        &Type::FLOAT8 => Class::Double,
        &Type::BOOL => Class::Bool,
        &Type::TEXT | &Type::VARCHAR | &Type::BPCHAR | &Type::NAME => Class::Text,
        &Type::BYTEA => Class::Bytes,
        &Type::DATE => Class::Date,
        &Type::TIMESTAMP => Class::DateTime { zone: false },
        &Type::TIMESTAMPTZ => Class::DateTime { zone: true },
        &Type::TIME => Class::Time { zone: false },
        &Type::TIMETZ => Class::Time { zone: true },
        &Type::UUID => Class::Uuid,
        &Type::JSON | &Type::JSONB => Class::Json,
        _ => Class::Other,
    }
}
