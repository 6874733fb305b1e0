//! The binary rows frame: a fixed header and a payload that the gateway passes on without parsing it.
//!
//! `u8` kind (1 = rows), `u8` flags (bit 0: zstd, bit 1: more of this row follows), 16 bytes attempt id, `u32`
//! row count, for zstd `u32` uncompressed size (big endian), payload.
//!
//! A row that is larger than a frame travels in several, which hold nothing else: all but the last have bit 1
//! and count no row, and the last counts it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::ProtocolError;
use crate::ids::AttemptId;

/// The length of the header of an uncompressed rows frame.
pub const ROWS_HEADER_BYTES: usize = 1 + 1 + 16 + 4;

const KIND_ROWS: u8 = 1;
const FLAG_ZSTD: u8 = 1;
const FLAG_MORE: u8 = 1 << 1;

/// Some rows of one attempt, or a part of one row, already encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsFrame {
    /// The attempt that they belong to.
    pub id: AttemptId,
    /// How many rows end in the payload.
    pub rows: u32,
    /// Whether the payload is a part of one row, of which more follows.
    pub more: bool,
    /// The rows, uncompressed.
    pub payload: Bytes,
}

impl RowsFrame {
    /// The frame's bytes, uncompressed.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(ROWS_HEADER_BYTES + self.payload.len());
        self.put_header(&mut out, 0);
        out.put_slice(&self.payload);
        out.freeze()
    }

    /// The frame's bytes, compressed with zstd if that makes them smaller.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "payloads are at most one frame, far below 4 GiB"
    )]
    pub fn encode_zstd(&self) -> Bytes {
        match zstd::bulk::compress(&self.payload, 1) {
            Ok(packed) if packed.len() + 4 < self.payload.len() => {
                let mut out = BytesMut::with_capacity(ROWS_HEADER_BYTES + 4 + packed.len());
                self.put_header(&mut out, FLAG_ZSTD);
                out.put_u32(self.payload.len() as u32);
                out.put_slice(&packed);
                out.freeze()
            }
            _ => self.encode(),
        }
    }

    fn put_header(&self, out: &mut BytesMut, flags: u8) {
        out.put_u8(KIND_ROWS);
        out.put_u8(flags | if self.more { FLAG_MORE } else { 0 });
        out.put_slice(self.id.as_uuid().as_bytes());
        out.put_u32(self.rows);
    }

    /// Reads a binary frame; a compressed payload is expanded to exactly the size that it announces,
    /// which may be `max_payload` at most. An uncompressed payload is not copied.
    ///
    /// # Errors
    ///
    /// When the frame is not a rows frame, is cut short, announces too much or expands to another size.
    pub fn decode(mut frame: Bytes, max_payload: u32) -> Result<Self, ProtocolError> {
        if frame.len() < ROWS_HEADER_BYTES {
            return Err(ProtocolError::BadRows("shorter than its header"));
        }
        if frame.get_u8() != KIND_ROWS {
            return Err(ProtocolError::BadRows("unknown kind"));
        }
        let flags = frame.get_u8();
        let mut id = [0; 16];
        frame.copy_to_slice(&mut id);
        let id = AttemptId::from_uuid(Uuid::from_bytes(id));
        let rows = frame.get_u32();
        let more = flags & FLAG_MORE != 0;
        if more && rows != 0 {
            return Err(ProtocolError::BadRows(
                "a row that goes on, together with others",
            ));
        }
        let payload = match flags & !FLAG_MORE {
            0 => frame,
            FLAG_ZSTD => expand(frame, max_payload)?,
            _ => return Err(ProtocolError::BadRows("unknown flags")),
        };
        match payload.len() {
            0 => Err(ProtocolError::BadRows("no payload")),
            n if n > max_payload as usize => Err(ProtocolError::BadRows("payload over the limit")),
            _ => Ok(Self {
                id,
                rows,
                more,
                payload,
            }),
        }
    }
}

