//! Writes a filter in the grammar that it was parsed from. As flat as it can be: many bridges take
//! comparisons only, without `$and`.

use serde_json::{Map, Value, json};

use super::{Comparison, Filter};

/// Stands for a field where no field is compared: `{"_": {"$in": []}}` matches nothing and reads no column.
const NO_FIELD: &str = "_";

impl Filter {
    /// The filter as a `where`; [`super::parse()`] gives the same filter back.
    pub fn to_json(&self) -> Value {
        match self {
            Self::All(children) => merged(children).unwrap_or_else(
                || json!({ "$and": children.iter().map(Self::to_json).collect::<Vec<_>>() }),
            ),
            one => merged(std::slice::from_ref(one)).unwrap_or_default(),
        }
    }
}

/// A member of the object: a logical operator, or a field with its operators.
enum Member<'a> {
    Logical(&'static str, Value),
    Field(&'a str, Vec<(&'static str, Value)>),
}

impl Member<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Logical(name, _) => name,
            Self::Field(name, _) => name,
        }
    }
}

/// All the filters as one object, if that keeps their order and loses none.
fn merged(filters: &[Filter]) -> Option<Value> {
    let mut members: Vec<Member<'_>> = Vec::new();
    for filter in filters {
        let member = member(filter);
        if let (Some(Member::Field(last, operators)), Member::Field(field, new)) =
            (members.last_mut(), &member)
            && last == field
        {
            if new
                .iter()
                .any(|(op, _)| operators.iter().any(|(seen, _)| seen == op))
            {
                return None;
            }
            operators.extend(new.iter().cloned());
            continue;
        }
        members.push(member);
    }
    let mut object = Map::new();
    for member in members {
        let name = member.name().to_owned();
        let value = match member {
            Member::Logical(_, value) => value,
            Member::Field(_, operators) => operand(operators),
        };
        if object.insert(name, value).is_some() {
            return None;
        }
    }
    Some(Value::Object(object))
}

fn member(filter: &Filter) -> Member<'_> {
    match filter {
        // Only a filter that was not built by the constructors has an `All` here.
        Filter::All(children) => {
            Member::Logical("$and", children.iter().map(Filter::to_json).collect())
        }
        Filter::Any(children) => {
            Member::Logical("$or", children.iter().map(Filter::to_json).collect())
        }
        Filter::Not(inner) => Member::Logical("$not", inner.to_json()),
        Filter::Compare { field, op, value } => {
            Member::Field(field, vec![(op.as_str(), value.clone())])
        }
        Filter::In {
            field,
            values,
            negated,
        } => {
            let op = if *negated { "$nin" } else { "$in" };
            Member::Field(field, vec![(op, Value::Array(values.clone()))])
        }
        Filter::Contains { field, value } => {
            Member::Field(field, vec![("$contains", value.clone())])
        }
        Filter::IsNull { field, negated } => {
            let op = if *negated {
                Comparison::Ne
            } else {
                Comparison::Eq
            };
            Member::Field(field, vec![(op.as_str(), Value::Null)])
        }
        Filter::Matches {
            field,
            pattern,
            text,
        } => Member::Field(field, vec![(pattern.as_str(), Value::String(text.clone()))]),
        Filter::Nothing => Member::Field(NO_FIELD, vec![("$in", Value::Array(Vec::new()))]),
    }
}

/// What stands under a field: a bare value where that says it all, else its operators.
fn operand(mut operators: Vec<(&'static str, Value)>) -> Value {
    if let [("$eq", value)] = operators.as_mut_slice()
        && !value.is_array()
        && !value.is_object()
    {
        return value.take();
    }
    Value::Object(
        operators
            .into_iter()
            .map(|(op, value)| (op.to_owned(), value))
            .collect(),
    )
}
