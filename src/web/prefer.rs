//! The `Prefer` header (RFC 7240): what a caller would like, and what of it is done.
//!
//! A preference that is not known here is none of our business and ignored, as the RFC asks. One that is
//! known and makes no sense is the caller's mistake, and said so.

use std::future::{Ready, ready};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest};

use super::error::ApiError;

/// The header that says which preferences are honoured.
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The longest wait that is granted, in seconds; who asks for more is told that it is this.
const LONGEST_WAIT: u64 = 60;

/// What the caller of a query would like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preferences {
    /// How long to wait for a runner instead of answering 503 at once.
    pub(super) wait: Duration,
    /// Not to wait, and to ask for the result later.
    pub(super) respond_async: bool,
    /// Whether an empty line may break a long silence between lines.
    pub(super) keep_alive: bool,
}

/// What stands in `Preference-Applied`; left in the request for the middleware that finishes the response.
#[derive(Debug, Clone)]
pub(super) struct Applied(pub(super) HeaderValue);

impl Preferences {
    fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Result<Self, ApiError> {
        let preferences: Vec<_> = headers
            .flat_map(|header| split_outside_quotes(header, ','))
            .collect();
        // Of several values of one preference the first counts.
        let first = |name| preferences.iter().find_map(|one| value_of(one, name));
        let wait = first("wait").map(|text| seconds(&text)).transpose()?;
        let keep_alive = first("keep-alive").map(|text| on_or_off(&text));
        Ok(Self {
            wait: Duration::from_secs(wait.unwrap_or_default()),
            respond_async: first("respond-async").is_some_and(|value| value.is_empty()),
            keep_alive: keep_alive.transpose()?.unwrap_or(true),
        })
    }

    fn applied(self) -> Option<Applied> {
        if self.respond_async {
            // Nobody waits then.
            return Some(Applied(HeaderValue::from_static("respond-async")));
        }
        let seconds = self.wait.as_secs();
        let wait = (seconds > 0).then(|| format!("wait={seconds}"));
        let silent = (!self.keep_alive).then(|| "keep-alive=off".to_owned());
        let said: Vec<_> = wait.into_iter().chain(silent).collect();
        if said.is_empty() {
            return None;
        }
        HeaderValue::try_from(said.join(", ")).ok().map(Applied)
    }
}

impl FromRequest for Preferences {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let headers = request.headers().get_all("prefer");
        let parsed = Self::parse(headers.filter_map(|value| value.to_str().ok()));
        if let Some(applied) = parsed.as_ref().ok().and_then(|wishes| wishes.applied()) {
            request.extensions_mut().insert(applied);
        }
        ready(parsed)
    }
}

/// The value of a preference, if it is the one of that name: `name [= value] *(; parameter)`.
fn value_of(preference: &str, name: &str) -> Option<String> {
    let without_parameters = split_outside_quotes(preference, ';').next()?;
    let (found, value) = without_parameters
        .split_once('=')
        .unwrap_or((without_parameters, ""));
    found
        .trim()
        .eq_ignore_ascii_case(name)
        .then(|| unquoted(value.trim()))
}

fn seconds(text: &str) -> Result<u64, ApiError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // A number too long to read is a number over the limit.
    let seconds = digits.then(|| text.parse().unwrap_or(u64::MAX));
    match seconds {
        Some(seconds @ 1..) => Ok(seconds.min(LONGEST_WAIT)),
        _ => Err(ApiError::invalid(
            "",
            format!("header `Prefer`: `wait` is a whole number of seconds, 1 to {LONGEST_WAIT}"),
        )
        .with("header", "Prefer")),
    }
}

fn on_or_off(text: &str) -> Result<bool, ApiError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(
            ApiError::invalid("", "header `Prefer`: `keep-alive` is `on` or `off`")
                .with("header", "Prefer"),
        ),
    }
}

fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let literal = escaped;
        escaped = quoted && !literal && c == '\\';
        if c == '"' && !literal {
            quoted = !quoted;
        }
        c == separator && !quoted
    })
}

fn unquoted(text: &str) -> String {
    let Some(inner) = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
    else {
        return text.to_owned();
    };
    inner.replace("\\\"", "\"").replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(headers: &[&str]) -> Result<u64, String> {
        Preferences::parse(headers.iter().copied())
            .map(|preferences| preferences.wait.as_secs())
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn wait_is_found_wherever_it_stands() {
        for (headers, expected) in [
            (&[][..], 0),
            (&["respond-async"], 0),
            (&["wait=10"], 10),
            (&["Wait = 10"], 10),
            (&["wait=\"10\""], 10),
            (&["respond-async, wait=10"], 10),
            (&["respond-async", "wait=10"], 10),
            (&["wait=10; strict", "wait=20"], 10),
            (&["wait=10, wait=20"], 10),
            (&["handling=lenient; note=\"a, wait=5\", wait=7"], 7),
            (&["note=\"an \\\" and, wait=5\",wait=8"], 8),
            (&["waiting=5"], 0),
            (&["wait=60"], 60),
            (&["wait=61"], 60),
            (&["wait=99999999999999999999999"], 60),
        ] {
            assert_eq!(wait(headers), Ok(expected), "{headers:?}");
        }
    }

    #[test]
    fn a_wait_that_makes_no_sense_is_refused_by_the_headers_name() {
        for header in [
            "wait",
            "wait=",
            "wait=0",
            "wait=-1",
            "wait=1.5",
            "wait=soon",
            "wait=+1",
        ] {
            let error = wait(&[header]).unwrap_err();
            assert!(error.contains("`Prefer`"), "{header}: {error}");
        }
    }

    #[test]
    fn lines_keep_the_connection_awake_unless_that_is_not_wanted() {
        let awake = |headers: &[&str]| {
            Preferences::parse(headers.iter().copied()).map(|wishes| wishes.keep_alive)
        };
        assert!(awake(&[]).unwrap() && awake(&["wait=3", "keep-alive=on"]).unwrap());
        assert!(!awake(&["wait=3, keep-alive=off"]).unwrap());
        for header in [
            "keep-alive",
            "keep-alive=",
            "keep-alive=no",
            "keep-alive=30",
        ] {
            let error = awake(&[header]).unwrap_err();
            assert!(error.message().contains("`Prefer`"), "{header}");
        }
    }

    #[test]
    fn what_is_granted_is_said() {
        let said = |headers: &[&str]| {
            let parsed = Preferences::parse(headers.iter().copied()).unwrap();
            parsed.applied().map(|applied| applied.0)
        };
        assert_eq!(said(&["wait=99"]).unwrap(), "wait=60");
        assert_eq!(said(&["wait=9, Respond-Async"]).unwrap(), "respond-async");
        assert_eq!(said(&["keep-alive=off"]).unwrap(), "keep-alive=off");
        assert_eq!(
            said(&["Keep-Alive=\"off\", wait=3"]).unwrap(),
            "wait=3, keep-alive=off"
        );
        assert!(said(&["keep-alive=on"]).is_none(), "that is how it is");
        assert!(said(&["respond-async=no", "note=\"a, respond-async\""]).is_none());
    }
}
