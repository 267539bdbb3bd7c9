//! Whether two runs made the same sessions of the same events, and left out as many lines.

use crate::error::{Doing, Failure, Outcome};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

/// How often each session stands in a file, reduced to what both programs know of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table(HashMap<Session, i64>);

/// Both programs' names.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    #[serde(alias = "user_id")]
    key: String,
    #[serde(alias = "first_ts")]
    start_ms: i64,
    #[serde(alias = "last_ts")]
    end_ms: i64,
    #[serde(alias = "count")]
    events: u64,
}

impl Table {
    /// All sessions of a file of JSON lines.
    pub(crate) fn read(path: &Path) -> Outcome<Table> {
        let mut rows = HashMap::new();
        for line in BufReader::with_capacity(1 << 20, File::open(path).doing(path.display())?).lines() {
            let line = line.doing(path.display())?;
            let session: Session =
                serde_json::from_str(&line).doing(format_args!("{}: {line}", path.display()))?;
            *rows.entry(session).or_default() += 1;
        }
        Ok(Table(rows))
    }

    /// How many.
    pub(crate) fn sessions(&self) -> u64 {
        self.0.values().sum::<i64>().unsigned_abs()
    }

    /// Sessions that only one of the two has, or one more often; and some of them, as text.
    pub(crate) fn differences(&self, other: Table) -> (u64, Vec<String>) {
        let mut rows = other.0;
        for (row, n) in &self.0 {
            *rows.entry(row.clone()).or_default() -= n;
        }
        rows.retain(|_, n| *n != 0);
        let some = rows.iter().take(3).map(|(row, n)| format!("{n:+} {row:?}")).collect();
        (rows.len() as u64, some)
    }
}

/// Lines of a file.
pub(crate) fn lines(path: &Path) -> Outcome<u64> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).doing(path.display())?);
    let mut n = 0;
    loop {
        let bytes = file.fill_buf().doing(path.display())?;
        if bytes.is_empty() {
            return Ok(n);
        }
        n += bytes.iter().filter(|b| **b == b'\n').count() as u64;
        let len = bytes.len();
        file.consume(len);
    }
}

/// An error if anything of valid events was left out: what is a dead letter costs something else.
pub(crate) fn must_be_whole(folder: &Path) -> Outcome<()> {
    let path = folder.join("dead.jsonl");
    match lines(&path)? {
        0 => Ok(()),
        n => Err(Failure::differs(format!("{n} valid events became dead letters: see {}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, text: &str) -> Table {
        let path = std::env::temp_dir().join(format!("tidemill-bench-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let table = Table::read(&path).unwrap();
        assert_eq!(lines(&path).unwrap(), table.sessions());
        std::fs::remove_file(&path).unwrap();
        table
    }

    #[test]
    fn a_dead_letter_is_an_error() {
        let folder = std::env::temp_dir().join(format!("tidemill-bench-{}-dead", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("dead.jsonl"), "").unwrap();
        must_be_whole(&folder).unwrap();
        std::fs::write(folder.join("dead.jsonl"), "{}\n").unwrap();
        assert_eq!(must_be_whole(&folder).unwrap_err().code, 3);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn sessions_are_the_same_under_other_names_and_in_another_order() {
        let a = "{\"user_id\":\"a\",\"first_ts\":1,\"last_ts\":2,\"count\":3,\"page_views\":1}\n";
        let b = "{\"user_id\":\"b\",\"first_ts\":1,\"last_ts\":2,\"count\":3}\n";
        let ours = "{\"key\":\"b\",\"start_ms\":1,\"end_ms\":2,\"events\":3}\n{\"key\":\"a\",\"start_ms\":1,\"end_ms\":2,\"events\":3}\n";
        let yardstick = table("native", &format!("{a}{b}"));
        assert_eq!(yardstick.differences(table("ours", ours)), (0, vec![]));
        // Twice is not once, and three events are not two.
        assert_eq!(yardstick.differences(table("twice", &format!("{ours}{a}"))).0, 1);
        assert_eq!(
            yardstick.differences(table("fewer", &ours.replace("\"events\":3}\n{", "\"events\":2}\n{"))).0,
            2
        );
    }
}
