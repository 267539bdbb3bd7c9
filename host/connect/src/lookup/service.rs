//! A lookup as the pipeline uses it: the batcher behind a lock, and a thread for each call that may be under way. One that has
//! nothing to do lets the provider look for changes.

use super::batch::{Answers, Batcher, Settings};
use super::counts::LookupCounts;
use super::{Answer, LookupError, Provider, Ticket, bounds};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Takes answers that were not known at once; called from the lookup's threads.
type Reply = Box<dyn Fn(Answers) + Send + Sync>;

/// One provider with its cache, batches and retries.
pub struct Lookup {
    shared: Arc<Shared>,
}

struct Shared {
    provider: Box<dyn Provider>,
    settings: Settings,
    begun: Instant,
    state: Mutex<State>,
    wake: Condvar,
    reply: Reply,
}

struct State {
    batcher: Batcher,
    /// When the provider is to look for changes.
    look_at_ms: u64,
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    fn work(&self) {
        let timeout = Duration::from_millis(self.settings.timeout_ms);
        let mut state = self.state();
        while !state.closed {
            let now_ms = self.now_ms();
            if now_ms >= state.look_at_ms {
                state.look_at_ms = now_ms + bounds::LOOK_MS;
                drop(state);
                let changed = self.provider.look();
                state = self.state();
                if changed {
                    state.batcher.forget();
                }
                continue;
            }
            let Some(call) = state.batcher.next_call(now_ms) else {
                let due_ms = state.batcher.wake_at_ms().filter(|at| *at > now_ms);
                let wait_ms = due_ms.map_or(state.look_at_ms, |at| at.min(state.look_at_ms)) - now_ms;
                let wait = Duration::from_millis(wait_ms);
                state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            drop(state);
            let began = Instant::now();
            let result = self.provider.fetch(&call.keys, timeout).and_then(|rows| {
                let (want, have) = (call.keys.len(), rows.len());
                let short = || LookupError::Refused(format!("{have} answers for {want} keys"));
                (want == have).then_some(rows).ok_or_else(short)
            });
            let took_us = began.elapsed().as_micros() as u64;
            state = self.state();
            let answers = state.batcher.answered(call, result, took_us, self.now_ms());
            if !answers.is_empty() {
                drop(state);
                (self.reply)(answers);
                state = self.state();
            }
            // A call has ended or a retry has been put off: another thread may have something to do now.
            self.wake.notify_all();
        }
    }
}

impl Lookup {
    /// Starts the threads. `reply` gets every answer that [`Lookup::ask`] does not give at once.
    ///
    /// # Errors
    /// If the system has no more threads.
    pub fn start(
        name: &str,
        provider: Box<dyn Provider>,
        settings: Settings,
        reply: impl Fn(Vec<(Ticket, Answer)>) + Send + Sync + 'static,
    ) -> std::io::Result<Lookup> {
        let shared = Arc::new(Shared {
            provider,
            settings,
            begun: Instant::now(),
            state: Mutex::new(State {
                batcher: Batcher::new(settings, fastrand::Rng::new()),
                look_at_ms: bounds::LOOK_MS,
                closed: false,
            }),
            wake: Condvar::new(),
            reply: Box::new(reply),
        });
        let lookup = Lookup { shared };
        for _ in 0..settings.concurrency {
            let shared = lookup.shared.clone();
            std::thread::Builder::new().name(format!("lookup-{name}")).spawn(move || shared.work())?;
        }
        Ok(lookup)
    }

    /// Asks for keys; pushes the answers that are known at once, the others go to `reply`.
    pub fn ask<'k>(
        &self,
        keys: impl IntoIterator<Item = (Ticket, &'k str)>,
        known: &mut Vec<(Ticket, Answer)>,
    ) {
        let now_ms = self.shared.now_ms();
        let mut state = self.shared.state();
        let mut asked = false;
        for (ticket, key) in keys {
            match state.batcher.ask(ticket, key, now_ms) {
                Some(answer) => known.push((ticket, answer)),
                None => asked = true,
            }
        }
        drop(state);
        if asked {
            self.shared.wake.notify_all();
        }
    }

    /// What it did since it was started.
    #[must_use]
    pub fn counts(&self) -> LookupCounts {
        self.shared.state().batcher.counts()
    }

    /// What is wrong at the moment: what the last failure said if the provider is down or a key fails again and again, or what
    /// the provider says of itself.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let failed = self.shared.state().batcher.trouble();
        failed.map(|e| e.to_string()).or_else(|| self.shared.provider.trouble())
    }

    /// When the rows that it keeps whole were read, if it keeps some.
    #[must_use]
    pub fn read_at(&self) -> Option<SystemTime> {
        self.shared.provider.read_at()
    }
}

impl Drop for Lookup {
    /// The threads end by themselves; a call under way is not waited for.
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::{FileProvider, Format};
    use super::super::{Fetched, Row};
    use super::*;
    use std::collections::{HashMap, HashSet};
    use std::sync::mpsc;

    /// Fails every tenth call, and records how many calls run at once and which keys each had.
    #[derive(Default)]
    struct Rude {
        log: Mutex<(u64, usize, usize, HashSet<Arc<str>>)>,
    }

