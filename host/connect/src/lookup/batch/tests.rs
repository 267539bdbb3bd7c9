//! The batcher against providers of every temper, with a clock that the tests turn.

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
fn row(key: &str) -> Fetched {
    Ok(Some(format!("{{\"k\":\"{key}\"}}").into()))
}
fn rows(call: &Call) -> Vec<Fetched> {
    call.keys.iter().map(|k| row(k)).collect()
}
fn down() -> LookupError {
    LookupError::Unavailable("gone".into())
}

/// Makes every call that is due until nothing waits or the time has passed, and answers each as the provider does; the answers.
fn play(
    b: &mut Batcher,
    now: &mut u64,
    until: u64,
    provider: impl Fn(&Call, u64) -> Result<Vec<Fetched>, LookupError>,
) -> Answers {
    let mut answers = Answers::new();
    let mut under_way = VecDeque::new();
    loop {
        while let Some(call) = b.next_call(*now) {
            under_way.push_back(call);
        }
        if let Some(call) = under_way.pop_front() {
            let result = provider(&call, *now);
            answers.extend(b.answered(call, result, 0, *now));
            continue;
        }
        match b.wake_at_ms() {
            Some(at) if at <= until => *now = at.max(*now),
            _ => return answers,
        }
    }
}

/// Answers every call that has none of the bad keys; the others fail as a whole.
fn poisoned(
    bad: impl Fn(&str) -> bool,
    e: LookupError,
) -> impl Fn(&Call, u64) -> Result<Vec<Fetched>, LookupError> {
    move |call, _| if call.keys.iter().any(|k| bad(k)) { Err(e.clone()) } else { Ok(rows(call)) }
}

fn is_bad(key: &str, every: u64) -> bool {
    key.trim_start_matches('k').parse::<u64>().unwrap().is_multiple_of(every)
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
    let rows = vec![Ok(Some("{}".into())), Ok(None)];
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

/// However few the retries and however many the bad keys: halving is no retry, and a healthy key never pays for another.
#[test]
fn keys_that_break_their_calls_fail_alone() {
    for (every, e) in [
        (100, LookupError::Refused("no".into())),
        (20, down()),
        (20, LookupError::Refused("no".into())),
        (4, down()),
    ] {
        for (retries, concurrency) in [(0, 1), (1, 4), (4, 4)] {
            let settings = Settings { batch_keys: 100, retries, concurrency, ..SETTINGS };
            let mut b = batcher(settings);
            (0..500).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), 0), None));
            let mut now = 0;
            let answers = play(&mut b, &mut now, u64::MAX, poisoned(|k| is_bad(k, every), e.clone()));
            assert_eq!(answers.len(), 500);
            for (t, answer) in answers {
                let failed = matches!(answer, Answer::Failed(_));
                assert_eq!(failed, is_bad(&format!("k{t}"), every), "{t} of {every}, {retries} retries");
            }
            assert!(now < 60_000, "{now} ms");
        }
    }
}

/// The provider says of each key what is wrong with it: that is final, no call fails, and nothing is asked again.
#[test]
fn a_row_that_cannot_be_used_fails_its_key_at_once() {
    let unusable = |call: &Call, _| -> Result<Vec<Fetched>, LookupError> {
        let one = |k: &Arc<str>| {
            if is_bad(k, 4) { Err(LookupError::Unusable(format!("{k} is no object"))) } else { row(k) }
        };
        Ok(call.keys.iter().map(one).collect())
    };
    let mut b = batcher(SETTINGS);
    (0..40).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), 0), None));
    let answers = play(&mut b, &mut 0, u64::MAX, unusable);
    let failed: Vec<&str> = answers
        .iter()
        .filter_map(|(_, a)| if let Answer::Failed(w) = a { Some(&**w) } else { None })
        .collect();
    assert_eq!((answers.len(), failed.len(), failed[1]), (40, 10, "k4 is no object"));
    let c = b.counts();
    assert_eq!((c.calls, c.failures, c.retries, c.given_up), (10, 0, 0, 10));
    assert_eq!((b.is_down(), b.trouble()), (false, None));
    // Where nothing is given up only they wait, and it is said.
    let mut b = batcher(Settings { gives_up: false, ..SETTINGS });
    (0..40).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), 0), None));
    assert_eq!(play(&mut b, &mut 0, 60_000, unusable).len(), 30);
    assert!(!b.is_down() && b.trouble().unwrap().contains("is no object"));
    assert_eq!(play(&mut b, &mut 60_000, 70_000, |call, _| Ok(rows(call))).len(), 10);
    assert_eq!(b.trouble(), None);
}

