//! What is in a snapshot: a JSON text that a human can read.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tidemill_engine::outbox::hex;

/// The only form that is written and read.
const FORMAT: u32 = 1;

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The form of this text.
    format: u32,
    /// Sorts by time.
    pub(crate) id: String,
    /// Host clock when it was begun, ms.
    pub(crate) taken_at_ms: i64,
    /// The version of the program.
    pub(crate) tidemill: String,
    /// Of the host whose data directory it is.
    pub(crate) incarnation: u64,
    /// In the order of the config.
    pub(crate) pipelines: Vec<Cut>,
    /// Everything, by its place in the data directory.
    pub(crate) parts: Vec<Part>,
}

/// Where a pipeline stands in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    /// The pipeline.
    pub(crate) pipeline: String,
    /// The last epoch that is in it.
    pub(crate) epoch: u64,
    /// Host clock when that was sealed, ms.
    pub(crate) sealed_at_ms: i64,
    /// The watermark then, ms.
    pub(crate) watermark_ms: i64,
    /// Keys with an open session or pending events.
    pub(crate) live_keys: u64,
}

/// A file, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Where it stands in the data directory, with `/` between the parts of the name.
    pub(crate) path: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// What it holds, in hex; the name of its object.
    pub(crate) sha256: String,
}

impl Manifest {
    /// Of nothing yet.
    pub(crate) fn begun(taken_at_ms: i64, incarnation: u64) -> Manifest {
        let taken = jiff::Timestamp::from_millisecond(taken_at_ms).unwrap_or_default();
        let time = taken.strftime("%Y%m%dT%H%M%S").to_string();
        Manifest {
            format: FORMAT,
            id: format!("{time}.{:03}Z-{incarnation}", taken_at_ms.rem_euclid(1_000)),
            taken_at_ms,
            tidemill: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation,
            pipelines: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// The name of a manifest's object.
    pub(crate) fn object(id: &str) -> String {
        format!("snapshots/{id}.json")
    }

    /// Bytes of all parts.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec_pretty(self).map_err(|e| e.to_string())
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Manifest, String> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| format!("that is no snapshot of this version: {e}"))?;
        if manifest.format != FORMAT {
            return Err(format!("it has form {}, this version reads {FORMAT}", manifest.format));
        }
        if let Some(part) = manifest.parts.iter().find(|p| !p.stays_inside()) {
            return Err(format!("`{}` would lie outside of the data directory", part.path));
        }
        Ok(manifest)
    }
}

impl Part {
    pub(super) fn of(path: String, bytes: &[u8]) -> Part {
        Part { path, bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }

    /// The name of its object.
    pub(super) fn object(&self) -> String {
        format!("parts/{}", self.sha256)
    }

    /// Whether these are its bytes.
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        *self == Part::of(self.path.clone(), bytes)
    }

    fn stays_inside(&self) -> bool {
        let hex = self.sha256.len() == 64 && self.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        hex && self.path.split('/').all(|p| !matches!(p, "" | "." | ".."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let mut manifest = Manifest::begun(1_800_000_000_007, 3);
        manifest.parts.push(Part::of("pipelines/visits/1.seg".to_owned(), b"abc"));
        manifest
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let good = manifest();
        assert_eq!((good.id.as_str(), good.bytes()), ("20270115T080000.007Z-3", 3));
        let text = String::from_utf8(good.write().unwrap()).unwrap();
        assert_eq!(Manifest::read(text.as_bytes()).unwrap(), good);
        let refused = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            Manifest::read(text.replace(from, to).as_bytes()).unwrap_err()
        };
        assert!(refused("\"format\": 1", "\"format\": 2").contains("form 2"));
        for path in ["../x", "a/../../x", "/etc/x", "a//x", "."] {
            assert!(refused("pipelines/visits/1.seg", path).contains("outside"), "{path}");
        }
        assert!(refused(&good.parts[0].sha256, "../../hosts/1").contains("outside"));
        assert!(Manifest::read(b"{}").unwrap_err().contains("no snapshot"));
    }

    #[test]
    fn a_part_is_known_by_its_bytes() {
        let part = &manifest().parts[0];
        assert!(part.is(b"abc") && !part.is(b"abd") && !part.is(b"abcd"));
    }
}
