//! What the scenarios of a crate have asked its plugins natively, as the SDK's `record` wrote it down.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::Value;
use tidemill_sandbox::FieldError;

/// Bytes of recordings that are read. A scenario's frames have some kilobytes, and each is written once; a test that makes
/// more should be a test of the native plugin alone.
const RECORDED_BYTES_MAX: u64 = 512 << 20;

/// Everything that was recorded.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// The plugins that scenarios were written for, each once.
    pub(super) plugins: Vec<Native>,
    /// In the order in which they were made, as far as they have one.
    pub(super) calls: Vec<Call>,
}

/// A plugin as the native crate has it.
#[derive(Debug)]
pub(super) struct Native {
    /// The path of its type.
    pub(super) name: String,
    /// Its world.
    pub(super) world: String,
    /// What it says of itself.
    pub(super) describes: Value,
}

/// A call of one of them, and what it answered.
#[derive(Debug)]
pub(super) struct Call {
    /// The path of its type.
    pub(super) plugin: String,
    /// The first test that made it.
    pub(super) test: String,
    /// The plugin's config.
    pub(super) config: String,
    /// What was asked and answered.
    pub(super) asked: Asked,
}

/// See [`Call`].
#[derive(Debug)]
pub(super) enum Asked {
    /// Whether it takes this config, and what is wrong with it.
    Configure(Vec<FieldError>),
    /// A frame for an export, and the frame that came back.
    Frame {
        /// The export.
        export: String,
        /// The frame that was given.
        question: Vec<u64>,
        /// The frame that came back.
        answer: Vec<u64>,
    },
}

impl Recording {
    /// Reads what was written into this folder.
    ///
    /// # Errors
    /// If it cannot be read, or is not what the SDK of this release writes.
    pub(super) fn read(folder: &Path) -> Result<Recording, String> {
        let mut files = Vec::new();
        let mut bytes = 0;
        for entry in std::fs::read_dir(folder).map_err(|e| e.to_string())? {
            let entry = entry.map_err(|e| e.to_string())?;
            bytes += entry.metadata().map_err(|e| e.to_string())?.len();
            files.push(entry.path());
        }
        if bytes > RECORDED_BYTES_MAX {
            return Err(format!(
                "the scenarios made {bytes} bytes of calls, where {RECORDED_BYTES_MAX} are read"
            ));
        }
        files.sort();
        let mut all = Recording::default();
        for path in files {
            let file = File::open(&path).map_err(|e| e.to_string())?;
            for line in BufReader::new(file).lines() {
                let line = line.map_err(|e| e.to_string())?;
                let line: Value =
                    serde_json::from_str(&line).map_err(|e| format!("{}: {e}", path.display()))?;
                all.take(&line).ok_or_else(|| {
                    "the scenarios were recorded by another release of the SDK; take the one that comes with this binary: \
                     make a new plugin with `tidemill plugin new` and copy its `vendor` folder"
                        .to_owned()
                })?;
            }
        }
        Ok(all)
    }

    fn take(&mut self, line: &Value) -> Option<()> {
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        let plugin = text("plugin")?;
        if !line["describes"].is_null() {
            if !self.plugins.iter().any(|p| p.name == plugin) {
                let describes = line["describes"].clone();
                self.plugins.push(Native { name: plugin, world: text("world")?, describes });
            }
            return Some(());
        }
        let asked = match text("call")?.as_str() {
            "configure" => {
                let error = |e: &Value| {
                    let text = |key: &str| e[key].as_str().map(str::to_owned);
                    Some(FieldError { path: text("path")?, message: text("message")? })
                };
                Asked::Configure(line["refused"].as_array()?.iter().map(error).collect::<Option<_>>()?)
            }
            export => Asked::Frame {
                export: export.to_owned(),
                question: words(line["question"].as_str()?)?,
                answer: words(line["answer"].as_str()?)?,
            },
        };
        self.calls.push(Call { plugin, test: text("test")?, config: text("config")?, asked });
        Some(())
    }
}

/// Words as 16 hexadecimal digits each.
fn words(hex: &str) -> Option<Vec<u64>> {
    let chunks = hex.as_bytes().chunks(16);
    chunks.map(|c| std::str::from_utf8(c).ok().and_then(|c| u64::from_str_radix(c, 16).ok())).collect()
}
