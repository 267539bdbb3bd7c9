//! Events that are posted, at a pace of their own or as fast as they are taken, and the rows that come of them.

use crate::error::{Doing, Failure, Outcome};
use crate::figures::{Latencies, OpenLoop};
use crate::host::Host;
use crate::traffic::{Random, key_of};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Events in one request: one of them is watched.
pub(crate) const BATCH: u32 = 500;
/// Requests under way at a time, at most.
const SENDERS: usize = 8;
/// Users, one as frequent as another.
const USERS: u64 = 200_000;
/// Between two looks at the rows.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Between two syncs of the disk by us.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// What we write before each: about what a small epoch is.
const SYNC_BYTES: usize = 16 << 10;
/// How long rows are waited for after the last request.
const ROWS_MAX: Duration = Duration::from_secs(60);

/// What is posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posting {
    /// When each request is due.
    pub(crate) pace: OpenLoop,
    /// Whether one key has a third of the events.
    pub(crate) hot_key: bool,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Posted {
    /// From when a request was due until it was acknowledged.
    pub(crate) accepted: Latencies,
    /// From when a request was due until the row of its watched event stood in the sink.
    pub(crate) row: Latencies,
    /// Syncs of our own meanwhile, on the same disk.
    pub(crate) sync: Latencies,
    /// Events that were acknowledged.
    pub(crate) events: u64,
    /// How long it took, s.
    pub(crate) seconds: f64,
}

/// A source that is posted to.
#[derive(Debug)]
pub(crate) struct Source {
    url: String,
    agent: ureq::Agent,
}

impl Source {
    /// The one of this host.
    pub(crate) fn of(host: &Host) -> Outcome<Source> {
        let address = host.after("source `clicks` takes events at http://");
        let address = address.ok_or_else(|| Failure::new("tidemill does not say where events are posted"))?;
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let config =
            config.max_idle_connections_per_host(SENDERS).timeout_global(Some(Duration::from_secs(60)));
        Ok(Source { url: format!("http://{address}/v1/events"), agent: config.build().into() })
    }

    fn post(&self, body: &str) -> Outcome<()> {
        let request = self.agent.post(&self.url).header("content-type", "application/x-ndjson");
        let mut answer = request.send(body).doing("posting events")?;
        let said = answer.body_mut().read_to_string().doing("posting events")?;
        if answer.status().as_u16() == 202 && said.contains("\"rejected\":[]") {
            return Ok(());
        }
        Err(Failure::new(format!("posting events: {}: {said}", answer.status())))
    }

    /// As fast as it is taken, for so long.
    pub(crate) fn flood(&self, length: Duration) -> Outcome<()> {
        let until = Instant::now() + length;
        let number = AtomicU32::new(0);
        self.senders(|random| {
            while Instant::now() < until {
                let n = number.fetch_add(1, Ordering::Relaxed);
                self.post(&body(&format!("flood{n}"), random, false))?;
            }
            Ok(())
        })
    }

    /// At its pace, come what may.
    pub(crate) fn at_pace(&self, posting: &Posting, rows: &Path, scratch: &Path) -> Outcome<Posted> {
        let (accepted, next, done) =
            (Mutex::new(Latencies::new()?), AtomicU32::new(0), AtomicBool::new(false));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let syncs = scope.spawn(|| syncs(scratch, &done));
            let tail = scope.spawn(|| watch(rows, posting.pace, begun, &done));
            let sent = self.senders(|random| {
                let mut own = Latencies::new()?;
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= posting.pace.number {
                        break;
                    }
                    std::thread::sleep(posting.pace.due(n).saturating_sub(begun.elapsed()));
                    self.post(&body(&watched(n), random, posting.hot_key))?;
                    own.add(posting.pace.took(n, begun.elapsed()));
                }
                accepted.lock().unwrap_or_else(PoisonError::into_inner).add_all(&own);
                Ok(())
            });
            let seconds = begun.elapsed().as_secs_f64();
            if sent.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            let row = joined(tail);
            done.store(true, Ordering::Relaxed);
            let sync = joined(syncs);
            sent?;
            let accepted = accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Ok(Posted {
                accepted,
                row: row?,
                sync: sync?,
                events: u64::from(posting.pace.number) * u64::from(BATCH),
                seconds,
            })
        })
    }

    fn senders(&self, work: impl Fn(&mut Random) -> Outcome<()> + Sync) -> Outcome<()> {
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (1..=SENDERS as u64)
                .map(|seed| scope.spawn(move || work(&mut Random(seed * 0x9e37_79b9))))
                .collect();
            threads.into_iter().try_for_each(joined)
        })
    }
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Outcome<T>>) -> Outcome<T> {
    thread.join().unwrap_or_else(|_| Err(Failure::new("a thread of the benchmark ended without an answer")))
}

/// The key of the event that is watched in the `n`-th request.
fn watched(n: u32) -> String {
    format!("watched{n}")
}

