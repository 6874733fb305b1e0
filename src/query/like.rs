//! The string operators: what a pattern matches, and the same as a regular expression for databases.
//!
//! All but `$like` mind no case, by Unicode's *simple case folding*: a letter matches those that fold to the same
//! letter (`K` the Kelvin sign, `σ ς Σ`), one for one, so `ß` is not `ss`. Databases disagree on letters beyond ASCII
//! and leave them to locales, so a regular expression names all letters that are meant.

use std::fmt::Write as _;

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};

use super::filter::Pattern;

/// How many characters a pattern may have: databases take time for each of them at each place of a text.
pub const MAX_PATTERN: usize = 1_000;
/// How many places of a text are tried before it is asked whether anybody still waits.
const PLACES_BETWEEN_LOOKS: usize = 1_024;

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Like {
    tokens: Vec<Token>,
    folded: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Any text, `%`.
    Any,
    /// Any character, `_`.
    One,
    /// One of these characters.
    Char(Vec<char>),
}

/// Whose regular expressions they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// PostgreSQL's own.
    Postgres,
    /// MariaDB's, which are PCRE's.
    Pcre,
    /// MySQL's, which are ICU's.
    Icu,
}

impl Like {
    /// Compiles a pattern.
    ///
    /// # Errors
    ///
    /// When it ends within an escape, or is longer than [`MAX_PATTERN`].
    pub fn parse(pattern: Pattern, text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATTERN && text.chars().count() > MAX_PATTERN {
            return Err(format!(
                "a pattern has at most {MAX_PATTERN} characters; compare longer texts by `$eq`"
            ));
        }
        let folded = pattern != Pattern::Like;
        let literal = |c| Token::Char(if folded { equivalents(c) } else { vec![c] });
        let mut tokens = Vec::with_capacity(text.len() + 2);
        match pattern {
            Pattern::Like | Pattern::Ilike => {
                let mut chars = text.chars();
                while let Some(c) = chars.next() {
                    tokens.push(match c {
                        '%' => Token::Any,
                        '_' => Token::One,
                        '\\' => literal(chars.next().ok_or(
                            "a pattern must not end in a single backslash, which escapes what follows; write two for the character itself",
                        )?),
                        c => literal(c),
                    });
                }
            }
            Pattern::Contains | Pattern::StartsWith | Pattern::EndsWith => {
                let open = |at| pattern == Pattern::Contains || pattern == at;
                tokens.extend(open(Pattern::EndsWith).then_some(Token::Any));
                tokens.extend(text.chars().map(literal));
                tokens.extend(open(Pattern::StartsWith).then_some(Token::Any));
            }
        }
        Ok(Self { tokens, folded })
    }

    /// Whether case does not matter.
    pub fn is_folded(&self) -> bool {
        self.folded
    }

    /// Whether a whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.matches_unless(text, &|| false) == Some(true)
    }

    /// The same, unless it is given up: `None` then. Each piece between two `%` is looked for once, from where the last
    /// one ended.
    pub fn matches_unless(&self, text: &str, given_up: &dyn Fn() -> bool) -> Option<bool> {
        let text: Vec<char> = text.chars().collect();
        let mut pieces = self.tokens.split(|token| *token == Token::Any);
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = strip(&text, first) else {
            return Some(false);
        };
        let mut pieces: Vec<_> = pieces.collect();
        let Some(last) = pieces.pop() else {
            return Some(rest.is_empty());
        };
        for piece in pieces {
            let mut places = 0..=rest.len();
            let found = loop {
                let Some(at) = places.next() else {
                    return Some(false);
                };
                if at % PLACES_BETWEEN_LOOKS == 0 && given_up() {
                    return None;
                }
                if let Some(after) = strip(&rest[at..], piece) {
                    break after;
                }
            };
            rest = found;
        }
        Some(rest.len() >= last.len() && strip(&rest[rest.len() - last.len()..], last).is_some())
    }

    /// The pattern in the notation of SQL's LIKE.
    pub fn pattern(&self) -> String {
        let mut pattern = String::with_capacity(self.tokens.len());
        for token in &self.tokens {
            match token {
                Token::Any => pattern.push('%'),
                Token::One => pattern.push('_'),
                Token::Char(chars) => {
                    let c = chars.first().copied().unwrap_or_default();
                    if matches!(c, '%' | '_' | '\\') {
                        pattern.push('\\');
                    }
                    pattern.push(c);
                }
            }
        }
        pattern
    }

    /// The pattern as a regular expression that matches whole texts, line breaks included, and whose time does not
    /// explode: once a piece is found, no other place is tried for it.
    pub fn regex(&self, flavour: Flavour) -> String {
        let mut pieces = self.tokens.split(|token| *token == Token::Any);
        // Options of the server's do not count behind these.
        let mut regex = match flavour {
            Flavour::Postgres => "^".to_owned(),
            Flavour::Pcre => "(?s-imxU)\\A".to_owned(),
            Flavour::Icu => "(?s-imx)\\A".to_owned(),
        };
        push(&mut regex, pieces.next().unwrap_or_default());
        let mut pieces: Vec<_> = pieces.collect();
        let last = pieces.pop();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            match flavour {
                Flavour::Postgres => {
                    regex.push_str(".*");
                    push(&mut regex, piece);
                }
                Flavour::Pcre | Flavour::Icu => {
                    regex.push_str("(?>.*?");
                    push(&mut regex, piece);
                    regex.push(')');
                }
            }
        }
        match last {
            // Whatever follows matches.
            Some([]) => return regex,
            Some(last) => {
                regex.push_str(".*");
                push(&mut regex, last);
            }
            None => {}
        }
        regex.push_str(match flavour {
            Flavour::Postgres => "$",
            Flavour::Pcre | Flavour::Icu => "\\z",
        });
        regex
    }
}

