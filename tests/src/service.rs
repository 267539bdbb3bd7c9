//! A service of rows over HTTP, as bad as a test wants it: slow, failing, gone. It counts what it is asked.
//!
//! `POST` with `{"keys": [..]}` answers with an object from key to row, `GET` of `/rows/KEY` with the row or 404. Small and single-minded on purpose: it is the other side
//! of what is tested, so it shares no code with it.

use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What the service was asked.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Requests that came in whole.
    pub calls: u64,
    /// Keys in them.
    pub keys: u64,
    /// Keys in the largest of them.
    pub keys_in_call_max: usize,
    /// Requests that were answered with rows.
    pub answered: u64,
    /// How often each key was answered.
    pub by_key: HashMap<String, u64>,
    /// Keys that were asked for while they were being answered.
    pub twice_at_once: u64,
    /// Requests at once, at most.
    pub at_once_max: usize,
    under_way: HashSet<String>,
    at_once: usize,
}

type Rows = dyn Fn(&str) -> Option<Value> + Send + Sync;

struct Shared {
    rows: Box<Rows>,
    asked: Mutex<Asked>,
    delay_ms: AtomicU64,
    fail_every: AtomicU64,
    gone: AtomicBool,
    poison: Mutex<Option<String>>,
    connections: AtomicU64,
}

/// See the module's documentation.
pub struct Service {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Service {
    /// Starts a service that answers with these rows.
    #[must_use]
    pub fn new(rows: impl Fn(&str) -> Option<Value> + Send + Sync + 'static) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            rows: Box::new(rows),
            asked: Mutex::default(),
            delay_ms: AtomicU64::new(0),
            fail_every: AtomicU64::new(u64::MAX),
            gone: AtomicBool::new(false),
            poison: Mutex::default(),
            connections: AtomicU64::new(0),
        });
        let of = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = of.clone();
                shared.connections.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    shared.serve(stream);
                    shared.connections.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Service { address, shared }
    }
    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/rows", self.address)
    }
    /// Each answer takes this long.
    pub fn slow(&self, delay_ms: u64) {
        self.shared.delay_ms.store(delay_ms, Ordering::Relaxed);
    }
    /// Every so many requests one is answered with 503; 1 for all, `u64::MAX` for none.
    pub fn fail_every(&self, n: u64) {
        self.shared.fail_every.store(n, Ordering::Relaxed);
    }
    /// From now on it closes every connection without an answer, or not any more.
    pub fn gone(&self, gone: bool) {
        self.shared.gone.store(gone, Ordering::Relaxed);
    }
    /// Every request that has this key is answered with 503.
    pub fn fail_at(&self, key: Option<&str>) {
        *self.shared.poison.lock().unwrap() = key.map(str::to_owned);
    }
    /// Whether nobody is connected any more: what a client that was killed had sent is read and answered, too.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shared.connections.load(Ordering::Relaxed) == 0
    }
    /// What it was asked so far.
    #[must_use]
    pub fn asked(&self) -> Asked {
        self.shared.asked().clone()
    }
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        // Whatever is no request ends the connection, a client that was killed too.
        while let Some(request) = request(&mut stream) {
            if self.gone.load(Ordering::Relaxed) {
                return;
            }
            let (status, body) = match request {
                Request::Post(keys) => self.answer(&keys),
                Request::Get(key) => self.one(&key),
            };
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.get_mut().write_all(format!("{head}{body}").as_bytes()).is_err() {
                return;
            }
        }
    }

    fn one(&self, key: &str) -> (u16, String) {
        let (status, body) = self.answer(&[key.to_owned()]);
        match serde_json::from_str::<Value>(&body) {
            Ok(rows) if rows[key].is_null() => (404, String::new()),
            Ok(rows) => (status, rows[key].to_string()),
            Err(_) => (status, body),
        }
    }

    fn answer(&self, keys: &[String]) -> (u16, String) {
        let calls = {
            let mut a = self.asked();
            a.calls += 1;
            a.keys += keys.len() as u64;
            a.keys_in_call_max = a.keys_in_call_max.max(keys.len());
            a.at_once += 1;
            a.at_once_max = a.at_once_max.max(a.at_once);
            for key in keys {
                if !a.under_way.insert(key.clone()) {
                    a.twice_at_once += 1;
                }
            }
            a.calls
        };
        // The service is slow: that is what it is for.
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed)));
        let poisoned = self.poison.lock().unwrap().as_ref().is_some_and(|p| keys.contains(p));
        let fails = poisoned || calls.is_multiple_of(self.fail_every.load(Ordering::Relaxed));
        let mut a = self.asked();
        a.at_once -= 1;
        for key in keys {
            a.under_way.remove(key);
        }
        if fails {
            return (503, String::new());
        }
        a.answered += 1;
        let mut rows = Map::new();
        for key in keys {
            *a.by_key.entry(key.clone()).or_default() += 1;
            if let Some(row) = (self.rows)(key) {
                rows.insert(key.clone(), row);
            }
        }
        (200, json!(rows).to_string())
    }
}

enum Request {
    Get(String),
    Post(Vec<String>),
}

/// The next request.
fn request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let (mut length, mut got) = (None, None);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(path) = line.strip_prefix("GET ") {
            got = path.split(' ').next()?.rsplit('/').next().map(str::to_owned);
        }
        let line = line.trim().to_lowercase();
        if line.is_empty() {
            break;
        }
        length = length.or_else(|| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    }
    if let Some(key) = got {
        return Some(Request::Get(key));
    }
    let mut body = vec![0; length?];
    stream.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let keys = body["keys"].as_array()?.iter().map(|k| k.as_str().map(str::to_owned));
    keys.collect::<Option<_>>().map(Request::Post)
}
