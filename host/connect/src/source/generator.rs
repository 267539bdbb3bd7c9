//! Made-up shop traffic as a partition: JSON lines that look like a file, with the same offsets.
//!
//! Every byte follows from the seed: the same [`GeneratorSpec`] gives the same stream, and to resume, the
//! stream is made again and thrown away up to the offset. No clock, except that with a `rate` an event is
//! handed out only once its time has come; what the event says does not depend on that. A start in the past
//! is a backlog: everything up to now comes as fast as it is read.
//!
//! Two layers. The *background* is Zipf users who click without a plan. With `stories`, visits with a plot
//! are mixed in, told apart by the beginning of `user_id`: `buyer-`, `bouncer-`, `bot-`, `phone-` (offline for
//! seconds, now and then for minutes), `family-` (one device, two campaigns by turns), `clock-` (ahead of
//! everyone else's). Memory: at most [`VISITS_MAX`] visits are under way.

use super::{Block, Partition, Read, Span};
use crate::ConnectError;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;

/// A block is handed out once it is this long; as in the other sources.
const BLOCK_BYTES: usize = 256 << 10;
/// Events per second of event time without a `rate`.
const EVENTS_PER_SECOND: f64 = 1000.0;
/// How late an event may stand in the stream, stories aside.
const DISORDER_MS: u64 = 5_000;
/// Visits with a plot under way at once; the next waits for an end.
const VISITS_MAX: usize = 64;
/// Between the beginnings of two visits: four a second.
const VISIT_EVERY_MS: i64 = 250;
/// The bot comes once in this time ...
const BOT_CYCLE_MS: i64 = 60_000;
/// ... stays this long ...
const BOT_STAY_MS: i64 = 10_000;
/// ... and makes one in so many events meanwhile: 50 hits a second of 1,000.
const BOT_ONE_IN: u64 = 20;
/// One record in so many is broken: 0.5 %.
const BROKEN_ONE_IN: u64 = 200;

/// How far the ahead-running clock is ahead: within the usual `far_future` of five minutes.
const AHEAD_MS: i64 = 4 * 60_000;
/// Now and then it is further ahead than any `far_future` allows.
const FAR_AHEAD_MS: i64 = 60 * 60_000;
/// The phone in a tunnel: longer than the disorder, shorter than a gap.
const TUNNEL_MS: u64 = 8_000;
/// The phone in a lift's cellar: late for every usual disorder and lateness.
const CELLAR_MS: i64 = 3 * 60_000;

const DEVICES: [&str; 6] =
    ["mobile-ios", "mobile-android", "desktop-chrome", "desktop-firefox", "desktop-safari", "tablet-ipados"];
const REFERRERS: [&str; 5] = [
    "",
    "https://search.example/",
    "https://news.example/today",
    "https://social.example/feed",
    "https://shop.example/",
];
const CAMPAIGNS: [&str; 4] = ["", "", "spring-sale", "newsletter"];
const BACKGROUND_TYPES: [&str; 8] =
    ["page_view", "page_view", "page_view", "page_view", "click", "click", "search", "add_to_cart"];

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSpec {
    /// How many records; none: without end.
    pub events: Option<u64>,
    /// Records per second of the host's clock, and of event time; none: as fast as they are read.
    pub rate: Option<f64>,
    /// How many users the background has; at least one.
    pub users: u64,
    /// Same seed, same bytes.
    pub seed: u64,
    /// Whether visits with a plot and broken records are mixed in.
    pub stories: bool,
    /// Event time of the first record, ms since the Unix epoch.
    pub start_ms: i64,
    /// Where to resume: a [`Block::next_offset`], 0 for the start.
    pub skip_to_offset: u64,
}

/// The stream, being read.
#[derive(Debug)]
pub struct GeneratorPartition {
    spec: GeneratorSpec,
    now_ms: fn() -> i64,
    writer: Writer,
    /// Records made.
    made: u64,
    /// Bytes made.
    offset: u64,
}

impl GeneratorPartition {
    /// Starts at the spec's offset; it takes about a second for a million records read before. `now_ms` is
    /// the host's clock, asked only if there is a `rate`.
    #[must_use]
    pub fn new(spec: GeneratorSpec, now_ms: fn() -> i64) -> Self {
        let mut new = Self { writer: Writer::new(&spec), now_ms, made: 0, offset: 0, spec };
        let mut line = String::new();
        while new.offset < new.spec.skip_to_offset && !new.at_end() {
            line.clear();
            new.writer.line(new.made, new.event_ms(), &mut line);
            new.advance(line.len());
        }
        new
    }

