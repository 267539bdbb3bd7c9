//! What plugins answer, through the host's decoding: frames of any content that is right come out as they went in, and edited
//! ones are an answer or a fault, never a panic, a range to nowhere, or more memory than the question is worth.

use super::enrich::{self, REQUESTS_MAX, read_requests, read_verdicts};
use super::frames::{TurnFrames, read_results, read_states};
use super::validate;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value as Json;
use tidemill_connect::lookup::bounds::KEY_BYTES_MAX;
use tidemill_contract::frame::{FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{self, Range, cause, state_kind};
use tidemill_engine::bounds::{FIELDS_BYTES, RESULTS_BYTES, STATE_BYTES};
use tidemill_engine::contain::Contained;
use tidemill_engine::metrics::{Metric, Total};
use tidemill_engine::rule::{
    Cause, Description, END_OF_INPUT, Fault, Input, LIMIT, OpenHead, Place, Results, SessionRule, Span,
    StateAt, StateForm, Timer, Turn, TurnResult, Turns,
};
use tidemill_engine::time::EventTime;
use tidemill_fuzz::edit::{Bytes, edited, words};
use tidemill_fuzz::{Targets, Verdict};
use tidemill_sandbox::bounds::{REMARK_BYTES_MAX, TIMERS_MAX};

/// As many as `config::fuzz` says: all run in one program.
const TARGETS: Targets = Targets(7);
const INPUTS: u64 = 4_000;

/// A key, a state, the times of its inputs, timers that are pending, and after which inputs the state is wanted.
type Asked = (&'static str, &'static [u8], &'static [i64], &'static [(i64, u8)], &'static [u32]);

/// Nothing open; something open; something open and nothing new.
const ASKED: [Asked; 3] = [
    ("new", b"", &[10, 20, 30], &[], &[1]),
    ("open", b"abc", &[20, 60], &[(50, 0)], &[0, 1]),
    ("idle", b"xyz", &[], &[(40, 1)], &[]),
];

/// The turns that every answer is for.
fn turns() -> Turns {
    let mut t = Turns::default();
    for (key, state, times, timers, wanted) in ASKED {
        let (inputs, pending, wishes) = (t.inputs.len(), t.timers.len(), t.wanted.len());
        let mut put = |more: &[u8]| {
            let at = t.bytes.len();
            t.bytes.extend_from_slice(more);
            Span::between(at, t.bytes.len())
        };
        let (key, held) = (put(key.as_bytes()), put(state));
        for time in times {
            let ext = put(b"");
            t.inputs.push(Input { time: EventTime::from_ms(*time), ext, skip: false });
        }
        t.timers
            .extend(timers.iter().map(|(at, number)| Timer { at: EventTime::from_ms(*at), number: *number }));
        t.wanted.extend(wanted);
        let open = OpenHead { start: EventTime::from_ms(1), last: EventTime::from_ms(9), count: 2 };
        t.turns.push(Turn {
            key,
            open: (!state.is_empty()).then_some(open),
            state: held,
            timers: Span::between(pending, t.timers.len()),
            inputs: Span::between(inputs, t.inputs.len()),
            until: EventTime::from_ms(45),
            at_end: false,
            report_open: true,
            wanted: Span::between(wishes, t.wanted.len()),
        });
    }
    t
}

/// The sections of an answer.
#[derive(Clone, Debug, Default)]
struct Answer {
    turns: Vec<rows::TurnResult>,
    closings: Vec<rows::Closing>,
    snapshots: Vec<rows::StateAt>,
    rejections: Vec<rows::Rejection>,
    timers: Vec<rows::Timer>,
    counts: Vec<rows::Count>,
    bytes: Vec<u8>,
}

impl Answer {
    fn frame(&self) -> Vec<u64> {
        let mut w = FrameWriter::default();
        w.begin(Kind::Results);
        w.section(&self.turns);
        w.section(&self.closings);
        w.section(&self.snapshots);
        w.section(&self.rejections);
        w.section(&self.timers);
        w.section(&self.counts);
        w.section::<rows::Note>(&[]);
        w.section(&self.bytes);
        w.into_words()
    }

    /// What a good rule says: the first key's session goes on, the second's ends by its timer and begins anew, the third's ends.
    fn good() -> Answer {
        let put = |at: u32, len: u32, timers: Range, first: i32| rows::StateAt {
            first,
            kind: state_kind::PUT,
            state: Range { at, len },
            timers,
        };
        let unchanged =
            |first: i32| rows::StateAt { first, kind: state_kind::UNCHANGED, ..rows::StateAt::default() };
        let none = rows::StateAt { first: rows::NOTHING_OPEN, ..rows::StateAt::default() };
        let one = |at: u32| Range { at, len: 1 };
        let by_timer = |number: u32, at: i64, last: i32| rows::Closing {
            cause: cause::TIMER,
            index: number,
            at,
            first: rows::CARRIED,
            last,
            fields: Range { at: 0, len: 7 },
            ..rows::Closing::default()
        };
        let of_turn = |closings, snapshots, end| rows::TurnResult {
            closings,
            snapshots,
            end,
            ..rows::TurnResult::default()
        };
        let count = |row, input| rows::Count { row, input, metric: 0, at: 20, value: 1.5 };
        Answer {
            turns: vec![
                rows::TurnResult {
                    rejections: one(0),
                    open_fields: Range { at: 0, len: 7 },
                    ..of_turn(Range::default(), one(0), put(7, 2, one(0), 0))
                },
                of_turn(one(0), Range { at: 1, len: 2 }, put(9, 3, one(1), 1)),
                of_turn(one(1), Range::default(), none),
            ],
            closings: vec![by_timer(0, 50, 0), by_timer(1, 40, rows::CARRIED)],
            snapshots: vec![put(7, 2, one(0), 0), unchanged(rows::CARRIED), put(9, 3, one(1), 1)],
            rejections: vec![rows::Rejection { input: 2, reason: 1 }],
            timers: vec![rows::Timer { at: 1_000, number: 0 }, rows::Timer { at: 2_000, number: 1 }],
            counts: vec![count(0, 1), count(1, rows::NO_INPUT)],
            bytes: br#"{"n":1}s1st2"#.to_vec(),
        }
    }
}

/// Some of a section of so many.
fn some(of: usize) -> impl Strategy<Value = Range> {
    any::<(Index, Index)>().prop_map(move |(a, b)| {
        let (a, b) = (a.index(of + 1), b.index(of + 1));
        Range::between(a.min(b), a.max(b))
    })
}

fn state(bytes: usize, timers: usize) -> impl Strategy<Value = rows::StateAt> {
    (rows::NOTHING_OPEN..4, 0..3_u32, some(bytes), some(timers))
        .prop_map(|(first, kind, state, timers)| rows::StateAt { first, kind, state, timers })
}

fn closing(bytes: usize) -> impl Strategy<Value = rows::Closing> {
    let reason = prop_oneof![3 => 0..9_u32, 1 => select(vec![rows::REASON_END_OF_INPUT, rows::REASON_LIMIT])];
    let places = (rows::CARRIED..4, rows::CARRIED..4);
    (0..3_u32, 0..256_u32, any::<i64>(), places, reason, any::<bool>(), some(bytes)).prop_map(
        |(cause, index, at, (first, last), reason, discarded, fields)| rows::Closing {
            cause,
            index,
            at,
            first,
            last,
            reason,
            discarded: u32::from(discarded),
            fields,
        },
    )
}

/// Answers that can be read, whatever they mean.
fn readable() -> impl Strategy<Value = Answer> {
    let timer = (any::<i64>(), 0..16_u64).prop_map(|(at, number)| rows::Timer { at, number });
    let rejection = (0..5_u32, 0..300_u32).prop_map(|(input, reason)| rows::Rejection { input, reason });
    let count =
        (0..3_u32, prop_oneof![0..4_u32, Just(rows::NO_INPUT)], 0..9_u64, any::<i64>(), -1e9..1e9_f64)
            .prop_map(|(row, input, metric, at, value)| rows::Count { row, input, metric, at, value });
    let sections = (vec(any::<u8>(), 0..40), vec(timer, 0..6), vec(rejection, 0..4), vec(count, 0..6));
    sections.prop_flat_map(|(bytes, timers, rejections, counts)| {
        let (n, t, r) = (bytes.len(), timers.len(), rejections.len());
        let ends = vec((some(r), some(n), state(n, t), any::<(Index, Index)>()), 3);
        (vec(closing(n), 0..5), vec(state(n, t), 3), ends).prop_map(move |(closings, snapshots, ends)| {
            let mut at = 0;
            let turns = ends.into_iter().zip(ASKED).map(|((rejections, open_fields, end, (a, b)), asked)| {
                let wanted = asked.4.len();
                at += wanted;
                let (a, b) = (a.index(closings.len() + 1), b.index(closings.len() + 1));
                let closings = Range::between(a.min(b), a.max(b));
                let snapshots = Range::between(at - wanted, at);
                rows::TurnResult { closings, snapshots, rejections, end, open_fields }
            });
            let turns = turns.collect();
            let mut counts = counts.clone();
            counts.sort_by_key(|c| c.row);
            let (bytes, timers, rejections) = (bytes.clone(), timers.clone(), rejections.clone());
            Answer { turns, closings, snapshots, rejections, timers, counts, bytes }
        })
    })
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Bytes as a plugin hands them over: whole words. `honest`: the first says how many there are.
fn words_of(bytes: &Bytes, honest: bool) -> Vec<u64> {
    let mut bytes = bytes.0.clone();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let mut words: Vec<u64> = bytes.chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
    let length = words.len() as u64 * 8;
    if let Some(first) = words.first_mut().filter(|_| honest) {
        *first = length;
    }
    words
}

/// Frames with edits; mostly as long as they say, since another one is refused by the sandbox.
fn edited_frames(frames: &[Vec<u64>]) -> impl Strategy<Value = (Bytes, bool)> {
    let seeds = frames.iter().map(|words| bytes_of(words)).collect();
    let words = words(&["\u{1}\0\0\0\0\0\0\0", "\u{2}\0\0\0", "{\"a\":1}", "é", "}"]);
    (edited(seeds, words), prop::bool::weighted(0.9))
}

#[test]
fn answers_that_can_be_read_are_taken_as_they_are() {
    let turns = turns();
    let good = prop_oneof![1 => Just(Answer::good()), 9 => readable()];
    // One that nobody can read now and then: what takes everything shows nothing.
    TARGETS.fuzz("answers of sessionizers", INPUTS, (good, 0..50_u8), |(answer, n)| {
        let mut words = answer.frame();
        if n == 0 {
            words.pop();
        }
        let mut out = Results::default();
        let taken = read_results(&words, &turns, 0..3, &mut out);
        if n > 0 {
            taken.unwrap();
            holds(&answer, &turns, &out);
        }
        Verdict::accepted(n > 0)
    });
}

/// What was taken is what was said.
fn holds(said: &Answer, asked: &Turns, out: &Results) {
    let bytes = |r: Range| r.of(&said.bytes).unwrap();
    let place = |p: Place| match p {
        Place::Carried => rows::CARRIED,
        Place::Input(n) => n as i32,
    };
    let mut counts = said.counts.iter();
    for (n, (turn, is)) in said.turns.iter().zip(&out.turns).enumerate() {
        let closings = turn.closings.of(&said.closings).unwrap();
        assert_eq!(closings.len(), is.closings.len as usize);
        for (c, is) in closings.iter().zip(&out.closings[is.closings.range()]) {
            let (kind, index, at) = match is.cause {
                Cause::Input(n) => (cause::INPUT, n, c.at),
                Cause::Timer(t) => (cause::TIMER, u32::from(t.number), t.at.ms()),
                Cause::End => (cause::END, c.index, c.at),
            };
            assert_eq!((kind, index, at), (c.cause, c.index, c.at));
            assert_eq!((place(is.first), place(is.last)), (c.first, c.last));
            let reason = match is.reason {
                END_OF_INPUT => rows::REASON_END_OF_INPUT,
                LIMIT => rows::REASON_LIMIT,
                n => u32::from(n),
            };
            assert_eq!((reason, u32::from(is.discarded)), (c.reason, c.discarded));
            assert_eq!(&out.bytes[is.fields.range()], bytes(c.fields));
        }
        let state = |s: &rows::StateAt, is: &StateAt| {
            assert_eq!(is.first.map_or(rows::NOTHING_OPEN, place), s.first);
            let timers: Vec<(i64, u64)> =
                out.timers[is.timers.range()].iter().map(|t| (t.at.ms(), u64::from(t.number))).collect();
            let (state, pending): (&[u8], Vec<(i64, u64)>) = match s.kind {
                state_kind::NONE => (&[], Vec::new()),
                state_kind::UNCHANGED => {
                    let pending = ASKED[n].3.iter().map(|(at, number)| (*at, u64::from(*number)));
                    (&asked.bytes[asked.turns[n].state.range()], pending.collect())
                }
                _ => {
                    let pending = s.timers.of(&said.timers).unwrap();
                    (bytes(s.state), pending.iter().map(|t| (t.at, t.number)).collect())
                }
            };
            assert_eq!((&out.bytes[is.state.range()], timers), (state, pending));
        };
        let snapshots = turn.snapshots.of(&said.snapshots).unwrap();
        assert_eq!(snapshots.len(), is.snapshots.len as usize);
        for (s, is) in snapshots.iter().zip(&out.snapshots[is.snapshots.range()]) {
            state(s, is);
        }
        state(&turn.end, &is.end);
        let rejected: Vec<_> =
            out.rejections[is.rejections.range()].iter().map(|r| (r.input, r.reason)).collect();
        let said_so = turn.rejections.of(&said.rejections).unwrap().iter();
        assert_eq!(rejected, said_so.map(|r| (r.input, r.reason as u16)).collect::<Vec<_>>());
        for is in &out.counts[is.counts.range()] {
            let c = counts.next().unwrap();
            assert_eq!((c.row as usize, c.input), (n, is.input.unwrap_or(rows::NO_INPUT)));
            assert_eq!((c.at, c.metric, c.value), (is.at.ms(), u64::from(is.metric), is.value));
        }
        assert_eq!(&out.bytes[is.open_fields.range()], bytes(turn.open_fields));
    }
    assert!(counts.next().is_none(), "a count is left");
}

/// A rule that answers whatever it is asked with one frame.
struct Parrot {
    description: Description,
    frames: TurnFrames,
    words: Vec<u64>,
}

impl Parrot {
    fn new(words: Vec<u64>) -> Parrot {
        let description = Description {
            plugin: "parrot@1".into(),
            digest: None,
            fields: Vec::new(),
            reasons: vec!["gap".into(), "bad".into()],
            timers: vec!["gap".into(), "max".into()],
            state: StateForm { rule: "parrot".into(), version: 1, shape: String::new(), from: Vec::new() },
            metrics: vec![Metric { name: "seen".into(), bounds: Vec::new() }],
            wants_key: true,
        };
        Parrot { description, frames: TurnFrames::default(), words }
    }
}

impl SessionRule for Parrot {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        let all = 0..turns.turns.len();
        self.frames.write(turns, all.clone());
        if let Err(e) = read_results(&self.words, turns, all.clone(), out) {
            out.turns.extend(all.map(|_| TurnResult::failed(Fault::unknown(e.to_string()))));
        }
    }
    fn migrate(&mut self, _: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        read_states(&self.words, states.len())
            .unwrap_or_else(|e| states.iter().map(|_| Err(e.to_string())).collect())
    }
}

/// Everything that an answer points to is there.
fn points_inside(r: &TurnResult, out: &Results) {
    let state = |s: &StateAt| {
        assert!(s.state.range().end <= out.bytes.len() && s.timers.range().end <= out.timers.len());
    };
    out.closings[r.closings.range()].iter().for_each(|c| assert!(c.fields.range().end <= out.bytes.len()));
    out.snapshots[r.snapshots.range()].iter().for_each(state);
    out.rejections[r.rejections.range()]
        .iter()
        .for_each(|x| assert!(x.message.range().end <= out.bytes.len()));
    let _ = (&out.counts[r.counts.range()], &out.bytes[r.open_fields.range()]);
    state(&r.end);
}

#[test]
fn edited_answers_of_sessionizers() {
    let asked = turns();
    let most_snapshots = ASKED.iter().map(|a| a.4.len() + 1).sum::<usize>();
    let most_states = most_snapshots + ASKED.len();
    let held = ASKED.iter().map(|a| a.1.len() * (a.4.len() + 2)).sum::<usize>();
    let mut greedy = Answer::good();
    for turn in &mut greedy.turns {
        turn.snapshots = Range { at: 0, len: greedy.snapshots.len() as u32 };
    }
    let nothing = Answer { turns: vec![rows::TurnResult::default(); 3], ..Answer::default() };
    let seeds = [Answer::good().frame(), greedy.frame(), nothing.frame()];
    TARGETS.fuzz("edited answers of sessionizers", INPUTS, edited_frames(&seeds), |(bytes, honest)| {
        let words = words_of(&bytes, honest);
        let mut out = Results { bytes: b"before".to_vec(), ..Results::default() };
        let taken = read_results(&words, &asked, 0..3, &mut out);
        match taken {
            Ok(()) => {
                assert_eq!(out.turns.len(), 3);
                out.turns.iter().for_each(|r| points_inside(r, &out));
                assert!(out.snapshots.len() <= most_snapshots, "{} states", out.snapshots.len());
                assert!(out.timers.len() <= most_states * (TIMERS_MAX + 1), "{} timers", out.timers.len());
                assert!(out.bytes.len() <= words.len() * 8 + held + 6, "{} bytes", out.bytes.len());
            }
            Err(_) => assert!(out.turns.is_empty() && out.timers.is_empty() && out.bytes == b"before"),
        }
        let mut contained = Contained::new(Parrot::new(words), 40);
        let mut whole = Results::default();
        contained.call(&asked, &mut whole);
        assert_eq!(whole.turns.len(), 3);
        whole.turns.iter().for_each(|r| points_inside(r, &whole));
        Verdict::accepted(taken.is_ok())
    });
}

#[test]
fn edited_verdicts() {
    let part = [(0, 0), (0, 1), (2, 0)];
    let reasons = ["bad".to_owned(), "worse".to_owned()];
    let metrics = [("seen", vec![]), ("size", vec![1.0, 10.0])];
    let totals = metrics.map(|(name, bounds)| Total::of(&Metric { name: name.into(), bounds }));
    let mut w = FrameWriter::default();
    w.begin(Kind::Verdicts);
    let verdict = |code, at, len| rows::Verdict { code, message: Range { at, len } };
    w.section(&[verdict(0, 0, 0), verdict(1, 0, 5), verdict(2, 2, 4)]);
    let count = |row, metric, value| rows::Count { row, input: rows::NO_INPUT, metric, at: 5, value };
    w.section(&[count(0, 0, f64::MAX), count(0, 0, f64::MAX), count(1, 1, 5.0), count(2, 1, -3.0)]);
    w.section("bäd w".as_bytes());
    TARGETS.fuzz("edited verdicts", INPUTS, edited_frames(&[w.into_words()]), |(bytes, honest)| {
        let words = words_of(&bytes, honest);
        let (mut out, mut sums) = (validate::Verdicts::new(), totals.clone());
        let taken = validate::read(&words, &part, &reasons, &mut sums, &mut out);
        if taken.is_err() {
            assert!(out.is_empty() && sums == totals, "something of an answer that is none");
        }
        let places: Vec<_> = out.iter().map(|(at, _)| *at).collect();
        assert!(places.is_sorted() && places.iter().all(|at| part.contains(at)));
        for (_, why) in &out {
            assert!(reasons.contains(&why.reason) && is_remark(&why.message), "{why:?}");
        }
        let text = serde_json::to_string(&sums).unwrap();
        let again: [Total; 2] = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(again.map(|t| t.count), sums.map(|t| t.count));
        Verdict::accepted(taken.is_ok())
    });
}

/// As long as what is kept of a remark may be: a byte that is no text takes three.
fn is_remark(text: &str) -> bool {
    text.len() <= 3 * REMARK_BYTES_MAX + '…'.len_utf8()
}

#[test]
fn edited_requests() {
    let request = |session, lookup, at, len| rows::Request { session, lookup, key: Range { at, len } };
    let frame = |last: rows::Request| {
        let mut w = FrameWriter::default();
        w.begin(Kind::Requests);
        w.section(&[request(0, 0, 0, 3), request(0, 1, 0, 7), request(2, 0, 3, 4), last]);
        w.section("ann bärb".as_bytes());
        w.into_words()
    };
    let wrong = [request(2, 2, 0, 3), request(3, 0, 0, 3), request(1, 0, 0, 3), request(2, 0, 0, 6)];
    let seeds: Vec<Vec<u64>> = [request(2, 1, 0, 0); 3].into_iter().chain(wrong).map(frame).collect();
    TARGETS.fuzz("edited requests", INPUTS, edited_frames(&seeds), |(bytes, honest)| {
        let asked = read_requests(&words_of(&bytes, honest), 3, 2);
        if let Ok(all) = &asked {
            assert!(all.len() == 3 && all.iter().all(|of_one| of_one.len() <= REQUESTS_MAX));
            for r in all.iter().flatten() {
                assert!(r.lookup < 2 && !r.key.is_empty() && r.key.len() <= KEY_BYTES_MAX, "{r:?}");
            }
        }
        Verdict::accepted(asked.is_ok())
    });
}

#[test]
fn edited_fields() {
    let before = [r#"{"pages":3,"entry":"/"}"#, "{}", ""];
    let reasons = ["unknown".to_owned()];
    let enriched = |code, at, len| rows::Enriched { code, fields: Range { at, len } };
    let fields = r#"{"name":"Ann","pages":[1,{"x":null}]}{}"#;
    let frame = |last| {
        let mut w = FrameWriter::default();
        w.begin(Kind::Enriched);
        let n = fields.len() as u32;
        w.section(&[enriched(0, 0, n - 2), enriched(0, n - 2, 2), last]);
        w.section::<rows::Count>(&[]);
        w.section(fields.as_bytes());
        w.into_words()
    };
    let seeds = [frame(enriched(1, 0, 0)), frame(enriched(0, 0, fields.len() as u32 - 2))];
    TARGETS.fuzz("edited fields", INPUTS, edited_frames(&seeds), |(bytes, honest)| {
        let said = read_verdicts(&words_of(&bytes, honest), &before, &reasons);
        for (verdict, old) in said.iter().flatten().zip(before) {
            match verdict {
                enrich::Verdict::Fields(now) if now.is_empty() => assert_eq!(old, ""),
                enrich::Verdict::Fields(now) => {
                    let Ok(Json::Object(now)) = serde_json::from_str(now) else { panic!("no object: {now}") };
                    let Json::Object(old) =
                        serde_json::from_str(old).unwrap_or(Json::Object(Default::default()))
                    else {
                        panic!("{old}")
                    };
                    assert!(old.keys().all(|name| now.contains_key(name)), "a field is gone: {now:?}");
                }
                enrich::Verdict::Rejected(reason) => assert!(reasons.contains(reason)),
                enrich::Verdict::Fault(why) => panic!("{why}"),
            }
        }
        Verdict::accepted(said.is_ok())
    });
}

#[test]
fn edited_states() {
    let state = |at, len, error| rows::State { state: Range { at, len }, error: Range { at: 0, len: error } };
    let frame = |states: &[rows::State]| {
        let mut w = FrameWriter::default();
        w.begin(Kind::States);
        w.section(states);
        w.section(b"old\xff new");
        w.into_words()
    };
    let states = [state(0, 4, 0), state(2, 6, 0), state(0, 0, 3), state(0, 1, 0)];
    let seeds = [frame(&states[..3]), frame(&states[..2]), frame(&states)];
    TARGETS.fuzz("edited states", INPUTS, edited_frames(&seeds), |(bytes, honest)| {
        let taken = read_states(&words_of(&bytes, honest), 3);
        if let Ok(states) = &taken {
            assert_eq!(states.len(), 3);
            for state in states {
                assert!(
                    state.as_ref().map_or_else(|why| is_remark(why), |s| s.len() <= STATE_BYTES),
                    "{state:?}"
                );
            }
        }
        Verdict::accepted(taken.is_ok())
    });
}

/// A frame may name the same rows and bytes any number of times: what they come to is bounded by what was asked.
#[test]
fn an_answer_is_not_worth_more_than_its_question() {
    let asked = turns();
    let many = 2_000_u32;
    let all = Range { at: 0, len: many };
    let heavy = rows::StateAt { first: 0, kind: state_kind::PUT, state: Range::default(), timers: all };
    let bomb = Answer {
        turns: vec![rows::TurnResult { snapshots: all, end: heavy, ..rows::TurnResult::default() }; 3],
        snapshots: vec![heavy; many as usize],
        timers: vec![rows::Timer { at: 1_000, number: 0 }; many as usize],
        ..Answer::default()
    };
    let mut out = Results::default();
    read_results(&bomb.frame(), &asked, 0..3, &mut out).unwrap();
    assert!(
        out.snapshots.len() <= 6 && out.timers.len() <= 9 * (TIMERS_MAX + 1),
        "{} timers",
        out.timers.len()
    );
    // The engine refuses them for what they are.
    let mut whole = Results::default();
    Contained::new(Parrot::new(bomb.frame()), 0).call(&asked, &mut whole);
    assert!(whole.turns.iter().all(|t| t.fault.is_some()));

    let mut nearly_full = Results { bytes: vec![0; RESULTS_BYTES - 4], ..Results::default() };
    let taken = read_results(&Answer::good().frame(), &asked, 0..3, &mut nearly_full);
    assert_eq!((taken, nearly_full.bytes.len()), (Err(FrameError::Length), RESULTS_BYTES - 4));

    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(FIELDS_BYTES));
    let mut w = FrameWriter::default();
    w.begin(Kind::Enriched);
    w.section(&[rows::Enriched { code: 0, fields: Range::between(0, long.len()) }]);
    w.section::<rows::Count>(&[]);
    w.section(long.as_bytes());
    assert!(read_verdicts(&w.into_words(), &["{}"], &[]).unwrap_err().contains("are allowed"));
}
