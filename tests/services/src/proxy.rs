//! What stands between a client and its server, and is as bad as a test wants it: it refuses, cuts, holds back, delays, swallows.
//!
//! Works on bytes alone, for any protocol over TCP, but for what waits for a certain request of Kafka's. Whatever is set holds for
//! connections that there are and for those to come.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long one look for bytes takes, at most: after it the wishes are looked at again.
const LOOK: Duration = Duration::from_millis(5);

/// What happens once the client has said something; once.
enum Trap {
    /// Once it has said this, it hears nothing more on that connection.
    Swallow(Vec<u8>),
    /// At a request of Kafka of this kind answers are kept back from then on.
    KeepAnswers(u16),
    /// A request of Kafka of this kind is not passed on: every connection is closed, and new ones too.
    Vanish(u16),
}

#[derive(Default)]
struct Shared {
    /// New connections are closed without a word.
    refuses: AtomicBool,
    /// Nothing passes any more, and nothing is closed.
    holds: AtomicBool,
    /// The server hears everything, and nobody hears the server.
    keeps_answers: AtomicBool,
    /// Each piece takes so long, ms.
    delay_ms: AtomicU64,
    /// Bytes from the client after which a connection is cut, if not negative.
    cut_after: AtomicI64,
    trap: Mutex<Option<Trap>>,
    /// Connections with a lower number than this are closed.
    closed_below: AtomicU64,
    connections: AtomicU64,
    cut: AtomicU64,
    swallowed: AtomicU64,
    answered_bytes: AtomicU64,
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
        Proxy::before(TcpListener::bind("127.0.0.1:0").unwrap(), server)
    }
    /// The same, on a port that is held already.
    #[must_use]
    pub fn before(listener: TcpListener, server: &str) -> Proxy {
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
        self.set(Trap::Swallow(said.as_bytes().to_vec()));
    }
    /// The server hears everything, and its answers are kept back, or come now.
    pub fn keep_answers(&self, keeps: bool) {
        self.shared.keeps_answers.store(keeps, Ordering::Relaxed);
    }
    /// The next request of Kafka of this kind is passed on, and from then on answers are kept back.
    pub fn keep_answers_from(&self, kind: u16) {
        self.set(Trap::KeepAnswers(kind));
    }
    /// The next request of Kafka of this kind is not passed on: every connection is closed, and new ones are refused.
    pub fn vanish_at(&self, kind: u16) {
        self.set(Trap::Vanish(kind));
    }
    fn set(&self, trap: Trap) {
        *self.shared.trap.lock().unwrap() = Some(trap);
    }
    /// Closes the connections that there are.
    pub fn close_all(&self) {
        self.shared.close_all();
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
    /// Bytes that clients were answered.
    #[must_use]
    pub fn answered_bytes(&self) -> u64 {
        self.shared.answered_bytes.load(Ordering::Relaxed)
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
    fn close_all(&self) {
        let next = self.connections.load(Ordering::Relaxed);
        self.closed_below.store(next, Ordering::Relaxed);
    }

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
        let mut buffer = vec![0; 64 << 10];
        let mut requests = Requests::default();
        let mut sent = 0;
        while !self.is_ended() {
            if self.waits(is_client) {
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
                if !self.listen(piece, &mut requests) {
                    break;
                }
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
            } else {
                // Answers that came in while they began to be kept back.
                while self.waits(is_client) && !self.is_ended() {
                    std::thread::sleep(LOOK);
                }
            }
            if to.write_all(piece).is_err() {
                break;
            }
            if !is_client {
                self.shared.answered_bytes.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
        self.is_over.store(true, Ordering::Relaxed);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn waits(&self, is_client: bool) -> bool {
        let keeps = !is_client && self.shared.keeps_answers.load(Ordering::Relaxed);
        keeps || self.shared.holds.load(Ordering::Relaxed)
    }

    fn is_ended(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
            || self.shared.ended.load(Ordering::Relaxed)
            || self.number < self.shared.closed_below.load(Ordering::Relaxed)
    }

    /// Springs the trap that the client steps into; false: what it said is not to be passed on.
    fn listen(&self, piece: &[u8], requests: &mut Requests) -> bool {
        let kinds = requests.kinds(piece);
        let mut trap = self.shared.trap.lock().unwrap();
        let sprung = trap.take_if(|trap| match trap {
            Trap::Swallow(said) => piece.windows(said.len()).any(|w| w == said),
            Trap::KeepAnswers(kind) | Trap::Vanish(kind) => kinds.contains(kind),
        });
        match sprung {
            None => {}
            Some(Trap::Swallow(_)) => {
                self.is_deaf.store(true, Ordering::Relaxed);
                self.shared.swallowed.fetch_add(1, Ordering::Relaxed);
            }
            Some(Trap::KeepAnswers(_)) => self.shared.keeps_answers.store(true, Ordering::Relaxed),
            Some(Trap::Vanish(_)) => {
                self.shared.refuses.store(true, Ordering::Relaxed);
                self.shared.close_all();
                return false;
            }
        }
        true
    }
}

/// Follows requests as they go by: length, kind, the rest.
#[derive(Default)]
struct Requests {
    /// Length and kind, as far as they have come.
    head: Vec<u8>,
    /// Bytes of the request behind its kind that are still to come.
    rest: usize,
}

impl Requests {
    /// Of which kinds requests have begun in these bytes.
    fn kinds(&mut self, mut bytes: &[u8]) -> Vec<u16> {
        let mut kinds = Vec::new();
        while !bytes.is_empty() {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len());
                self.rest -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let [a, b, c, d, e, f] = self.head[..] {
                kinds.push(u16::from_be_bytes([e, f]));
                self.rest = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(2);
                self.head.clear();
            }
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::Requests;

    #[test]
    fn requests_are_followed_however_they_come() {
        let bytes = [&[0, 0, 0, 4, 0, 18, 7, 7][..], &[0, 0, 0, 2, 0, 3], &[0, 0, 0, 3, 0, 26, 9]].concat();
        assert_eq!(Requests::default().kinds(&bytes), [18, 3, 26]);
        let mut requests = Requests::default();
        let found: Vec<u16> = bytes.chunks(1).flat_map(|b| requests.kinds(b)).collect();
        assert_eq!(found, [18, 3, 26]);
    }
}