    fn at_end(&self) -> bool {
        self.spec.events.is_some_and(|max| self.made >= max)
    }

    fn advance(&mut self, bytes: usize) {
        self.made += 1;
        self.offset += bytes as u64 + 1;
    }

    /// When the next record happens, disorder aside.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "2^53 events are enough"
    )]
    fn event_ms(&self) -> i64 {
        let per_second = self.spec.rate.unwrap_or(EVENTS_PER_SECOND);
        self.spec.start_ms.saturating_add((self.made as f64 * 1000.0 / per_second) as i64)
    }
}

impl Partition for GeneratorPartition {
    fn read(&mut self, block: &mut Block) -> Result<Read, ConnectError> {
        let now_ms = if self.spec.rate.is_some() { (self.now_ms)() } else { i64::MAX };
        let mut text = String::from_utf8(std::mem::take(&mut block.bytes)).unwrap_or_default();
        while text.len() < BLOCK_BYTES && !self.at_end() && self.event_ms() <= now_ms {
            let at = text.len();
            self.writer.line(self.made, self.event_ms(), &mut text);
            let len = text.len() - at;
            // A block is far below 4 GiB.
            block.spans.push(Span { at: at as u32, len: len as u32, offset: self.offset, size: len as u64 });
            text.push('\n');
            self.advance(len);
        }
        block.bytes = text.into_bytes();
        block.next_offset = self.offset;
        Ok(match (block.spans.is_empty(), self.at_end()) {
            (false, _) => Read::Data,
            (true, true) => Read::End,
            (true, false) => Read::Pending,
        })
    }

    fn header(&self) -> Option<&[u8]> {
        None
    }
}

/// Random numbers (splitmix64): small, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Evenly from 0 to `n` - 1; 0 for `n` = 0.
    fn below(&mut self, n: u64) -> u64 {
        // The product's upper half is below `n`.
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        let i = self.below(list.len() as u64) as usize;
        list.get(i).copied().unwrap_or_default()
    }

    /// From 1 to `n`, the rank r about 1/r as often as the first: every power of two is as likely as the next,
    /// and even inside. Integers only, since powers of floats differ between machines.
    fn zipf(&mut self, n: u64) -> u64 {
        let octaves = u64::from(n.max(1).ilog2()) + 1;
        loop {
            let low = 1 << self.below(octaves);
            let rank = low + self.below(low);
            if rank <= n.max(1) {
                return rank;
            }
        }
    }
}

/// A visit's plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Plot {
    Buyer,
    Bouncer,
    LatePhone,
    SharedDevice,
    FastClock,
}

/// A visit with a plot under way. Ordered by when its next record is due, then by number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Visit {
    due_ms: i64,
    number: u64,
    plot: Plot,
    /// Records written.
    step: u64,
    /// Records in all.
    steps: u64,
    device: &'static str,
    campaign: &'static str,
    /// What makes this visit worse than most: minutes late, an hour ahead.
    extreme: bool,
}

/// One record before it is written.
struct Click<'a> {
    user: &'a str,
    ts_ms: i64,
    kind: &'a str,
    path: &'a str,
    referrer: &'a str,
    campaign: &'a str,
    device: &'a str,
}

/// Everything random.
#[derive(Debug)]
struct Writer {
    random: Random,
    users: u64,
    stories: bool,
    start_ms: i64,
    next_visit_ms: i64,
    visits: BinaryHeap<Reverse<Visit>>,
    visits_begun: u64,
    user: String,
    path: String,
}

impl Writer {
    fn new(spec: &GeneratorSpec) -> Self {
        Self {
            random: Random(spec.seed),
            users: spec.users,
            stories: spec.stories,
            start_ms: spec.start_ms,
            next_visit_ms: spec.start_ms,
            visits: BinaryHeap::new(),
            visits_begun: 0,
            user: String::new(),
            path: String::new(),
        }
    }

