//! Cursors: where a page ended, sealed so that callers can neither read nor forge it, and bound to the query
//! that it was handed out for. Every gateway with the same master key opens it.
//!
//! Layout, in base64url: version, 16 random bytes, AES-256-GCM of the values as a JSON array. Key and nonce
//! of each cursor come out of HKDF-SHA256 over the cursor key and the random bytes, so that no number of
//! cursors wears the key out.

use std::fmt;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::grammar::GrammarError;
use crate::ids::{EnvironmentId, LensId};

const VERSION: u8 = 1;
const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// The query that a cursor belongs to, as a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope([u8; 32]);

impl Scope {
    /// The scope of a query on a lens; `parts` are its `where`, its complete order and its row filter.
    pub fn new(environment: EnvironmentId, lens: LensId, parts: [&Value; 3]) -> Self {
        let mut hash = Sha256::new();
        hash.update(environment.as_uuid().as_bytes());
        hash.update(lens.as_uuid().as_bytes());
        for part in parts {
            let text = part.to_string();
            // The length keeps two parts from being taken for two others.
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        Self(hash.finalize().into())
    }
}

/// Seals and opens cursors.
#[derive(Clone)]
pub struct CursorKeys {
    current: Zeroizing<[u8; KEY_BYTES]>,
    previous: Option<Zeroizing<[u8; KEY_BYTES]>>,
}

impl fmt::Debug for CursorKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CursorKeys").finish_non_exhaustive()
    }
}

impl CursorKeys {
    /// Takes the key to seal with, and the one of before a rotation, which still opens.
    pub fn new(
        current: Zeroizing<[u8; KEY_BYTES]>,
        previous: Option<Zeroizing<[u8; KEY_BYTES]>>,
    ) -> Self {
        Self { current, previous }
    }

    /// Seals the values of the ordering columns in the last row of a page.
    pub fn seal(&self, scope: &Scope, values: &[Value]) -> String {
        let mut salt = [0; SALT_BYTES];
        rand::rng().fill_bytes(&mut salt);
        let plain: Value = values.iter().cloned().collect();
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(&encrypt(
            &self.current,
            &salt,
            scope,
            plain.to_string().as_bytes(),
        ));
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// Opens a cursor.
    ///
    /// # Errors
    ///
    /// When it is not a cursor of ours, or belongs to another query.
    pub fn open(&self, scope: &Scope, cursor: &str) -> Result<Vec<Value>, GrammarError> {
        let garbage =
            || GrammarError::invalid("cursor", "not a cursor; pass `meta.nextCursor` on as it is");
        let sealed = URL_SAFE_NO_PAD.decode(cursor).or(Err(garbage()))?;
        if sealed.len() < 1 + SALT_BYTES + TAG_BYTES || sealed[0] != VERSION {
            return Err(garbage());
        }
        let (salt, sealed) = sealed[1..].split_at(SALT_BYTES);
        let plain = std::iter::once(&self.current)
            .chain(&self.previous)
            .find_map(|key| decrypt(key, salt, scope, sealed))
            .ok_or_else(|| {
                let message = "cursor belongs to another query: use it with the lens, `where` and `orderBy` \
                               that it was handed out for, or start again without it";
                GrammarError::invalid("cursor", message)
            })?;
        serde_json::from_slice(&plain).or(Err(garbage()))
    }
}

/// The cipher and the nonce of one cursor.
#[expect(
    clippy::expect_used,
    reason = "44 bytes are far below the 8160 that HKDF-SHA256 can give"
)]
fn cipher(key: &[u8; KEY_BYTES], salt: &[u8]) -> (Aes256Gcm, [u8; NONCE_BYTES]) {
    let mut material = Zeroizing::new([0; KEY_BYTES + NONCE_BYTES]);
    Hkdf::<Sha256>::new(Some(salt), key)
        .expand(b"semilayer cursor", material.as_mut())
        .expect("HKDF gives 44 bytes");
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let mut nonce = [0; NONCE_BYTES];
    key.copy_from_slice(&material[..KEY_BYTES]);
    nonce.copy_from_slice(&material[KEY_BYTES..]);
    (Aes256Gcm::new((&*key).into()), nonce)
}

