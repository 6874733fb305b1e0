//! Keys and tokens: `<prefix>_<slug>_<random>`, 32 random bytes in base62. The text is shown once and never
//! kept; what is kept is its SHA-256, which needs no salt because there is nothing to guess.

use std::fmt;

use rand::Rng as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

/// The random part: 62⁴³ is just above 2²⁵⁶.
const RANDOM_CHARS: usize = 43;
/// How much of the random part people see, to tell keys apart.
const SHOWN_CHARS: usize = 4;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// `ak_`: an organisation's admin API.
    Admin,
    /// `sk_`: an environment's server-side callers.
    Secret,
    /// `pk_`: an environment's browser callers.
    Publishable,
    /// `rk_`: one runner.
    Runner,
}

impl TokenKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Secret, Self::Publishable, Self::Runner];

    /// The prefix, without its underscore.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Admin => "ak",
            Self::Secret => "sk",
            Self::Publishable => "pk",
            Self::Runner => "rk",
        }
    }
}

/// A text that has not the form of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key: expected `ak_`, `sk_`, `pk_` or `rk_`, a name, `_` and 43 letters and digits")]
pub struct NotAToken;

/// A token's text, which nothing prints and which is wiped when it is dropped.
#[derive(Clone)]
pub struct Token {
    text: Zeroizing<String>,
    shown: usize,
}

impl Token {
    /// Makes a fresh token; `slug` is the organisation's or environment's.
    pub fn generate(prefix: &str, slug: &str) -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        rand::rng().fill_bytes(bytes.as_mut());
        let random = base62(&mut bytes);
        let text = Zeroizing::new(format!("{prefix}_{slug}_{}", random.as_str()));
        let shown = text.len() - RANDOM_CHARS + SHOWN_CHARS;
        Self { text, shown }
    }

    /// Reads a token that somebody presents, and which kind it claims to be.
    ///
    /// # Errors
    ///
    /// When it has not the form of one.
    pub fn parse(text: &str) -> Result<(TokenKind, Self), NotAToken> {
        let (prefix, rest) = text.split_once('_').ok_or(NotAToken)?;
        let kind = TokenKind::ALL
            .into_iter()
            .find(|kind| kind.prefix() == prefix)
            .ok_or(NotAToken)?;
        let (slug, random) = rest.rsplit_once('_').ok_or(NotAToken)?;
        let slug_fits = !slug.is_empty()
            && slug
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let random_fits =
            random.len() == RANDOM_CHARS && random.bytes().all(|b| b.is_ascii_alphanumeric());
        if !slug_fits || !random_fits {
            return Err(NotAToken);
        }
        Ok((
            kind,
            Self {
                text: Zeroizing::new(text.to_owned()),
                shown: text.len() - RANDOM_CHARS + SHOWN_CHARS,
            },
        ))
    }

    /// The hash under which it is stored, in hex.
    pub fn hash(&self) -> String {
        hash_hex(&self.text)
    }

    /// Its first characters, for people to tell keys apart.
    pub fn display(&self) -> String {
        format!("{}…", &self.text[..self.shown])
    }

    /// The text, to be shown once.
    pub fn into_text(mut self) -> String {
        std::mem::take(&mut *self.text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.display())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display())
    }
}

/// The hash of a key's text.
pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The hash of a key's text, in hex, as it is stored.
pub fn hash_hex(text: &str) -> String {
    hash(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reads a stored hash.
pub fn hash_from_hex(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

/// Whether two hashes are the same, in a time that does not tell where they differ.
pub fn same_hash(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// The bytes as one number in base62, padded to full length; wipes them.
fn base62(bytes: &mut [u8; 32]) -> Zeroizing<String> {
    let mut digits = Zeroizing::new([0u8; RANDOM_CHARS]);
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u16;
        for byte in bytes.iter_mut() {
            let value = remainder << 8 | u16::from(*byte);
            // Both fit: the remainder is below 62, so the value is below 62 × 256.
            *byte = u8::try_from(value / 62).unwrap_or_default();
            remainder = value % 62;
        }
        *digit = BASE62[usize::from(remainder)];
    }
    bytes.zeroize();
    Zeroizing::new(digits.iter().copied().map(char::from).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_read_back_as_what_it_was_made_for() {
        for kind in TokenKind::ALL {
            let token = Token::generate(kind.prefix(), "acme-2");
            let text = token.clone().into_text();
            let (read, parsed) = Token::parse(&text).unwrap();
            assert_eq!((read, parsed.hash()), (kind, token.hash()));
            assert_eq!(text.len(), "ak_acme-2_".len() + 43);
        }
    }

    #[test]
    fn texts_without_the_form_of_a_token_are_refused() {
        let random = "0".repeat(43);
        assert!(Token::parse(&format!("rk_default_{random}")).is_ok());
        for text in [
            String::new(),
            "rk".into(),
            format!("xk_default_{random}"),
            format!("rk_{random}"),
            format!("rk__{random}"),
            format!("rk_Default_{random}"),
            format!("rk_a_b_{random}"),
            format!("rk_default_{}", &random[1..]),
            format!("rk_default_{random}0"),
            format!("rk_default_{}-", &random[1..]),
        ] {
            assert_eq!(Token::parse(&text).unwrap_err(), NotAToken, "{text}");
        }
    }

    #[test]
    fn nothing_prints_a_token() {
        let token = Token::generate("sk", "development");
        let text = token.clone().into_text();
        let shown = format!("{}…", &text[.."sk_development_".len() + 4]);
        assert_eq!(token.display(), shown);
        assert_eq!(format!("{token}"), shown);
        assert_eq!(format!("{token:?}"), format!("Token({shown})"));
    }

    #[test]
    fn hashes_are_sha256_and_survive_hex() {
        let hex = hash_hex("abc");
        assert_eq!(
            hex,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let read = hash_from_hex(&hex).unwrap();
        assert!(same_hash(&read, &hash("abc")));
        assert!(!same_hash(&read, &hash("abd")));
        assert_eq!(hash_from_hex(&hex.to_uppercase()), Some(read));
        assert_eq!(hash_from_hex(&hex[1..]), None);
        assert_eq!(hash_from_hex(&format!("{}x", &hex[1..])), None);
        assert_eq!(hash_from_hex(&"é".repeat(32)), None);
    }

    #[test]
    fn base62_is_the_number_in_its_digits() {
        assert_eq!(*base62(&mut [0; 32]), "0".repeat(43));
        let mut small = [0; 32];
        small[31] = 63;
        assert_eq!(*base62(&mut small), format!("{}11", "0".repeat(41)));
        let most = base62(&mut [255; 32]);
        assert_eq!(most.len(), 43);
        assert!(!most.starts_with('0'), "43 digits are needed");
    }

    proptest! {
        #[test]
        fn different_bytes_have_different_texts(a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
            prop_assert_eq!(a == b, base62(&mut a.clone()) == base62(&mut b.clone()));
        }
    }
}
