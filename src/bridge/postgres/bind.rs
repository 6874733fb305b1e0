//! How values go out with a statement.

use bytes::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use crate::bridge::sql::Param;

/// A value that PostgreSQL reads as text, or in the binary form of a type that the statement names.
#[derive(Debug)]
pub(super) enum Sent {
    Text(String),
    Binary(Vec<u8>),
}

impl Sent {
    pub(super) fn of(value: &Param) -> Self {
        Self::Text(match value {
            Param::Bytes(bytes) | Param::RawText(bytes) => return Self::Binary(bytes.clone()),
            Param::Text(text) => text.clone(),
            Param::Int(number) => number.to_string(),
            Param::UInt(number) => number.to_string(),
            Param::Single(number) => number.to_string(),
            Param::Double(number) => number.to_string(),
            Param::List(_) => String::new(),
        })
    }
}

impl ToSql for Sent {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        });
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self {
            Self::Text(_) => Format::Text,
            Self::Binary(_) => Format::Binary,
        }
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}
