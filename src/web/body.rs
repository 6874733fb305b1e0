//! What a request carries: [`Body`] reads a JSON body into a type, [`Params`] a query string, both with an
//! error that names the JSON path and says what would be right.

use std::fmt::Write as _;
use std::future::{Ready, ready};
use std::ops::Deref;

use actix_web::dev::Payload;
use actix_web::error::QueryPayloadError;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::Query;
use actix_web::{FromRequest, HttpRequest};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use super::error::{ApiError, ApiResult, Code};

/// The largest JSON body that is read.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// A JSON body, read into a type.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for Body<T> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, ApiResult<Self>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let announced = request
            .headers()
            .get("content-length")
            .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let payload = payload.take();
        Box::pin(async move { Ok(Self(parse(&read(announced, payload).await?)?)) })
    }
}

/// A JSON body that may be left out, which means the type's default.
#[derive(Debug)]
pub struct OptionalBody<T>(pub T);

impl<T: DeserializeOwned + Default + 'static> FromRequest for OptionalBody<T> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, ApiResult<Self>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let announced = announced(request);
        let payload = payload.take();
        Box::pin(async move {
            let body = read(announced, payload).await?;
            Ok(Self(if body.is_empty() {
                T::default()
            } else {
                parse(&body)?
            }))
        })
    }
}

/// The length that the request announces.
fn announced(request: &HttpRequest) -> Option<u64> {
    request
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Reads a body up to the limit; one that announces more is refused before a byte of it is read.
async fn read(announced: Option<u64>, mut payload: Payload) -> ApiResult<BytesMut> {
    let too_large = || {
        ApiError::new(Code::TooLarge, "the body is larger than 1 MiB")
            .with("limitBytes", MAX_BODY_BYTES)
    };
    if announced.is_some_and(|bytes| bytes > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk
            .map_err(|error| ApiError::invalid("", format!("the body cannot be read: {error}")))?;
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads JSON into a type.
///
/// # Errors
///
/// `invalid_request` with the path of what is wrong: malformed JSON, an unknown field, a wrong type, a
/// NUL character in a text.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::invalid(
            "",
            "the body is empty; send a JSON object",
        ));
    }
    refuse_nul(body)?;
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(if path == "." { "" } else { &path }, error.inner())
    })?;
    json.end().map_err(|error| explain("", &error))?;
    Ok(value)
}

/// No store and no database takes a NUL in a text, so none gets past the edge.
fn refuse_nul(body: &[u8]) -> ApiResult<()> {
    // Written out, a NUL is no JSON; escaped, it is this. Only then is the slow way taken.
    if !body.windows(6).any(|window| window == b"\\u0000") {
        return Ok(());
    }
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return Ok(());
    };
    match nul_path(&value) {
        Some(path) => Err(ApiError::invalid(
            path,
            "a text may not contain a NUL character",
        )),
        None => Ok(()),
    }
}

/// The path of the first text with a NUL in it.
fn nul_path(value: &Value) -> Option<String> {
    let join = |head: String, tail: String| match tail.as_str() {
        "" => head,
        tail if tail.starts_with('[') => head + tail,
        tail => format!("{head}.{tail}"),
    };
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(at, item)| Some(join(format!("[{at}]"), nul_path(item)?))),
        Value::Object(fields) => fields.iter().find_map(|(key, item)| {
            if key.contains('\0') {
                Some(key.replace('\0', "\\u0000"))
            } else {
                Some(join(key.clone(), nul_path(item)?))
            }
        }),
        _ => None,
    }
}

/// Turns what serde says into what a client can act on.
fn explain(path: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    let place = format!("line {}, column {}", error.line(), error.column());
    match error.classify() {
        Category::Data => {
            let at = if path.is_empty() {
                String::new()
            } else {
                format!("`{path}`: ")
            };
            ApiError::invalid(
                path,
                format!(
                    "{at}{}",
                    unknown_field(text).unwrap_or_else(|| text.to_owned())
                ),
            )
        }
        _ if text.starts_with("recursion limit") => {
            ApiError::invalid(path, "the body is nested too deeply")
        }
        _ => ApiError::invalid(
            path,
            format!("the body is not valid JSON: {text} at {place}"),
        )
        .with("line", error.line())
        .with("column", error.column()),
    }
}