fn expand(mut frame: Bytes, max_payload: u32) -> Result<Bytes, ProtocolError> {
    if frame.len() < 4 {
        return Err(ProtocolError::BadRows("shorter than its header"));
    }
    let size = frame.get_u32();
    if size > max_payload {
        return Err(ProtocolError::BadRows("announces more than the limit"));
    }
    match zstd::bulk::decompress(&frame, size as usize) {
        Ok(payload) if payload.len() == size as usize => Ok(payload.into()),
        Ok(_) => Err(ProtocolError::BadRows(
            "expands to another size than it announces",
        )),
        // What zstd says of a broken stream helps nobody who has to fix the sender.
        Err(_) => Err(ProtocolError::BadRows(
            "not valid zstd, or larger than it announces",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &'static [u8]) -> RowsFrame {
        RowsFrame {
            id: AttemptId::new(),
            rows: 3,
            more: false,
            payload: Bytes::from_static(payload),
        }
    }

    #[test]
    fn rows_survive_the_wire_plain_and_compressed() {
        let rows = frame(&[b'x'; 1000]);
        assert_eq!(RowsFrame::decode(rows.encode(), 1000), Ok(rows.clone()));
        let packed = rows.encode_zstd();
        assert!(packed.len() < 100);
        assert_eq!(RowsFrame::decode(packed, 1000), Ok(rows));
    }

    #[test]
    fn the_layout_is_the_published_one() {
        let rows = frame(b"{}");
        let bytes = rows.encode();
        assert_eq!(&bytes[..2], [1, 0]);
        assert_eq!(&bytes[2..18], rows.id.as_uuid().as_bytes());
        assert_eq!(&bytes[18..], [0, 0, 0, 3, b'{', b'}']);
    }

    #[test]
    fn a_part_of_a_row_has_the_published_flag_and_counts_none() {
        let part = RowsFrame {
            rows: 0,
            more: true,
            ..frame(&[b'x'; 1000])
        };
        let (plain, packed) = (part.encode(), part.encode_zstd());
        assert_eq!(&plain[..2], [1, 0b10]);
        assert_eq!(&packed[..2], [1, 0b11]);
        assert_eq!(&plain[18..22], [0; 4]);
        for bytes in [plain, packed] {
            assert_eq!(RowsFrame::decode(bytes, 1000), Ok(part.clone()));
        }
        let together = RowsFrame { rows: 1, ..part };
        assert!(
            RowsFrame::decode(together.encode(), 1000).is_err(),
            "rows beside a part of one"
        );
    }

    #[test]
    fn frames_that_contradict_themselves_are_refused() {
        let rows = frame(&[b'x'; 1000]);
        let (plain, packed) = (rows.encode(), rows.encode_zstd());
        let with = |bytes: &Bytes, at: usize, value: u8| {
            let mut bytes = bytes.to_vec();
            bytes[at] = value;
            RowsFrame::decode(bytes.into(), 1000)
        };
        assert!(
            RowsFrame::decode(plain.slice(..10), 1000).is_err(),
            "cut in the header"
        );
        assert!(
            RowsFrame::decode(plain.slice(..ROWS_HEADER_BYTES), 1000).is_err(),
            "nothing after the header"
        );
        assert!(
            RowsFrame::decode(plain.clone(), 999).is_err(),
            "over the limit"
        );
        assert!(
            RowsFrame::decode(packed.clone(), 999).is_err(),
            "announces more than the limit"
        );
        assert!(with(&plain, 0, 2).is_err(), "unknown kind");
        assert!(with(&plain, 1, 4).is_err(), "unknown flags");
        assert!(
            with(&plain, 1, 2).is_err(),
            "three rows, of which one goes on"
        );
        assert!(
            with(&packed, ROWS_HEADER_BYTES + 3, 1).is_err(),
            "announces less than it holds"
        );
        assert!(
            RowsFrame::decode(packed.slice(..ROWS_HEADER_BYTES + 6), 1000).is_err(),
            "cut in the payload"
        );
    }
}
