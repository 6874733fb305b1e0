//! Secrets at rest: each sealed with a data key of its own (AES-256-GCM), which the master key wraps.
//!
//! What a secret belongs to is authenticated with both, so that sealed text that is moved to another row does
//! not open. The id of the master key is in the text: after a rotation the previous key still opens, and
//! [`Sealer::rewrap`] changes the wrapping without touching the secret. Nothing here is ever printed.
//!
//! Layout, of a text in base64: version, 8 bytes key id, nonce and wrapped data key, nonce and ciphertext.

use std::fmt;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use rand::Rng as _;
use serde_json::{Map, Value};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::ids::{JobId, SourceId};

/// The labels of keys that are derived from the master key.
pub mod label {
    /// Seals cursors.
    pub const CURSORS: &str = "cursors";
    /// The token with which gateways know each other.
    pub const PEERS: &str = "peers";
}

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const WRAPPED_BYTES: usize = NONCE_BYTES + KEY_BYTES + TAG_BYTES;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + WRAPPED_BYTES;

type Key = Zeroizing<[u8; KEY_BYTES]>;

/// Why something could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The text is not one of ours.
    #[error("not a sealed secret")]
    Malformed,
    /// The key that wraps it is not here.
    #[error(
        "sealed with master key {key_id}, which is neither SEMILAYER_MASTER_KEY nor SEMILAYER_MASTER_KEY_PREVIOUS"
    )]
    UnknownKey {
        /// The id of the key that is missing.
        key_id: String,
    },
    /// It was changed, or belongs to something else.
    #[error("the sealed secret was tampered with, or belongs to something else")]
    Tampered,
    /// It is too large to be sealed.
    #[error("too large to be sealed")]
    TooLarge,
}

/// What a secret belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    what: &'static str,
    id: Uuid,
}

impl Owner {
    /// The configuration of a source.
    pub fn source_config(source: SourceId) -> Self {
        Self {
            what: "source config",
            id: source.as_uuid(),
        }
    }

    /// The result of a detached job.
    pub fn job_result(job: JobId) -> Self {
        Self {
            what: "job result",
            id: job.as_uuid(),
        }
    }

    fn authenticated(&self, part: &str) -> Vec<u8> {
        format!("semilayer {part} of {} {}", self.what, self.id).into_bytes()
    }
}

/// Seals and opens secrets, and derives other keys from the master key.
#[derive(Clone)]
pub struct Sealer {
    current: Master,
    previous: Option<Master>,
}

#[derive(Clone)]
struct Master {
    key: Key,
    wrapping: Key,
    id: [u8; KEY_ID_BYTES],
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("key_id", &hex(&self.current.id))
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// Takes the master key, and the one before it during a rotation, which opens and never seals.
    pub fn new(current: &[u8; KEY_BYTES], previous: Option<&[u8; KEY_BYTES]>) -> Self {
        Self {
            current: Master::new(current),
            previous: previous.map(Master::new),
        }
    }

    /// A sealer with a key that everybody knows.
    #[cfg(test)]
    pub fn for_tests() -> Self {
        Self::new(&[7; KEY_BYTES], None)
    }

    /// What tells the master key from others, and says nothing about it.
    pub fn key_id(&self) -> String {
        hex(&self.current.id)
    }

    /// The same of the key before, during a rotation.
    pub fn previous_key_id(&self) -> Option<String> {
        self.previous.as_ref().map(|master| hex(&master.id))
    }

    /// A key for another purpose, the same on every gateway.
    pub fn derive(&self, label: &str) -> Key {
        derive(&self.current.key, label)
    }

    /// The key for that purpose before the rotation that is under way.
    pub fn derive_previous(&self, label: &str) -> Option<Key> {
        self.previous
            .as_ref()
            .map(|master| derive(&master.key, label))
    }

