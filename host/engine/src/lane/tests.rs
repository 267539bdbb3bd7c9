//! Tests of what a lane keeps; what it makes of events is held to the naive model in `tests/fold`.

use super::{Barrier, KeyLook, Lane, LaneConfig, LaneEpoch, Origin};
use crate::event::{Position, RowHead, Rows};
use crate::gap::{Boundary, Gap, GapConfig};
use crate::key::{KeyForm, key_hash};
use crate::outbox::{Outbox, Stages};
use crate::time::EventTime;
use crate::versions::Versions;

const ORIGIN: Origin<'_> = Origin { source: "s", partition: "p", raw: b"" };

fn lane() -> Lane {
    let gap = GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let config = LaneConfig {
        pipeline: "p".into(),
        key_form: KeyForm::One,
        lateness_ms: 0,
        early: false,
        events_per_key: 100,
        suffix_bytes: 1 << 20,
        open_sessions: 100,
        groups: 0..1024,
        sources: vec!["s".into()],
        layout: Vec::new(),
    };
    Lane::new(config, Versions::single(Box::new(Gap::new(&gap))))
}

/// One event of each key, a millisecond apart; all keys have the same hash.
fn rows(keys: &[u8]) -> Rows {
    let mut rows = Rows::default();
    for (n, key) in keys.iter().enumerate() {
        let key_at = rows.bytes.len() as u32;
        rows.bytes.push(*key);
        rows.heads.push(RowHead {
            key_hash: 7,
            time: EventTime::from_ms(n as i64),
            position: Position { source: 0, partition: 0, offset: n as u64 },
            key_at,
            key_len: 1,
            ext_len: 0,
            raw_at: 0,
            raw_len: 0,
        });
    }
    rows
}

fn end(lane: &mut Lane) -> LaneEpoch {
    lane.barrier(Barrier { watermark: EventTime::INFINITY, early_tick: false, at_end: true }).unwrap()
}

/// Bug family: what the table knows of a key taken for the key.
#[test]
fn keys_of_one_hash_are_kept_apart() {
    let mut lane = lane();
    let mut rows = rows(b"ababb");
    // Twice: the keys are new at first, and then they are known.
    lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    rows.heads.iter_mut().for_each(|h| h.position.offset += 10);
    lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    let epoch = end(&mut lane);
    let outbox = Outbox::new(1, 1, &epoch.rows, b"");
    let mut sessions: Vec<(&str, u64)> =
        outbox.sessions(Stages::ALL).map(|(_, r)| (r.key, r.events)).collect();
    sessions.sort_unstable();
    assert_eq!(sessions, [("a", 4), ("b", 6)]);
}

/// Bug family: the bound on all suffixes fills up with what is long gone.
#[test]
fn copies_leave_no_bytes_behind() {
    let mut lane = lane();
    let rows = rows(b"ababb");
    for _ in 0..3 {
        lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    }
    let epoch = end(&mut lane);
    assert_eq!((epoch.counts.duplicates, epoch.suffix_bytes), (10, 0));
}

/// Bug family: what sessions take is counted twice, or goes on being counted when they have ended.
#[test]
fn bases_are_counted_while_their_sessions_are_open() {
    let mut first = lane();
    let until = |lane: &mut Lane, ms: i64| {
        let watermark = EventTime::from_ms(ms);
        lane.barrier(Barrier { watermark, early_tick: false, at_end: false }).unwrap()
    };
    first.insert(&rows(b"abc"), EventTime::BEGINNING, ORIGIN).unwrap();
    let one = until(&mut first, 1);
    assert!(one.base_bytes > 0 && one.suffix_bytes > 0, "{one:?}");
    let all = until(&mut first, 5);
    assert_eq!((all.base_bytes, all.suffix_bytes), (3 * one.base_bytes, 0));
    // The same after a restart.
    let mut again = lane();
    [&one, &all].into_iter().for_each(|e| again.load(&e.state).unwrap());
    again.loaded(EventTime::from_ms(5));
    assert_eq!(until(&mut again, 5).base_bytes, all.base_bytes);
    for lane in [&mut first, &mut again] {
        assert_eq!(until(lane, 100).base_bytes, 0);
    }
}

/// Bug family: a trial that leaves traces, or that sees another state than a swap would.
#[test]
fn states_are_those_of_sessions_open_at_that_place_and_asking_changes_nothing() {
    let with_hash = |keys: &[u8]| {
        let mut rows = rows(keys);
        rows.heads.iter_mut().zip(keys).for_each(|(h, key)| h.key_hash = key_hash(&[*key]));
        rows
    };
    let (mut asked, mut left_alone) = (lane(), lane());
    for lane in [&mut asked, &mut left_alone] {
        // a at 0 and 2, b at 1 and 3, c at 4; the gap is 10 ms.
        lane.insert(&with_hash(b"ababc"), EventTime::BEGINNING, ORIGIN).unwrap();
    }
    let keys = |lane: &mut Lane, until| -> Vec<(String, i64)> {
        let states = lane.states(0..lane.slots(), EventTime::from_ms(until)).unwrap();
        let mut keys: Vec<_> = states.into_iter().map(|s| (s.key, s.timers[0].at.ms())).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(&mut asked, 4), [("a".into(), 12), ("b".into(), 13), ("c".into(), 14)]);
    assert_eq!(keys(&mut asked, 12), [("b".into(), 13), ("c".into(), 14)], "the timer of a has fired before");
    assert_eq!(asked.look(b"a").unwrap(), KeyLook { open: None, waiting: 2, sent: Vec::new() });
    assert_eq!(asked.look(b"z"), None);
    let rows_of = |lane: &mut Lane| {
        let epoch = end(lane);
        (epoch.rows, epoch.counts)
    };
    assert_eq!(rows_of(&mut asked), rows_of(&mut left_alone));
}
