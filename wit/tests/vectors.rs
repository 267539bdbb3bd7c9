//! A frame of each kind, word for word, for whoever writes the contract in another language. `README.md` names them.
//!
//! Each has every section filled, so that a section in another place, or a row of another size, shows. A frame is written
//! from its rows and must be these words; the words are read and must be these rows.

#![allow(clippy::unwrap_used, reason = "tests")]

use bytemuck::Pod;
use tidemill_contract::cell::Text;
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::*;

/// A turn of key `k` with one event at 5 whose only field is "ab", and a timer pending at 9.
const TURNS_2: [u64; 23] = [
    184,                   // bytes
    0x0000_0005_0001_0002, // version 2, kind 1, five sections
    0x0000_0001_0000_0038, // turns: 1 at 56
    0x0000_0001_0000_0088, // inputs: 1 at 136
    0x0000_0001_0000_0098, // timers: 1 at 152
    0x0000_0001_0000_00a8, // wanted: 1 at 168
    0x0000_0004_0000_00b0, // bytes: 4 at 176
    0x0000_0001_0000_0000, // key: 1 byte at 0
    0x0000_0001_0000_0003, // state: 1 byte at 3
    4,                     // open_start
    4,                     // open_last
    1,                     // open_count
    6,                     // until
    0x0000_0001_0000_0000, // inputs: 1 at 0
    0x0000_0001_0000_0000, // timers: 1 at 0
    0x0000_0001_0000_0000, // wanted: 1 at 0
    1,                     // flags: OPEN
    5,                     // input: time
    0x0000_0002_0000_0001, // input: text, 2 bytes at 1
    9,                     // timer: at
    0,                     // timer: number
    0,                     // wanted: input 0
    0x0000_0000_7362_616b, // "kabs"
];

/// A timer (number 1, due at 9) discarded the carried session for the limit; input 1 opened the next; input 2 was rejected.
const RESULTS_2: [u64; 36] = [
    288,                   // bytes
    0x0000_0008_0002_0002, // version 2, kind 2, 8 sections
    0x0000_0001_0000_0050, // results: 1 at 80
    0x0000_0001_0000_0088, // closings: 1 at 136
    0x0000_0001_0000_00b0, // snapshots: 1 at 176
    0x0000_0001_0000_00c8, // rejections: 1 at 200
    0x0000_0001_0000_00d0, // timers: 1 at 208
    0x0000_0001_0000_00e0, // counts: 1 at 224
    0x0000_0001_0000_0100, // notes: 1 at 256
    0x0000_000c_0000_0110, // bytes: 12 at 272
    0x0000_0001_0000_0000, // results
    0x0000_0001_0000_0000,
    0x0000_0001_0000_0000,
    0x0000_0002_0000_0001,
    0x0000_0001_0000_0007,
    0x0000_0001_0000_0000,
    0x0000_0002_0000_0008,
    0x0000_0001_0000_0001, // closings
    0x0000_0000_0000_0009,
    0x0000_0000_ffff_ffff,
    0x0000_0001_ffff_fffe,
    0x0000_0007_0000_0000,
    0x0000_0000_ffff_fffe, // snapshots
    0x0000_0000_0000_0000,
    0x0000_0000_0000_0000,
    0x0000_0004_0000_0002, // rejections
    0x0000_0000_0000_000b, // timers
    0x0000_0000_0000_0001,
    0xffff_ffff_0000_0000, // counts
    0x0000_0000_0000_0003,
    0x0000_0000_0000_0009,
    0x3ff8_0000_0000_0000,
    0x0000_0001_0000_0000, // notes
    0x0000_0002_0000_000a,
    0x737d_313a_2261_227b, // bytes
    0x0000_0000_6d68_7d7b,
];

/// An event of key `k` at 5: a text that is the third symbol of its field, and one that is missing.
const EVENTS_2: [u64; 9] = [
    72,                    // bytes
    0x0000_0002_0003_0002, // version 2, kind 3, 2 sections
    0x0000_0001_0000_0020, // events: 1 at 32
    0x0000_0001_0000_0040, // bytes: 1 at 64
    0x0000_0000_0000_0005, // events
    0x0000_0001_0000_0000,
    0xffff_fffe_0000_0002,
    0xffff_ffff_0000_0000,
    0x0000_0000_0000_006b, // bytes
];

