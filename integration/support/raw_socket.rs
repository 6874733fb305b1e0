//! A WebSocket client made of bytes, for frames that no library would send.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use super::gateway::Gateway;

/// The kinds of frames.
pub(crate) mod opcode {
    pub(crate) const CONTINUATION: u8 = 0;
    pub(crate) const TEXT: u8 = 1;
    pub(crate) const BINARY: u8 = 2;
    pub(crate) const CLOSE: u8 = 8;
    pub(crate) const PING: u8 = 9;
    pub(crate) const PONG: u8 = 10;
}

/// One upgraded connection.
pub(crate) struct RawSocket {
    stream: TcpStream,
}

impl RawSocket {
    /// Upgrades a connection for this token.
    pub(crate) async fn connect(gateway: &Gateway, token: &str) -> Self {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let request = format!(
            "GET /connect HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            gateway.address()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self { stream }
    }

    /// Sends bytes as they are; the gateway may have closed already, which is no failure of the test.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Sends a complete text message in one masked frame.
    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send(&frame(opcode::TEXT, true, text.as_bytes())).await;
    }

    /// The next frame: its kind and payload. `None` when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        timeout(PATIENCE, self.read_frame())
            .await
            .expect("the gateway sends something or closes")
    }

    async fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await.ok()?;
        let short = self.stream.read_u8().await.ok()?;
        assert_eq!(short & 0x80, 0, "a server never masks");
        let length = match short {
            126 => u64::from(self.stream.read_u16().await.ok()?),
            127 => self.stream.read_u64().await.ok()?,
            length => u64::from(length),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((first & 0x0f, payload))
    }

    /// Waits for a text frame of this type.
    pub(crate) async fn frame(&mut self, kind: &str) -> Value {
        loop {
            let (code, payload) = self
                .next()
                .await
                .unwrap_or_else(|| panic!("closed before `{kind}`"));
            assert_ne!(code, opcode::CLOSE, "closed before `{kind}`: {payload:?}");
            if code == opcode::TEXT {
                let frame: Value = serde_json::from_slice(&payload).unwrap();
                if frame["type"] == kind {
                    return frame;
                }
            }
        }
    }

    /// Waits for the end of the connection; the close code, or `None` if it came without one.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            let (code, payload) = self.next().await?;
            if code == opcode::CLOSE {
                return payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            }
        }
    }
}

/// A masked frame.
pub(crate) fn frame(opcode: u8, fin: bool, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut frame = header(opcode, fin, true, payload.len() as u64);
    frame.extend_from_slice(&MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

/// A frame without the mask that clients have to apply.
pub(crate) fn unmasked_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(opcode, true, false, payload.len() as u64);
    frame.extend_from_slice(payload);
    frame
}

/// The header of a masked frame of that announced length, up to where the mask would follow.
pub(crate) fn header(opcode: u8, fin: bool, masked: bool, length: u64) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut header = vec![if fin { 0x80 } else { 0 } | opcode];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => header.push(mask | short),
        (_, Ok(medium)) => {
            header.push(mask | 126);
            header.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            header.push(mask | 127);
            header.extend_from_slice(&length.to_be_bytes());
        }
    }
    header
}
