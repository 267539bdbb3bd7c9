//! The core of a lookup: which keys are asked for now, in which calls, and whose fault a failure is. No threads, no clock.
//!
//! - A call that fails as a whole may do so for one of its keys, so it is asked again in halves. That is no retry.
//! - A key that fails alone, or where others of its call are answered, is at fault itself: it is retried by itself, each time
//!   after a longer wait, and in the end given up. The provider is not blamed for it a second time.
//! - A provider that fails [`bounds::DOWN_AFTER`] times in a row is *down*: one key at a time tries it, another each time, at
//!   bounded intervals. Each try in vain counts against every key that waits, until one succeeds.
//!
//! Invariants: a key has at most one flight, and stands in the queue, in a part, among the retries, or in a call under way;
//! all its tickets are answered at once. Queue, parts and retries take turns, so none keeps the others waiting.

use super::bounds::{self, BACKOFF_MAX_MS, BACKOFF_MS};
use super::cache::Cache;
use super::counts::LookupCounts;
use super::{Answer, Fetched, LookupError, Row, Ticket};
use crate::backoff;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
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

/// A call to make.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) keys: Vec<Arc<str>>,
    /// It tries a provider that is down.
    probe: bool,
    /// Which of the provider's contents it reads, at the oldest.
    content: u64,
}

/// A part of a call that failed as a whole.
struct Part {
    due_ms: u64,
    keys: Vec<Arc<str>>,
}

#[derive(Default)]
struct Flight {
    tickets: Vec<Ticket>,
    /// How often the key itself failed.
    failures: u32,
    /// How often the provider was tried in vain since it is down.
    vain: u32,
}

pub(super) struct Batcher {
    settings: Settings,
    cache: Cache,
    content: u64,
    flights: HashMap<Arc<str>, Flight>,
    queue: VecDeque<Arc<str>>,
    parts: VecDeque<Part>,
    /// Keys that failed by themselves, with when they are due.
    retries: BTreeSet<(u64, Arc<str>)>,
    /// Whose turn it is: the queue's, the parts', the retries'.
    turn: u32,
    calls: usize,
    failed_in_a_row: u32,
    /// Not before this is a provider that is down tried again.
    resume_at_ms: u64,
    last_error: Option<Arc<str>>,
    /// Flights whose key has failed more than once.
    stubborn: usize,
    counts: LookupCounts,
    jitter: fastrand::Rng,
}

pub(super) type Answers = Vec<(Ticket, Answer)>;

fn found(row: Option<Row>) -> Answer {
    row.map_or(Answer::NotFound, Answer::Found)
}

/// Whether the provider has said something about the key.
fn is_answer(f: &Fetched) -> bool {
    matches!(f, Ok(_) | Err(LookupError::Unusable(_)))
}

fn backoff_ms(n: u32, jitter: &mut fastrand::Rng) -> u64 {
    backoff::wait_ms(n, BACKOFF_MS, BACKOFF_MAX_MS, jitter)
}

