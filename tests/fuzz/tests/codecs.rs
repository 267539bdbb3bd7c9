//! Bytes that others have written, or that a disk has spoiled: frames, epoch records, log directories, the state of keys.
//!
//! The bug family: a length that is believed, a place outside of the bytes, damage taken for a shorter log, a change on disk
//! before the judgement.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tidemill_contract::cell::{self, Text};
use tidemill_contract::frame::{Frame, FrameWriter, Kind as FrameKind};
use tidemill_contract::rows::{
    Answer, Closing, Count, Enriched, Note, Range, Rejection, Request, Session, State, StateAt, Timer, Turn,
    TurnResult, Verdict as VerdictRow,
};
use tidemill_contract::{FRAME_VERSION, frame::FrameError};
use tidemill_engine::event::{Position, RowHead, Rows, ext};
use tidemill_engine::gap::{Boundary, Gap, GapConfig};
use tidemill_engine::key::{KeyForm, key_hash};
use tidemill_engine::lane::{Barrier, Lane, LaneConfig, Origin};
use tidemill_engine::record::{self, Damage, Header, Kind};
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::{Policy, Scheduled, Version, Versions};
use tidemill_fuzz::edit::{Edit, edit, edited};
use tidemill_fuzz::{Targets, Verdict};
use tidemill_store::StoreError;
use tidemill_store::disk::OsDisk;
use tidemill_store::log::{EpochLog, Evidence};
use xxhash_rust::xxh3::xxh3_128;

const TARGETS: Targets = Targets(4);

const FRAMES: [FrameKind; 8] = [
    FrameKind::Turns,
    FrameKind::Results,
    FrameKind::Events,
    FrameKind::Verdicts,
    FrameKind::Sessions,
    FrameKind::Requests,
    FrameKind::Enriched,
    FrameKind::States,
];

