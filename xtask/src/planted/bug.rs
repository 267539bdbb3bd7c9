//! A planted bug as a file: what it is, which suite has to catch it, and the patch.
//!
//! Lines before the patch are `name: value`; `git apply` passes over them.
//!
//! ```text
//! bug: an event on the boundary belongs to both sessions
//! suite: --workspace --test fold
//! quick: yes                     (optional: among those of `cargo xtask test`)
//! needs: binary                  (optional: the suite runs the binary)
//! hangs: yes                     (optional: the suite is caught in a loop, and is to be stopped)
//! limit: 60                      (optional: seconds after which the suite is stopped)
//! with: TIDEMILL_IMAGES=40       (optional: its environment)
//! ```

use crate::steps::{Failure, doing};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A suite of the quick kind ends in seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// What the suite does when the bug is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Fails,
    Hangs,
}

/// One planted bug.
#[derive(Debug)]
pub(super) struct Bug {
    /// The file's name, without its ending.
    pub(super) name: String,
    /// In one line.
    pub(super) what: String,
    suite: String,
    with: Vec<(String, String)>,
    pub(super) quick: bool,
    pub(super) needs_binary: bool,
    pub(super) expected: Expected,
    pub(super) limit: Duration,
    patch: String,
}

/// All of a folder, by name.
pub(super) fn read_all(folder: &Path) -> Result<Vec<Bug>, Failure> {
    let what = folder.display().to_string();
    let mut bugs = Vec::new();
    for entry in doing(&what, fs::read_dir(folder))? {
        let path = doing(&what, entry)?.path();
        if path.extension().is_some_and(|e| e == "patch") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = doing(&path.display().to_string(), fs::read_to_string(&path))?;
            bugs.push(Bug::parse(name, &text)?);
        }
    }
    bugs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(bugs)
}

impl Bug {
    fn parse(name: String, text: &str) -> Result<Bug, Failure> {
        let wrong = |why: String| Failure::new(format!("tests/planted/{name}.patch: {why}"));
        let at = text.find("--- a/").ok_or_else(|| wrong("there is no patch in it".to_owned()))?;
        let (head, patch) = text.split_at(at);
        let mut bug = Bug {
            name: String::new(),
            what: String::new(),
            suite: String::new(),
            with: Vec::new(),
            quick: false,
            needs_binary: false,
            expected: Expected::Fails,
            limit: LIMIT,
            patch: patch.to_owned(),
        };
        for line in head.lines().filter(|l| !l.trim().is_empty()) {
            let (field, value) =
                line.split_once(": ").ok_or_else(|| wrong(format!("`{line}` is no `name: value`")))?;
            match (field, value.trim()) {
                ("bug", what) => what.clone_into(&mut bug.what),
                ("suite", suite) => suite.clone_into(&mut bug.suite),
                ("quick", "yes") => bug.quick = true,
                ("needs", "binary") => bug.needs_binary = true,
                ("hangs", "yes") => bug.expected = Expected::Hangs,
                ("limit", seconds) => {
                    let seconds =
                        seconds.parse().map_err(|_| wrong(format!("`{line}`: seconds are a number")))?;
                    bug.limit = Duration::from_secs(seconds);
                }
                ("with", set) => {
                    let (name, value) =
                        set.split_once('=').ok_or_else(|| wrong(format!("`{line}` sets nothing")))?;
                    bug.with.push((name.to_owned(), value.to_owned()));
                }
                _ => return Err(wrong(format!("`{line}` is not known here"))),
            }
        }
        if bug.what.is_empty() || bug.suite.is_empty() {
            return Err(wrong("it needs a line `bug:` and a line `suite:`".to_owned()));
        }
        Ok(Bug { name, ..bug })
    }

    /// Arguments of `cargo test`, as they are typed.
    pub(super) fn suite(&self) -> &str {
        &self.suite
    }

    pub(super) fn arguments(&self) -> Vec<&str> {
        self.suite.split_whitespace().collect()
    }