/// Says which field is not known and which one was perhaps meant, from serde's text
/// ``unknown field `a`, expected one of `b`, `c` ``.
fn unknown_field(text: &str) -> Option<String> {
    let rest = text.strip_prefix("unknown field `")?;
    let (field, expected) = rest.split_once('`')?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let mut sentence = format!("there is no field `{field}`");
    match known
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(field, a).total_cmp(&strsim::jaro_winkler(field, b)))
    {
        Some(closest) if strsim::jaro_winkler(field, closest) > 0.75 => {
            let _ = write!(sentence, "; did you mean `{closest}`?");
        }
        Some(_) => {
            let _ = write!(sentence, "; the fields are `{}`", known.join("`, `"));
        }
        None => sentence.push_str("; no field is expected here"),
    }
    Some(sentence)
}

/// A query string, read into a type.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T> Deref for Params<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned> FromRequest for Params<T> {
    type Error = ApiError;
    type Future = Ready<ApiResult<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(params(request.query_string()).map(Self))
    }
}

/// Reads a query string into a type.
fn params<T: DeserializeOwned>(query: &str) -> ApiResult<T> {
    if query.contains("%00") {
        return Err(ApiError::invalid(
            "",
            "a query parameter may not contain a NUL character",
        ));
    }
    Query::from_query(query)
        .map(Query::into_inner)
        .map_err(|error| {
            let text = match error {
                QueryPayloadError::Deserialize(error) => error.to_string(),
                other => other.to_string(),
            };
            match unknown_field(&text) {
                Some(sentence) => ApiError::invalid(
                    "",
                    format!("query string: {}", sentence.replace("field", "parameter")),
                ),
                None => ApiError::invalid("", format!("query string: {text}")),
            }
        })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Outer {
        name: String,
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        size: u8,
    }

    fn failure(body: &str) -> ApiError {
        parse::<Outer>(body.as_bytes()).unwrap_err()
    }

    fn path(error: &ApiError) -> Value {
        error.body(&crate::web::request_id::RequestId::new())["path"].clone()
    }

    #[test]
    fn a_good_body_is_read() {
        let outer: Outer = parse(br#" {"name": "a", "inner": [{"size": 3}]} "#).unwrap();
        assert_eq!((outer.name.as_str(), outer.inner[0].size), ("a", 3));
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        let error = failure(r#"{"name": "a", "inner": [{"size": 1}, {"size": "x"}]}"#);
        assert_eq!(path(&error), "inner[1].size");
        assert!(
            error.message().contains("expected u8"),
            "{}",
            error.message()
        );
        assert!(!error.message().contains("line"), "{}", error.message());
    }

    #[test]
    fn malformed_json_says_where() {
        let error = failure("{\"name\": \"a\", \"inner\": [{\"size\": }]}");
        assert_eq!(path(&error), "inner[0].size");
        assert!(
            error.message().contains("line 1, column"),
            "{}",
            error.message()
        );
        assert!(
            failure("{\"name\": \"a\"} x")
                .message()
                .contains("trailing")
        );
        assert!(failure("  ").message().contains("empty"));
    }

    #[test]
    fn an_unknown_field_is_named_with_the_closest_one() {
        let error = failure(r#"{"nmae": "a"}"#);
        assert_eq!(path(&error), "nmae");
        assert!(
            error.message().contains("did you mean `name`?"),
            "{}",
            error.message()
        );
        let error = failure(r#"{"zzz": 1}"#);
        assert!(
            error.message().contains("the fields are `name`, `inner`"),
            "{}",
            error.message()
        );
    }

    #[test]
    fn nul_characters_are_refused_by_path() {
        assert_eq!(path(&failure(r#"{"name": "a\u0000b"}"#)), "name");
        assert_eq!(
            nul_path(&json!({"a": [1, {"b": "\0"}]})),
            Some("a[1].b".into())
        );
        assert_eq!(nul_path(&json!({"a\0": 1})), Some("a\\u0000".into()));
        let escaped: Outer = parse(br#"{"name": "a\\u0000b"}"#).unwrap();
        assert_eq!(escaped.name, "a\\u0000b");
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(
            parse::<Value>(deep.as_bytes())
                .unwrap_err()
                .message()
                .contains("nested")
        );
    }

    #[test]
    fn a_query_string_is_as_strict_as_a_body() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Page {
            limit: Option<u32>,
        }
        assert_eq!(params::<Page>("limit=3").unwrap().limit, Some(3));
        let error = params::<Page>("limt=3").unwrap_err();
        assert!(
            error
                .message()
                .contains("parameter `limt`; did you mean `limit`?"),
            "{}",
            error.message()
        );
        assert!(params::<Page>("limit=x").is_err());
        assert!(params::<Page>("limit=%00").is_err());
    }
}
