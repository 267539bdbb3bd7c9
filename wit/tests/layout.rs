//! The layout, written down a second time. Whoever changes it must raise `FRAME_VERSION`, and then this page: a test that
//! fails here without a raised version is a plugin in the field that reads garbage.

use std::mem::{offset_of, size_of};
use tidemill_contract::FRAME_VERSION;
use tidemill_contract::cell::{self, Text};
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::*;

macro_rules! facts {
    ($out:ident; $($row:ident { $($field:ident),* })*) => {$(
        $out += &format!("{} {}:", stringify!($row), size_of::<$row>());
        $($out += &format!(" {}@{}", stringify!($field), offset_of!($row, $field));)*
        $out += "\n";
    )*};
}

/// Sizes and offsets of every row, as text.
fn rows() -> String {
    let mut out = String::new();
    facts! { out;
        Range { at, len }
        Turn { key, state, open_start, open_last, open_count, until, inputs, timers, wanted, flags }
        Timer { at, number }
        StateAt { first, kind, state, timers }
        TurnResult { closings, snapshots, rejections, end, open_fields }
        Closing { cause, index, at, first, last, reason, discarded, fields }
        Rejection { input, reason }
        Count { row, input, metric, at, value }
        Note { turn, input, text }
        Verdict { code, message }
        Session { key, start, end, count, reason, fields, answers }
        Answer { lookup, status, key, row }
        Request { session, lookup, key }
        Enriched { code, fields }
        State { state, error }
    }
    out
}

const ROWS_2: &str = "\
Range 8: at@0 len@4
Turn 80: key@0 state@8 open_start@16 open_last@24 open_count@32 until@40 inputs@48 timers@56 wanted@64 flags@72
Timer 16: at@0 number@8
StateAt 24: first@0 kind@4 state@8 timers@16
TurnResult 56: closings@0 snapshots@8 rejections@16 end@24 open_fields@48
Closing 40: cause@0 index@4 at@8 first@16 last@20 reason@24 discarded@28 fields@32
Rejection 8: input@0 reason@4
Count 32: row@0 input@4 metric@8 at@16 value@24
Note 16: turn@0 input@4 text@8
Verdict 16: code@0 message@8
Session 56: key@0 start@8 end@16 count@24 reason@32 fields@40 answers@48
Answer 24: lookup@0 status@4 key@8 row@16
Request 16: session@0 lookup@4 key@8
Enriched 16: code@0 fields@8
State 16: state@0 error@8
";

#[test]
fn rows_are_as_written_down_for_this_version() {
    assert_eq!(FRAME_VERSION, 2, "a new version: write its layout down here");
    assert_eq!(rows(), ROWS_2, "a changed layout needs a raised FRAME_VERSION");
}

#[test]
fn numbers_are_as_written_down_for_this_version() {
    let kinds = [
        Kind::Turns,
        Kind::Results,
        Kind::Events,
        Kind::Verdicts,
        Kind::Sessions,
        Kind::Requests,
        Kind::Enriched,
        Kind::States,
    ];
    assert_eq!(kinds.map(|k| k as u16), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(kinds.map(Kind::sections), [5, 8, 2, 3, 3, 2, 3, 2]);
    assert_eq!((INPUT_HEAD_WORDS, EVENT_HEAD_WORDS), (1, 2));
    assert_eq!((NOTHING_OPEN, CARRIED), (-2, -1));
    assert_eq!((REASON_END_OF_INPUT, REASON_LIMIT, FIRINGS_MAX), (u32::MAX, u32::MAX - 1, 1_000));
    assert_eq!(
        [turn_flags::OPEN, turn_flags::AT_END, turn_flags::REPORT_OPEN, turn_flags::NOTES],
        [1, 2, 4, 8]
    );
    assert_eq!([state_kind::NONE, state_kind::UNCHANGED, state_kind::PUT], [0, 1, 2]);
    assert_eq!([cause::INPUT, cause::TIMER, cause::END], [0, 1, 2]);
    assert_eq!([answer::FOUND, answer::NOT_FOUND, answer::FAILED], [0, 1, 2]);
    assert_eq!([progress::FRAME, progress::TIMER, progress::OUTPUT], [u32::MAX, u32::MAX - 1, u32::MAX - 2]);
    assert_eq!(NO_INPUT, u32::MAX);
}

#[test]
fn cells_are_as_written_down_for_this_version() {
    assert_eq!(Text::Missing.word(), 0xffff_ffff_0000_0000);
    assert_eq!(Text::Symbol(7).word(), 0xffff_fffe_0000_0007);
    assert_eq!(Text::Range { at: 2, len: 3 }.word(), 0x0000_0003_0000_0002);
    for t in [Text::Missing, Text::Symbol(254), Text::Range { at: 9, len: 0 }] {
        assert_eq!(Text::of(t.word()), t);
    }
    assert_eq!((cell::integer(1 << 63), cell::integer(u64::MAX)), (None, Some(-1)));
    assert_eq!((cell::number(f64::NAN.to_bits()), cell::number(0)), (None, Some(0.0)));
    assert_eq!([0, 1, 2, 3].map(cell::boolean), [Some(false), Some(true), None, None]);
}

#[test]
fn what_is_no_frame_is_refused_whatever_it_is() {
    let mut w = FrameWriter::default();
    w.begin(Kind::Turns);
    w.section(&[Turn { inputs: Range { at: 0, len: 1 }, ..Turn::default() }]);
    w.wide_section(&[5, Text::Missing.word()], 1);
    w.section(&[Timer { at: 9, number: 0 }]);
    w.section(&[0u32]);
    w.section(b"kabs");
    let good = w.into_words();
    assert!(Frame::read(&good, Kind::Turns).is_ok());
    assert!(Frame::read(&good, Kind::Results).is_err());
    for n in 0..good.len() {
        assert!(Frame::read(&good[..n], Kind::Turns).is_err(), "cut to {n} words");
    }
    // Any word of the header turned to anything: an error or a frame, never a panic, and no row outside it.
    for word in 0..7 {
        for value in [0, 1, 7, 8, 56, 1 << 32, u64::MAX, 0xffff_ffff_0000_00b0, 0x0000_0001_ffff_fff8] {
            let mut bad = good.clone();
            bad[word] = value;
            if let Ok(f) = Frame::read(&bad, Kind::Turns) {
                let _ = (
                    f.rows::<Turn>(0),
                    f.wide_rows(1, 2),
                    f.rows::<Timer>(2),
                    f.rows::<u32>(3),
                    f.rows::<u8>(4),
                );
            }
        }
    }
}