    /// Seals a secret as a text.
    ///
    /// # Errors
    ///
    /// When it is larger than AES-GCM can seal.
    pub fn seal(&self, owner: Owner, plain: &[u8]) -> Result<String, SealError> {
        Ok(STANDARD.encode(self.seal_bytes(owner, plain)?))
    }

    /// Seals a secret as it is, for what is too large to be a text.
    ///
    /// # Errors
    ///
    /// When it is larger than AES-GCM can seal.
    pub fn seal_bytes(&self, owner: Owner, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut data_key = Key::default();
        rand::rng().fill_bytes(data_key.as_mut());
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(&self.current.id);
        sealed.extend_from_slice(&self.current.wrap(owner, &data_key)?);
        sealed.extend_from_slice(&encrypt(&data_key, plain, &owner.authenticated("secret"))?);
        Ok(sealed)
    }

    /// Opens a sealed secret.
    ///
    /// # Errors
    ///
    /// When its key is not here, or it was changed or belongs to another owner.
    pub fn open(&self, owner: Owner, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.open_bytes(owner, &decode(sealed)?)
    }

    /// Opens what [`Sealer::seal_bytes`] sealed.
    ///
    /// # Errors
    ///
    /// As [`Sealer::open`].
    pub fn open_bytes(&self, owner: Owner, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        check(sealed)?;
        let data_key = self
            .master_of(sealed)?
            .unwrap(owner, &sealed[1 + KEY_ID_BYTES..HEADER_BYTES])?;
        decrypt(
            &data_key,
            &sealed[HEADER_BYTES..],
            &owner.authenticated("secret"),
        )
    }

    /// The same sealed secret wrapped by the current master key; `None` if it already is.
    ///
    /// # Errors
    ///
    /// When its key is not here, or its wrapping was changed or belongs to another owner.
    pub fn rewrap(&self, owner: Owner, sealed: &str) -> Result<Option<String>, SealError> {
        let mut sealed = decode(sealed)?;
        let master = self.master_of(&sealed)?;
        if master.id == self.current.id {
            return Ok(None);
        }
        let data_key = master.unwrap(owner, &sealed[1 + KEY_ID_BYTES..HEADER_BYTES])?;
        let wrapped = self.current.wrap(owner, &data_key)?;
        sealed[1..1 + KEY_ID_BYTES].copy_from_slice(&self.current.id);
        sealed[1 + KEY_ID_BYTES..HEADER_BYTES].copy_from_slice(&wrapped);
        Ok(Some(STANDARD.encode(sealed)))
    }

    /// Seals the configuration of a source.
    ///
    /// # Errors
    ///
    /// As [`Sealer::seal`].
    pub fn seal_config(
        &self,
        source: SourceId,
        config: &Map<String, Value>,
    ) -> Result<String, SealError> {
        // A map of JSON values always serialises.
        let plain = Zeroizing::new(serde_json::to_vec(config).or(Err(SealError::Malformed))?);
        self.seal(Owner::source_config(source), &plain)
    }

    /// Opens the configuration of a source.
    ///
    /// # Errors
    ///
    /// As [`Sealer::open`].
    pub fn open_config(
        &self,
        source: SourceId,
        sealed: &str,
    ) -> Result<Map<String, Value>, SealError> {
        let plain = self.open(Owner::source_config(source), sealed)?;
        // What the parser says could quote a secret.
        serde_json::from_slice(&plain).or(Err(SealError::Malformed))
    }

    fn master_of(&self, sealed: &[u8]) -> Result<&Master, SealError> {
        let id = &sealed[1..1 + KEY_ID_BYTES];
        std::iter::once(&self.current)
            .chain(&self.previous)
            .find(|master| master.id == id)
            .ok_or_else(|| SealError::UnknownKey { key_id: hex(id) })
    }
}

