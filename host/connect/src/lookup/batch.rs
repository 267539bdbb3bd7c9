//! The core of a lookup: which keys are asked for now, in which calls, and what a failure means. No threads, no clock.
//!
//! Invariants: a key has at most one flight, and stands in the queue, in a batch that waits for its retry, or in a call
//! under way; all its tickets are answered at once. Retries wait longer each time, and each is of half as many keys, so a
//! key that breaks its call takes ever fewer with it. A provider that fails [`bounds::DOWN_AFTER`] times in a row is
//! *down*: one call at a time tries it, at bounded intervals, and each that fails counts against every key that waits.

use super::bounds::{self, BACKOFF_MAX_MS, BACKOFF_MS};
use super::cache::Cache;
use super::{Answer, LookupError, Row, Ticket};
use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How a lookup asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Bytes of kept answers.
    pub cache_bytes: u64,
    /// How long a row is believed, ms; 0: not kept.
    pub ttl_ms: u64,
    /// How long it is believed that there is no row, ms; 0: not kept.
    pub negative_ttl_ms: u64,
    /// Keys in one call.
    pub batch_keys: usize,
    /// Calls under way at a time.
    pub concurrency: usize,
    /// How long one call may take, ms.
    pub timeout_ms: u64,
    /// How often a key is asked for again before it is given up.
    pub retries: u32,
    /// Whether keys are given up at all; else they are asked for until there is an answer.
    pub gives_up: bool,
}

/// What a lookup did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LookupCounts {
    /// Keys asked for.
    pub asked: u64,
    /// Of these, answered at once by a row that was kept.
    pub cache_hits: u64,
    /// Of these, answered at once because it is known that there is no row.
    pub negative_hits: u64,
    /// Of these, joined to one that was under way.
    pub joined: u64,
    /// Calls to the provider, retries included.
    pub calls: u64,
    /// Keys in these calls.
    pub keys_called: u64,
    /// Keys in the largest of them.
    pub keys_in_call_max: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Keys that were asked for again.
    pub retries: u64,
    /// Keys that were given up.
    pub given_up: u64,
    /// Time in calls, µs; calls side by side count each.
    pub call_us: u64,
}

impl LookupCounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, o: LookupCounts) -> LookupCounts {
        LookupCounts {
            asked: self.asked + o.asked,
            cache_hits: self.cache_hits + o.cache_hits,
            negative_hits: self.negative_hits + o.negative_hits,
            joined: self.joined + o.joined,
            calls: self.calls + o.calls,
            keys_called: self.keys_called + o.keys_called,
            keys_in_call_max: self.keys_in_call_max.max(o.keys_in_call_max),
            failures: self.failures + o.failures,
            retries: self.retries + o.retries,
            given_up: self.given_up + o.given_up,
            call_us: self.call_us + o.call_us,
        }
    }
}

/// A call to make.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) keys: Vec<Arc<str>>,
}

/// A failed batch that waits for its next try.
struct Retry {
    due_ms: u64,
    keys: Vec<Arc<str>>,
}

#[derive(Default)]
struct Flight {
    tickets: Vec<Ticket>,
    failures: u32,
}

pub(super) struct Batcher {
    settings: Settings,
    cache: Cache,
    flights: HashMap<Arc<str>, Flight>,
    queue: VecDeque<Arc<str>>,
    retries: Vec<Retry>,
    calls: usize,
    failed_in_a_row: u32,
    /// Not before this is a provider that is down tried again.
    resume_at_ms: u64,
    last_error: Option<Arc<str>>,
    counts: LookupCounts,
    jitter: fastrand::Rng,
}

pub(super) type Answers = Vec<(Ticket, Answer)>;

fn found(row: Option<Row>) -> Answer {
    row.map_or(Answer::NotFound, Answer::Found)
}

/// The wait after the `n`th failure: doubled each time, bounded, and between half and all of that by chance, so that many
/// who failed together do not come back together.
fn backoff_ms(n: u32, jitter: &mut fastrand::Rng) -> u64 {
    let full = BACKOFF_MS.saturating_mul(1 << n.min(32)).min(BACKOFF_MAX_MS);
    full / 2 + jitter.u64(0..=full - full / 2)
}

impl Batcher {
    pub(super) fn new(settings: Settings, jitter: fastrand::Rng) -> Batcher {
        Batcher {
            cache: Cache::new(settings.cache_bytes, settings.ttl_ms, settings.negative_ttl_ms),
            settings,
            flights: HashMap::new(),
            queue: VecDeque::new(),
            retries: Vec::new(),
            calls: 0,
            failed_in_a_row: 0,
            resume_at_ms: 0,
            last_error: None,
            counts: LookupCounts::default(),
            jitter,
        }
    }

