//! Who may query a lens, and which of its rows: `grants.query`. Judges claims that somebody else has
//! verified; it knows nothing of keys or tokens.
//!
//! `"public"`, `"authenticated"`, or an object `{claims?, filter?}` that needs a user too. Absent: nobody but a
//! secret key, which bypasses all of this. `claims` names the values of which the user must have one;
//! `filter` is an equality per field, each with a literal or a `"$claims.<name>"` of the user's.

use std::fmt;

use serde_json::{Map, Value};

use super::filter::{Comparison, Filter};
use super::grammar::{self, GrammarError, join};
use super::numeral::Numeral;

/// The start of a value in a row filter that stands for a claim of the user's.
const CLAIM: &str = "$claims.";

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub enum Caller<'a> {
    /// A server of the customer's, with a secret key: grants do not apply.
    Secret,
    /// A browser with a publishable key, and the verified claims of its user if it has one.
    Publishable {
        /// The claims of the user's token.
        claims: Option<&'a Map<String, Value>>,
    },
}

/// Why a caller may not query a lens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// A sentence for the caller.
    pub reason: String,
}

impl Denied {
    fn new(reason: impl fmt::Display) -> Self {
        Self {
            reason: reason.to_string(),
        }
    }
}

/// The grants of a lens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grants {
    query: Option<Grant>,
    source: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum Grant {
    Public,
    User {
        claims: Vec<(String, Vec<Value>)>,
        filter: Vec<(String, Value)>,
    },
}

impl Grants {
    /// Reads the `grants` of a lens definition that stands at `path`; `known` are the lens's fields.
    ///
    /// # Errors
    ///
    /// When a grant is in none of the forms, or a row filter names a field that the lens does not have.
    pub fn parse(value: &Value, path: &str, known: &[&str]) -> Result<Self, GrammarError> {
        let members = grammar::object(value, path)?;
        grammar::only_known(members, path, &["query"])?;
        let query = match members.get("query") {
            None | Some(Value::Null) => None,
            Some(grant) => Some(Grant::parse(grant, &join(path, "query"), known)?),
        };
        Ok(Self {
            query,
            source: members.clone(),
        })
    }

    /// The grants as they were defined.
    pub fn to_json(&self) -> Value {
        Value::Object(self.source.clone())
    }

    /// Judges whether the caller may query at all.
    ///
    /// # Errors
    ///
    /// When not, with the reason.
    pub fn allows(&self, caller: &Caller<'_>) -> Result<(), Denied> {
        let Caller::Publishable { claims } = caller else {
            return Ok(());
        };
        let required = match &self.query {
            None => {
                return Err(Denied::new(
                    "this lens does not grant `query`; a secret key (`sk_`) is needed",
                ));
            }
            Some(Grant::Public) => return Ok(()),
            Some(Grant::User { claims, .. }) => claims,
        };
        let claims = claims
            .ok_or_else(|| Denied::new("this lens needs a signed-in user (`X-User-Token`)"))?;
        match required
            .iter()
            .find(|(name, accepted)| !has_one_of(claims, name, accepted))
        {
            None => Ok(()),
            Some((name, _)) => Err(Denied::new(format_args!(
                "the user's claim `{name}` does not allow this lens"
            ))),
        }
    }

    /// The rows that the caller may see, by output names.
    ///
    /// # Errors
    ///
    /// When it may not query at all, or a claim that the filter needs is missing or not a plain value.
    pub fn row_filter(&self, caller: &Caller<'_>) -> Result<Filter, Denied> {
        self.allows(caller)?;
        let (
            Some(Grant::User { filter, .. }),
            Caller::Publishable {
                claims: Some(claims),
            },
        ) = (&self.query, caller)
        else {
            return Ok(Filter::everything());
        };
        let conditions = filter.iter().map(|(field, value)| {
            let value = match value.as_str().and_then(|text| text.strip_prefix(CLAIM)) {
                Some(name) => plain_claim(claims, name)?,
                None => value.clone(),
            };
            Ok(Filter::compare(field.as_str(), Comparison::Eq, value))
        });
        Ok(Filter::all(conditions.collect::<Result<Vec<_>, Denied>>()?))
    }
}