impl Master {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&derive(key, "key id")[..KEY_ID_BYTES]);
        Self {
            key: Zeroizing::new(*key),
            wrapping: derive(key, "wrapping"),
            id,
        }
    }

    fn wrap(&self, owner: Owner, data_key: &Key) -> Result<Vec<u8>, SealError> {
        encrypt(
            &self.wrapping,
            data_key.as_ref(),
            &owner.authenticated("key"),
        )
    }

    fn unwrap(&self, owner: Owner, wrapped: &[u8]) -> Result<Key, SealError> {
        let plain = decrypt(&self.wrapping, wrapped, &owner.authenticated("key"))?;
        let mut data_key = Key::default();
        // The length was fixed by `WRAPPED_BYTES` and has been authenticated.
        data_key.copy_from_slice(&plain);
        Ok(data_key)
    }
}

#[expect(
    clippy::expect_used,
    reason = "32 bytes are far below the 8160 that HKDF-SHA256 can give"
)]
fn derive(key: &[u8; KEY_BYTES], label: &str) -> Key {
    let mut derived = Key::default();
    Hkdf::<Sha256>::new(Some(b"semilayer"), key)
        .expand(label.as_bytes(), derived.as_mut())
        .expect("HKDF gives 32 bytes");
    derived
}

fn decode(sealed: &str) -> Result<Vec<u8>, SealError> {
    let bytes = STANDARD.decode(sealed).or(Err(SealError::Malformed))?;
    check(&bytes)?;
    Ok(bytes)
}

fn check(sealed: &[u8]) -> Result<(), SealError> {
    let whole = sealed.len() >= HEADER_BYTES + NONCE_BYTES + TAG_BYTES && sealed[0] == VERSION;
    if whole {
        Ok(())
    } else {
        Err(SealError::Malformed)
    }
}

