//! Avro as producers write it and a registry knows it: values by the rules of the format, with no code of its, in Confluent's
//! frames, and a server that says which schema has which number.

use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A number of seven bits a byte, the least first; Protobuf has the same.
#[must_use]
pub fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

/// An `int` or `long`.
#[must_use]
pub fn long(n: i64) -> Vec<u8> {
    varint(((n << 1) ^ (n >> 63)) as u64)
}

/// A `string`.
#[must_use]
pub fn text(t: &str) -> Vec<u8> {
    [long(t.len() as i64), t.as_bytes().to_vec()].concat()
}

/// A value of a union of null and something else, in this order.
#[must_use]
pub fn optional(value: Option<Vec<u8>>) -> Vec<u8> {
    value.map_or_else(|| long(0), |v| [long(1), v].concat())
}

/// A value that names its schema, as Confluent's serializers write it.
#[must_use]
pub fn framed(schema: u32, value: &[u8]) -> Vec<u8> {
    [&[0], schema.to_be_bytes().as_slice(), value].concat()
}

struct Shared {
    schemas: Vec<(u32, String)>,
    is_there: AtomicBool,
    asked: AtomicU64,
}

/// A schema registry that has these schemas, and no others.
pub struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Registry {
    /// Starts one.
    #[must_use]
    pub fn new(schemas: &[(u32, &str)]) -> Registry {
        let schemas = schemas.iter().map(|(n, s)| (*n, (*s).to_owned())).collect();
        let shared = Arc::new(Shared { schemas, is_there: AtomicBool::new(true), asked: AtomicU64::new(0) });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let of = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that was killed is no concern of the next one.
                let _ = of.answer(stream);
            }
        });
        Registry { address, shared }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether it answers, or only says that it cannot.
    pub fn is_there(&self, is_there: bool) {
        self.shared.is_there.store(is_there, Ordering::Release);
    }

    /// How often it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
            head.push(byte[0]);
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let head = String::from_utf8_lossy(&head);
        let number = head.strip_prefix("GET /schemas/ids/").and_then(|rest| rest.split(' ').next());
        let number = number.and_then(|n| n.parse::<u32>().ok());
        let schema = self.schemas.iter().find(|(n, _)| Some(*n) == number);
        let (status, body) = match schema {
            _ if !self.is_there.load(Ordering::Acquire) => (503, String::new()),
            Some((_, schema)) => (200, json!({ "schema": schema }).to_string()),
            None => (404, String::new()),
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes())
    }
}
