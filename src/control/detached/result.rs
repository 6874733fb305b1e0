//! What is kept of a detached job's answer, between the gateway that executed it and the one that is asked
//! for it: the rows as they came and how the job ended, from which the web layer makes the very response that
//! a caller who had waited would have got.
//!
//! Layout: the rows, then a JSON document, then its length in four bytes; sealed as a whole.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::reply::Finished;
use crate::domain::sealing::{Owner, SealError, Sealer};
use crate::ids::JobId;

/// How many bytes say how long the document is.
const LENGTH_BYTES: usize = 4;

/// The answer to a detached job.
#[derive(Debug, Clone)]
pub struct KeptResult {
    /// The rows in the encoding that was asked for, without what goes around them.
    pub rows: Bytes,
    /// How the job ended.
    pub finished: Finished,
    /// What whoever submitted the job wanted to know when its result is shown.
    pub rendering: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trailer {
    finished: Finished,
    rendering: Value,
}

impl KeptResult {
    /// Puts everything into one piece, behind the rows.
    pub(super) fn pack(
        mut rows: Vec<u8>,
        finished: Finished,
        rendering: Value,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let trailer = serde_json::to_vec(&Trailer {
            finished,
            rendering,
        })?;
        let length = u32::try_from(trailer.len()).map_err(serde::ser::Error::custom)?;
        rows.extend_from_slice(&trailer);
        rows.extend_from_slice(&length.to_be_bytes());
        Ok(rows)
    }

    fn unpack(mut packed: Bytes) -> Option<Self> {
        let mut trailer = packed.split_off(packed.len().checked_sub(LENGTH_BYTES)?);
        let length: [u8; LENGTH_BYTES] = trailer.as_ref().try_into().ok()?;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        trailer = packed.split_off(packed.len().checked_sub(length)?);
        let Trailer {
            finished,
            rendering,
        } = serde_json::from_slice(&trailer).ok()?;
        Some(Self {
            rows: packed,
            finished,
            rendering,
        })
    }

    /// Opens a sealed result.
    ///
    /// # Errors
    ///
    /// When its key is not here, or it was changed or belongs to another job.
    pub fn open(sealer: &Sealer, job: JobId, sealed: &[u8]) -> Result<Self, SealError> {
        let mut packed = sealer.open_bytes(Owner::job_result(job), sealed)?;
        Self::unpack(std::mem::take(&mut *packed).into()).ok_or(SealError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_result_is_opened_as_it_was_packed() {
        let finished = Finished {
            count: 2,
            total: Some(7),
            last: Some(vec![json!("9007199254740993"), json!(null)]),
            ..Finished::default()
        };
        for rows in [&b""[..], b"{\"a\":1},{\"a\":2}"] {
            let packed =
                KeptResult::pack(rows.to_vec(), finished.clone(), json!({"lens": "x"})).unwrap();
            let (sealer, job) = (Sealer::for_tests(), JobId::new());
            let sealed = sealer.seal_bytes(Owner::job_result(job), &packed).unwrap();
            let kept = KeptResult::open(&sealer, job, &sealed).unwrap();
            assert_eq!(
                (&kept.rows[..], kept.rendering),
                (rows, json!({"lens": "x"}))
            );
            assert_eq!((kept.finished.count, kept.finished.total), (2, Some(7)));
            assert_eq!(kept.finished.last, finished.last);
        }
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for packed in [
            &b""[..],
            b"abc",
            b"{}\0\0\0\x02",
            b"\0\0\0\xff",
            b"x\xff\xff\xff\xff",
        ] {
            assert!(KeptResult::unpack(Bytes::copy_from_slice(packed)).is_none());
        }
    }
}