    /// Asks for a key: an answer that is known at once, or `None`, and then the ticket's answer comes out of
    /// [`Batcher::answered`].
    pub(super) fn ask(&mut self, ticket: Ticket, key: &str, now_ms: u64) -> Option<Answer> {
        self.counts.asked += 1;
        if key.len() > bounds::KEY_BYTES_MAX {
            return Some(Answer::NotFound);
        }
        if let Some(row) = self.cache.get(key, now_ms) {
            match row {
                Some(_) => self.counts.cache_hits += 1,
                None => self.counts.negative_hits += 1,
            }
            return Some(found(row));
        }
        match self.flights.entry(key.into()) {
            Entry::Occupied(mut e) => {
                self.counts.joined += 1;
                e.get_mut().tickets.push(ticket);
            }
            Entry::Vacant(e) => {
                self.queue.push_back(e.key().clone());
                e.insert(Flight { tickets: vec![ticket], failures: 0 });
            }
        }
        None
    }

    /// Whether the provider counts as down.
    pub(super) fn is_down(&self) -> bool {
        self.failed_in_a_row >= bounds::DOWN_AFTER
    }

    /// What the last failed call said, until one succeeds.
    pub(super) fn last_error(&self) -> Option<Arc<str>> {
        self.last_error.clone()
    }

    pub(super) fn counts(&self) -> LookupCounts {
        self.counts
    }

    /// The next call, if one is due.
    pub(super) fn next_call(&mut self, now_ms: u64) -> Option<Call> {
        let concurrency = if self.is_down() { 1 } else { self.settings.concurrency };
        if self.calls >= concurrency || (self.is_down() && now_ms < self.resume_at_ms) {
            return None;
        }
        let due = self.retries.iter().position(|r| r.due_ms <= now_ms);
        let keys: Vec<Arc<str>> = match due {
            Some(i) => self.retries.swap_remove(i).keys,
            None => {
                let n = self.queue.len().min(self.settings.batch_keys);
                self.queue.drain(..n).collect()
            }
        };
        if keys.is_empty() {
            return None;
        }
        self.calls += 1;
        self.counts.calls += 1;
        self.counts.keys_called += keys.len() as u64;
        self.counts.keys_in_call_max = self.counts.keys_in_call_max.max(keys.len() as u64);
        Some(Call { keys })
    }

