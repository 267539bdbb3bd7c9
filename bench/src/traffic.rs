//! Input files: the yardstick's clicks as they are, in other orders and formats, and clicks of a known number of live keys.
//! All have a fixed seed and are made once.

use crate::child;
use crate::error::{Doing, Failure, Outcome};
use crate::figures::of_count;
use crate::lab::Lab;
use jiff::Timestamp;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is written again in another form.
#[derive(Deserialize, Debug)]
struct Click<'a> {
    user_id: &'a str,
    ts: i64,
    #[serde(rename = "type")]
    kind: &'a str,
    url: &'a str,
    referrer: &'a str,
    device: &'a str,
}

/// The order of events, or what is particular about their keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// By time.
    Sorted,
    /// A third late by up to 5 s, one in a hundred by up to 10 s.
    Disordered,
    /// The same; one key has a third of all.
    HotKey,
}

impl Order {
    pub(crate) const ALL: [Order; 3] = [Order::Sorted, Order::Disordered, Order::HotKey];

    /// In tables and names of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Order::Sorted => "in-order",
            Order::Disordered => "disordered",
            Order::HotKey => "hot-key",
        }
    }
}

/// Clicks of 200,000 users by Zipf's law, of some 280 bytes each, 0.5 % of them invalid, none later than 10 s.
pub(crate) fn clean(lab: &Lab, events: u64) -> Outcome<PathBuf> {
    lab.made(&format!("clean-{events}.jsonl"), |to| {
        let mut generator = Command::new(lab.yardstick.join("gen"));
        generator.args(["--n", &events.to_string(), "--late", "clean", "--out"]).arg(to);
        child::run("generating events", &lab.path("gen.log"), generator).map(drop)
    })
}

/// The valid ones among the clean clicks, in an order.
pub(crate) fn ordered(lab: &Lab, events: u64, order: Order) -> Outcome<PathBuf> {
    let clean = clean(lab, events)?;
    lab.made(&format!("{}-{events}.jsonl", order.name()), |to| {
        let mut all = Vec::new();
        let mut out = create(to)?;
        let mut n = 0_u64;
        each_line(&clean, |line| {
            let Some(click) = click(line) else { return Ok(()) };
            n += 1;
            match order {
                Order::Sorted => all.push((click.ts, line.to_vec())),
                Order::HotKey if n.is_multiple_of(3) => write_all(&mut out, &hot(line, click.user_id))?,
                Order::Disordered | Order::HotKey => write_all(&mut out, line)?,
            }
            Ok(())
        })?;
        // Of one time in the order in which they came.
        all.sort_by_key(|(ts, _)| *ts);
        all.iter().try_for_each(|(_, line)| write_all(&mut out, line))?;
        out.flush().doing(to.display())
    })
}

/// The valid ones among the clean clicks as CSV.
pub(crate) fn csv(lab: &Lab, events: u64) -> Outcome<PathBuf> {
    written(lab, events, "csv", "user_id,ts,type,url,referrer,device\n", |c| {
        Some(format!("{},{},{},{},{},{}\n", c.user_id, c.ts, c.kind, c.url, c.referrer, c.device))
    })
}

/// The valid ones among the clean clicks as a web server logs them, with times in seconds.
pub(crate) fn combined(lab: &Lab, events: u64) -> Outcome<PathBuf> {
    written(lab, events, "log", "", |c| {
        let time = Timestamp::from_millisecond(c.ts).ok()?.strftime("%d/%b/%Y:%H:%M:%S +0000");
        let (user, url, referrer, agent) = (c.user_id, c.url, c.referrer, c.device);
        Some(format!("{user} - - [{time}] \"GET {url} HTTP/1.1\" 200 5120 \"{referrer}\" \"{agent}\"\n"))
    })
}

fn written(
    lab: &Lab,
    events: u64,
    suffix: &str,
    head: &str,
    line_of: impl Fn(&Click<'_>) -> Option<String>,
) -> Outcome<PathBuf> {
    let clean = clean(lab, events)?;
    lab.made(&format!("disordered-{events}.{suffix}"), |to| {
        let mut out = create(to)?;
        write_all(&mut out, head.as_bytes())?;
        each_line(&clean, |line| {
            click(line).and_then(|c| line_of(&c)).map_or(Ok(()), |text| write_all(&mut out, text.as_bytes()))
        })?;
        out.flush().doing(to.display())
    })
}

/// How often live keys come, once all are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spread {
    /// Few of them have most events, as on a busy site.
    Zipf,
    /// All alike.
    Even,
}

impl Spread {
    /// In names of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Spread::Zipf => "zipf",
            Spread::Even => "even",
        }
    }

    /// One of so many keys.
    pub(crate) fn draw(self, random: &mut Random, keys: u64) -> u64 {
        match self {
            // Zipf's law has a logarithm for its distribution function.
            Spread::Zipf => {
                (of_count(random.below(1 << 32)) / of_count(1 << 32) * of_count(keys).ln()).exp() as u64 - 1
            }
            Spread::Even => random.below(keys),
        }
    }
}