/// Of a call that is answered in part the answers hold, and the others are asked again by themselves.
#[test]
fn what_was_answered_is_kept_where_another_key_was_not() {
    let mut b = batcher(SETTINGS);
    (0..4).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), 0), None));
    let call = b.next_call(0).unwrap();
    let answers = b.answered(call, Ok(vec![row("k0"), Err(down()), Ok(None), row("k3")]), 0, 0);
    assert_eq!(answers.iter().map(|(t, _)| *t).collect::<Vec<_>>(), [0, 2, 3]);
    let again = b.next_call(b.wake_at_ms().unwrap()).unwrap();
    assert_eq!((keys(&again), b.counts().failures), (vec!["k1"], 0));
}

/// One that always fails, long before the others come: it counts as the key's fault, or the provider is tried with another key.
#[test]
fn keys_that_never_succeed_hold_up_no_other() {
    for bad in [1, 30] {
        let mut b = batcher(Settings { gives_up: false, batch_keys: 100, ..SETTINGS });
        (0..bad).for_each(|t| assert_eq!(b.ask(t, &format!("bad{t}"), 0), None));
        let provider = poisoned(|k| k.starts_with("bad"), down());
        let mut now = 0;
        assert!(play(&mut b, &mut now, 30_000, &provider).is_empty());
        assert!(b.trouble().is_some());
        let began = now;
        (100..250).for_each(|t| assert_eq!(b.ask(t, &format!("k{t}"), now), None));
        let answers = play(&mut b, &mut now, began + 3 * BACKOFF_MAX_MS, &provider);
        assert_eq!(answers.len(), 150, "{bad} bad keys");
        // And they are answered once they can be.
        let until = now + 2 * BACKOFF_MAX_MS;
        assert_eq!(play(&mut b, &mut now, until, |call, _| Ok(rows(call))).len(), bad as usize);
        assert_eq!(b.trouble(), None);
    }
}

/// A call from before a reload may bring what was true then: it answers, and is not kept.
#[test]
fn nothing_from_before_a_reload_is_believed_after_it() {
    let mut b = batcher(SETTINGS);
    let old = || Ok(vec![Ok(Some("{\"old\":1}".into()))]);
    assert_eq!(b.ask(1, "a", 0), None);
    let call = b.next_call(0).unwrap();
    b.answered(call, old(), 0, 0);
    assert!(b.ask(2, "a", 1).is_some(), "it is kept");
    b.forget();
    assert_eq!(b.ask(3, "a", 1), None);
    let call = b.next_call(1).unwrap();
    b.forget();
    assert_eq!(b.answered(call, old(), 0, 1).len(), 1);
    assert_eq!(b.ask(4, "a", 1), None);
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
        assert_eq!(b.trouble().is_some(), b.is_down() || b.stubborn > 0);
    }
    assert!(now < 10_000 + BACKOFF_MAX_MS, "{now}");
    assert!(calls < bounds::DOWN_AFTER + 20, "{calls} calls in ten seconds");
    assert!(answered.iter().all(|(_, a)| matches!(a, Answer::Found(_))));
    assert_eq!((b.is_down(), b.trouble()), (false, None));
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
    assert_eq!(nothing_waits(&b), Ok(()));
}

fn nothing_waits(b: &Batcher) -> Result<(), String> {
    let left = (b.flights.len(), b.queue.len(), b.parts.len(), b.retries.len(), b.stubborn, b.calls);
    if left == (0, 0, 0, 0, 0, 0) { Ok(()) } else { Err(format!("{left:?}")) }
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
        fates in prop::collection::vec(0_u8..6, 1..40),
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
                let most = if b.is_down() { 1 } else { SETTINGS.batch_keys };
                prop_assert!(call.keys.len() <= most);
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
                    1 => Ok(vec![Ok(None); call.keys.len()]),
                    2 => Err(down()),
                    3 => Ok(call.keys.iter().map(|k| if is_bad(k, 2) { Err(down()) } else { row(k) }).collect()),
                    4 => Ok(vec![Err(LookupError::Unusable("odd".into())); call.keys.len()]),
                    _ => Err(LookupError::Refused("no".into())),
                };
                for (ticket, answer) in b.answered(call, result, 1, now) {
                    prop_assert!(gives_up || !matches!(answer, Answer::Failed(_)));
                    *answered.entry(ticket).or_default() += 1;
                }
            }
        }
        prop_assert!(answered.values().all(|n| *n == 1));
        prop_assert_eq!(nothing_waits(&b), Ok(()));
    }
}