    /// When to ask for the next call again, if nothing else happens before.
    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        let retry = self.retries.iter().map(|r| r.due_ms).min();
        let queued = (!self.queue.is_empty()).then_some(0);
        let due = retry.into_iter().chain(queued).min()?;
        Some(if self.is_down() { due.max(self.resume_at_ms) } else { due })
    }

    /// Takes what came of a call; the answers that it gives.
    pub(super) fn answered(
        &mut self,
        call: Call,
        result: Result<Vec<Option<Row>>, LookupError>,
        took_us: u64,
        now_ms: u64,
    ) -> Answers {
        self.calls -= 1;
        self.counts.call_us += took_us;
        let mut out = Answers::new();
        match result {
            Ok(rows) => {
                (self.failed_in_a_row, self.last_error) = (0, None);
                for (key, row) in call.keys.into_iter().zip(rows) {
                    let flight = self.flights.remove(&key).unwrap_or_default();
                    out.extend(flight.tickets.into_iter().map(|t| (t, found(row.clone()))));
                    self.cache.put(key, row, now_ms);
                }
            }
            Err(e) => self.failed(call, &e, now_ms, &mut out),
        }
        out
    }

    fn failed(&mut self, call: Call, e: &LookupError, now_ms: u64, out: &mut Answers) {
        self.counts.failures += 1;
        self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
        let why: Arc<str> = e.to_string().into();
        self.last_error = Some(why.clone());
        if self.is_down() {
            let tries = self.failed_in_a_row - bounds::DOWN_AFTER;
            self.resume_at_ms = now_ms + backoff_ms(tries, &mut self.jitter);
            // Whatever waits, waits for this provider: it is asked in the order in which it came.
            let mut all = call.keys;
            all.extend(self.retries.drain(..).flat_map(|r| r.keys));
            all.extend(self.queue.drain(..));
            let kept = self.count_failure(all, &why, out);
            self.counts.retries += kept.len() as u64;
            self.queue.extend(kept);
            return;
        }
        let mut kept = self.count_failure(call.keys, &why, out);
        self.counts.retries += kept.len() as u64;
        let most = kept.iter().filter_map(|k| self.flights.get(k)).map(|f| f.failures).max().unwrap_or(1);
        let due_ms = match e {
            LookupError::Unavailable(_) => now_ms + backoff_ms(most - 1, &mut self.jitter),
            // What was refused as a whole may be taken in parts, now as well as later.
            LookupError::Refused(_) if kept.len() > 1 => now_ms,
            LookupError::Refused(_) => now_ms + backoff_ms(most - 1, &mut self.jitter),
        };
        let second = kept.split_off(kept.len().div_ceil(2));
        let halves = [kept, second].into_iter().filter(|k| !k.is_empty());
        self.retries.extend(halves.map(|keys| Retry { due_ms, keys }));
    }

    /// Counts a failure against keys; those that have failed too often are answered, the others come back.
    fn count_failure(&mut self, keys: Vec<Arc<str>>, why: &Arc<str>, out: &mut Answers) -> Vec<Arc<str>> {
        let mut kept = Vec::with_capacity(keys.len());
        for key in keys {
            let Entry::Occupied(mut e) = self.flights.entry(key) else { continue };
            e.get_mut().failures += 1;
            if self.settings.gives_up && e.get().failures > self.settings.retries {
                self.counts.given_up += 1;
                out.extend(e.remove().tickets.into_iter().map(|t| (t, Answer::Failed(why.clone()))));
            } else {
                kept.push(e.key().clone());
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings {
        cache_bytes: 1 << 20,
        ttl_ms: 1_000,
        negative_ttl_ms: 100,
        batch_keys: 4,
        concurrency: 2,
        timeout_ms: 10,
        retries: 2,
        gives_up: true,
    };

    fn batcher(settings: Settings) -> Batcher {
        Batcher::new(settings, fastrand::Rng::with_seed(7))
    }
    fn keys(call: &Call) -> Vec<&str> {
        call.keys.iter().map(|k| &**k).collect()
    }
    fn rows(call: &Call) -> Vec<Option<Row>> {
        call.keys.iter().map(|k| Some(format!("{{\"k\":\"{k}\"}}").into())).collect()
    }
    fn down() -> LookupError {
        LookupError::Unavailable("gone".into())
    }

    #[test]
    fn a_key_has_one_flight_and_all_its_tickets_one_answer() {
        let mut b = batcher(SETTINGS);
        for (t, k) in [(1, "a"), (2, "b"), (3, "a")] {
            assert_eq!(b.ask(t, k, 0), None);
        }
        let call = b.next_call(0).unwrap();
        assert_eq!(keys(&call), ["a", "b"]);
        // Under way: still one flight.
        assert_eq!(b.ask(4, "a", 0), None);
        assert!(b.next_call(0).is_none());
        let rows = vec![Some("{}".into()), None];
        let mut out = b.answered(call, Ok(rows), 5, 0);
        out.sort_by_key(|a| a.0);
        let found = Answer::Found("{}".into());
        assert_eq!(out, [(1, found.clone()), (2, Answer::NotFound), (3, found.clone()), (4, found.clone())]);
        // Kept, each for its time.
        assert_eq!((b.ask(5, "a", 99), b.ask(6, "b", 99)), (Some(found), Some(Answer::NotFound)));
        assert_eq!(b.ask(7, "b", 100), None);
        let c = b.counts();
        assert_eq!((c.asked, c.joined, c.cache_hits, c.negative_hits, c.calls), (7, 2, 1, 1, 1));
        assert_eq!((c.keys_called, c.keys_in_call_max, c.call_us), (2, 2, 5));
    }

    #[test]
    fn calls_are_full_and_no_more_than_allowed() {
        let mut b = batcher(SETTINGS);
        (0..10).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), 0), None));
        let (one, two) = (b.next_call(0).unwrap(), b.next_call(0).unwrap());
        assert_eq!((one.keys.len(), two.keys.len()), (4, 4));
        assert!(b.next_call(0).is_none(), "two at a time");
        let r = rows(&one);
        assert_eq!(b.answered(one, Ok(r), 0, 0).len(), 4);
        assert_eq!(b.next_call(0).unwrap().keys.len(), 2);
    }

    #[test]
    fn a_key_that_breaks_its_call_ends_up_alone() {
        let mut b = batcher(Settings { retries: 3, ..SETTINGS });
        ["a", "bad", "c", "d"].iter().zip(0..).for_each(|(k, t)| assert_eq!(b.ask(t, k, 0), None));
        let (mut now, mut answers) = (0, Vec::new());
        while let Some(at) = b.wake_at_ms() {
            now = now.max(at);
            while let Some(call) = b.next_call(now) {
                let bad = call.keys.iter().any(|k| &**k == "bad");
                let result = if bad { Err(LookupError::Refused("no".into())) } else { Ok(rows(&call)) };
                answers.extend(b.answered(call, result, 0, now));
            }
        }
        answers.sort_by_key(|a| a.0);
        let failed: Vec<bool> = answers.iter().map(|(_, a)| matches!(a, Answer::Failed(_))).collect();
        assert_eq!(failed, [false, true, false, false]);
        assert_eq!(b.counts().given_up, 1);
    }

    #[test]
    fn a_provider_that_is_down_is_tried_by_one_call_at_a_time_and_noticed_when_it_is_back() {
        let mut b = batcher(Settings { gives_up: false, retries: 0, ..SETTINGS });
        (0..100).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), 0), None));
        let (mut now, mut calls) = (0, 0);
        let mut answered = Vec::new();
        while answered.len() < 100 {
            now = now.max(b.wake_at_ms().unwrap());
            while let Some(call) = b.next_call(now) {
                calls += u32::from(now < 10_000);
                let result = if now < 10_000 { Err(down()) } else { Ok(rows(&call)) };
                if b.is_down() && now < 10_000 {
                    assert!(b.next_call(now).is_none(), "one call tries it");
                }
                answered.extend(b.answered(call, result, 0, now));
            }
            assert!(b.last_error().is_some() || now >= 10_000);
        }
        assert!(now < 10_000 + BACKOFF_MAX_MS, "{now}");
        assert!(calls < bounds::DOWN_AFTER + 20, "{calls} calls in ten seconds");
        assert!(answered.iter().all(|(_, a)| matches!(a, Answer::Found(_))));
        assert_eq!((b.is_down(), b.last_error()), (false, None));
    }

    #[test]
    fn keys_that_wait_for_a_provider_that_is_down_are_given_up_in_bounded_time() {
        let mut b = batcher(SETTINGS);
        (0..1000).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), 0), None));
        let (mut now, mut answered) = (0, 0);
        while let Some(at) = b.wake_at_ms() {
            now = now.max(at);
            while let Some(call) = b.next_call(now) {
                answered += b.answered(call, Err(down()), 0, now).len();
            }
        }
        assert_eq!(answered, 1000);
        let most =
            u64::from(SETTINGS.retries + 1) * BACKOFF_MAX_MS + u64::from(bounds::DOWN_AFTER) * BACKOFF_MAX_MS;
        assert!(now <= most, "{now} ms");
        assert_eq!(b.counts().given_up, 1000);
        assert!(b.flights.is_empty() && b.queue.is_empty() && b.retries.is_empty());
    }

    proptest! {
        #[test]
        fn waits_grow_and_stay_within_their_bounds(n in 0_u32..64, seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let full = BACKOFF_MS.saturating_mul(1 << n.min(32)).min(BACKOFF_MAX_MS);
            let wait = backoff_ms(n, &mut rng);
            prop_assert!(wait >= full / 2 && wait <= full, "{wait} of {full}");
        }

        /// Whatever fails and whenever: each ticket gets one answer, and no key is under way twice.
        #[test]
        fn every_ticket_is_answered_once(
            asks in prop::collection::vec((0_u8..12, 0_u64..300), 1..80),
            fates in prop::collection::vec(0_u8..4, 1..40),
            gives_up: bool,
        ) {
            let mut b = batcher(Settings { gives_up, ttl_ms: 50, negative_ttl_ms: 20, ..SETTINGS });
            let mut answered: HashMap<Ticket, u32> = HashMap::new();
            let mut under_way: Vec<Call> = Vec::new();
            let (mut now, mut n) = (0, 0);
            let mut asks: VecDeque<_> = asks.into_iter().zip(0..).collect();
            let total = asks.len();
            let mut idle = 0;
            while answered.len() < total {
                idle += 1;
                prop_assert!(idle < 100_000, "it does not come to an end");
                if let Some(((key, after), ticket)) = asks.pop_front() {
                    now += after;
                    if b.ask(ticket, &format!("k{key}"), now).is_some() {
                        *answered.entry(ticket).or_default() += 1;
                    }
                } else if under_way.is_empty() && let Some(at) = b.wake_at_ms() {
                    now = now.max(at);
                }
                while let Some(call) = b.next_call(now) {
                    prop_assert!(call.keys.len() <= SETTINGS.batch_keys || b.is_down());
                    for key in &call.keys {
                        prop_assert!(!under_way.iter().any(|c| c.keys.contains(key)), "{key} is under way twice");
                    }
                    under_way.push(call);
                    prop_assert!(under_way.len() <= SETTINGS.concurrency);
                }
                if let Some(call) = under_way.pop() {
                    // After a while it works again, or a lookup that does not give up would never end.
                    let fate = if n > 200 { 0 } else { fates[n % fates.len()] };
                    n += 1;
                    let result = match fate {
                        0 => Ok(rows(&call)),
                        1 => Ok(vec![None; call.keys.len()]),
                        2 => Err(down()),
                        _ => Err(LookupError::Refused("no".into())),
                    };
                    for (ticket, answer) in b.answered(call, result, 1, now) {
                        prop_assert!(gives_up || !matches!(answer, Answer::Failed(_)));
                        *answered.entry(ticket).or_default() += 1;
                    }
                }
            }
            prop_assert!(answered.values().all(|n| *n == 1));
            prop_assert!(b.flights.is_empty() && b.queue.is_empty() && b.retries.is_empty());
        }
    }
}