    /// Writes record number `n`, which happens at `now_ms`, without a line end.
    fn line(&mut self, n: u64, now_ms: i64, out: &mut String) {
        if !self.stories {
            return self.background(n, now_ms, out);
        }
        if now_ms >= self.next_visit_ms && self.visits.len() < VISITS_MAX {
            self.begin_visit(now_ms);
        }
        let due = self.visits.peek().is_some_and(|Reverse(visit)| visit.due_ms <= now_ms);
        if due && let Some(Reverse(visit)) = self.visits.pop() {
            return self.visit(n, now_ms, visit, out);
        }
        let bot_ms = (now_ms - self.start_ms).rem_euclid(BOT_CYCLE_MS);
        if bot_ms < BOT_STAY_MS && self.random.one_in(BOT_ONE_IN) {
            return self.bot(n, now_ms, out);
        }
        if self.random.one_in(BROKEN_ONE_IN) {
            return self.broken(n, now_ms, out);
        }
        self.background(n, now_ms, out);
    }

    fn background(&mut self, n: u64, now_ms: i64, out: &mut String) {
        let rank = self.random.zipf(self.users);
        let user = self.named("u", rank, 7);
        let late = if self.random.below(10) < 3 { DISORDER_MS } else { 200 };
        let ts_ms = now_ms - self.random.below(late) as i64;
        let kind = self.random.pick(&BACKGROUND_TYPES);
        // A user's device and campaign stay the same: a rule may split on them.
        let (device, campaign) = (chosen(&DEVICES, rank), chosen(&CAMPAIGNS, rank));
        let referrer = self.random.pick(&REFERRERS);
        let path = self.product();
        self.write(n, &Click { user: &user, ts_ms, kind, path: &path, referrer, campaign, device }, out);
        (self.user, self.path) = (user, path);
    }

    fn bot(&mut self, n: u64, now_ms: i64, out: &mut String) {
        let visit = (now_ms - self.start_ms).div_euclid(BOT_CYCLE_MS).unsigned_abs();
        let user = self.named("bot-", visit % 3 + 1, 4);
        let path = self.product();
        let click = Click {
            user: &user,
            ts_ms: now_ms,
            kind: "page_view",
            path: &path,
            referrer: "",
            campaign: "",
            device: "crawler",
        };
        self.write(n, &click, out);
        (self.user, self.path) = (user, path);
    }

    /// A background record that cannot be used: cut off, without its user, or with a time that is none.
    fn broken(&mut self, n: u64, now_ms: i64, out: &mut String) {
        let at = out.len();
        self.background(n, now_ms, out);
        match self.random.below(3) {
            0 => {
                // The record is ASCII, so any byte is a place to cut.
                let half = (out.len() - at) / 2;
                out.truncate(at + half + self.random.below(half as u64) as usize);
            }
            1 => cut(out, at, "\"user_id\":\"", "\",", ""),
            _ => cut(out, at, "\"ts\":", ",", "\"ts\":\"yesterday\","),
        }
    }

    fn begin_visit(&mut self, now_ms: i64) {
        self.next_visit_ms = now_ms + VISIT_EVERY_MS;
        self.visits_begun += 1;
        let (plot, steps) = match self.random.below(20) {
            0..=6 => (Plot::Buyer, 5 + self.random.below(4)),
            7..=14 => (Plot::Bouncer, 1),
            15..=16 => (Plot::LatePhone, 6),
            17..=18 => (Plot::SharedDevice, 8),
            _ => (Plot::FastClock, 4),
        };
        self.visits.push(Reverse(Visit {
            due_ms: now_ms,
            number: self.visits_begun,
            plot,
            step: 0,
            steps,
            device: self.random.pick(&DEVICES),
            campaign: self.random.pick(&CAMPAIGNS),
            extreme: self.random.one_in(3),
        }));
    }