/// Each of so many keys once, in order of time, 10,000 a second; then `more` events of any of them.
pub(crate) fn live(lab: &Lab, keys: u64, more: u64, spread: Spread) -> Outcome<[PathBuf; 2]> {
    let first = lab.made(&format!("live-{keys}.jsonl"), |to| {
        let mut out = create(to)?;
        (0..keys).try_for_each(|n| write_all(&mut out, live_line(n, n).as_bytes()))?;
        out.flush().doing(to.display())
    })?;
    let second = lab.made(&format!("live-{keys}-{more}-{}.jsonl", spread.name()), |to| {
        let mut out = create(to)?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        (keys..keys + more)
            .try_for_each(|n| write_all(&mut out, live_line(n, spread.draw(&mut random, keys)).as_bytes()))?;
        out.flush().doing(to.display())
    })?;
    Ok([first, second])
}

/// A key of 16 bytes.
pub(crate) fn key_of(n: u64) -> String {
    // An odd factor: no two of them become one.
    format!("u{:015x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xfff_ffff_ffff_ffff)
}

/// An event of a key, the `n`-th of all.
pub(crate) fn live_line(n: u64, key: u64) -> String {
    let ts = 1_790_000_000_000 + n / 10;
    format!(
        "{{\"user_id\":\"{}\",\"ts\":{ts},\"type\":\"page_view\",\"url\":\"/p/{}\"}}\n",
        key_of(key),
        n % 50_000
    )
}

/// Marsaglia's xorshift, with a multiplication for the low bits.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) * n) >> 32
    }
}

/// A line that is valid for tidemill and for the yardstick alike.
fn click(line: &[u8]) -> Option<Click<'_>> {
    serde_json::from_slice(line).ok().filter(|c: &Click<'_>| c.ts > 0 && !c.user_id.is_empty())
}

/// The same line of the one key that has a third of all.
fn hot(line: &[u8], user: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    text.replacen(user, &format!("{:0<width$}", "hot", width = user.len()), 1).into_bytes()
}

fn create(path: &Path) -> Outcome<BufWriter<File>> {
    Ok(BufWriter::with_capacity(1 << 20, File::create(path).doing(path.display())?))
}

fn write_all(out: &mut BufWriter<File>, bytes: &[u8]) -> Outcome<()> {
    out.write_all(bytes).doing("an input file")
}

/// Every line with its end.
fn each_line(path: &Path, mut take: impl FnMut(&[u8]) -> Outcome<()>) -> Outcome<()> {
    let mut input = BufReader::with_capacity(1 << 20, File::open(path).doing(path.display())?);
    let mut line = Vec::new();
    loop {
        line.clear();
        match input.read_until(b'\n', &mut line).doing(path.display())? {
            0 => return Ok(()),
            _ if line.ends_with(b"\n") => take(&line)?,
            _ => return Err(Failure::new(format!("{}: its last line has no end", path.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const LINE: &str = "{\"event_id\":\"1\",\"user_id\":\"u0123456789ab\",\"ts\":1790000000123,\"type\":\"search\",\"url\":\"https://a/b\",\
                        \"referrer\":\"\",\"device\":\"tv\",\"props\":{\"q\":\"\\\"x\\\"\"}}";

    #[test]
    fn what_is_invalid_is_left_out() {
        let click = |text: &str| super::click(text.as_bytes()).map(|c| (c.user_id.to_owned(), c.ts));
        assert_eq!(click(LINE), Some(("u0123456789ab".into(), 1_790_000_000_123)));
        assert_eq!(click(&LINE.replace(":1790", ":-1790")), None);
        assert_eq!(click(&LINE.replace("1790000000123", "\"yesterday\"")), None);
        assert_eq!(click(&LINE.replace("u0123456789ab", "")), None);
        assert_eq!(click(&LINE[..90]), None);
    }

    #[test]
    fn a_hot_line_is_as_long() {
        let hot = hot(LINE.as_bytes(), "u0123456789ab");
        assert_eq!(hot.len(), LINE.len());
        assert_eq!(click(&hot).unwrap().user_id, "hot0000000000");
    }

    #[test]
    fn live_keys_are_distinct_and_have_16_bytes() {
        let keys: BTreeSet<String> = (0..100_000).map(key_of).collect();
        assert!(keys.len() == 100_000 && keys.iter().all(|k| k.len() == 16));
        let line: serde_json::Value = serde_json::from_str(&live_line(25, 7)).unwrap();
        assert_eq!(
            (line["ts"].as_i64(), line["user_id"].as_str()),
            (Some(1_790_000_000_002), Some(key_of(7).as_str()))
        );
        let mut random = Random(1);
        let drawn: BTreeSet<u64> = (0..1000).map(|_| random.below(10)).collect();
        assert_eq!(drawn, (0..10).collect());
        // The most frequent of a thousand keys has a tenth of all under the law, the last hundred a sixty-fifth together.
        let of = |spread: Spread, which: std::ops::Range<u64>| {
            let mut random = Random(1);
            (0..10_000).filter(|_| which.contains(&spread.draw(&mut random, 1000))).count()
        };
        assert!((900..1100).contains(&of(Spread::Zipf, 0..1)), "{}", of(Spread::Zipf, 0..1));
        assert!((100..210).contains(&of(Spread::Zipf, 900..1000)), "{}", of(Spread::Zipf, 900..1000));
        assert!((900..1100).contains(&of(Spread::Even, 900..1000)), "{}", of(Spread::Even, 900..1000));
        assert_eq!(of(Spread::Zipf, 1000..u64::MAX), 0);
    }
}
