//! What MySQL's and MariaDB's information schema says of tables.

use std::sync::Arc;

use mysql_async::consts::{ColumnFlags, ColumnType};
use mysql_async::prelude::{FromRow, Queryable as _};
use mysql_async::{Column as MyColumn, Params};

use super::decode::is_bytes;
use super::{Session, failure};
use crate::bridge::catalogue::{
    COUNT_UP_TO, ColumnInfo, Listed, add_index_column, write_target, write_targets,
};
use crate::bridge::encode::RowWriter;
use crate::bridge::request::Target;
use crate::bridge::sql::{Class, Column, Dialect, Read, Shape, Statement};
use crate::bridge::{BridgeError, Outcome};

const SYSTEM: &str = "'mysql', 'information_schema', 'performance_schema', 'sys'";

const COLUMNS: &str = "SELECT CONVERT(column_name USING utf8mb4), CONVERT(column_type USING utf8mb4), \
    is_nullable = 'YES', column_key = 'PRI' FROM information_schema.columns \
    WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY ordinal_position";

const INDEXES: &str = "SELECT CONVERT(index_name USING utf8mb4), CONVERT(COALESCE(column_name, '') USING utf8mb4), \
    non_unique = 0 FROM information_schema.statistics \
    WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY index_name, seq_in_index";

const TABLE: &str = "SELECT table_rows, table_type LIKE '%VIEW%' FROM information_schema.tables \
    WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";

const JSON_CHECKS: &str = "SELECT CONVERT(check_clause USING utf8mb4) FROM information_schema.check_constraints \
    WHERE constraint_schema = COALESCE(?, DATABASE()) AND table_name = ?";

impl Session<'_> {
    /// The tables of the connection's database, or of all of them if it has none.
    pub(super) async fn list_targets(
        &mut self,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let sql = format!(
            "SELECT CONVERT(IF(table_schema = DATABASE(), table_name, CONCAT(table_schema, '.', table_name)) USING utf8mb4), \
             table_type LIKE '%VIEW%' FROM information_schema.tables \
             WHERE IF(DATABASE() IS NULL, table_schema NOT IN ({SYSTEM}), table_schema = DATABASE()) \
             ORDER BY table_schema, table_name"
        );
        let targets: Vec<(String, bool)> = self.rows(&sql, Params::Empty).await?;
        let targets = targets
            .into_iter()
            .map(|(name, is_view)| Listed { name, is_view });
        write_targets(rows, targets.collect()).await
    }

    pub(super) async fn introspect(
        &mut self,
        target: &Target,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        // Preparing it says in the database's own words what is wrong with the target.
        self.prepare(target).await?;
        let key = || Params::from((target.schema.clone(), target.table.clone()));
        let columns: Vec<(String, String, bool, bool)> = self.rows(COLUMNS, key()).await?;
        let column = |(name, type_name, nullable, primary_key)| ColumnInfo {
            name,
            type_name,
            nullable,
            primary_key,
        };
        let columns: Vec<_> = columns.into_iter().map(column).collect();
        let mut indexes = Vec::new();
        for (name, column, unique) in self.rows::<(String, String, bool)>(INDEXES, key()).await? {
            add_index_column(&mut indexes, name, column, unique);
        }
        let found: Vec<(Option<u64>, bool)> = self.rows(TABLE, key()).await?;
        let count = match found.first() {
            None | Some((_, true)) => None,
            Some((Some(estimate), false)) if *estimate > COUNT_UP_TO.unsigned_abs() => {
                Some(*estimate)
            }
            Some(_) => {
                let name = target.quoted('`');
                let sql = format!(
                    "SELECT COUNT(*) FROM (SELECT 1 FROM {name} LIMIT {COUNT_UP_TO}) AS some_rows"
                );
                Some(self.number(&Statement::fixed(sql, &[])).await?)
            }
        };
        write_target(rows, target, &columns, count, &indexes).await
    }

    /// The columns of a table.
    pub(super) async fn shape(&mut self, target: &Target) -> Result<Arc<Shape>, BridgeError> {
        if let Some(shape) = self.shapes.get(target) {
            return Ok(shape);
        }
        let columns = self.prepare(target).await?;
        let mut columns: Vec<_> = columns.iter().map(column).collect();
        if self.connection.dialect == Dialect::MariaDb
            && columns.iter().any(|column| column.class == Class::Text)
        {
            self.find_json(target, &mut columns).await?;
        }
        Ok(self.shapes.put(target, Shape::new(columns)))
    }

    /// MariaDB's JSON is a text with a check that it is JSON, by which it is recognised here.
    async fn find_json(
        &mut self,
        target: &Target,
        columns: &mut [Column],
    ) -> Result<(), BridgeError> {
        let key = Params::from((target.schema.clone(), target.table.clone()));
        let checks: Vec<String> = self.rows(JSON_CHECKS, key).await?;
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

    async fn prepare(&mut self, target: &Target) -> Result<Arc<[MyColumn]>, BridgeError> {
        let sql = self
            .job
            .tagged(&format!("SELECT * FROM {}", target.quoted('`')));
        let statement = self
            .connection
            .conn
            .prep(sql)
            .await
            .map_err(|error| failure(self.job, error))?;
        let columns = statement.columns();
        self.connection
            .conn
            .close(statement)
            .await
            .map_err(|error| failure(self.job, error))?;
        Ok(columns)
    }

    async fn rows<T: FromRow + Send + 'static>(
        &mut self,
        sql: &str,
        params: Params,
    ) -> Result<Vec<T>, BridgeError> {
        let rows = self
            .connection
            .conn
            .exec(self.job.tagged(sql), params)
            .await;
        rows.map_err(|error| failure(self.job, error))
    }
}

fn column(column: &MyColumn) -> Column {
    use ColumnType as T;
    let (class, read) = match column.column_type() {
        T::MYSQL_TYPE_TINY
        | T::MYSQL_TYPE_SHORT
        | T::MYSQL_TYPE_INT24
        | T::MYSQL_TYPE_LONG
        | T::MYSQL_TYPE_LONGLONG
        | T::MYSQL_TYPE_YEAR
        | T::MYSQL_TYPE_BIT => (Class::Integer(64), Read::Plain),
        T::MYSQL_TYPE_DECIMAL | T::MYSQL_TYPE_NEWDECIMAL => (Class::Decimal, Read::Plain),
        T::MYSQL_TYPE_FLOAT | T::MYSQL_TYPE_DOUBLE => (Class::Float, Read::Plain),
        T::MYSQL_TYPE_DATETIME | T::MYSQL_TYPE_TIMESTAMP => (Class::DateTime, Read::Plain),
        T::MYSQL_TYPE_JSON => (Class::Json, Read::Plain),
        T::MYSQL_TYPE_GEOMETRY => (Class::Other, Read::Function("ST_AsText")),
        _ if is_bytes(column) => (Class::Bytes, Read::Plain),
        // Dates and times too: bound as text they are read as what the column is.
        _ => (Class::Text, Read::Plain),
    };
    let nullable = !column.flags().contains(ColumnFlags::NOT_NULL_FLAG);
    Column {
        name: column.name_str().into_owned(),
        class,
        nullable,
        read,
    }
}