    fn visit(&mut self, n: u64, now_ms: i64, mut visit: Visit, out: &mut String) {
        let last = visit.step + 1 == visit.steps;
        let (mut kind, mut ts_ms, mut campaign) = ("page_view", now_ms, visit.campaign);
        let prefix = match visit.plot {
            Plot::Buyer => {
                kind = match visit.steps - visit.step {
                    3 => "add_to_cart",
                    2 => "checkout",
                    1 => "purchase",
                    _ => kind,
                };
                "buyer-"
            }
            Plot::Bouncer => "bouncer-",
            Plot::LatePhone => {
                let late =
                    if last && visit.extreme { CELLAR_MS } else { self.random.below(TUNNEL_MS) as i64 };
                ts_ms -= late;
                "phone-"
            }
            Plot::SharedDevice => {
                campaign = if visit.step.is_multiple_of(2) { "kids-toys" } else { "garden-tools" };
                "family-"
            }
            Plot::FastClock => {
                ts_ms += if visit.extreme { FAR_AHEAD_MS } else { AHEAD_MS };
                "clock-"
            }
        };
        let user = self.named(prefix, visit.number, 5);
        let path = match kind {
            "checkout" | "purchase" => kind.to_owned(),
            _ => self.product(),
        };
        let referrer = if visit.step == 0 { self.random.pick(&REFERRERS) } else { "https://shop.example/" };
        let device = visit.device;
        self.write(n, &Click { user: &user, ts_ms, kind, path: &path, referrer, campaign, device }, out);
        (self.user, self.path) = (user, path);
        if !last {
            visit.step += 1;
            visit.due_ms = now_ms + 400 + self.random.below(2_000) as i64;
            self.visits.push(Reverse(visit));
        }
    }

    /// A user's name, in memory that is used again.
    fn named(&mut self, prefix: &str, number: u64, width: usize) -> String {
        let mut name = std::mem::take(&mut self.user);
        name.clear();
        // Writing to a string cannot fail.
        let _ = write!(name, "{prefix}{number:0width$}");
        name
    }

    /// A product's path, in memory that is used again.
    fn product(&mut self) -> String {
        let mut path = std::mem::take(&mut self.path);
        let product = self.random.below(5_000);
        path.clear();
        let _ = write!(path, "c/{}/p/{product:04}", product % 40);
        path
    }

    fn write(&mut self, n: u64, click: &Click<'_>, out: &mut String) {
        let Click { user, ts_ms, kind, path, referrer, campaign, device } = click;
        let id = self.random.next();
        let _ = write!(
            out,
            "{{\"event_id\":\"{id:016x}{n:08x}\",\"user_id\":\"{user}\",\"ts\":{ts_ms},\"type\":\"{kind}\",\
             \"url\":\"https://shop.example/{path}\",\"referrer\":\"{referrer}\",\"campaign\":\"{campaign}\",\
             \"device\":\"{device}\"}}"
        );
    }
}

