//! Rows arrive as promised: when the database gives them, however large they are, and with a word about what is
//! missing.

mod large_rows;
mod pace;
mod truncated;

use reqwest::{Method, Response};
use serde_json::Value;

use crate::support::rest::Api;

/// Asks for lines, and answers with the response once its head is there.
async fn ask_for_lines(api: &Api, lens: &str, body: &Value, prefer: Option<&str>) -> Response {
    let path = format!("/v1/query/{lens}");
    let mut request = api.request(Method::POST, &path).json(body);
    if let Some(prefer) = prefer {
        request = request.header("prefer", prefer);
    }
    let request = request.header("accept", "application/x-ndjson");
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response
}
