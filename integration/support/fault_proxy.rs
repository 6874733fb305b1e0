//! A TCP proxy that can be told to cut connections in the middle of what they carry, to hold it back, and,
//! between a gateway and PostgreSQL, to lose notifications or the answer to a COMMIT.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A proxy in front of one local port. It ends with its handle, and so do its connections.
pub(crate) struct FaultProxy {
    pub(crate) port: u16,
    faults: Arc<Faults>,
    accepting: JoinHandle<()>,
    /// Dropped with the proxy, which every connection notices.
    _alive: watch::Sender<()>,
}

struct Faults {
    /// How many connections are open at both ends.
    open: AtomicUsize,
    /// When those that are not ended.
    ended: Mutex<Vec<Instant>>,
    /// Grows with each cut: a connection that began before ends at its next bytes.
    cuts: AtomicU64,
    stalled: watch::Sender<bool>,
    lose_notifications: AtomicBool,
    lost_notifications: AtomicUsize,
    /// How many answers to a COMMIT are still to be lost.
    commits: AtomicUsize,
}

impl FaultProxy {
    /// Listens on a free port and passes everything on to `upstream` on this machine.
    pub(crate) async fn start(upstream: u16) -> Self {
        let port = super::ports::stable_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let faults = Arc::new(Faults {
            open: AtomicUsize::new(0),
            ended: Mutex::default(),
            cuts: AtomicU64::new(0),
            stalled: watch::Sender::new(false),
            lose_notifications: AtomicBool::new(false),
            lost_notifications: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
        });
        let (alive, ends) = watch::channel(());
        let shared = Arc::clone(&faults);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (faults, mut ends) = (Arc::clone(&shared), ends.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(client, upstream, faults) => {}
                        _ = ends.changed() => {}
                    }
                });
            }
        });
        Self {
            port,
            faults,
            accepting,
            _alive: alive,
        }
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.faults.open.load(Ordering::SeqCst)
    }

    /// How many connections were open at some time within that long.
    pub(crate) fn open_within(&self, time: Duration) -> usize {
        let ended = self.faults.ended.lock().unwrap();
        let recent = ended.iter().filter(|at| at.elapsed() < time).count();
        recent + self.open()
    }

    /// Cuts every connection in the middle of the next bytes that it carries, whichever way.
    pub(crate) fn cut(&self) {
        self.faults.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Holds everything back, or lets it go on.
    pub(crate) fn stall(&self, on: bool) {
        self.faults.stalled.send_replace(on);
    }

    /// Takes notifications out of what PostgreSQL sends, or no longer.
    pub(crate) fn lose_notifications(&self, on: bool) {
        self.faults.lose_notifications.store(on, Ordering::SeqCst);
    }

    /// How many notifications were lost so far.
    pub(crate) fn lost_notifications(&self) -> usize {
        self.faults.lost_notifications.load(Ordering::SeqCst)
    }

    /// Delivers the next COMMIT of any connection and cuts that before the answer.
    pub(crate) fn cut_after_commit(&self) {
        self.faults.commits.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a COMMIT still has to come by.
    pub(crate) fn is_armed(&self) -> bool {
        self.faults.commits.load(Ordering::SeqCst) > 0
    }

    /// Waits for COMMITs no longer; whether one was still to come by.
    pub(crate) fn disarm(&self) -> bool {
        self.faults.commits.swap(0, Ordering::SeqCst) > 0
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Counts a connection for as long as it lives.
struct Open(Arc<Faults>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.ended.lock().unwrap().push(Instant::now());
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(client: TcpStream, upstream: u16, faults: Arc<Faults>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else {
        return;
    };
    faults.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(Arc::clone(&faults));
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    // Whichever way ends first ends both: a half-open connection is of no use to anybody here.
    tokio::select! {
        () = pump(client_reads, server_writes, &faults, Direction::Up) => {}
        () = pump(server_reads, client_writes, &faults, Direction::Down(Messages::default())) => {}
    }
}

enum Direction {
    Up,
    /// From the server, whose messages are followed so that single ones can be left out.
    Down(Messages),
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    faults: &Faults,
    mut direction: Direction,
) {
    let cuts = faults.cuts.load(Ordering::SeqCst);
    let mut stalled = faults.stalled.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return;
        }
        let bytes = &buffer[..read];
        if faults.cuts.load(Ordering::SeqCst) != cuts {
            let _ = to.write_all(&bytes[..read / 2]).await;
            return;
        }
        let sent = match &mut direction {
            Direction::Up => {
                let armed = faults.commits.load(Ordering::SeqCst) > 0;
                let last = armed && is_commit(bytes) && take_one(&faults.commits);
                let sent = to.write_all(bytes).await;
                if last {
                    // The server has it; what it answers is never read.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    return;
                }
                sent
            }
            Direction::Down(messages) if faults.lose_notifications.load(Ordering::SeqCst) => {
                let kept = messages.without_notifications(bytes, &faults.lost_notifications);
                to.write_all(&kept).await
            }
            Direction::Down(messages) => {
                messages.follow(bytes);
                to.write_all(bytes).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn is_commit(bytes: &[u8]) -> bool {
    bytes.windows(6).any(|word| word == b"COMMIT")
}

fn take_one(count: &AtomicUsize) -> bool {
    let taken = count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    taken.is_ok()
}

/// Where in PostgreSQL's messages a stream of bytes is: each is a type, a length that counts itself, and that
/// many bytes. Meaningless for other protocols, for which nothing is ever left out.
#[derive(Default)]
struct Messages {
    header: Vec<u8>,
    rest: usize,
    dropping: bool,
}

impl Messages {
    const NOTIFICATION: u8 = b'A';

    fn follow(&mut self, bytes: &[u8]) {
        self.walk(bytes, false, |_| {});
    }

    fn without_notifications(&mut self, bytes: &[u8], lost: &AtomicUsize) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len() + 4);
        let dropped = self.walk(bytes, true, |part| kept.extend_from_slice(part));
        lost.fetch_add(dropped, Ordering::SeqCst);
        kept
    }

    /// Hands on what is kept; answers with how many messages were left out. What it hands on may begin with the
    /// part of a header that an earlier call only saw, which `follow`'s callers have sent already.
    fn walk(&mut self, mut bytes: &[u8], drop: bool, mut keep: impl FnMut(&[u8])) -> usize {
        let mut dropped = 0;
        while !bytes.is_empty() {
            if self.rest > 0 {
                let part = self.rest.min(bytes.len());
                if !self.dropping {
                    keep(&bytes[..part]);
                }
                self.rest -= part;
                bytes = &bytes[part..];
                continue;
            }
            let wanted = (5 - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..wanted]);
            // Only a message whose first byte comes now can be left out: the rest of the header of another has been
            // sent in part.
            let fresh = self.header.len() == wanted;
            bytes = &bytes[wanted..];
            if !fresh {
                keep(&self.header[self.header.len() - wanted..]);
                if self.header.len() == 5 {
                    self.begin(false);
                }
            } else if self.header.len() == 5 {
                let leave_out = drop && self.header[0] == Self::NOTIFICATION;
                if leave_out {
                    dropped += 1;
                } else {
                    keep(&self.header);
                }
                self.begin(leave_out);
            } else {
                keep(&self.header);
            }
        }
        dropped
    }

    fn begin(&mut self, dropping: bool) {
        let length = u32::from_be_bytes([
            self.header[1],
            self.header[2],
            self.header[3],
            self.header[4],
        ]);
        self.rest = (length as usize).saturating_sub(4);
        self.dropping = dropping;
        self.header.clear();
    }
}

#[test]
fn notifications_and_nothing_else_are_left_out_however_the_bytes_are_cut() {
    let message = |kind: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, body].concat()
    };
    let (row, note) = (message(b'D', b"AAAA row"), message(b'A', b"changes"));
    let ready = message(b'Z', b"I");
    let all = [&row[..], &note, &ready, &note, &row].concat();
    let lost = AtomicUsize::new(0);
    let kept = Messages::default().without_notifications(&all, &lost);
    assert_eq!(kept, [&row[..], &ready, &row].concat());
    assert_eq!(lost.load(Ordering::SeqCst), 2);
    // Cut between messages or within bodies, the same; a header that is torn apart is passed on whole.
    for at in [row.len(), row.len() + 7, row.len() + note.len() + 5] {
        let mut messages = Messages::default();
        let mut kept = messages.without_notifications(&all[..at], &lost);
        kept.extend(messages.without_notifications(&all[at..], &lost));
        assert_eq!(kept, [&row[..], &ready, &row].concat(), "cut at {at}");
    }
    let mut messages = Messages::default();
    messages.follow(&all[..row.len()]);
    assert_eq!(
        messages.without_notifications(&all[row.len()..], &lost),
        [&ready[..], &row].concat()
    );
}
