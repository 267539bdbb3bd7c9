//! What was counted, by all runs: a file of lines, one for each count.
//!
//! ```text
//! {"sources":"0123456789abcdef","part":"images","unit":"images","count":240}
//! ```

use super::part::PARTS;
use crate::rows::value;
use crate::steps::{Failure, doing};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// What decides what is proved; a change of a page voids no proof.
const SOURCES: [&str; 8] =
    ["Cargo.lock", "Cargo.toml", "host", "plugin-sdk", "plugins", "tests", "wit", "rust-toolchain.toml"];

/// What a part has counted, by unit.
pub(super) struct Counted {
    pub(super) part: String,
    pub(super) counts: BTreeMap<String, u64>,
}

/// Counts by part and unit.
type Sums = BTreeMap<(String, String), u64>;

/// All counts.
pub(super) struct Totals {
    path: PathBuf,
    sources: String,
    run: Sums,
    of_sources: Sums,
    ever: Sums,
}

impl Totals {
    pub(super) fn read(path: &Path, workspace: &Path) -> Result<Totals, Failure> {
        let mut hash = DefaultHasher::new();
        for name in SOURCES {
            doing(name, hash_all(&workspace.join(name), &mut hash))?;
        }
        let sources = format!("{:016x}", hash.finish());
        let text = match fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            text => doing("the totals", text)?,
        };
        let mut totals = Totals {
            path: path.to_owned(),
            sources,
            run: Sums::new(),
            of_sources: Sums::new(),
            ever: Sums::new(),
        };
        for line in text.lines() {
            let text = |field| value(line, field).map(str::to_owned);
            let parsed = (
                text("sources"),
                text("part"),
                text("unit"),
                value(line, "count").and_then(|c| c.parse::<u64>().ok()),
            );
            let (Some(sources), Some(part), Some(unit), Some(count)) = parsed else {
                return Err(Failure::new(format!("{}: `{line}` is no count", path.display())));
            };
            if sources == totals.sources {
                *totals.of_sources.entry((part.clone(), unit.clone())).or_default() += count;
            }
            *totals.ever.entry((part, unit)).or_default() += count;
        }
        Ok(totals)
    }

    /// A name for the present state of the sources.
    pub(super) fn sources(&self) -> &str {
        &self.sources
    }

    pub(super) fn add(&mut self, counted: Counted) -> Result<(), Failure> {
        let mut lines = String::new();
        for (unit, count) in counted.counts {
            let (sources, part) = (&self.sources, &counted.part);
            lines.push_str(&format!(
                "{{\"sources\":\"{sources}\",\"part\":\"{part}\",\"unit\":\"{unit}\",\"count\":{count}}}\n"
            ));
            for sums in [&mut self.run, &mut self.of_sources, &mut self.ever] {
                *sums.entry((part.clone(), unit.clone())).or_default() += count;
            }
        }
        // One write, so that two runs at once do not mix their lines.
        let file = fs::File::options().create(true).append(true).open(&self.path);
        doing("the totals", file.and_then(|mut f| f.write_all(lines.as_bytes())))
    }

    /// How much of a unit all runs have counted, over whatever sources.
    pub(super) fn ever(&self, part: &str, unit: &str) -> u64 {
        sum(&self.ever, part, unit)
    }

    /// How much of a unit was counted over the present sources.
    pub(super) fn of_sources(&self, part: &str, unit: &str) -> u64 {
        sum(&self.of_sources, part, unit)
    }

    /// What this run has counted of a part, as a sentence has it.
    pub(super) fn of_run(&self, part: &str) -> String {
        let own = self.run.iter().filter(|((p, _), _)| p == part);
        let counts: Vec<String> =
            own.filter(|(_, n)| **n > 0).map(|((_, unit), n)| format!("{} {unit}", grouped(*n))).collect();
        if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") }
    }

    /// The table of the end.
    pub(super) fn table(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<26}{:>14}{:>16}{:>14}{:>12}",
            "", "this run", "these sources", "ever", "wanted"
        )];
        for (part, unit) in self.ever.keys().filter(|(_, unit)| !unit.starts_with("caught:")) {
            let of = |sums| grouped(sum(sums, part, unit));
            let wanted =
                PARTS.iter().find(|p| p.name == part.as_str() && p.unit == unit.as_str()).map(|p| p.wanted);
            lines.push(format!(
                "{:<26}{:>14}{:>16}{:>14}{:>12}",
                format!("{part}: {unit}"),
                of(&self.run),
                of(&self.of_sources),
                of(&self.ever),
                wanted.flatten().map(grouped).unwrap_or_default()
            ));
        }
        lines
    }
}

fn sum(sums: &Sums, part: &str, unit: &str) -> u64 {
    sums.get(&(part.to_owned(), unit.to_owned())).copied().unwrap_or(0)
}

/// `12,345`.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn hash_all(path: &Path, hash: &mut DefaultHasher) -> io::Result<()> {
    path.file_name().hash(hash);
    if path.is_dir() {
        let mut names = fs::read_dir(path)?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        names.iter().filter(|n| *n != "target").try_for_each(|n| hash_all(&path.join(n), hash))
    } else {
        fs::read(path)?.hash(hash);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_add_up_over_the_same_sources() {
        let folder = std::env::temp_dir().join(format!("totals-{}", std::process::id()));
        for name in SOURCES {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let path = folder.join("totals.jsonl");
        let read = || Totals::read(&path, &folder).unwrap();
        let add = |totals: &mut Totals, unit: &str, n| {
            totals.add(Counted { part: "images".into(), counts: [(unit.to_owned(), n)].into() }).unwrap();
        };
        let mut first = read();
        add(&mut first, "images", 1_200);
        add(&mut first, "images", 40);
        assert_eq!(first.of_run("images"), "1,240 images");
        let mut second = read();
        assert_eq!((second.of_sources("images", "images"), second.ever("images", "images")), (1_240, 1_240));
        assert_eq!(second.of_run("images"), "nothing");
        fs::write(folder.join("host").join("changed"), "x").unwrap();
        let changed = read();
        assert_eq!((changed.of_sources("images", "images"), changed.ever("images", "images")), (0, 1_240));
        add(&mut second, "caught:x", 1);
        let table = second.table();
        assert_eq!(table.len(), 2, "{table:?}");
        assert!(table[1].contains("images: images") && table[1].ends_with("5,000"), "{table:?}");
        fs::write(&path, "half a li").unwrap();
        assert!(Totals::read(&path, &folder).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
