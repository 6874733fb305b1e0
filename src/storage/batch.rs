//! One statement over a batch of different values: the batch travels as one JSON document in one
//! parameter, so the text is constant and its plan is prepared once per connection.
//!
//! The text differs in how the document becomes rows (`json_to_recordset` against `json_each`) and in what
//! locks rows, so both are written out side by side.

use diesel::backend::Backend;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::serialize::ToSql;
use diesel::sql_types::{HasSqlType, Text};
use diesel::sqlite::Sqlite;
use serde::Serialize;
use std::marker::PhantomData;

use super::error::StoreError;

/// The texts of one statement; `$batch` stands for the document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts {
    pub(super) postgres: &'static str,
    pub(super) sqlite: &'static str,
}

/// A statement, its batch, and the columns that it returns.
#[derive(Debug)]
pub(super) struct Batch<Columns = ()> {
    texts: Texts,
    document: String,
    columns: PhantomData<Columns>,
}

impl<Columns> Batch<Columns> {
    /// Pairs a statement with its values.
    pub(super) fn new(texts: Texts, values: &impl Serialize) -> Result<Self, StoreError> {
        let document =
            serde_json::to_string(values).map_err(|error| StoreError::Internal(error.into()))?;
        Ok(Self {
            texts,
            document,
            columns: PhantomData,
        })
    }

    fn walk<'b, DB>(&'b self, text: &'static str, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()>
    where
        DB: Backend + HasSqlType<Text>,
        String: ToSql<Text, DB>,
    {
        let mut parts = text.split("$batch");
        if let Some(first) = parts.next() {
            out.push_sql(first);
        }
        for part in parts {
            out.push_bind_param::<Text, _>(&self.document)?;
            out.push_sql(part);
        }
        Ok(())
    }
}

impl<Columns> QueryFragment<Pg> for Batch<Columns> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.walk(self.texts.postgres, out)
    }
}

impl<Columns> QueryFragment<Sqlite> for Batch<Columns> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        self.walk(self.texts.sqlite, out)
    }
}

/// Statements are told apart by their text.
impl<Columns> QueryId for Batch<Columns> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Columns> Query for Batch<Columns> {
    type SqlType = Columns;
}
