//! What PostgreSQL's catalogue says of tables, for people.

use super::session::Session;
use crate::bridge::catalogue::{
    COUNT_UP_TO, ColumnInfo, Listed, add_index_column, write_target, write_targets,
};
use crate::bridge::encode::RowWriter;
use crate::bridge::request::{Table, Target};
use crate::bridge::sql::Statement;
use crate::bridge::{BridgeError, Outcome};

const LIST: &str = "SELECT CASE WHEN n.nspname IS DISTINCT FROM current_schema() THEN n.nspname::text END, c.relname::text, c.relkind IN ('v', 'm') \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(toast_)?temp_' \
    AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT') \
    ORDER BY n.nspname IS DISTINCT FROM current_schema(), n.nspname, c.relname";

const KEYS: &str = "SELECT a.attname::text FROM pg_catalog.pg_index i \
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(num, place) \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num \
    WHERE i.indrelid = $1::oid AND i.indisprimary ORDER BY k.place";

const INDEXES: &str = "SELECT c.relname::text, pg_get_indexdef(i.indexrelid, k::int, true), i.indisunique AND i.indpred IS NULL \
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
    CROSS JOIN generate_series(1, i.indnkeyatts) k WHERE i.indrelid = $1::oid ORDER BY 1, k";

const ESTIMATE: &str =
    "SELECT reltuples::bigint, relkind IN ('v', 'f') FROM pg_catalog.pg_class WHERE oid = $1::oid";

impl Session<'_> {
    pub(super) async fn list_targets(
        &self,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let mut targets = Vec::new();
        for row in self.rows(LIST, &[]).await? {
            let table = Table {
                schema: row.try_get(0).map_err(|e| self.error(e))?,
                name: row.try_get(1).map_err(|e| self.error(e))?,
            };
            targets.push(Listed {
                name: table.to_string(),
                is_view: row.try_get(2).map_err(|e| self.error(e))?,
            });
        }
        write_targets(rows, targets).await
    }

    pub(super) async fn introspect(
        &self,
        target: &Target,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let found = self.describe(target).await?;
        let keys = self.texts(KEYS, &found.oid).await?;
        let columns: Vec<_> = found
            .columns
            .into_iter()
            .map(|found| ColumnInfo {
                primary_key: keys.contains(&found.column.name),
                name: found.column.name,
                type_name: found.declared,
                nullable: found.column.nullable,
            })
            .collect();
        let mut indexes = Vec::new();
        for row in self.rows(INDEXES, &[&found.oid]).await? {
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
        let count = self.about_how_many(&found.table, &found.oid).await?;
        write_target(rows, &found.table, &columns, &keys, count, &indexes).await
    }

    async fn texts(&self, sql: &str, oid: &str) -> Result<Vec<String>, BridgeError> {
        let rows = self.rows(sql, &[oid]).await?;
        let texts = rows.iter().map(|row| row.try_get(0));
        texts.collect::<Result<_, _>>().map_err(|e| self.error(e))
    }

    /// The number of rows: counted if they are few, else the planner's estimate.
    async fn about_how_many(&self, table: &Table, oid: &str) -> Result<Option<u64>, BridgeError> {
        let rows = self.rows(ESTIMATE, &[oid]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let estimate: i64 = row.try_get(0).map_err(|e| self.error(e))?;
        let uncountable: bool = row.try_get(1).map_err(|e| self.error(e))?;
        match u64::try_from(estimate) {
            _ if uncountable => Ok(None),
            Ok(estimate) if estimate > COUNT_UP_TO.unsigned_abs() => Ok(Some(estimate)),
            _ => {
                let sql = format!(
                    "SELECT COUNT(*) FROM (SELECT 1 FROM {} LIMIT {COUNT_UP_TO}) AS some_rows",
                    table.quoted('"')
                );
                self.number(&Statement::fixed(sql, &[])).await.map(Some)
            }
        }
    }
}