/// The nonce and the ciphertext.
fn encrypt(key: &Key, plain: &[u8], authenticated: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE_BYTES];
    rand::rng().fill_bytes(&mut nonce);
    let payload = Payload {
        msg: plain,
        aad: authenticated,
    };
    let sealed = Aes256Gcm::new((&**key).into())
        .encrypt(&nonce.into(), payload)
        .or(Err(SealError::TooLarge))?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn decrypt(
    key: &Key,
    sealed: &[u8],
    authenticated: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, sealed) = sealed
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(SealError::Malformed)?;
    let payload = Payload {
        msg: sealed,
        aad: authenticated,
    };
    // The cause is opaque on purpose.
    let plain = Aes256Gcm::new((&**key).into())
        .decrypt(nonce.into(), payload)
        .or(Err(SealError::Tampered))?;
    Ok(Zeroizing::new(plain))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];

    fn owner() -> Owner {
        Owner::source_config(SourceId::new())
    }

    #[test]
    fn a_config_opens_for_its_own_source_only() {
        let (sealer, source) = (Sealer::for_tests(), SourceId::new());
        let config = json!({"host": "db", "password": "hunter2"});
        let config = config.as_object().unwrap();
        let sealed = sealer.seal_config(source, config).unwrap();
        assert_eq!(sealer.open_config(source, &sealed).as_ref(), Ok(config));
        assert_eq!(
            sealer.open_config(SourceId::new(), &sealed),
            Err(SealError::Tampered)
        );
        let job = Owner::job_result(JobId::from_uuid(source.as_uuid()));
        assert_eq!(sealer.open(job, &sealed), Err(SealError::Tampered));
        assert_ne!(sealer.seal_config(source, config).unwrap(), sealed);
    }

    #[test]
    fn bytes_are_sealed_as_texts_are_and_open_for_their_own_job_only() {
        let (sealer, job) = (Sealer::for_tests(), JobId::new());
        let rows: Vec<u8> = (0..=255).collect();
        let sealed = sealer.seal_bytes(Owner::job_result(job), &rows).unwrap();
        let open = |job, sealed: &[u8]| sealer.open_bytes(Owner::job_result(job), sealed);
        assert_eq!(*open(job, &sealed).unwrap(), rows);
        assert_eq!(open(JobId::new(), &sealed), Err(SealError::Tampered));
        for cut in [0, 1, HEADER_BYTES, sealed.len() - 1] {
            assert!(open(job, &sealed[..cut]).is_err(), "cut at {cut}");
        }
        let rotated = Sealer::new(&NEW, Some(&[7; KEY_BYTES]));
        assert_eq!(
            *rotated.open_bytes(Owner::job_result(job), &sealed).unwrap(),
            rows
        );
    }

    #[test]
    fn a_rotation_opens_the_old_and_rewraps_it_without_touching_the_secret() {
        let owner = owner();
        let old = Sealer::new(&OLD, None);
        let sealed = old.seal(owner, b"secret").unwrap();
        assert_eq!(old.rewrap(owner, &sealed), Ok(None));

        let rotating = Sealer::new(&NEW, Some(&OLD));
        assert_eq!(*rotating.open(owner, &sealed).unwrap(), b"secret");
        let rewrapped = rotating.rewrap(owner, &sealed).unwrap().unwrap();
        assert_eq!(rotating.rewrap(owner, &rewrapped), Ok(None));
        let (before, after) = (decode(&sealed).unwrap(), decode(&rewrapped).unwrap());
        assert_eq!(before[HEADER_BYTES..], after[HEADER_BYTES..]);

        let rotated = Sealer::new(&NEW, None);
        assert_eq!(*rotated.open(owner, &rewrapped).unwrap(), b"secret");
        let key_id = hex(&old.current.id);
        let error = rotated.open(owner, &sealed).unwrap_err();
        assert_eq!(
            error,
            SealError::UnknownKey {
                key_id: key_id.clone()
            }
        );
        assert!(
            error.to_string().contains(&key_id)
                && error.to_string().contains("SEMILAYER_MASTER_KEY_PREVIOUS")
        );
        assert!(
            rotating
                .rewrap(
                    Owner {
                        id: Uuid::nil(),
                        ..owner
                    },
                    &sealed
                )
                .is_err()
        );
    }

    #[test]
    fn every_byte_is_authenticated() {
        let (sealer, owner) = (Sealer::for_tests(), owner());
        let sealed = decode(&sealer.seal(owner, b"secret").unwrap()).unwrap();
        for at in 0..sealed.len() {
            let mut tampered = sealed.clone();
            tampered[at] ^= 1;
            assert!(
                sealer.open(owner, &STANDARD.encode(tampered)).is_err(),
                "byte {at}"
            );
        }
        for length in 0..sealed.len() {
            assert!(
                sealer
                    .open(owner, &STANDARD.encode(&sealed[..length]))
                    .is_err(),
                "{length} bytes"
            );
        }
        assert_eq!(sealer.open(owner, "no base64!"), Err(SealError::Malformed));
    }

    #[test]
    fn derived_keys_differ_by_label_and_by_master_key() {
        let rotating = Sealer::new(&NEW, Some(&OLD));
        let old = Sealer::new(&OLD, None);
        assert_eq!(
            rotating.derive_previous(label::CURSORS),
            Some(old.derive(label::CURSORS))
        );
        assert_eq!(old.derive_previous(label::CURSORS), None);
        assert_ne!(old.derive(label::CURSORS), old.derive(label::PEERS));
        assert_ne!(old.derive(label::CURSORS), rotating.derive(label::CURSORS));
        assert_ne!(*old.derive(label::CURSORS), OLD);
    }

    #[test]
    fn nothing_prints_a_key() {
        let sealer = Sealer::new(&OLD, Some(&NEW));
        assert_eq!(
            format!("{sealer:?}"),
            format!("Sealer {{ key_id: \"{}\", .. }}", hex(&sealer.current.id))
        );
    }

    proptest! {
        #[test]
        fn any_secret_comes_back_as_it_was(plain in prop::collection::vec(any::<u8>(), 0..200)) {
            let (sealer, owner) = (Sealer::for_tests(), owner());
            let sealed = sealer.seal(owner, &plain).unwrap();
            prop_assert_eq!(&*sealer.open(owner, &sealed).unwrap(), &plain);
        }
    }
}
