//! Whether two runs made the same sessions of the same events, and left out as many lines.

use crate::rows::value;
use crate::steps::{Failure, doing, say};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

/// How often each session stands in a file, reduced to what both programs know of one.
pub(super) struct Table(HashMap<String, i64>);

/// The yardstick's names for (user, first, last, count).
pub(super) const YARDSTICK: [&str; 4] = ["user_id", "first_ts", "last_ts", "count"];
/// Ours.
pub(super) const TIDEMILL: [&str; 4] = ["key", "start_ms", "end_ms", "events"];

impl Table {
    pub(super) fn read(path: &Path, fields: [&str; 4]) -> Result<Table, Failure> {
        let mut rows = HashMap::new();
        for line in lines(path)? {
            let line = doing("a row", line)?;
            let row = fields.map(|f| value(&line, f).unwrap_or("?")).join(" ");
            *rows.entry(row).or_default() += 1;
        }
        Ok(Table(rows))
    }

    fn sessions(&self) -> i64 {
        self.0.values().sum()
    }

    /// Whether the other has the same sessions, each as often; says what differs.
    pub(super) fn is_same_as(&self, who: &str, other: Table) -> bool {
        let sessions = other.sessions();
        let mut rows = other.0;
        for (row, n) in &self.0 {
            *rows.entry(row.clone()).or_default() -= n;
        }
        rows.retain(|_, n| *n != 0);
        if rows.is_empty() {
            say(&format!("  {who}: {sessions} sessions, the same (user, first, last, count), each as often"));
            return true;
        }
        say(&format!(
            "  {who}: {sessions} sessions, the yardstick {}; {} differ as (user, first, last, count), such as",
            self.sessions(),
            rows.len()
        ));
        for (row, n) in rows.iter().take(5) {
            say(&format!("    only {}: {row}", if *n > 0 { who } else { "the yardstick" }));
        }
        false
    }
}

/// Whether as many lines were left out; says how many, and why.
pub(super) fn as_many_left_out(who: &str, native: &Path, ours: &Path) -> Result<bool, Failure> {
    let native = lines(native)?.count();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for letter in lines(ours)? {
        let letter = doing("a dead letter", letter)?;
        *reasons.entry(value(&letter, "reason").unwrap_or("?").to_owned()).or_default() += 1;
    }
    let left_out: usize = reasons.values().sum();
    let listed: Vec<String> = reasons.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    say(&format!("  {who}: {left_out} lines left out, the yardstick {native} ({})", listed.join(", ")));
    Ok(native == left_out)
}

fn lines(path: &Path) -> Result<std::io::Lines<BufReader<File>>, Failure> {
    let what = path.display().to_string();
    Ok(BufReader::with_capacity(1 << 20, doing(&what, File::open(path))?).lines())
}
