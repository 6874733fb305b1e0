//! TLS to a MySQL server. The driver brings a TLS of its own that checks names where nobody asked for it and takes no
//! certificate of version 1, so it is given a Unix socket instead, and what it says there goes on to the server under
//! the TLS that the other bridges have too.
//!
//! The server greets in plain; the client answers with a request for TLS, and from then on everything is encrypted. The
//! driver does not know of that request, so the packets of the login have numbers that differ by one.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// The flag of a server and of a client that can do TLS.
const CLIENT_SSL: u8 = 0x08;
/// What comes of an answer before the user's name, and is the whole request for TLS.
const SSL_REQUEST: usize = 32;
/// The greeting and the answer are small; whoever sends more speaks another protocol.
const MAX_PACKET: usize = 64 * 1024;
/// How long a tunnel may take to end after its user.
const SETTLED: Duration = Duration::from_secs(1);
/// How the packets begin that end a login.
const OK: u8 = 0x00;
const ERR: u8 = 0xff;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the server does not offer TLS")]
    NoTls,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A way to a server on which a driver need not know of TLS.
pub(super) struct Tunnel {
    socket: Socket,
    /// What leads through it; without a user it ends.
    task: Option<JoinHandle<Result<(), Failure>>>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A Unix socket that only this user can reach; it is gone when it is dropped.
struct Socket(PathBuf);

impl Socket {
    fn listen() -> io::Result<(Self, UnixListener)> {
        let dir = std::env::temp_dir().join(format!("semilayer-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let socket = Self(dir.join("mysql"));
        let listener = UnixListener::bind(&socket.0)?;
        Ok((socket, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        if let Some(dir) = self.0.parent() {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

impl Tunnel {
    /// Opens one; it leads to the server when the first connects to it.
    pub(super) fn open(
        address: SocketAddr,
        name: ServerName<'static>,
        tls: TlsConnector,
        keepalive: Duration,
    ) -> io::Result<Self> {
        let (socket, listener) = Socket::listen()?;
        let task = tokio::spawn(async move {
            let (driver, _) = listener.accept().await?;
            let server = TcpStream::connect(address).await?;
            server.set_nodelay(true)?;
            SockRef::from(&server).set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive))?;
            join(driver, server, name, tls).await
        });
        Ok(Self {
            socket,
            task: Some(task),
        })
    }

    /// Where it begins.
    pub(super) fn path(&self) -> &Path {
        &self.socket.0
    }

    /// Leaves it to its user, who is connected and with whom it ends; nobody else can come.
    pub(super) fn leave(mut self) {
        self.task = None;
    }

    /// Why it led nowhere, if that is why its user is not connected.
    pub(super) async fn failure(mut self) -> Option<Failure> {
        let task = self.task.as_mut()?;
        // It ends when its user has hung up.
        let ended = tokio::time::timeout(SETTLED, task).await;
        ended.ok()?.ok()?.err()
    }
}

/// Carries a login over to TLS, and then whatever is said.
async fn join(
    mut driver: UnixStream,
    mut server: TcpStream,
    name: ServerName<'static>,
    tls: TlsConnector,
) -> Result<(), Failure> {
    let greeting = Packet::read(&mut server).await?;
    if greeting.starts_with(ERR) {
        greeting.write(&mut driver).await?;
        return Ok(());
    }
    if !offers_tls(&greeting.payload) {
        return Err(Failure::NoTls);
    }
    greeting.write(&mut driver).await?;
    let mut answer = Packet::read(&mut driver).await?;
    let head = answer
        .payload
        .get_mut(..SSL_REQUEST)
        .ok_or(io::ErrorKind::InvalidData)
        .map_err(io::Error::from)?;
    head[1] |= CLIENT_SSL;
    let request = Packet {
        number: answer.number,
        payload: head.to_vec(),
    };
    request.write(&mut server).await?;
    let server = tls.connect(name, server).await?;
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let (mut from_driver, mut to_driver) = driver.into_split();
    answer.number = answer.number.wrapping_add(1);
    answer.write(&mut to_server).await?;
    // Set before the driver has the last packet of its login, so before it begins anything else.
    let is_in = AtomicBool::new(false);
    let up = async {
        while let Some(mut head) = read_head(&mut from_driver).await? {
            if is_in.load(Ordering::Acquire) {
                to_server.write_all(&head).await?;
                to_server.flush().await?;
                tokio::io::copy(&mut from_driver, &mut to_server).await?;
                break;
            }
            head[3] = head[3].wrapping_add(1);
            carry(head, &mut from_driver, &mut to_server).await?;
        }
        to_server.shutdown().await
    };
    let down = async {
        while let Some(mut head) = read_head(&mut from_server).await? {
            let mut first = [0];
            from_server.read_exact(&mut first).await?;
            head[3] = head[3].wrapping_sub(1);
            let is_last = matches!(first[0], OK | ERR);
            if is_last {
                is_in.store(true, Ordering::Release);
            }
            to_driver.write_all(&head).await?;
            to_driver.write_all(&first).await?;
            let rest = length(head).saturating_sub(1);
            let mut rest = (&mut from_server).take(rest);
            tokio::io::copy(&mut rest, &mut to_driver).await?;
            if is_last {
                tokio::io::copy(&mut from_server, &mut to_driver).await?;
                break;
            }
        }
        to_driver.shutdown().await
    };
    // Whichever side hangs up ends both, and the driver says what became of it.
    let ended: io::Result<()> = tokio::select! {
        ended = up => ended,
        ended = down => ended,
    };
    if let Err(error) = ended {
        log::debug!("a connection to a database ended: {error}");
    }
    Ok(())
}

/// Whether a greeting says that its server can do TLS.
fn offers_tls(greeting: &[u8]) -> bool {
    // The version of the protocol, that of the server up to a zero, 4 bytes of a number, 8 of a challenge, a zero.
    let version = greeting.iter().skip(1).position(|byte| *byte == 0);
    let flags = version.and_then(|end| greeting.get(end + 2 + 4 + 8 + 1 + 1));
    flags.is_some_and(|flags| flags & CLIENT_SSL != 0)
}

/// One packet of a login.
struct Packet {
    number: u8,
    payload: Vec<u8>,
}

impl Packet {
    async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let head = read_head(stream)
            .await?
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = usize::try_from(length(head)).unwrap_or(usize::MAX);
        if length > MAX_PACKET {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no MySQL server answers there",
            ));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        Ok(Self {
            number: head[3],
            payload,
        })
    }

    fn starts_with(&self, byte: u8) -> bool {
        self.payload.first() == Some(&byte)
    }

    async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let length = u32::try_from(self.payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes();
        let head = [length[0], length[1], length[2], self.number];
        stream.write_all(&head).await?;
        stream.write_all(&self.payload).await?;
        stream.flush().await
    }
}

/// The head of the next packet: three bytes of its length and its number. `None`: there is none.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<[u8; 4]>> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Ok(_) => Ok(Some(head)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn length(head: [u8; 4]) -> u64 {
    u32::from_le_bytes([head[0], head[1], head[2], 0]).into()
}

async fn carry(
    head: [u8; 4],
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    to.write_all(&head).await?;
    tokio::io::copy(&mut from.take(length(head)), to).await?;
    to.flush().await
}