impl Grant {
    fn parse(value: &Value, path: &str, known: &[&str]) -> Result<Self, GrammarError> {
        let members = match value {
            Value::String(name) if name == "public" => return Ok(Self::Public),
            Value::String(name) if name == "authenticated" => {
                return Ok(Self::User {
                    claims: Vec::new(),
                    filter: Vec::new(),
                });
            }
            Value::Object(members) => members,
            _ => {
                let message =
                    "must be `public`, `authenticated` or an object with `claims` and `filter`";
                return Err(GrammarError::invalid(path, message));
            }
        };
        grammar::only_known(members, path, &["authenticated", "claims", "filter"])?;
        if let Some(other) = members
            .get("authenticated")
            .filter(|value| **value != Value::Bool(true))
        {
            return Err(grammar::wrong_type(
                join(path, "authenticated"),
                "true",
                other,
            ));
        }
        let entries = |name: &str| match members.get(name) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(value) => grammar::object(value, &join(path, name)).cloned(),
        };
        let mut claims = Vec::new();
        for (name, accepted) in entries("claims")? {
            let accepted = accepted_values(accepted, &join(&join(path, "claims"), &name))?;
            claims.push((name, accepted));
        }
        let filter = entries("filter")?;
        for (field, value) in &filter {
            let path = join(&join(path, "filter"), field);
            if !known.contains(&field.as_str()) {
                return Err(GrammarError::unknown_field(
                    path,
                    field,
                    known.iter().copied(),
                ));
            }
            plain(value, &path)?;
        }
        Ok(Self::User {
            claims,
            filter: filter.into_iter().collect(),
        })
    }
}

/// One plain value, or an array of them.
fn accepted_values(value: Value, path: &str) -> Result<Vec<Value>, GrammarError> {
    let values = match value {
        Value::Array(values) => values,
        one => vec![one],
    };
    values.iter().try_for_each(|value| plain(value, path))?;
    Ok(values)
}

fn plain(value: &Value, path: &str) -> Result<(), GrammarError> {
    match value {
        Value::String(_) => grammar::text(value, path).map(|_| ()),
        Value::Number(_) | Value::Bool(_) => Ok(()),
        other => Err(grammar::wrong_type(
            path,
            "a string, a number or a boolean",
            other,
        )),
    }
}

fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    // A claim whose own name has dots (URLs are common) goes before a path into nested ones.
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

fn has_one_of(claims: &Map<String, Value>, name: &str, accepted: &[Value]) -> bool {
    let is_accepted = |held: &Value| accepted.iter().any(|value| is_same(held, value));
    match find(claims, name) {
        Some(Value::Array(held)) => held.iter().any(is_accepted),
        Some(value) => is_accepted(value),
        None => false,
    }
}

/// Whether two values are the same; `7` and `7.0` are one number.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(_), Value::Number(_)) => Numeral::of(left) == Numeral::of(right),
        (left, right) => left == right,
    }
}

