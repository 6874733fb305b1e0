//! What things may be called. Names stand in URLs where ids do too, so a name never looks like an id; slugs
//! stand in keys between underscores. Uniqueness is the store's matter.

use uuid::Uuid;

/// The longest name.
pub const MAX_NAME: usize = 64;
/// The longest slug.
pub const MAX_SLUG: usize = 40;

/// Why something may not be called so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing there, or too much.
    #[error("must be 1 to {max} characters long")]
    Length {
        /// The most characters.
        max: usize,
    },
    /// A name with a character that it may not have.
    #[error(
        "may have letters, digits, `-`, `_` and `.` only, and must begin with a letter or a digit"
    )]
    NameCharacters,
    /// A slug with a character that it may not have.
    #[error("may have lower-case letters, digits and single `-` between them only")]
    SlugCharacters,
    /// A name that would be taken for an id.
    #[error("must not look like a UUID: it would be taken for an id")]
    LooksLikeId,
}

/// Checks the name of a runner, source, lens, group or key.
///
/// # Errors
///
/// When it may not be a name, with the rule that it breaks.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    check_length(name, MAX_NAME)?;
    // UUIDs can be written with braces or as URNs too; the characters are checked after, so that the better
    // reason is given.
    if Uuid::try_parse(name).is_ok() {
        return Err(InvalidName::LooksLikeId);
    }
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    {
        Ok(())
    } else {
        Err(InvalidName::NameCharacters)
    }
}

/// Checks the slug of an organisation or an environment.
///
/// # Errors
///
/// When it may not be a slug, with the rule that it breaks.
pub fn check_slug(slug: &str) -> Result<(), InvalidName> {
    check_length(slug, MAX_SLUG)?;
    if Uuid::try_parse(slug).is_ok() {
        return Err(InvalidName::LooksLikeId);
    }
    let word = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    if slug.split('-').all(word) {
        Ok(())
    } else {
        Err(InvalidName::SlugCharacters)
    }
}

fn check_length(text: &str, max: usize) -> Result<(), InvalidName> {
    if (1..=max).contains(&text.chars().count()) {
        Ok(())
    } else {
        Err(InvalidName::Length { max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0197f3a0-7c2e-7d3b-9d3a-3f1b5f0c9a11";

    #[test]
    fn names_are_url_safe_and_no_ids() {
        let long = "x".repeat(65);
        for (name, expected) in [
            ("primary-prod", Ok(())),
            ("Orders_2.v1", Ok(())),
            ("7", Ok(())),
            (&long[..64], Ok(())),
            ("", Err(InvalidName::Length { max: 64 })),
            (&long, Err(InvalidName::Length { max: 64 })),
            ("-x", Err(InvalidName::NameCharacters)),
            (".", Err(InvalidName::NameCharacters)),
            ("a b", Err(InvalidName::NameCharacters)),
            ("a/b", Err(InvalidName::NameCharacters)),
            ("é", Err(InvalidName::NameCharacters)),
            ("a\0", Err(InvalidName::NameCharacters)),
            (ID, Err(InvalidName::LooksLikeId)),
            (&ID.to_uppercase(), Err(InvalidName::LooksLikeId)),
            (&ID.replace('-', ""), Err(InvalidName::LooksLikeId)),
            (&format!("{{{ID}}}"), Err(InvalidName::LooksLikeId)),
        ] {
            assert_eq!(check_name(name), expected, "{name}");
        }
    }

    #[test]
    fn slugs_fit_between_the_underscores_of_a_key() {
        for (slug, expected) in [
            ("default", Ok(())),
            ("acme-2", Ok(())),
            ("", Err(InvalidName::Length { max: 40 })),
            ("Acme", Err(InvalidName::SlugCharacters)),
            ("a_b", Err(InvalidName::SlugCharacters)),
            ("a--b", Err(InvalidName::SlugCharacters)),
            ("-a", Err(InvalidName::SlugCharacters)),
            ("a-", Err(InvalidName::SlugCharacters)),
            (ID, Err(InvalidName::LooksLikeId)),
            (&"x".repeat(41), Err(InvalidName::Length { max: 40 })),
        ] {
            assert_eq!(check_slug(slug), expected, "{slug}");
        }
    }
}