    impl Provider for Arc<Rude> {
        fn fetch(&self, keys: &[Arc<str>], _: Duration) -> Result<Vec<Fetched>, LookupError> {
            {
                let mut log = self.log.lock().unwrap();
                log.0 += 1;
                log.1 += 1;
                log.2 = log.2.max(log.1);
                for k in keys {
                    assert!(log.3.insert(k.clone()), "{k} is under way twice");
                }
            }
            // So that calls overlap.
            std::thread::yield_now();
            let mut log = self.log.lock().unwrap();
            log.1 -= 1;
            keys.iter().for_each(|k| assert!(log.3.remove(k)));
            if log.0.is_multiple_of(10) {
                return Err(LookupError::Unavailable("the tenth".into()));
            }
            let row = |k: &Arc<str>| (!k.ends_with('0')).then(|| Row::from(format!("{{\"of\":\"{k}\"}}")));
            Ok(keys.iter().map(|k| Ok(row(k))).collect())
        }
    }

    #[test]
    fn many_askers_get_their_answers_and_calls_stay_few() {
        let settings = Settings {
            cache_bytes: 1 << 20,
            ttl_ms: 60_000,
            negative_ttl_ms: 60_000,
            batch_keys: 50,
            concurrency: 3,
            timeout_ms: 1_000,
            retries: 10,
            gives_up: true,
        };
        let rude = Arc::new(Rude::default());
        let (to, from) = mpsc::channel();
        let reply = move |answers| to.send(answers).unwrap();
        let lookup = Lookup::start("t", Box::new(rude.clone()), settings, reply).unwrap();
        let key = |t: u64| format!("k{}", t % 1000);
        let mut answers = HashMap::new();
        for part in (0..4000_u64).collect::<Vec<_>>().chunks(500) {
            let keys: Vec<(u64, String)> = part.iter().map(|t| (*t, key(*t))).collect();
            let mut known = Vec::new();
            lookup.ask(keys.iter().map(|(t, k)| (*t, k.as_str())), &mut known);
            answers.extend(known);
        }
        while answers.len() < 4000 {
            answers.extend(from.recv_timeout(Duration::from_secs(30)).unwrap());
        }
        for (ticket, answer) in answers {
            let k = key(ticket);
            match answer {
                Answer::NotFound => assert!(k.ends_with('0'), "{k}"),
                Answer::Found(row) => assert_eq!(*row, format!("{{\"of\":\"{k}\"}}")),
                Answer::Failed(why) => panic!("{k}: {why}"),
            }
        }
        let (calls, _, at_once, _) = &*rude.log.lock().unwrap();
        assert!(*at_once <= 3, "{at_once} calls at once");
        let c = lookup.counts();
        assert_eq!((c.asked, c.calls), (4000, *calls));
        assert_eq!(c.keys_called, 1000 + c.retries, "each key once, and again where its call failed");
        assert!(c.calls <= 20 + c.failures * 3, "{c:?}");
    }

    /// A table that is exchanged is used though nobody asks meanwhile, and what was kept of the old one is not.
    #[test]
    fn a_reload_is_noticed_without_a_call_and_empties_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.csv");
        std::fs::write(&path, "k,v\na,old\n").unwrap();
        let settings = Settings {
            cache_bytes: 1 << 20,
            ttl_ms: 3_600_000,
            negative_ttl_ms: 3_600_000,
            batch_keys: 10,
            concurrency: 1,
            timeout_ms: 1_000,
            retries: 0,
            gives_up: true,
        };
        let (to, from) = mpsc::channel();
        let reply = move |answers: Answers| to.send(answers).unwrap();
        let provider = FileProvider::open(&path, Format::Csv, "k").unwrap();
        let lookup = Lookup::start("t", Box::new(provider), settings, reply).unwrap();
        let ask = |keys: [(u64, &str); 2]| {
            let mut known = Vec::new();
            lookup.ask(keys, &mut known);
            while known.len() < 2 {
                known.extend(from.recv_timeout(Duration::from_secs(30)).unwrap());
            }
            known.sort_by_key(|(t, _)| *t);
            known.into_iter().map(|(_, a)| a).collect::<Vec<_>>()
        };
        let row = |v: &str| Answer::Found(format!("{{\"k\":\"a\",\"v\":\"{v}\"}}").into());
        assert_eq!(ask([(1, "a"), (2, "b")]), [row("old"), Answer::NotFound]);
        assert_eq!(
            (ask([(3, "a"), (4, "b")]), lookup.counts().calls),
            (vec![row("old"), Answer::NotFound], 1)
        );
        // In place. Nothing is asked until the provider has had the time for some looks.
        std::fs::write(&path, "k,v\na,new\n").unwrap();
        let looks = |n| std::thread::sleep(Duration::from_millis(n * bounds::LOOK_MS));
        looks(4);
        assert_eq!(ask([(5, "a"), (6, "b")]), [row("new"), Answer::NotFound]);
        // One that is broken shows, though nobody asks.
        std::fs::write(&path, "no table\n").unwrap();
        let begun = Instant::now();
        while lookup.trouble().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it is not said");
            looks(1);
        }
        assert_eq!(ask([(7, "a"), (8, "b")]), [row("new"), Answer::NotFound]);
    }
}