/// A frame of each kind with some rows, and one with none.
fn frames(kind: FrameKind) -> Vec<Vec<u8>> {
    let some = Range { at: 0, len: 4 };
    let mut w = FrameWriter::default();
    w.begin(kind);
    match kind {
        FrameKind::Turns => {
            let turn =
                Turn { key: some, inputs: Range { at: 0, len: 2 }, until: 90, flags: 5, ..Turn::default() };
            w.section(&[turn, Turn { timers: Range { at: 0, len: 1 }, ..turn }]);
            w.wide_section(&[5, Text::Missing.word(), 6, Text::Range { at: 1, len: 2 }.word()], 2);
            w.section(&[Timer { at: 9, number: 1 }]);
            w.section(&[0_u32, 1]);
        }
        FrameKind::Results => {
            let end = StateAt { first: 1, kind: 2, state: some, timers: Range { at: 0, len: 1 } };
            let all = Range { at: 0, len: 1 };
            let turn = TurnResult { closings: all, snapshots: all, rejections: all, end, open_fields: some };
            w.section(&[turn]);
            w.section(&[Closing { last: 1, fields: some, ..Closing::default() }]);
            w.section(&[end]);
            w.section(&[Rejection { input: 2, reason: 0 }]);
            w.section(&[Timer { at: 9, number: 1 }]);
            w.section(&[Count { value: 1.5, ..Count::default() }]);
            w.section(&[Note { text: some, ..Note::default() }]);
        }
        FrameKind::Events => w.wide_section(&[5, 4 << 32, Text::Symbol(3).word()], 1),
        FrameKind::Verdicts => {
            w.section(&[VerdictRow { code: 1, message: some }]);
            w.section(&[Count::default()]);
        }
        FrameKind::Sessions => {
            let row = Session {
                key: some,
                reason: some,
                fields: some,
                answers: Range { at: 0, len: 1 },
                ..Session::default()
            };
            w.section(&[row]);
            w.section(&[Answer { key: some, row: some, ..Answer::default() }]);
        }
        FrameKind::Requests => w.section(&[Request { key: some, ..Request::default() }]),
        FrameKind::Enriched => {
            w.section(&[Enriched { code: 0, fields: some }]);
            w.section(&[Count::default()]);
        }
        FrameKind::States => w.section(&[State { state: some, error: some }]),
    }
    w.section(b"some more bytes");
    let some = bytes_of(w.end());
    w.begin(kind);
    (0..kind.sections()).for_each(|_| w.section::<u64>(&[]));
    vec![some, bytes_of(w.end())]
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The header as the page describes it, read without a look at the reader: where each section begins.
fn naive_sections(words: &[u64], kind: FrameKind) -> Option<Vec<u64>> {
    let n = kind.sections() as u64;
    let expected = u64::from(FRAME_VERSION) + ((kind as u64) << 16) + (n << 32);
    if words.len() < 2 + n as usize || words[0] != 8 * words.len() as u64 || words[1] != expected {
        return None;
    }
    let starts: Vec<u64> = words[2..][..n as usize].iter().map(|w| w % (1 << 32)).collect();
    let mut floor = 8 * (2 + n);
    for at in &starts {
        if *at < floor || at % 8 != 0 || *at > words[0] {
            return None;
        }
        floor = *at;
    }
    Some(starts)
}

/// Reads every row of every section, and what its ranges name. True if all of them lie where they may.
fn read_all(frame: &Frame<'_>, kind: FrameKind) -> Result<(), FrameError> {
    let bytes = frame.rows::<u8>(kind.sections() - 1)?;
    let within = |ranges: &[Range]| ranges.iter().try_for_each(|r| r.of(bytes).map(drop));
    let cells = |words: &[u64]| {
        for word in words {
            let _ = (cell::integer(*word), cell::number(*word), cell::boolean(*word));
            if let Text::Range { at, len } = Text::of(*word) {
                let _ = Range { at, len }.of(bytes);
            }
        }
    };
    match kind {
        FrameKind::Turns => {
            let (timers, wanted) = (frame.rows::<Timer>(2)?, frame.rows::<u32>(3)?);
            let inputs = frame.wide_rows(1, 2)?;
            cells(inputs);
            for t in frame.rows::<Turn>(0)? {
                within(&[t.key, t.state])?;
                t.timers.of(timers)?;
                t.wanted.of(wanted)?;
            }
        }
        FrameKind::Results => {
            let (closings, snapshots) = (frame.rows::<Closing>(1)?, frame.rows::<StateAt>(2)?);
            let (rejections, timers) = (frame.rows::<Rejection>(3)?, frame.rows::<Timer>(4)?);
            frame.rows::<Count>(5)?;
            for n in frame.rows::<Note>(6)? {
                within(&[n.text])?;
            }
            for t in frame.rows::<TurnResult>(0)? {
                within(&[t.open_fields, t.end.state])?;
                t.end.timers.of(timers)?;
                t.rejections.of(rejections)?;
                for c in t.closings.of(closings)? {
                    within(&[c.fields])?;
                }
                for s in t.snapshots.of(snapshots)? {
                    within(&[s.state])?;
                    s.timers.of(timers)?;
                }
            }
        }
        FrameKind::Events => cells(frame.wide_rows(0, 3)?),
        FrameKind::Verdicts => {
            frame.rows::<Count>(1)?;
            frame.rows::<VerdictRow>(0)?.iter().try_for_each(|v| within(&[v.message]))?;
        }
        FrameKind::Sessions => {
            let answers = frame.rows::<Answer>(1)?;
            for s in frame.rows::<Session>(0)? {
                within(&[s.key, s.reason, s.fields])?;
                s.answers.of(answers)?.iter().try_for_each(|a| within(&[a.key, a.row]))?;
            }
        }
        FrameKind::Requests => frame.rows::<Request>(0)?.iter().try_for_each(|r| within(&[r.key]))?,
        FrameKind::Enriched => {
            frame.rows::<Count>(1)?;
            frame.rows::<Enriched>(0)?.iter().try_for_each(|e| within(&[e.fields]))?;
        }
        FrameKind::States => frame.rows::<State>(0)?.iter().try_for_each(|s| within(&[s.state, s.error]))?,
    }
    Ok(())
}

#[test]
fn frames_are_read_in_place_and_never_outside() {
    let strategy = proptest::sample::select(&FRAMES[..]).prop_flat_map(|kind| {
        let words = vec![bytes_of(&[u64::MAX]), bytes_of(&[8 << 32 | 72])];
        // Whether word 0 is put right again: else most inputs end there.
        (Just(kind), edited(frames(kind), words), any::<bool>())
    });
    TARGETS.fuzz("frames", 20_000, strategy, |(kind, bytes, is_put_right)| {
        let mut words = words_of(&bytes.0);
        let length = words.len() as u64 * 8;
        if let Some(first) = words.first_mut().filter(|_| is_put_right) {
            *first = length;
        }
        let read = Frame::read(&words, kind);
        let starts = naive_sections(&words, kind);
        assert_eq!(read.is_ok(), starts.is_some(), "{read:?}");
        let (Ok(frame), Some(mut starts)) = (read, starts) else { return Verdict::Refused };
        starts.push(words[0]);
        let base = words.as_ptr() as u64;
        for (n, place) in starts.windows(2).enumerate() {
            assert_eq!(frame.section_at(n) as u64, place[0]);
            let Ok(rows) = frame.rows::<u64>(n) else { continue };
            let from = rows.as_ptr() as u64 - base;
            assert_eq!(from, place[0]);
            assert!(from + 8 * rows.len() as u64 <= place[1], "section {n} reaches into the next");
        }
        Verdict::accepted(read_all(&frame, kind).is_ok())
    });
}

fn sections(n: u64) -> Vec<(Kind, Vec<u8>)> {
    let long = vec![b'x'; 11 * n as usize % 90];
    vec![
        (Kind::Meta, format!("{{\"epoch\":{n}}}").into_bytes()),
        (Kind::State, long),
        (Kind::Rows, vec![7; 3]),
    ]
}

fn record_of(header: &Header, sections: &[(Kind, Vec<u8>)]) -> Vec<u8> {
    let borrowed: Vec<(Kind, &[u8])> = sections.iter().map(|(k, b)| (*k, b.as_slice())).collect();
    let mut out = Vec::new();
    record::encode_into(&mut out, header, &borrowed);
    out
}

/// Whoever writes a wrong record may know how to compute a checksum.
fn sign(bytes: &mut [u8], length_too: bool) {
    let Some(end) = bytes.len().checked_sub(16).filter(|e| *e >= 44) else { return };
    if length_too {
        let length = bytes.len() as u64;
        bytes[40..48].copy_from_slice(&length.to_le_bytes());
    }
    let checksum = xxh3_128(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn a_record_is_what_was_written_or_is_refused() {
    let seeds: Vec<Vec<u8>> = (0..4)
        .map(|n| record_of(&Header { incarnation: 1, epoch: n, previous: u128::from(n) }, &sections(40 * n)))
        .collect();
    let words = vec![b"TMEP".to_vec(), u64::MAX.to_le_bytes().to_vec(), vec![0; 9]];
    let strategy = (edited(seeds, words), 0..4_u8);
    TARGETS.fuzz("record", 20_000, strategy, |(bytes, signed)| {
        let mut bytes = bytes.0;
        if signed > 0 {
            sign(&mut bytes, signed > 1);
        }
        match record::decode(&bytes) {
            Ok(r) => {
                let sections: Vec<(Kind, Vec<u8>)> =
                    r.sections.iter().map(|(k, b)| (*k, b.to_vec())).collect();
                let again = record_of(&r.header, &sections);
                assert!(again == bytes[..r.len], "what was read is not what would be written");
                assert_eq!(r.checksum.to_le_bytes(), bytes[r.len - 16..r.len]);
                Verdict::Accepted
            }
            Err(e) => {
                assert_ne!(e, Damage::Chain, "nothing was asked about a chain");
                Verdict::Refused
            }
        }
    });
}

/// What is done to a log's directory.
#[derive(Clone, Debug)]
enum Spoil {
    /// A file's bytes edited.
    Edit(Index, Edit),
    /// A file gone.
    Remove(Index),
    /// A file in the place of another.
    Rename(Index, Index),
    /// A segment under the name of an epoch.
    Segment(Index, u64),
    /// A beginning of the next record behind the last segment, as an unfinished append leaves it.
    Torn(Index),
    /// A whole record behind it that follows.
    Append,
    /// An earlier record once more behind the last segment.
    Again(Index),
    /// A file of another name.
    Stray(Vec<u8>),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let i = any::<Index>;
    let one = edit(
        vec![record_of(&Header { incarnation: 9, epoch: 9, previous: 9 }, &sections(9))],
        vec![b"TMEP".to_vec()],
    );
    prop_oneof![
        6 => (i(), one).prop_map(|(f, e)| Spoil::Edit(f, e)),
        1 => i().prop_map(Spoil::Remove),
        1 => (i(), i()).prop_map(|(a, b)| Spoil::Rename(a, b)),
        1 => (i(), 0..30_u64).prop_map(|(f, n)| Spoil::Segment(f, n)),
        3 => i().prop_map(Spoil::Torn),
        2 => Just(Spoil::Append),
        1 => i().prop_map(Spoil::Again),
        1 => vec(any::<u8>(), 0..40).prop_map(Spoil::Stray),
    ]
}

type Files = BTreeMap<String, Vec<u8>>;
const MARKER: &str = "COMMITTED";

fn read_dir(dir: &Path) -> Files {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn write_dir(dir: &Path, files: &Files) {
    for name in read_dir(dir).into_keys() {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Where records stand in a segment.
fn records(segment: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut at, mut all) = (0, Vec::new());
    while let Ok(r) = record::decode(&segment[at..]) {
        all.push(at..at + r.len);
        at += r.len;
    }
    all
}

impl Spoil {
    fn apply(&self, files: &mut Files) {
        let names: Vec<String> = files.keys().cloned().collect();
        let segments: Vec<String> = names.iter().filter(|n| n.ends_with(".seg")).cloned().collect();
        if names.is_empty() || segments.is_empty() {
            return;
        }
        let pick = |at: &Index| names[at.index(names.len())].clone();
        let last = segments[segments.len() - 1].clone();
        match self {
            Spoil::Edit(file, e) => e.apply(files.get_mut(&pick(file)).unwrap()),
            Spoil::Remove(file) => drop(files.remove(&pick(file))),
            Spoil::Rename(from, to) => {
                let bytes = files.remove(&pick(from)).unwrap();
                files.insert(pick(to), bytes);
            }
            Spoil::Segment(file, n) => {
                let bytes = files[&pick(file)].clone();
                files.insert(format!("{n:020}.seg"), bytes);
            }
            Spoil::Torn(at) => {
                let next = next_record(&files[&last]);
                let kept = at.index(next.len());
                files.get_mut(&last).unwrap().extend_from_slice(&next[..kept]);
            }
            Spoil::Append => {
                let next = next_record(&files[&last]);
                files.get_mut(&last).unwrap().extend_from_slice(&next);
            }
            Spoil::Again(at) => {
                let all: Vec<(String, std::ops::Range<usize>)> = segments
                    .iter()
                    .flat_map(|s| records(&files[s]).into_iter().map(|r| (s.clone(), r)))
                    .collect();
                if let Some((segment, place)) = all.get(at.index(all.len().max(1))) {
                    let bytes = files[segment][place.clone()].to_vec();
                    files.get_mut(&last).unwrap().extend_from_slice(&bytes);
                }
            }
            Spoil::Stray(bytes) => drop(files.insert("note.txt".into(), bytes.clone())),
        }
    }
}

/// The record that would be appended next.
fn next_record(segment: &[u8]) -> Vec<u8> {
    let newest = records(segment).pop().map(|place| record::decode(&segment[place]).unwrap());
    let (epoch, previous, incarnation) =
        newest.map_or((1, 0, 1), |r| (r.header.epoch + 1, r.checksum, r.header.incarnation));
    record_of(&Header { incarnation, epoch, previous }, &sections(epoch))
}

/// What a visit has seen: (epoch, sections).
type Seen = Vec<(u64, Vec<(Kind, Vec<u8>)>)>;

fn open(dir: &Path, evidence: &[Evidence]) -> (Seen, Result<EpochLog, StoreError>) {
    let mut seen = Vec::new();
    let opened = EpochLog::open(Arc::new(OsDisk), dir, 600, evidence, |record, at| {
        assert_eq!(record.header.epoch, at.epoch);
        seen.push((at.epoch, record.sections.iter().map(|(k, b)| (*k, b.to_vec())).collect()));
        Ok(())
    });
    (seen, opened.map(|(log, _)| log))
}

/// The property of the log: what was committed is visited, or the log says `Damaged` and has touched nothing.
#[test]
fn a_spoiled_log_is_whole_or_says_so() {
    const LAST: u64 = 12;
    let tmp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let dir = tmp.path().join("log");
    {
        let (_, log) = open(&dir, &[]);
        let mut log = log.unwrap();
        for epoch in 1..=LAST {
            let all = sections(epoch);
            let borrowed: Vec<(Kind, &[u8])> = all.iter().map(|(k, b)| (*k, b.as_slice())).collect();
            log.append(1 + epoch / 5, epoch, &borrowed).unwrap();
        }
    }
    let whole = read_dir(&dir);
    assert!(whole.keys().filter(|n| n.ends_with(".seg")).count() > 2, "one segment shows little");
    let strategy = (vec(spoil(), 0..4), proptest::option::of(0..=LAST));
    TARGETS.fuzz("log directory", 3_000, strategy, |(spoils, confirmed)| {
        let mut files = whole.clone();
        spoils.iter().for_each(|s| s.apply(&mut files));
        write_dir(&dir, &files);
        let evidence: Vec<Evidence> =
            confirmed.map(|epoch| Evidence { who: "a sink".into(), epoch }).into_iter().collect();
        let (seen, opened) = open(&dir, &evidence);
        let log = match opened {
            Ok(log) => log,
            Err(e) => {
                assert!(matches!(e, StoreError::Damaged { .. }), "{e}");
                assert!(read_dir(&dir) == files, "refused, and yet changed: {e}");
                return Verdict::Refused;
            }
        };
        // Every epoch is the one that was written, in order, none left out between.
        let first = seen.first().map_or(1, |(epoch, _)| *epoch);
        for (n, (epoch, found)) in seen.iter().enumerate() {
            assert_eq!(*epoch, first + n as u64, "one is missing");
            assert_eq!(*found, sections(*epoch), "epoch {epoch}");
        }
        let last = seen.last().map_or(0, |(epoch, _)| *epoch);
        assert_eq!(log.last_epoch(), last);
        assert!(last >= confirmed.unwrap_or(0), "a sink has more");
        // Segments may be missing at the front, as after a trim. At the end nothing may, as long as the marker stands.
        if files.get(MARKER) == whole.get(MARKER) {
            assert!(last >= LAST, "epochs after {last} are gone without a word");
        }
        drop(log);
        let (again, log) = open(&dir, &evidence);
        assert_eq!(again, seen, "opened once more, it is another log");
        let mut log = log.unwrap();
        log.append(9, last + 1, &[(Kind::Meta, b"{}")]).unwrap();
        Verdict::Accepted
    });
}

fn lane() -> Lane {
    let config =
        GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let scheduled = Scheduled {
        version: Version(0),
        from: EventTime::BEGINNING,
        policy: Policy::Migrate,
        drained_by: EventTime::BEGINNING,
        plugin: "gap".into(),
        digest: None,
    };
    let versions = Versions::new(scheduled.clone(), Box::new(Gap::new(&config)), Vec::new(), vec![scheduled]);
    let config = LaneConfig {
        pipeline: "p".into(),
        key_form: KeyForm::One,
        lateness_ms: 30,
        early: true,
        events_per_key: 1000,
        suffix_bytes: 1 << 20,
        open_sessions: 1000,
        groups: 0..1024,
        sources: vec!["s".into()],
        layout: vec!["type".into()],
    };
    Lane::new(config, versions)
}

/// State sections of a lane's epochs, and its image.
fn states() -> Vec<Vec<u8>> {
    let mut lane = lane();
    let mut all = Vec::new();
    for epoch in 0..6_u32 {
        let mut rows = Rows::default();
        for n in 0..12_u32 {
            let key = format!("key-{}", n % 5);
            let key_at = rows.bytes.len();
            rows.bytes.extend_from_slice(key.as_bytes());
            let ext_at = rows.bytes.len();
            let id = n.to_le_bytes();
            ext::push_id(&mut rows.bytes, n.is_multiple_of(2).then_some(&id[..]));
            ext::push_field(&mut rows.bytes, ext::Value::Text(b"view"));
            rows.heads.push(RowHead {
                key_hash: key_hash(key.as_bytes()),
                time: EventTime::from_ms(i64::from(epoch * 20 + n * 3 % 17)),
                position: Position { source: 0, partition: 1, offset: u64::from(epoch * 100 + n) },
                key_at: key_at as u32,
                key_len: key.len() as u32,
                ext_len: (rows.bytes.len() - ext_at) as u32,
                raw_at: 0,
                raw_len: 0,
            });
        }
        let watermark = EventTime::from_ms(i64::from(epoch * 20) - 5);
        lane.insert(&rows, watermark, Origin { source: "s", partition: "p", raw: b"" }).unwrap();
        let barrier = Barrier { watermark, early_tick: true, at_end: false };
        all.push(lane.barrier(barrier).unwrap().state);
    }
    let mut image = Vec::new();
    lane.image(0..1024, &mut image);
    all.push(image);
    all
}

/// What stands behind a sound checksum may still be another program's: it is loaded or refused, and what is loaded is
/// written and read again as the same.
#[test]
fn the_state_of_keys_is_loaded_or_refused() {
    let seeds = states();
    assert!(seeds.iter().all(|s| s.len() > 100), "too little state");
    let words = vec![b"key-1".to_vec(), vec![1, 0, 0, 0, 0, 0, 4, 0, 0], u32::MAX.to_le_bytes().to_vec()];
    let strategy = vec(edited(seeds, words), 1..3);
    TARGETS.fuzz("state of keys", 10_000, strategy, |sections| {
        let mut one = lane();
        if sections.iter().any(|s| one.load(&s.0).is_err()) {
            return Verdict::Refused;
        }
        one.loaded(EventTime::from_ms(50));
        let (mut image, mut again) = (Vec::new(), Vec::new());
        one.image(0..1024, &mut image);
        let mut two = lane();
        two.load(&image).expect("an image is state");
        two.image(0..1024, &mut again);
        assert!(image == again, "an image of an image is another");
        Verdict::Accepted
    });
}