    /// Those that choose what is built: all before the tests' own.
    pub(super) fn selection(&self) -> Vec<&str> {
        self.arguments().into_iter().take_while(|a| *a != "--").collect()
    }

    pub(super) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.with.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Puts the bug into a tree: lines may have moved, but each hunk has to be found as it was.
    pub(super) fn apply(&self, root: &Path) -> Result<(), Failure> {
        for part in files(&self.patch) {
            let patch =
                diffy::Patch::from_str(part).map_err(|e| Failure::new(format!("is no patch: {e}")))?;
            let file = patch.modified().and_then(|f| f.strip_prefix("b/"));
            let file = file.ok_or_else(|| Failure::new("the patch names no file b/…"))?;
            let path = root.join(file);
            let text = doing(file, fs::read_to_string(&path))?;
            let new = diffy::apply(&text, &patch)
                .map_err(|e| Failure::new(format!("does not apply to {file} any more: {e}")))?;
            doing(file, fs::write(&path, new))?;
        }
        Ok(())
    }
}

/// The parts of a patch, one for each file.
fn files(patch: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = patch.match_indices("--- a/").map(|(at, _)| at).collect();
    starts.retain(|at| *at == 0 || patch[..*at].ends_with('\n'));
    let ends = starts.iter().skip(1).copied().chain([patch.len()]);
    starts.iter().zip(ends).map(|(from, to)| &patch[*from..to]).collect()
}

/// The first test that the harness says has failed, or the program that was ended by a signal or ended as it should not.
pub(super) fn first_failed(said: &str) -> Option<String> {
    let failed = said.lines().filter_map(|l| l.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    let ended =
        said.lines().filter(|l| l.contains("(signal: ")).map(|_| "the whole suite: a signal ended it");
    failed.chain(ended).next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "bug: b\nsuite: -p x --test y -- z\nwith: A=1\nlimit: 7\n\n--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n one\n-two\n+too\n \
                        three\n--- a/g\n+++ b/g\n@@ -1 +1 @@\n-old\n+new\n";

    fn bug(text: &str) -> Result<Bug, Failure> {
        Bug::parse("name".to_owned(), text)
    }

    #[test]
    fn a_patch_says_what_it_is_and_who_catches_it() {
        let b = bug(TEXT).unwrap();
        assert_eq!((b.what.as_str(), b.suite(), b.limit.as_secs()), ("b", "-p x --test y -- z", 7));
        assert_eq!(b.selection(), ["-p", "x", "--test", "y"]);
        assert_eq!(b.variables().collect::<Vec<_>>(), [("A", "1")]);
        assert!(!b.quick && !b.needs_binary && b.expected == Expected::Fails);
        for wrong in [
            "bug: b\n--- a/f\n",
            "suite: s\n--- a/f\n",
            "bug: b\nsuite: s\n",
            "bug: b\nsuite: s\nslow: yes\n--- a/f\n",
        ] {
            assert!(bug(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_patch_finds_its_place_and_no_other() {
        let folder = std::env::temp_dir().join(format!("planted-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let put = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        put("f", "zero\nzero\none\ntwo\nthree\n");
        put("g", "old\n");
        let bug = bug(TEXT).unwrap();
        bug.apply(&folder).unwrap();
        assert_eq!(fs::read_to_string(folder.join("f")).unwrap(), "zero\nzero\none\ntoo\nthree\n");
        assert_eq!(fs::read_to_string(folder.join("g")).unwrap(), "new\n");
        let again = bug.apply(&folder).unwrap_err();
        assert!(again.message.contains("does not apply to f"), "{}", again.message);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn who_failed_first_is_read_from_what_the_harness_says() {
        let said = "test a::b ... ok\ntest a::c ... FAILED\ntest d ... FAILED\n";
        assert_eq!(first_failed(said).as_deref(), Some("a::c"));
        assert_eq!(first_failed("error: could not compile `x`\n"), None);
        assert!(
            first_failed(
                "  process didn't exit successfully: `x` (signal: 6, SIGABRT: process abort signal)"
            )
            .is_some()
        );
    }
}
