//! `[state]`: an object store that keeps snapshots of what is in `data_dir`.
//!
//! A build without the feature `services` has no client for one: there a [`Location`] is a type without values.

use super::diagnose::Problems;
use super::plan::State;
use super::raw::{Field, Section};

#[cfg(feature = "services")]
pub(crate) use tidemill_connect::bucket::Location;

/// See the module's documentation.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {}

/// Where epochs leave once the store has them, and nothing is said.
const EVERY_MS: i64 = 15 * 60 * 1_000;
/// A day of one every quarter of an hour.
const KEEP: usize = 96;
/// Each is a name to list and a text to read whenever one is taken.
const KEEP_MAX: u64 = 10_000;
/// A snapshot reads all that the log holds: more often would be work without end.
const EVERY_MS_MIN: i64 = 1_000;

const HELP: &str =
    "write `store = \"s3://bucket/tidemill\"`, \"gs://bucket/tidemill\" or \"file:///mnt/backup/tidemill\"";

pub(super) fn check(f: &Field<'_>, p: &mut Problems) -> Option<State> {
    let mut s = f.section("write [state] with `store` and `snapshot`", p)?;
    let store = check_store(&mut s, p);
    let (every_ms, keep) = s.get("snapshot").map_or((None, KEEP), |f| check_snapshot(&f, p));
    let remote = s.get("release_after").and_then(|f| f.word(&["local", "remote"], &[], p)) == Some("remote");
    s.finish(&[], p);
    // What comes after a snapshot is read one by one at a restore: it is not to grow for ever.
    let every_ms = every_ms.or(remote.then_some(EVERY_MS));
    Some(State { store: store?, every_ms, keep, remote })
}

fn check_snapshot(f: &Field<'_>, p: &mut Problems) -> (Option<i64>, usize) {
    let help = "write `snapshot = { every = \"15m\", keep = 96 }`";
    let Some(mut s) = f.section(help, p) else { return (None, KEEP) };
    let every = s.get("every").and_then(|f| {
        let ms = f.duration_ms(p)?;
        if ms < EVERY_MS_MIN {
            f.wrong(format!("`{}` must be at least 1s", f.path), "\"15m\" is usual".to_owned(), p);
        }
        Some(ms)
    });
    let keep = s.get("keep").and_then(|f| {
        let keep = f.count(1, p)?;
        if keep > KEEP_MAX {
            f.wrong(format!("`{}` must lie between 1 and {KEEP_MAX}", f.path), "96 is usual".to_owned(), p);
        }
        usize::try_from(keep).ok()
    });
    s.finish(&[], p);
    (every, keep.unwrap_or(KEEP))
}

#[cfg(not(feature = "services"))]
fn check_store(s: &mut Section<'_>, p: &mut Problems) -> Option<Location> {
    s.forgive(&["options"]);
    if let Some(f) = s.need("store", HELP, p) {
        let help = "build it with `--features services`, or leave `[state]` out".to_owned();
        f.wrong("this build has no object stores".to_owned(), help, p);
    }
    None
}

#[cfg(feature = "services")]
fn check_store(s: &mut Section<'_>, p: &mut Problems) -> Option<Location> {
    let store = s.need("store", HELP, p);
    let options = match s.get("options") {
        None => Vec::new(),
        Some(f) => check_options(&f, p)?,
    };
    let at = store?;
    let location = Location::new(at.text(p)?, options);
    location.map_err(|e| at.wrong(e.message, e.help, p)).ok()
}

#[cfg(feature = "services")]
fn check_options(f: &Field<'_>, p: &mut Problems) -> Option<Vec<(String, String)>> {
    let section = f.section("write `options = { region = \"eu-west-1\" }`", p)?;
    let mut options = Vec::new();
    let mut sound = true;
    for e in section.entries() {
        let option = Field { node: &e.node, key_at: e.key_at, path: super::raw::join(&section.path, &e.key) };
        match option.text(p) {
            Some(_) if is_secret(&e.key) && !option.shown().contains("${") => {
                let help = format!("write `{} = \"${{env:NAME}}\"` or \"${{file:PATH}}\"", e.key);
                option.wrong("a secret does not belong into this file".to_owned(), help, p);
                sound = false;
            }
            Some(text) => options.push((e.key.clone(), text.to_owned())),
            None => sound = false,
        }
    }
    sound.then_some(options)
}

#[cfg(feature = "services")]
fn is_secret(option: &str) -> bool {
    ["secret", "token", "service_account_key"].iter().any(|word| option.to_ascii_lowercase().contains(word))
}