/// Two events: one is accepted, the other rejected with a message and counted.
const VERDICTS_2: [u64; 14] = [
    112,                   // bytes
    0x0000_0003_0004_0002, // version 2, kind 4, 3 sections
    0x0000_0002_0000_0028, // verdicts: 2 at 40
    0x0000_0001_0000_0048, // counts: 1 at 72
    0x0000_0003_0000_0068, // bytes: 3 at 104
    0x0000_0000_0000_0000, // verdicts
    0x0000_0000_0000_0000,
    0x0000_0000_0000_0001,
    0x0000_0003_0000_0000,
    0xffff_ffff_0000_0001, // counts
    0x0000_0000_0000_0000,
    0x0000_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x0000_0000_0064_6162, // bytes
];

/// A session of key `k` that asked for two lookups: one found a row, one failed.
const SESSIONS_2: [u64; 21] = [
    168,                   // bytes
    0x0000_0003_0005_0002, // version 2, kind 5, 3 sections
    0x0000_0001_0000_0028, // sessions: 1 at 40
    0x0000_0002_0000_0060, // answers: 2 at 96
    0x0000_0012_0000_0090, // bytes: 18 at 144
    0x0000_0001_0000_0000, // sessions
    0x0000_0000_0000_0004,
    0x0000_0000_0000_0006,
    0x0000_0000_0000_0003,
    0x0000_0003_0000_0001,
    0x0000_0007_0000_0004,
    0x0000_0002_0000_0000,
    0x0000_0000_0000_0000, // answers
    0x0000_0001_0000_0000,
    0x0000_0007_0000_000b,
    0x0000_0002_0000_0001,
    0x0000_0003_0000_0001,
    0x0000_0000_0000_0000,
    0x2261_227b_7061_676b, // bytes
    0x3a22_6222_7b7d_313a,
    0x0000_0000_0000_7d32,
];

/// Two requests: of session 0 and of session 2.
const REQUESTS_2: [u64; 9] = [
    72,                    // bytes
    0x0000_0002_0006_0002, // version 2, kind 6, 2 sections
    0x0000_0002_0000_0020, // requests: 2 at 32
    0x0000_0003_0000_0040, // bytes: 3 at 64
    0x0000_0001_0000_0000, // requests
    0x0000_0001_0000_0000,
    0x0000_0000_0000_0002,
    0x0000_0002_0000_0001,
    0x0000_0000_0062_616b, // bytes
];

/// Two sessions: one has a field more, one is a dead letter.
const ENRICHED_2: [u64; 14] = [
    112,                   // bytes
    0x0000_0003_0007_0002, // version 2, kind 7, 3 sections
    0x0000_0002_0000_0028, // enriched: 2 at 40
    0x0000_0001_0000_0048, // counts: 1 at 72
    0x0000_0007_0000_0068, // bytes: 7 at 104
    0x0000_0000_0000_0000, // enriched
    0x0000_0007_0000_0000,
    0x0000_0000_0000_0002,
    0x0000_0000_0000_0000,
    0xffff_ffff_0000_0000, // counts
    0x0000_0000_0000_0001,
    0x0000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0x007d_323a_2262_227b, // bytes
];

/// Two states: one migrated, one not.
const STATES_2: [u64; 9] = [
    72,                    // bytes
    0x0000_0002_0008_0002, // version 2, kind 8, 2 sections
    0x0000_0002_0000_0020, // states: 2 at 32
    0x0000_0005_0000_0040, // bytes: 5 at 64
    0x0000_0002_0000_0000, // states
    0x0000_0000_0000_0000,
    0x0000_0000_0000_0000,
    0x0000_0003_0000_0002,
    0x0000_0064_646f_0201, // bytes
];

const fn range(at: u32, len: u32) -> Range {
    Range { at, len }
}

#[track_caller]
fn section<T: Pod + PartialEq + std::fmt::Debug>(frame: &Frame<'_>, n: usize, rows: &[T]) {
    assert_eq!(frame.rows::<T>(n).unwrap(), rows, "section {n}");
}

/// Writes sections of rows and reads them again.
macro_rules! check {
    ($kind:expr, $vector:expr, $($rows:expr),*) => {{
        let mut w = FrameWriter::default();
        w.begin($kind);
        $(w.section($rows);)*
        let words = w.into_words();
        assert_eq!(words, $vector);
        let frame = Frame::read(&$vector, $kind).unwrap();
        let mut n = 0;
        $(section(&frame, n, $rows); n += 1;)*
        assert_eq!(n, $kind.sections());
    }};
}