fn plain_claim(claims: &Map<String, Value>, name: &str) -> Result<Value, Denied> {
    let value = find(claims, name)
        .ok_or_else(|| Denied::new(format_args!("the user has no claim `{name}`")))?;
    plain(value, name)
        .map_err(|error| Denied::new(format_args!("the user's claim `{name}` {}", error.message)))
        .map(|()| value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIELDS: &[&str] = &["id", "tenantId", "price"];

    fn grants(query: Value) -> Grants {
        Grants::parse(&json!({ "query": query }), "grants", FIELDS).unwrap()
    }

    #[test]
    fn each_form_admits_whom_it_should() {
        let staff = json!({"role": "staff"});
        let many = json!({"role": ["guest", "staff"], "org": {"id": 7}});
        let (staff, many) = (staff.as_object().unwrap(), many.as_object().unwrap());
        let anyone = Caller::Publishable { claims: None };
        let cases = [
            (Value::Null, [true, false, false, false]),
            (json!("public"), [true, true, true, true]),
            (json!("authenticated"), [true, false, true, true]),
            (json!({"authenticated": true}), [true, false, true, true]),
            (
                json!({"claims": {"role": ["staff", "admin"]}}),
                [true, false, true, true],
            ),
            (
                json!({"claims": {"role": "guest"}}),
                [true, false, false, true],
            ),
            (
                json!({"claims": {"role": "staff", "org.id": 7}}),
                [true, false, false, true],
            ),
            (
                json!({"claims": {"org.id": 7.0}}),
                [true, false, false, true],
            ),
            (json!({"claims": {"role": []}}), [true, false, false, false]),
        ];
        for (query, admitted) in cases {
            let grants = grants(query.clone());
            let callers = [
                Caller::Secret,
                anyone,
                Caller::Publishable {
                    claims: Some(staff),
                },
                Caller::Publishable { claims: Some(many) },
            ];
            assert_eq!(
                callers.map(|caller| grants.allows(&caller).is_ok()),
                admitted,
                "{query}"
            );
        }
    }

    #[test]
    fn reasons_say_what_is_missing() {
        let nobody = Caller::Publishable { claims: None };
        assert_eq!(
            Grants::default().allows(&nobody).unwrap_err().to_string(),
            "this lens does not grant `query`; a secret key (`sk_`) is needed"
        );
        assert_eq!(
            grants(json!("authenticated"))
                .allows(&nobody)
                .unwrap_err()
                .to_string(),
            "this lens needs a signed-in user (`X-User-Token`)"
        );
        let user = Map::new();
        assert_eq!(
            grants(json!({"claims": {"role": "staff"}}))
                .allows(&Caller::Publishable {
                    claims: Some(&user)
                })
                .unwrap_err()
                .to_string(),
            "the user's claim `role` does not allow this lens"
        );
    }

    #[test]
    fn the_row_filter_takes_its_values_from_the_users_claims() {
        let grants = grants(json!({"filter": {"tenantId": "$claims.tenant", "price": 5}}));
        let filter = |claims: &Value| {
            grants.row_filter(&Caller::Publishable {
                claims: claims.as_object(),
            })
        };
        assert_eq!(
            filter(&json!({"tenant": "t1"})).unwrap().to_json(),
            json!({"tenantId": "t1", "price": 5})
        );
        assert_eq!(
            filter(&json!({"tenant": "$ne"})).unwrap().to_json(),
            json!({"tenantId": "$ne", "price": 5})
        );
        assert_eq!(grants.row_filter(&Caller::Secret), Ok(Filter::everything()));
        for (claims, reason) in [
            (json!({}), "the user has no claim `tenant`"),
            (
                json!({"tenant": {"$ne": 1}}),
                "the user's claim `tenant` must be a string, a number or a boolean, not an object",
            ),
            (
                json!({"tenant": null}),
                "the user's claim `tenant` must be a string, a number or a boolean, not null",
            ),
            (
                json!({"tenant": "\0"}),
                "the user's claim `tenant` must not contain a NUL byte",
            ),
        ] {
            assert_eq!(filter(&claims).unwrap_err().reason, reason, "{claims}");
        }
        assert!(
            grants
                .row_filter(&Caller::Publishable { claims: None })
                .is_err()
        );
    }

    #[test]
    fn definitions_that_make_no_sense_are_refused() {
        for (grants, path, message) in [
            (json!([]), "grants", "must be an object, not an array"),
            (
                json!({"qery": "public"}),
                "grants.qery",
                "unknown member `qery`; did you mean `query`?",
            ),
            (
                json!({"query": "pubic"}),
                "grants.query",
                "must be `public`, `authenticated` or an object with `claims` and `filter`",
            ),
            (
                json!({"query": {"authenticated": false}}),
                "grants.query.authenticated",
                "must be true, not a boolean",
            ),
            (
                json!({"query": {"claims": []}}),
                "grants.query.claims",
                "must be an object, not an array",
            ),
            (
                json!({"query": {"claims": {"role": [{}]}}}),
                "grants.query.claims.role",
                "must be a string, a number or a boolean, not an object",
            ),
            (
                json!({"query": {"filter": {"tenantid": 1}}}),
                "grants.query.filter.tenantid",
                "unknown field `tenantid`; did you mean `tenantId`?",
            ),
        ] {
            let error = Grants::parse(&grants, "grants", FIELDS).unwrap_err();
            assert_eq!(
                (error.path.as_str(), error.message.as_str()),
                (path, message),
                "{grants}"
            );
        }
    }
}
