//! What MySQL's and MariaDB's information schema says of tables, for people.

use mysql_async::Params;
use mysql_async::prelude::{FromRow, Queryable as _};

use super::session::{Session, failure};
use super::shape::key;
use crate::bridge::catalogue::{
    COUNT_UP_TO, ColumnInfo, Listed, add_index_column, write_target, write_targets,
};
use crate::bridge::encode::RowWriter;
use crate::bridge::request::{Table, Target};
use crate::bridge::sql::Statement;
use crate::bridge::{BridgeError, Outcome};

const SYSTEM: &str = "'mysql', 'information_schema', 'performance_schema', 'sys'";

const KEYS: &str = "SELECT CONVERT(column_name USING utf8mb4) FROM information_schema.statistics \
    WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND index_name = 'PRIMARY' ORDER BY seq_in_index";

const INDEXES: &str = "SELECT CONVERT(index_name USING utf8mb4), CONVERT(COALESCE(column_name, '') USING utf8mb4), \
    non_unique = 0 FROM information_schema.statistics \
    WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY index_name, seq_in_index";

const ESTIMATE: &str = "SELECT table_rows FROM information_schema.tables \
    WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";

impl Session<'_> {
    /// The tables of the connection's database, or of all of them if it has none.
    pub(super) async fn list_targets(
        &mut self,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let sql = format!(
            "SELECT CONVERT(IF(table_schema = DATABASE(), NULL, table_schema) USING utf8mb4), \
             CONVERT(table_name USING utf8mb4), table_type LIKE '%VIEW%' FROM information_schema.tables \
             WHERE IF(DATABASE() IS NULL, table_schema NOT IN ({SYSTEM}), table_schema = DATABASE()) \
             AND table_type <> 'SEQUENCE' ORDER BY table_schema, table_name"
        );
        let targets: Vec<(Option<String>, String, bool)> = self.rows(&sql, Params::Empty).await?;
        let targets = targets.into_iter().map(|(schema, name, is_view)| Listed {
            name: Table { schema, name }.to_string(),
            is_view,
        });
        write_targets(rows, targets.collect()).await
    }

    pub(super) async fn introspect(
        &mut self,
        target: &Target,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let (table, declared) = self.declared(target).await?;
        let keys: Vec<String> = self.rows(KEYS, key(&table)).await?;
        let columns = declared.into_iter().map(|column| ColumnInfo {
            primary_key: keys.contains(&column.name),
            name: column.name,
            type_name: column.type_name,
            nullable: column.nullable,
        });
        let columns: Vec<_> = columns.collect();
        let mut indexes = Vec::new();
        for (name, column, unique) in self
            .rows::<(String, String, bool)>(INDEXES, key(&table))
            .await?
        {
            add_index_column(&mut indexes, name, column, unique);
        }
        let count = self.about_how_many(&table).await?;
        write_target(rows, &table, &columns, &keys, count, &indexes).await
    }

    /// The number of rows: counted if they are few, else the engine's estimate.
    async fn about_how_many(&mut self, table: &Table) -> Result<Option<u64>, BridgeError> {
        if self.is_view(table).await? {
            return Ok(None);
        }
        let estimate: Vec<Option<u64>> = self.rows(ESTIMATE, key(table)).await?;
        match estimate.first() {
            Some(Some(estimate)) if *estimate > COUNT_UP_TO.unsigned_abs() => Ok(Some(*estimate)),
            _ => {
                let sql = format!(
                    "SELECT COUNT(*) FROM (SELECT 1 FROM {} LIMIT {COUNT_UP_TO}) AS some_rows",
                    table.quoted('`')
                );
                self.number(&Statement::fixed(sql, &[])).await.map(Some)
            }
        }
    }

    pub(super) async fn rows<T: FromRow + Send + 'static>(
        &mut self,
        sql: &str,
        params: Params,
    ) -> Result<Vec<T>, BridgeError> {
        let sql = self.limited(sql, 0);
        let rows = self.connection.conn.exec(sql, params).await;
        rows.map_err(|error| failure(self.job, error))
    }
}