#[test]
fn turns() {
    let turn = Turn {
        key: range(0, 1),
        state: range(3, 1),
        open_start: 4,
        open_last: 4,
        open_count: 1,
        until: 6,
        inputs: range(0, 1),
        timers: range(0, 1),
        wanted: range(0, 1),
        flags: turn_flags::OPEN,
    };
    // An input is its time and a cell for each declared field: here one text.
    let input = [5, Text::Range { at: 1, len: 2 }.word()];
    let mut w = FrameWriter::default();
    w.begin(Kind::Turns);
    w.section(&[turn]);
    w.wide_section(&input, 1);
    w.section(&[Timer { at: 9, number: 0 }]);
    w.section(&[0u32]);
    w.section(b"kabs");
    let words = w.into_words();
    assert_eq!(words, TURNS_2);
    let frame = Frame::read(&words, Kind::Turns).unwrap();
    section(&frame, 0, &[turn]);
    assert_eq!(frame.wide_rows(1, 2).unwrap(), input);
    section(&frame, 2, &[Timer { at: 9, number: 0 }]);
    section(&frame, 3, &[0u32]);
    section(&frame, 4, b"kabs");
    assert_eq!(frame.section_at(4), 176);
}

#[test]
fn results() {
    let end = StateAt { first: 1, kind: state_kind::PUT, state: range(7, 1), timers: range(0, 1) };
    let result = TurnResult {
        closings: range(0, 1),
        snapshots: range(0, 1),
        rejections: range(0, 1),
        end,
        open_fields: range(8, 2),
    };
    let closing = Closing {
        cause: cause::TIMER,
        index: 1,
        at: 9,
        first: CARRIED,
        last: 0,
        reason: REASON_LIMIT,
        discarded: 1,
        fields: range(0, 7),
    };
    let snapshot = StateAt { first: NOTHING_OPEN, kind: state_kind::NONE, ..StateAt::default() };
    let count = Count { row: 0, input: NO_INPUT, metric: 3, at: 9, value: 1.5 };
    let note = Note { turn: 0, input: 1, text: range(10, 2) };
    check!(
        Kind::Results,
        RESULTS_2,
        &[result],
        &[closing],
        &[snapshot],
        &[Rejection { input: 2, reason: 4 }],
        &[Timer { at: 11, number: 1 }],
        &[count],
        &[note],
        b"{\"a\":1}s{}hm"
    );
}

#[test]
fn events() {
    // An event is its time, its key and a cell for each declared field: here a text that is a symbol, and a missing one.
    let row = [5, 1 << 32, Text::Symbol(2).word(), Text::Missing.word()];
    let mut w = FrameWriter::default();
    w.begin(Kind::Events);
    w.wide_section(&row, 1);
    w.section(b"k");
    let words = w.into_words();
    assert_eq!(words, EVENTS_2);
    let frame = Frame::read(&words, Kind::Events).unwrap();
    assert_eq!(frame.wide_rows(0, EVENT_HEAD_WORDS + 2).unwrap(), row);
    section(&frame, 1, b"k");
}

#[test]
fn verdicts() {
    check!(
        Kind::Verdicts,
        VERDICTS_2,
        &[Verdict::default(), Verdict { code: 1, message: range(0, 3) }],
        &[Count { row: 1, input: NO_INPUT, metric: 0, at: 0, value: 2.0 }],
        b"bad"
    );
}

#[test]
fn sessions() {
    let session = Session {
        key: range(0, 1),
        start: 4,
        end: 6,
        count: 3,
        reason: range(1, 3),
        fields: range(4, 7),
        answers: range(0, 2),
    };
    let found = Answer { lookup: 0, status: answer::FOUND, key: range(0, 1), row: range(11, 7) };
    let failed = Answer { lookup: 1, status: answer::FAILED, key: range(1, 3), row: Range::default() };
    check!(Kind::Sessions, SESSIONS_2, &[session], &[found, failed], b"kgap{\"a\":1}{\"b\":2}");
}

#[test]
fn requests() {
    let first = Request { session: 0, lookup: 1, key: range(0, 1) };
    let second = Request { session: 2, lookup: 0, key: range(1, 2) };
    check!(Kind::Requests, REQUESTS_2, &[first, second], b"kab");
}

#[test]
fn enriched() {
    check!(
        Kind::Enriched,
        ENRICHED_2,
        &[Enriched { code: 0, fields: range(0, 7) }, Enriched { code: 2, fields: Range::default() }],
        &[Count { row: 0, input: NO_INPUT, metric: 1, at: 0, value: 1.0 }],
        b"{\"b\":2}"
    );
}

#[test]
fn states() {
    let good = State { state: range(0, 2), error: Range::default() };
    let bad = State { state: Range::default(), error: range(2, 3) };
    check!(Kind::States, STATES_2, &[good, bad], b"\x01\x02odd");
}
