//! The real logs of `TIDEMILL_TRIALS` (folders as in `../shared/data`), or made-up ones with the same quirks.

use crate::traffic;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;

/// A log: as it is given to the binary, and what is in it.
#[derive(Debug)]
pub struct Trial {
    /// A file name; `.gz`.
    pub file: &'static str,
    /// Its bytes, compressed.
    pub packed: Vec<u8>,
    /// Its bytes after decompression.
    pub plain: Vec<u8>,
    /// Whether the known counts hold for it.
    pub real: bool,
}

/// Everything in a gzip file of one member or several.
#[must_use]
pub fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut plain).unwrap();
    plain
}

/// A gzip file of two members, cut in the middle of a line: a reader must go on behind the first.
#[must_use]
pub fn pack(plain: &[u8]) -> Vec<u8> {
    let (a, b) = plain.split_at(plain.len() / 2);
    let mut packed = Vec::new();
    for part in [a, b] {
        let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        member.write_all(part).unwrap();
        packed.extend(member.finish().unwrap());
    }
    packed
}

fn folder(name: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("TIDEMILL_TRIALS").map(|d| PathBuf::from(d).join(name)).filter(|d| d.is_dir());
    if folder.is_none() {
        crate::report!("no {name} in TIDEMILL_TRIALS; made-up data with its quirks instead");
    }
    // A test may run in a folder of its own.
    folder.map(|f| f.canonicalize().unwrap())
}

fn trial(name: &str, file: &'static str, made_up: fn(u64) -> Vec<u8>) -> Trial {
    match folder(name) {
        Some(dir) => {
            let packed = std::fs::read(dir.join(file)).unwrap();
            Trial { file, plain: unpack(&packed), packed, real: true }
        }
        None => {
            let plain = made_up(1);
            Trial { file, packed: pack(&plain), plain, real: false }
        }
    }
}

/// Apache's combined log, shuffled within minutes.
#[must_use]
pub fn apache() -> Trial {
    trial("apache-semicomplete", "apache_logs.gz", traffic::combined_log)
}

/// NASA's log as TSV, in order.
#[must_use]
pub fn nasa() -> Trial {
    trial("nasa-http", "nasa_19950701.tsv.gz", traffic::tsv_log)
}

/// The usa.gov click stream with its heartbeats.
#[must_use]
pub fn usagov() -> Trial {
    trial("usagov-bitly", "example.jsonl.gz", traffic::link_log)
}

/// The JSON test suite, sorted by name, and whether it is the real one.
#[must_use]
pub fn json_suite() -> (Vec<(String, Vec<u8>)>, bool) {
    let Some(dir) = folder("json-test-suite") else { return (traffic::json_cases(), false) };
    let to = tempfile::tempdir().unwrap();
    let archive = dir.join("JSONTestSuite.tar.xz");
    let status = Command::new("tar").arg("xJf").arg(archive).arg("-C").arg(to.path()).status().unwrap();
    assert!(status.success(), "tar cannot unpack the JSON test suite");
    let mut cases: Vec<(String, Vec<u8>)> = std::fs::read_dir(to.path().join("test_parsing"))
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect();
    cases.sort();
    (cases, true)
}