/// What follows a piece that a text begins with.
fn strip<'t>(text: &'t [char], piece: &[Token]) -> Option<&'t [char]> {
    let (head, rest) = text.split_at_checked(piece.len())?;
    let fits = |(token, c): (&Token, &char)| match token {
        Token::Char(chars) => chars.contains(c),
        Token::One | Token::Any => true,
    };
    piece.iter().zip(head).all(fits).then_some(rest)
}

fn push(regex: &mut String, piece: &[Token]) {
    for token in piece {
        match token {
            Token::Any => {}
            Token::One => regex.push('.'),
            Token::Char(chars) => match chars.as_slice() {
                // What has another case is a letter, which needs no escape.
                [_, _, ..] => {
                    let _ = write!(regex, "[{}]", chars.iter().collect::<String>());
                }
                chars => chars.iter().for_each(|c| {
                    if c.is_ascii_punctuation() {
                        regex.push('\\');
                    }
                    regex.push(*c);
                }),
            },
        }
    }
}

/// All characters that fold to the same one, this one first.
fn equivalents(c: char) -> Vec<char> {
    let mut chars = vec![c];
    let mut class = ClassUnicode::new([ClassUnicodeRange::new(c, c)]);
    if class.try_case_fold_simple().is_ok() {
        let others = class
            .ranges()
            .iter()
            .flat_map(|range| range.start()..=range.end());
        chars.extend(others.filter(|other| *other != c));
    }
    chars
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: Pattern, like: &str, text: &str) -> bool {
        Like::parse(pattern, like).unwrap().matches(text)
    }

    #[test]
    fn case_is_folded_letter_by_letter_beyond_ascii() {
        for (needle, text) in [
            ("éco", "École"),
            ("привет", "ПРИВЕТ"),
            ("οδος", "ΟΔΟΣ"),
            ("ΟΔΟΣ", "οδοσ"),
            ("k", "\u{212A}"),
            ("ſ", "S"),
            ("µ", "Μ"),
            ("ẞ", "straße"),
        ] {
            assert!(
                matches(Pattern::Contains, needle, text),
                "{needle} in {text}"
            );
        }
        for (needle, text) in [("ss", "ß"), ("e", "é"), ("i", "İ"), ("i", "ı"), ("fi", "ﬁ")] {
            assert!(
                !matches(Pattern::Contains, needle, text),
                "{needle} in {text}"
            );
        }
        assert!(!matches(Pattern::Like, "a", "A"));
    }

    #[test]
    fn a_pattern_that_ends_within_an_escape_is_refused() {
        for pattern in [Pattern::Like, Pattern::Ilike] {
            assert!(
                Like::parse(pattern, "C:\\")
                    .unwrap_err()
                    .contains("backslash")
            );
            assert!(matches(pattern, "C:\\\\", "C:\\"));
        }
        assert!(matches(Pattern::EndsWith, "\\", "C:\\"));
    }

    #[test]
    fn regular_expressions_name_every_letter_and_escape_the_rest() {
        let regex = |pattern, text, flavour| Like::parse(pattern, text).unwrap().regex(flavour);
        assert_eq!(
            regex(Pattern::Ilike, "a%k._%b", Flavour::Pcre),
            "(?s-imxU)\\A[aA](?>.*?[kK\u{212A}]\\..).*[bB]\\z"
        );
        assert_eq!(
            regex(Pattern::Contains, "1$]", Flavour::Postgres),
            "^.*1\\$\\]"
        );
        assert_eq!(
            regex(Pattern::EndsWith, "1", Flavour::Icu),
            "(?s-imx)\\A.*1\\z"
        );
        assert_eq!(regex(Pattern::Ilike, "", Flavour::Postgres), "^$");
    }

    /// The definition, tried at every place.
    fn naive(tokens: &[Token], text: &[char]) -> bool {
        match (tokens.split_first(), text.split_first()) {
            (None, rest) => rest.is_none(),
            (Some((Token::Any, tokens)), _) => {
                (0..=text.len()).any(|at| naive(tokens, &text[at..]))
            }
            (Some((Token::One, tokens)), Some((_, text))) => naive(tokens, text),
            (Some((Token::Char(chars), tokens)), Some((c, text))) => {
                chars.contains(c) && naive(tokens, text)
            }
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn matching_piece_by_piece_is_matching(
            pattern in prop::sample::select(Pattern::ALL.to_vec()), text in "[aAbk%_]{0,8}", value in "[aAbBk\u{212A}%\n]{0,10}",
        ) {
            let like = Like::parse(pattern, &text).unwrap();
            let chars: Vec<char> = value.chars().collect();
            prop_assert_eq!(like.matches(&value), naive(&like.tokens, &chars));
            let again = Like::parse(if like.is_folded() { Pattern::Ilike } else { Pattern::Like }, &like.pattern());
            prop_assert_eq!(again, Ok(like));
        }
    }
}