/// Events of now, the watched one first.
fn body(watched: &str, random: &mut Random, hot_key: bool) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let mut text = String::with_capacity(100 * BATCH as usize);
    for n in 0..BATCH {
        text.push_str("{\"user_id\":\"");
        match n {
            0 => text.push_str(watched),
            _ if hot_key && n % 3 == 0 => text.push_str("hot0000000000000"),
            _ => text.push_str(&key_of(random.below(USERS))),
        }
        let _ = writeln!(
            text,
            "\",\"ts\":{now},\"type\":\"page_view\",\"url\":\"/p/{}\"}}",
            random.below(50_000)
        );
    }
    text
}

/// When the watched events' rows come into the sink.
fn watch(rows: &Path, pace: OpenLoop, begun: Instant, done: &AtomicBool) -> Outcome<Latencies> {
    let mut latencies = Latencies::new()?;
    let mut tail = Tail::of(rows);
    let mut seen = vec![false; pace.number as usize];
    let last = pace.due(pace.number) + ROWS_MAX;
    while (latencies.len() as usize) < seen.len() {
        let now = begun.elapsed();
        if done.load(Ordering::Relaxed) {
            return Err(Failure::new("posting ended before all rows were there"));
        }
        if now > last {
            let missing = seen.len() - latencies.len() as usize;
            return Err(Failure::new(format!(
                "{missing} of {} watched events have no row after {ROWS_MAX:?}",
                seen.len()
            )));
        }
        tail.lines(|line| {
            if let Some(n) = number_in(line)
                && let Some(seen) = seen.get_mut(n as usize).filter(|s| !**s)
            {
                *seen = true;
                latencies.add(pace.took(n, now));
            }
        })?;
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(latencies)
}

/// The number of a watched event in a row.
fn number_in(row: &str) -> Option<u32> {
    let (_, rest) = row.split_once("\"key\":\"watched")?;
    rest.split('"').next()?.parse().ok()
}

/// What a file grows by.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Tail {
    /// From its begin on; it may not be there yet.
    pub(crate) fn of(path: &Path) -> Tail {
        Tail { path: path.to_owned(), file: None, rest: Vec::new() }
    }

    /// Each whole line that is new.
    pub(crate) fn lines(&mut self, mut take: impl FnMut(&str)) -> Outcome<()> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.read_to_end(&mut self.rest).doing(self.path.display())?;
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return Ok(()) };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        whole.split(|b| *b == b'\n').filter_map(|l| std::str::from_utf8(l).ok()).for_each(&mut take);
        Ok(())
    }
}

/// What a sync of this disk takes, by itself: some bytes are appended and synced until `done`.
pub(crate) fn syncs(scratch: &Path, done: &AtomicBool) -> Outcome<Latencies> {
    let mut latencies = Latencies::new()?;
    let mut file = File::create(scratch).doing(scratch.display())?;
    while !done.load(Ordering::Relaxed) {
        file.write_all(&[b'x'; SYNC_BYTES]).doing(scratch.display())?;
        let begun = Instant::now();
        file.sync_data().doing(scratch.display())?;
        latencies.add(begun.elapsed());
        std::thread::sleep(SYNC_EVERY.saturating_sub(begun.elapsed()));
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_watched_event_and_a_third_of_the_hot_key() {
        let text = body("watched7", &mut Random(1), true);
        let keys: Vec<String> = text
            .lines()
            .map(|l| {
                serde_json::from_str::<serde_json::Value>(l).unwrap()["user_id"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!((keys.len(), keys[0].as_str()), (BATCH as usize, "watched7"));
        let hot = keys.iter().filter(|k| k.starts_with("hot")).count();
        assert!((BATCH as usize / 3 - 1..=BATCH as usize / 3).contains(&hot), "{hot}");
        assert!(!body("w", &mut Random(1), false).contains("hot0"));
    }

    #[test]
    fn watched_rows_are_told_from_others() {
        assert_eq!(number_in("{\"session_id\":\"a\",\"key\":\"watched12\",\"start_ms\":1}"), Some(12));
        assert_eq!(number_in("{\"key\":\"u12\",\"fields\":{}}"), None);
        assert_eq!(number_in("{\"key\":\"watched\"}"), None);
    }

    #[test]
    fn a_tail_gives_each_whole_line_once() {
        let path = std::env::temp_dir().join(format!("tidemill-bench-tail-{}", std::process::id()));
        let mut tail = Tail::of(&path);
        let mut seen = Vec::new();
        tail.lines(|l| seen.push(l.to_owned())).unwrap();
        let mut file = File::create(&path).unwrap();
        for (text, want) in [("a\nb", "a"), ("c\n", "bc"), ("", ""), ("d\ne\n", "d e")] {
            file.write_all(text.as_bytes()).unwrap();
            let mut seen = Vec::new();
            tail.lines(|l| seen.push(l.to_owned())).unwrap();
            seen.retain(|l| !l.is_empty());
            assert_eq!(seen.join(" "), want);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(seen.is_empty());
    }
}