#[expect(clippy::expect_used, reason = "AES-GCM fails only above 64 GiB")]
fn encrypt(key: &[u8; KEY_BYTES], salt: &[u8], scope: &Scope, plain: &[u8]) -> Vec<u8> {
    let (cipher, nonce) = cipher(key, salt);
    cipher
        .encrypt(
            &nonce.into(),
            Payload {
                msg: plain,
                aad: &scope.0,
            },
        )
        .expect("a cursor is small")
}

fn decrypt(key: &[u8; KEY_BYTES], salt: &[u8], scope: &Scope, sealed: &[u8]) -> Option<Vec<u8>> {
    let (cipher, nonce) = cipher(key, salt);
    cipher
        .decrypt(
            &nonce.into(),
            Payload {
                msg: sealed,
                aad: &scope.0,
            },
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys(byte: u8) -> CursorKeys {
        CursorKeys::new(Zeroizing::new([byte; 32]), None)
    }

    fn scope() -> Scope {
        Scope::new(
            EnvironmentId::new(),
            LensId::new(),
            [&json!({}), &json!([]), &json!({})],
        )
    }

    #[test]
    fn a_cursor_opens_on_every_gateway_with_the_same_key() {
        let (scope, values) = (scope(), [json!(null), json!("2026-01-01"), json!(7)]);
        let cursor = keys(1).seal(&scope, &values);
        assert_eq!(keys(1).open(&scope, &cursor).unwrap(), values);
        assert_ne!(
            cursor,
            keys(1).seal(&scope, &values),
            "nothing can be told from two cursors"
        );
    }

    #[test]
    fn a_cursor_survives_one_rotation_of_the_master_key() {
        let scope = scope();
        let cursor = keys(1).seal(&scope, &[json!(7)]);
        let rotated = CursorKeys::new(Zeroizing::new([2; 32]), Some(Zeroizing::new([1; 32])));
        assert_eq!(rotated.open(&scope, &cursor).unwrap(), [json!(7)]);
        assert!(keys(2).open(&scope, &cursor).is_err());
    }

    #[test]
    fn a_cursor_is_bound_to_every_part_of_its_query() {
        let (environment, lens) = (EnvironmentId::new(), LensId::new());
        let (a, b) = (json!({"a": 1}), json!({"b": 1}));
        let scope = Scope::new(environment, lens, [&a, &a, &a]);
        let cursor = keys(1).seal(&scope, &[json!(7)]);
        for other in [
            Scope::new(EnvironmentId::new(), lens, [&a, &a, &a]),
            Scope::new(environment, LensId::new(), [&a, &a, &a]),
            Scope::new(environment, lens, [&b, &a, &a]),
            Scope::new(environment, lens, [&a, &b, &a]),
            Scope::new(environment, lens, [&a, &a, &b]),
        ] {
            let error = keys(1).open(&other, &cursor).unwrap_err();
            assert!(
                error.message.starts_with("cursor belongs to another query"),
                "{error}"
            );
        }
    }

    #[test]
    fn garbage_and_tampering_are_refused() {
        let scope = scope();
        for garbage in ["", "x", "!", "AAAA", &"A".repeat(100)] {
            let error = keys(1).open(&scope, garbage).unwrap_err();
            assert_eq!(
                error.message, "not a cursor; pass `meta.nextCursor` on as it is",
                "{garbage}"
            );
        }
        let sealed = URL_SAFE_NO_PAD
            .decode(keys(1).seal(&scope, &[json!(7)]))
            .unwrap();
        for at in 0..sealed.len() {
            let mut tampered = sealed.clone();
            tampered[at] ^= 1;
            assert!(
                keys(1)
                    .open(&scope, &URL_SAFE_NO_PAD.encode(tampered))
                    .is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", keys(7)), "CursorKeys { .. }");
    }
}