fn chosen(list: &[&'static str], n: u64) -> &'static str {
    list.get((n % list.len() as u64) as usize).copied().unwrap_or_default()
}

/// Replaces, behind `at`, what begins with `from` and ends with the next `to`.
fn cut(out: &mut String, at: usize, from: &str, to: &str, with: &str) {
    let Some(begin) = out[at..].find(from).map(|n| at + n) else { return };
    let behind = begin + from.len();
    let Some(end) = out[behind..].find(to).map(|n| behind + n + to.len()) else { return };
    out.replace_range(begin..end, with);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicI64, Ordering};

    const START_MS: i64 = 1_790_000_000_000;

    fn spec(events: u64) -> GeneratorSpec {
        GeneratorSpec {
            events: Some(events),
            rate: None,
            users: 5_000,
            seed: 7,
            stories: true,
            start_ms: START_MS,
            skip_to_offset: 0,
        }
    }

    fn no_clock() -> i64 {
        panic!("without a rate nobody asks for the time")
    }

    /// Everything that comes, and every offset at which a block ended.
    fn all(spec: GeneratorSpec) -> (Vec<u8>, Vec<u64>) {
        let mut offset = spec.skip_to_offset;
        let mut partition = GeneratorPartition::new(spec, no_clock);
        let (mut bytes, mut ends, mut block) = (Vec::new(), Vec::new(), Block::default());
        loop {
            block.clear();
            match partition.read(&mut block).unwrap() {
                Read::Data => {}
                Read::End => return (bytes, ends),
                Read::Pending => panic!("pending without a rate"),
            }
            for span in &block.spans {
                assert_eq!(span.offset, offset, "offsets follow each other");
                assert!(!block.record(*span).contains(&b'\n'));
                offset += u64::from(span.len) + 1;
            }
            assert_eq!(block.next_offset, offset);
            bytes.extend_from_slice(&block.bytes);
            ends.push(offset);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let (bytes, _) = all(spec(20_000));
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 20_000);
        assert!(all(spec(20_000)).0 == bytes);
        assert!(all(GeneratorSpec { seed: 8, ..spec(20_000) }).0 != bytes);
    }

    #[test]
    fn resumed_at_any_offset_it_goes_on_as_if_never_stopped() {
        let (bytes, ends) = all(spec(20_000));
        assert!(ends.len() > 5);
        let lines = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i as u64 + 1);
        for offset in lines.step_by(1_999).chain(ends).chain([0]) {
            let (rest, _) = all(GeneratorSpec { skip_to_offset: offset, ..spec(20_000) });
            assert!(rest == bytes[offset as usize..], "resumed at {offset}");
        }
    }

    /// The stories that a reader of the demo looks for; an empty one would go unnoticed there.
    #[test]
    fn every_story_is_told() {
        let (bytes, _) = all(spec(200_000));
        let text = String::from_utf8(bytes).unwrap();
        let (mut broken, mut types) = (BTreeMap::<&str, u64>::new(), BTreeMap::<String, Vec<String>>::new());
        let (mut campaigns, mut late, mut ahead) = (BTreeSet::new(), 0, [0, 0]);
        for (n, line) in text.lines().enumerate() {
            let now_ms = START_MS + n as i64;
            let Ok(v) = serde_json::from_str::<serde_json::Value>(line) else {
                *broken.entry("truncated").or_default() += 1;
                continue;
            };
            let (Some(user), Some(ts)) = (v["user_id"].as_str(), v["ts"].as_i64()) else {
                *broken.entry(if v["user_id"].is_null() { "no user" } else { "bad ts" }).or_default() += 1;
                continue;
            };
            types.entry(user.to_owned()).or_default().push(v["type"].as_str().unwrap().to_owned());
            let early_ms = ts - now_ms;
            match user.split_once('-').map(|(story, _)| story) {
                Some("family") => drop(campaigns.insert(v["campaign"].as_str().unwrap().to_owned())),
                Some("phone") => late += u64::from(early_ms == -CELLAR_MS),
                Some("clock") => ahead[usize::from(early_ms == FAR_AHEAD_MS)] += 1,
                _ => assert!((-(DISORDER_MS as i64)..=0).contains(&early_ms), "{line}"),
            }
        }
        assert!(broken.len() == 3 && broken.values().all(|n| (250..450).contains(n)), "{broken:?}");
        let bought =
            |t: &&Vec<String>| t.ends_with(&["add_to_cart", "checkout", "purchase"].map(str::to_owned));
        assert!(types.values().filter(bought).count() > 50);
        let of = |story: &'static str| types.iter().filter(move |(user, _)| user.starts_with(story));
        assert!(of("bouncer-").count() > 100 && of("bouncer-").all(|(_, t)| t.len() == 1));
        assert!(of("bot-").count() == 3 && of("bot-").all(|(_, t)| t.len() > 300));
        assert_eq!(campaigns.len(), 2);
        assert!(late > 3 && ahead.iter().all(|n| *n > 10), "{late} {ahead:?}");
    }

    #[test]
    fn a_zipf_user_of_rank_one_is_met_about_as_often_as_ranks_two_and_three_together() {
        let mut random = Random(1);
        let mut met = [0_u32; 8];
        for _ in 0..70_000 {
            met[random.zipf(7) as usize] += 1;
        }
        assert_eq!(met[0], 0);
        assert!(met[1].abs_diff(met[2] + met[3]) < 1_000, "{met:?}");
        assert_eq!(random.zipf(1), 1);
    }

    static NOW_MS: AtomicI64 = AtomicI64::new(START_MS);

    #[test]
    fn with_a_rate_it_waits_for_the_clock_and_says_the_same() {
        let spec = GeneratorSpec { rate: Some(500.0), ..spec(1_500) };
        let mut partition = GeneratorPartition::new(spec, || NOW_MS.load(Ordering::Relaxed));
        let mut block = Block::default();
        let mut counts = Vec::new();
        for now_ms in [START_MS - 1, START_MS, START_MS + 999, START_MS + 999, START_MS + 60_000, i64::MAX] {
            NOW_MS.store(now_ms, Ordering::Relaxed);
            block.clear();
            counts.push((partition.read(&mut block).unwrap(), block.spans.len()));
        }
        let data = |n| (Read::Data, n);
        assert_eq!(
            counts,
            [(Read::Pending, 0), data(1), data(499), (Read::Pending, 0), data(1_000), (Read::End, 0)]
        );
    }
}