impl Batcher {
    pub(super) fn new(settings: Settings, jitter: fastrand::Rng) -> Batcher {
        Batcher {
            cache: Cache::new(settings.cache_bytes, settings.ttl_ms, settings.negative_ttl_ms),
            settings,
            content: 0,
            flights: HashMap::new(),
            queue: VecDeque::new(),
            parts: VecDeque::new(),
            retries: BTreeSet::new(),
            turn: 0,
            calls: 0,
            failed_in_a_row: 0,
            resume_at_ms: 0,
            last_error: None,
            stubborn: 0,
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
                e.insert(Flight { tickets: vec![ticket], ..Flight::default() });
            }
        }
        None
    }

    /// The provider has other rows than before: what is kept of it is not believed any more.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
        self.content += 1;
    }

    /// Whether the provider counts as down.
    pub(super) fn is_down(&self) -> bool {
        self.failed_in_a_row >= bounds::DOWN_AFTER
    }

    /// What is wrong, if the provider is down or a key fails again and again.
    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        self.last_error.clone().filter(|_| self.is_down() || self.stubborn > 0)
    }

    pub(super) fn counts(&self) -> LookupCounts {
        self.counts
    }

    /// The next call, if one is due.
    pub(super) fn next_call(&mut self, now_ms: u64) -> Option<Call> {
        let probe = self.is_down();
        let concurrency = if probe { 1 } else { self.settings.concurrency };
        if self.calls >= concurrency || (probe && now_ms < self.resume_at_ms) {
            return None;
        }
        let keys = if probe {
            Vec::from_iter(self.key_to_try())
        } else {
            (0..3).map(|_| self.keys_in_turn(now_ms)).find(|k| !k.is_empty()).unwrap_or_default()
        };
        if keys.is_empty() {
            return None;
        }
        self.calls += 1;
        self.counts.calls += 1;
        self.counts.keys_called += keys.len() as u64;
        self.counts.keys_in_call_max = self.counts.keys_in_call_max.max(keys.len() as u64);
        Some(Call { keys, probe, content: self.content })
    }

    fn keys_in_turn(&mut self, now_ms: u64) -> Vec<Arc<str>> {
        self.turn = self.turn.wrapping_add(1);
        match self.turn % 3 {
            0 => self.queue.drain(..self.queue.len().min(self.settings.batch_keys)).collect(),
            1 => {
                let due = self.parts.iter().position(|p| p.due_ms <= now_ms);
                due.and_then(|i| self.parts.remove(i)).map(|p| p.keys).unwrap_or_default()
            }
            _ if self.retries.first().is_none_or(|(due_ms, _)| *due_ms > now_ms) => Vec::new(),
            _ => Vec::from_iter(self.retries.pop_first().map(|(_, key)| key)),
        }
    }

    /// One that has not failed by itself says most; of others the one that has waited longest.
    fn key_to_try(&mut self) -> Option<Arc<str>> {
        self.turn = self.turn.wrapping_add(1);
        let key = if self.turn.is_multiple_of(2) {
            self.queue.pop_front().or_else(|| self.key_of_a_part())
        } else {
            self.key_of_a_part().or_else(|| self.queue.pop_front())
        };
        key.or_else(|| self.retries.pop_first().map(|(_, key)| key))
    }

    fn key_of_a_part(&mut self) -> Option<Arc<str>> {
        let key = self.parts.front_mut()?.keys.pop();
        self.parts.pop_front_if(|p| p.keys.is_empty());
        key
    }

    /// When to ask for the next call again, if nothing else happens before.
    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        let part = self.parts.iter().map(|p| p.due_ms).min();
        let retry = self.retries.first().map(|(due_ms, _)| *due_ms);
        let queued = (!self.queue.is_empty()).then_some(0);
        let due_ms = part.into_iter().chain(retry).chain(queued).min()?;
        Some(if self.is_down() { self.resume_at_ms } else { due_ms })
    }

    /// Takes what came of a call; the answers that it gives.
    pub(super) fn answered(
        &mut self,
        call: Call,
        result: Result<Vec<Fetched>, LookupError>,
        took_us: u64,
        now_ms: u64,
    ) -> Answers {
        self.calls -= 1;
        self.counts.call_us += took_us;
        let mut out = Answers::new();
        match result {
            Ok(all) if all.iter().any(is_answer) => self.succeeded(call, all, now_ms, &mut out),
            Ok(all) => {
                let e = all.into_iter().find_map(Result::err);
                let e = e.unwrap_or_else(|| LookupError::Refused("there is no answer".into()));
                self.failed(call, &e, now_ms, &mut out);
            }
            Err(e) => self.failed(call, &e, now_ms, &mut out),
        }
        out
    }

    fn succeeded(&mut self, call: Call, all: Vec<Fetched>, now_ms: u64, out: &mut Answers) {
        if self.is_down() {
            self.flights.values_mut().for_each(|f| f.vain = 0);
        }
        self.failed_in_a_row = 0;
        for (key, answer) in call.keys.into_iter().zip(all) {
            match answer {
                Ok(row) => {
                    let flight = self.flights.remove(&key).unwrap_or_default();
                    self.stubborn -= usize::from(flight.failures > 1);
                    out.extend(flight.tickets.into_iter().map(|t| (t, found(row.clone()))));
                    if call.content == self.content {
                        self.cache.put(key, row, now_ms);
                    }
                }
                Err(e) => self.key_failed(key, &e, now_ms, out),
            }
        }
    }

    /// The call failed as a whole.
    fn failed(&mut self, call: Call, e: &LookupError, now_ms: u64, out: &mut Answers) {
        self.counts.failures += 1;
        let why: Arc<str> = e.to_string().into();
        self.last_error = Some(why.clone());
        let known = matches!(&*call.keys, [key] if self.flights.get(key).is_some_and(|f| f.failures > 0));
        // What was under way when it went down says nothing new.
        if call.probe || !(known || self.is_down()) {
            self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
            let tries = self.failed_in_a_row.saturating_sub(bounds::DOWN_AFTER);
            self.resume_at_ms = now_ms + backoff_ms(tries, &mut self.jitter);
        }
        let mut keys = call.keys;
        if keys.len() > 1 {
            self.counts.retries += keys.len() as u64;
            let due_ms = match e {
                LookupError::Unavailable(_) => now_ms + backoff_ms(0, &mut self.jitter),
                // What was refused as a whole may be taken in parts, now as well as later.
                LookupError::Refused(_) | LookupError::Unusable(_) => now_ms,
            };
            let second = keys.split_off(keys.len().div_ceil(2));
            self.parts.extend([keys, second].map(|keys| Part { due_ms, keys }));
        } else if let Some(key) = keys.pop() {
            self.key_failed(key, e, now_ms, out);
        }
        if call.probe && self.settings.gives_up {
            self.tried_in_vain(&why, out);
        }
    }

    /// A key failed by itself: it is retried, or answered with the failure.
    fn key_failed(&mut self, key: Arc<str>, e: &LookupError, now_ms: u64, out: &mut Answers) {
        let Some(flight) = self.flights.get_mut(&key) else { return };
        flight.failures += 1;
        let why: Arc<str> = e.to_string().into();
        let last = flight.failures > self.settings.retries || matches!(e, LookupError::Unusable(_));
        if self.settings.gives_up && last {
            // Counted as it was before this failure.
            self.stubborn -= usize::from(flight.failures > 2);
            self.counts.given_up += 1;
            let tickets = self.flights.remove(&key).unwrap_or_default().tickets;
            out.extend(tickets.into_iter().map(|t| (t, Answer::Failed(why.clone()))));
            return;
        }
        self.stubborn += usize::from(flight.failures == 2);
        self.counts.retries += 1;
        let due_ms = now_ms + backoff_ms(flight.failures - 1, &mut self.jitter);
        self.last_error = Some(why);
        self.retries.insert((due_ms, key));
    }

    /// A provider that is down was tried in vain: those that have waited for it too often are answered.
    fn tried_in_vain(&mut self, why: &Arc<str>, out: &mut Answers) {
        let Batcher { settings, flights, counts, stubborn, .. } = self;
        let mut waits_on = |key: &Arc<str>| {
            let Some(flight) = flights.get_mut(key) else { return false };
            flight.vain += 1;
            if flight.vain <= settings.retries.max(bounds::VAIN_MIN) {
                return true;
            }
            *stubborn -= usize::from(flight.failures > 1);
            counts.given_up += 1;
            let tickets = flights.remove(key).unwrap_or_default().tickets;
            out.extend(tickets.into_iter().map(|t| (t, Answer::Failed(why.clone()))));
            false
        };
        self.queue.retain(&mut waits_on);
        self.parts.iter_mut().for_each(|p| p.keys.retain(&mut waits_on));
        self.parts.retain(|p| !p.keys.is_empty());
        self.retries.retain(|(_, key)| waits_on(key));
    }
}

#[cfg(test)]
mod tests;
