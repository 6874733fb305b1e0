//! [`FrameGuard`]: fails a WebSocket's payload stream on an announced frame length over the limit.
//!
//! The frame parser of actix-http compares a frame's length with its limit only once the whole frame is
//! buffered, so one client that announces a terabyte takes the gateway's memory. The guard reads frame
//! headers as they pass and ends the stream at the first that is too large. It passes bytes on unchanged
//! and copies none.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::error::PayloadError;
use bytes::Bytes;
use futures_util::Stream;

/// The longest header of a client's frame: 2 bytes, 8 of length, 4 of mask.
const MAX_HEADER: usize = 14;

/// Where in the stream of frames the next byte belongs.
#[derive(Debug, Default)]
struct Position {
    header: [u8; MAX_HEADER],
    header_len: usize,
    /// Bytes of the current frame's payload that are still to come.
    payload_left: u64,
}

/// A frame announced more than the limit.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Position {
    /// Follows some bytes of the stream.
    fn advance(&mut self, mut bytes: &[u8], limit: u64) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = usize::try_from(self.payload_left)
                    .map_or(bytes.len(), |left| left.min(bytes.len()));
                self.payload_left -= skip as u64;
                bytes = &bytes[skip..];
                continue;
            }
            self.header[self.header_len] = bytes[0];
            self.header_len += 1;
            bytes = &bytes[1..];
            if let Some(length) = self.complete_header() {
                if length > limit {
                    return Err(TooLong);
                }
                self.payload_left = length;
                self.header_len = 0;
            }
        }
        Ok(())
    }

    /// The payload length, once the whole header is here.
    fn complete_header(&self) -> Option<u64> {
        if self.header_len < 2 {
            return None;
        }
        let (masked, short) = (self.header[1] & 0x80 != 0, self.header[1] & 0x7f);
        let length_bytes = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let whole = 2 + length_bytes + if masked { 4 } else { 0 };
        if self.header_len < whole {
            return None;
        }
        let long = &self.header[2..2 + length_bytes];
        Some(if long.is_empty() {
            short.into()
        } else {
            long.iter().fold(0, |n, b| n << 8 | u64::from(*b))
        })
    }
}

/// The payload stream of a WebSocket with a limit on announced frame lengths.
pub(super) struct FrameGuard<S> {
    inner: S,
    limit: u64,
    position: Position,
    /// Whether a frame was too long; the stream is over, though its reader may poll it again.
    failed: bool,
}

impl<S> FrameGuard<S> {
    /// Guards `inner`; no frame may announce more than `limit` bytes.
    pub(super) fn new(inner: S, limit: u64) -> Self {
        Self {
            inner,
            limit,
            position: Position::default(),
            failed: false,
        }
    }
}

impl<S> Stream for FrameGuard<S>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_next(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                Poll::Ready(Some(match this.position.advance(&bytes, this.limit) {
                    Ok(()) => Ok(bytes),
                    Err(TooLong) => {
                        this.failed = true;
                        Err(PayloadError::Overflow)
                    }
                }))
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut out = vec![0x82];
        match payload {
            0..=125 => out.push(mask | payload as u8),
            126..=0xffff => {
                out.push(mask | 126);
                out.extend((payload as u16).to_be_bytes());
            }
            _ => {
                out.push(mask | 127);
                out.extend((payload as u64).to_be_bytes());
            }
        }
        if masked {
            out.extend([1, 2, 3, 4]);
        }
        out.extend(vec![0xff; payload]);
        out
    }

    #[test]
    fn frames_within_the_limit_pass_however_they_are_cut() {
        let stream: Vec<u8> = [0, 1, 125, 126, 1000, 0xffff, 0x10000, 70_000]
            .into_iter()
            .flat_map(|n| [frame(n, true), frame(n, false)].concat())
            .collect();
        for chunk in [1, 2, 3, 7, 1000, stream.len()] {
            let mut position = Position::default();
            for part in stream.chunks(chunk) {
                assert_eq!(
                    position.advance(part, 70_000),
                    Ok(()),
                    "in chunks of {chunk}"
                );
            }
            assert_eq!((position.header_len, position.payload_left), (0, 0));
        }
    }

    #[test]
    fn a_length_over_the_limit_fails_with_its_header() {
        let mut terabyte = vec![0x82, 0xff];
        terabyte.extend((1u64 << 40).to_be_bytes());
        terabyte.extend([0; 4]);
        let mut position = Position::default();
        assert_eq!(position.advance(&frame(10, true), 1 << 20), Ok(()));
        assert_eq!(position.advance(&terabyte[..13], 1 << 20), Ok(()));
        assert_eq!(position.advance(&terabyte[13..], 1 << 20), Err(TooLong));
    }

    #[actix_rt::test]
    async fn after_a_length_over_the_limit_the_stream_is_over_whatever_follows() {
        let mut terabyte = vec![0x82, 0xff];
        terabyte.extend((1u64 << 40).to_be_bytes());
        terabyte.extend([0; 4]);
        let parts = [terabyte, vec![0; 100]].map(|part| Ok(Bytes::from(part)));
        let mut guard = FrameGuard::new(futures_util::stream::iter(parts), 1 << 20);
        assert!(matches!(
            guard.next().await,
            Some(Err(PayloadError::Overflow))
        ));
        assert!(guard.next().await.is_none());
    }
}
