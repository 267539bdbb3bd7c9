//! What stands between a client and its server, and is as bad as a test wants it: it refuses, cuts, holds back, delays, swallows.
//!
//! Works on bytes alone, for any protocol over TCP. Whatever is set holds for connections that there are and for those to come.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long one look for bytes takes, at most: after it the wishes are looked at again.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Shared {
    /// New connections are closed without a word.
    refuses: AtomicBool,
    /// Nothing passes any more, and nothing is closed.
    holds: AtomicBool,
    /// Each piece takes so long, ms.
    delay_ms: AtomicU64,
    /// Bytes from the client after which a connection is cut, if not negative.
    cut_after: AtomicI64,
    /// Once the client has said this, it hears nothing more on that connection; once.
    swallow_after: Mutex<Option<Vec<u8>>>,
    /// Connections with a lower number than this are closed.
    closed_below: AtomicU64,
    connections: AtomicU64,
    cut: AtomicU64,
    swallowed: AtomicU64,
    ended: AtomicBool,
}

/// See the module's documentation.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Between whoever connects and a server at this host:port.
    #[must_use]
    pub fn to(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { cut_after: AtomicI64::new(-1), ..Shared::default() });
        let (of, server) = (shared.clone(), server.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if of.ended.load(Ordering::Relaxed) {
                    return;
                }
                let number = of.connections.fetch_add(1, Ordering::Relaxed);
                if of.refuses.load(Ordering::Relaxed) {
                    continue;
                }
                // A server that is down: the client's connection is closed at once.
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let of = of.clone();
                std::thread::spawn(move || of.connect(number, &client, &server));
            }
        });
        Proxy { address, shared }
    }
    /// host:port.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }
    /// Closes new connections without a word, or not any more.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
    }
    /// Lets nothing pass, and closes nothing; or not any more.
    pub fn hold(&self, holds: bool) {
        self.shared.holds.store(holds, Ordering::Relaxed);
    }
    /// Each piece takes so long.
    pub fn delay(&self, delay_ms: u64) {
        self.shared.delay_ms.store(delay_ms, Ordering::Relaxed);
    }
    /// Cuts each connection when the client has sent so many bytes; none: not any more.
    pub fn cut_after(&self, bytes: Option<u64>) {
        let bytes = bytes.map_or(-1, |b| i64::try_from(b).unwrap());
        self.shared.cut_after.store(bytes, Ordering::Relaxed);
    }
    /// The next time that the client says this, the server hears it, and the client hears nothing more on that connection.
    pub fn swallow_answer_to(&self, said: &str) {
        *self.shared.swallow_after.lock().unwrap() = Some(said.as_bytes().to_vec());
    }
    /// Closes the connections that there are.
    pub fn close_all(&self) {
        let next = self.shared.connections.load(Ordering::Relaxed);
        self.shared.closed_below.store(next, Ordering::Relaxed);
    }
    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
    /// How many connections were cut.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.shared.cut.load(Ordering::Relaxed)
    }
    /// How many answers were swallowed.
    #[must_use]
    pub fn swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes whoever waits for the next connection.
        let _ = TcpStream::connect(self.address);
    }
}

/// One connection: what both directions know.
struct Between<'a> {
    shared: &'a Shared,
    number: u64,
    /// The client hears nothing more.
    is_deaf: AtomicBool,
    is_over: AtomicBool,
}

impl Shared {
    fn connect(&self, number: u64, client: &TcpStream, server: &TcpStream) {
        let between = Between {
            shared: self,
            number,
            is_deaf: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| between.pass(client, server, true));
            between.pass(server, client, false);
        });
    }
}

impl Between<'_> {
    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream, is_client: bool) {
        from.set_read_timeout(Some(LOOK)).unwrap();
        let mut buffer = vec![0; 16 << 10];
        let mut sent = 0;
        while !self.is_ended() {
            if self.shared.holds.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
                continue;
            }
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(_) => break,
            };
            // It is slow: that is what it is for.
            std::thread::sleep(Duration::from_millis(self.shared.delay_ms.load(Ordering::Relaxed)));
            let mut piece = &buffer[..n];
            if is_client {
                self.listen(piece);
                sent += n as i64;
                let most = self.shared.cut_after.load(Ordering::Relaxed);
                if most >= 0 && sent >= most {
                    // The last piece arrives in part.
                    piece = &piece[..n - usize::try_from(sent - most).unwrap().min(n)];
                    let _ = to.write_all(piece);
                    self.shared.cut.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            } else if self.is_deaf.load(Ordering::Relaxed) {
                continue;
            }
            if to.write_all(piece).is_err() {
                break;
            }
        }
        self.is_over.store(true, Ordering::Relaxed);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn is_ended(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
            || self.shared.ended.load(Ordering::Relaxed)
            || self.number < self.shared.closed_below.load(Ordering::Relaxed)
    }

    fn listen(&self, piece: &[u8]) {
        let mut waits = self.shared.swallow_after.lock().unwrap();
        if waits.as_ref().is_some_and(|said| piece.windows(said.len()).any(|w| w == said)) {
            *waits = None;
            self.is_deaf.store(true, Ordering::Relaxed);
            self.shared.swallowed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
