//! A TCP proxy between a client and a service: passes bytes on, keeps answers back, or cuts every connection; at once, or
//! from a certain request of Kafka's protocol on.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// What the client says is passed on, what the service answers is kept back.
    KeepAnswers,
    /// Connections are closed, new ones as soon as they are made.
    Cut,
}

/// The number of a kind of request, and what to do once one comes by.
type Trap = (u16, Mode);

struct State {
    mode: Mode,
    trap: Option<Trap>,
    streams: Vec<TcpStream>,
}

struct Shared {
    service: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    answered_bytes: AtomicU64,
}

/// See the module's documentation.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Stands before the service at this port, on a port that `listen` gives.
    #[must_use]
    pub fn before(listener: TcpListener, service: SocketAddr) -> Proxy {
        let address = listener.local_addr().unwrap();
        let state = Mutex::new(State { mode: Mode::Pass, trap: None, streams: Vec::new() });
        let shared =
            Arc::new(Shared { service, state, changed: Condvar::new(), answered_bytes: AtomicU64::new(0) });
        let of = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                of.join(&client);
            }
        });
        Proxy { address, shared }
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that clients were answered.
    #[must_use]
    pub fn answered_bytes(&self) -> u64 {
        self.shared.answered_bytes.load(Ordering::Relaxed)
    }

    /// From now on bytes pass both ways; answers that were kept back come now.
    pub fn pass(&self) {
        self.shared.set(Mode::Pass);
    }

    /// From now on the service hears everything, and its answers are kept back.
    pub fn keep_answers(&self) {
        self.shared.set(Mode::KeepAnswers);
    }

    /// The next request of this kind is passed on, and from then on answers are kept back.
    pub fn keep_answers_from(&self, kind: u16) {
        self.shared.state().trap = Some((kind, Mode::KeepAnswers));
    }

    /// The next request of this kind is not passed on: every connection is closed.
    pub fn cut_at(&self, kind: u16) {
        self.shared.state().trap = Some((kind, Mode::Cut));
    }

    /// Closes every connection, and every new one.
    pub fn cut(&self) {
        self.shared.set(Mode::Cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn set(&self, mode: Mode) {
        let mut state = self.state();
        state.mode = mode;
        if mode == Mode::Cut {
            for stream in state.streams.drain(..) {
                // Closed by its owner in the meantime, perhaps.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn join(self: &Arc<Self>, client: &TcpStream) {
        let mut state = self.state();
        if state.mode == Mode::Cut {
            return;
        }
        let Ok(service) = TcpStream::connect(self.service) else { return };
        let (Ok(asks), Ok(answers)) = (client.try_clone(), service.try_clone()) else { return };
        let (Ok(to_client), Ok(kept)) = (client.try_clone(), client.try_clone()) else { return };
        state.streams.push(kept);
        state.streams.extend(service.try_clone());
        drop(state);
        let of = self.clone();
        std::thread::spawn(move || of.pump(asks, service, false));
        let of = self.clone();
        std::thread::spawn(move || of.pump(answers, to_client, true));
    }

    fn spring(&self, kinds: &[u16]) {
        let sprung = self.state().trap.take_if(|(kind, _)| kinds.contains(kind));
        if let Some((_, mode)) = sprung {
            self.set(mode);
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, is_answer: bool) {
        let mut bytes = vec![0; 64 << 10];
        let mut requests = Requests::default();
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if !is_answer {
                self.spring(&requests.kinds(&bytes[..n]));
            }
            if is_answer {
                let kept = |s: &mut State| s.mode == Mode::KeepAnswers;
                drop(self.changed.wait_while(self.state(), kept).unwrap());
            }
            if to.write_all(&bytes[..n]).is_err() {
                break;
            }
            if is_answer {
                self.answered_bytes.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
        // The other direction ends too.
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
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
