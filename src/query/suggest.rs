//! "Did you mean": the known name that is closest to an unknown one. Only for messages; nothing is ever
//! corrected by it.

/// Longer names are not compared: nobody mistypes them, and comparing takes quadratic time.
const LONGEST_COMPARED: usize = 64;

/// Returns the known name that `name` is most likely a slip of, if there is a likely one.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.is_empty() || name.len() > LONGEST_COMPARED {
        return None;
    }
    let folded = name.to_lowercase();
    let allowed = (folded.chars().count() / 3).max(1);
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST_COMPARED)
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&folded, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The end of a message about an unknown name: `` ; did you mean `x`? ``, or nothing.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    closest(name, known).map_or_else(String::new, |candidate| {
        format!("; did you mean `{candidate}`?")
    })
}

/// A name of a request as it may stand in a message: its first characters, without control characters.
pub(crate) fn clip(name: &str) -> String {
    let mut clipped: String = name
        .chars()
        .take(LONGEST_COMPARED)
        .filter(|c| !c.is_control())
        .collect();
    if name.chars().nth(LONGEST_COMPARED).is_some() {
        clipped.push('…');
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_name_and_strangers_find_none() {
        let known = ["price", "title", "createdAt", "id"];
        for (name, expected) in [
            ("prise", Some("price")),
            ("Price", Some("price")),
            ("pirce", Some("price")),
            ("created_at", Some("createdAt")),
            ("di", Some("id")),
            ("customer", None),
            ("", None),
        ] {
            assert_eq!(closest(name, known), expected, "{name}");
        }
        assert_eq!(closest(&"x".repeat(1000), ["x"]), None);
    }

    #[test]
    fn a_clipped_name_is_short_and_printable() {
        assert_eq!(clip("a\0b\n"), "ab");
        assert_eq!(clip(&"x".repeat(65)), format!("{}…", "x".repeat(64)));
    }
}
