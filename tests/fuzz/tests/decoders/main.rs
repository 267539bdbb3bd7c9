//! What a source may be sent: files in every format, compressed and spoiled, and times in every form. Each decoder is held
//! against a naive one that shares no code with it.
//!
//! The bug family: a value of the wrong place, a malformed record that is taken or a good one that is not, a record that
//! depends on how its bytes came, a stream that never ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod binary;
mod naive;

use naive::{Cut, Value};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::io::{Read as _, Write as _};
use tidemill_connect::format::combined::{CombinedDecoder, FIELDS};
use tidemill_connect::format::json::JsonDecoder;
use tidemill_connect::format::separated::SeparatedDecoder;
use tidemill_connect::format::time::{TimeError, TimeParser, TimeSpec, TimeUnit};
use tidemill_connect::format::{Decoder, Kind, Slots};
use tidemill_connect::source::compression::{self, Compression};
use tidemill_connect::source::framing::{Framer, Supply};
use tidemill_connect::source::{Block, Framing, Read};
use tidemill_fuzz::edit::{Edit, edit, edited, words};
use tidemill_fuzz::{Targets, Verdict};

const TARGETS: Targets = Targets(9);

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

/// Records of a file whose bytes come in pieces of these lengths, in turn.
fn framed(framing: Framing, header: bool, bytes: &[u8], pieces: &[usize]) -> (Option<Vec<u8>>, Vec<Cut>) {
    let mut framer = Framer::new(framing, 0).with_header(header);
    let (mut block, mut at, mut turn) = (Block::default(), 0, 0);
    let mut all = Vec::new();
    loop {
        let read = framer.fill(&mut block, |to, _| {
            let len = pieces[turn % pieces.len()].min(bytes.len() - at);
            turn += 1;
            to.extend_from_slice(&bytes[at..at + len]);
            at += len;
            Ok(if at == bytes.len() {
                Supply::End
            } else if len == 0 {
                Supply::Nothing
            } else {
                Supply::Bytes
            })
        });
        for span in &block.spans {
            assert!(!span.is_cut(), "a short record was cut");
            all.push(Cut { offset: span.offset, bytes: block.record(*span).to_vec() });
        }
        match read.unwrap() {
            Read::Data => assert!(!block.spans.is_empty()),
            Read::Pending => assert!(turn <= (bytes.len() + 1) * pieces.len(), "it never ends"),
            Read::End => break,
        }
    }
    assert_eq!(block.next_offset, bytes.len() as u64, "the end is not where it is");
    (framer.header().map(<[u8]>::to_vec), all)
}

/// Lengths of which one at least is not 0.
fn pieces() -> impl Strategy<Value = Vec<usize>> {
    (vec(0..9_usize, 0..3), select(vec![1_usize, 2, 3, 7, 64, 4096])).prop_map(|(mut some, one)| {
        some.push(one);
        some
    })
}

/// Slots as values; `record` is what was decoded.
fn values(slots: &Slots, n: usize, record: &[u8]) -> Vec<Option<Value>> {
    let kinds = |k| match k {
        Kind::Missing => None,
        Kind::Text => Some(naive::Kind::Text),
        Kind::Number => Some(naive::Kind::Number),
        Kind::Bool => Some(naive::Kind::Bool),
        Kind::Structure => Some(naive::Kind::Structure),
    };
    (0..n)
        .map(|i| kinds(slots.kind(i)).map(|kind| Value { kind, bytes: slots.get(i, record).to_vec() }))
        .collect()
}

/// Frames and decodes a file, and compares with the naive way. Accepted if a record was, and none was refused.
fn same(
    framing: Framing,
    header: bool,
    bytes: &[u8],
    pieces: &[usize],
    decoder: &mut dyn Decoder,
    wanted: usize,
    naive: impl Fn(&[u8], Option<&[u8]>) -> Option<Vec<Option<Value>>>,
) -> Verdict {
    let (head, records) = framed(framing, header, bytes, pieces);
    let (naive_head, naive_records) = naive::cut(framing == Framing::Csv, header, bytes);
    assert_eq!(head, naive_head, "another header");
    assert_eq!(records, naive_records, "other records");
    let mut slots = Slots::default();
    if let Some(head) = &head {
        // A header that is none leaves every record without columns.
        let _ = decoder.header(head);
    }
    let mut all_good = !records.is_empty();
    for r in &records {
        let found = decoder.decode(&r.bytes, &mut slots);
        let text = String::from_utf8_lossy(&r.bytes);
        match (found, naive(&r.bytes, head.as_deref())) {
            (Ok(()), Some(want)) => assert_eq!(values(&slots, wanted, &r.bytes), want, "{text}"),
            (Err(_), None) => all_good = false,
            (Ok(()), None) => panic!("taken: {text}"),
            (Err(e), Some(_)) => panic!("refused with `{}`: {text}", e.message),
        }
    }
    Verdict::accepted(all_good)
}

#[test]
fn json_lines() {
    let seeds = vec![
        br#"{"id":"e1","user":"ann","ts":1714521600000,"n":-0.5e+3,"ok":true,"no":null,"":1}"#.to_vec(),
        br#"{"user":{"id":"a\u00e9\n\"q\"","list":[1,[2,"x"],{"k":false}]},"ts":"2024-05-01T00:00:00Z"}
{"user":"b","user":"c","t/s":1,"m~n":2}
"#
        .to_vec(),
        "\u{feff}{ \"user\" : \"k\u{e4}the\" , \"list\" : [ ] , \"deep\" : { \"a\" : { \"b\" : { } } } }\r\n\r\n{}\n".into(),
        br#"{"esc":"\ud83d\ude00\/\b\f\t\\","num":[0,-0,1.0,10E-2,123456789012345678901234567890]}"#.to_vec(),
    ];
    let dictionary = words(&[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u0041",
        "\\ud83d",
        "\\ude00",
        "\\x",
        "null",
        "true",
        "false",
        "-",
        "0",
        "1e5",
        "1.",
        ".5",
        "\"user\":",
        "\"user\":null,",
        "\"\"",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\u{e9}",
        "[[[[[[[[",
        "{\"a\":{\"a\":",
    ]);
    const WANTED: [&str; 12] = [
        "user",
        "ts",
        "",
        "n",
        "/user/id",
        "/user/list/1",
        "/user/list/1/0",
        "/t~1s",
        "/m~0n",
        "/",
        "/deep/a/b",
        "list",
    ];
    let strategy = (edited(seeds, dictionary), pieces());
    let wanted = names(&WANTED);
    TARGETS.fuzz("json lines", 12_000, strategy, |(bytes, pieces)| {
        let mut decoder = JsonDecoder::new(&wanted);
        // A surrogate on its own is found in some places only, as the decoder says of itself.
        if naive::has_surrogates(&bytes.0) {
            let (_, records) = framed(Framing::Lines, false, &bytes.0, &pieces);
            let mut slots = Slots::default();
            let taken = records.iter().filter(|r| decoder.decode(&r.bytes, &mut slots).is_ok()).count();
            return Verdict::accepted(taken == records.len());
        }
        same(Framing::Lines, false, &bytes.0, &pieces, &mut decoder, WANTED.len(), |r, _| {
            naive::json(r, &WANTED)
        })
    });
}

const COLUMNS: [&str; 4] = ["user", "time", "url", "absent"];

#[test]
fn csv_files() {
    let seeds = vec![
        b"user,time,url\nann,5,/a\nbob,6,\"/b,c\"\n\"c \"\"q\"\"\",7,\"two\nlines\"\n".to_vec(),
        "\u{feff}url,\"time\",user,user\r\n,,,\r\n\"\",1,x y,\u{e9}\r\n".into(),
        b"user,time\na\"b,\"c\"d\n\n\"\"\"\",1".to_vec(),
    ];
    let dictionary =
        words(&[",", "\"", "\"\"", "\n", "\r\n", "\r", "\",\"", "a,b,c\n", "user", "\u{e9}", " ", ",,,,"]);
    let strategy = (edited(seeds, dictionary), pieces());
    let wanted = names(&COLUMNS);
    TARGETS.fuzz("csv", 12_000, strategy, |(bytes, pieces)| {
        let mut decoder = SeparatedDecoder::csv(&wanted);
        same(Framing::Csv, true, &bytes.0, &pieces, &mut decoder, COLUMNS.len(), |r, h| {
            naive::csv(r, h?, &COLUMNS)
        })
    });
}

#[test]
fn tsv_files() {
    let seeds = vec![
        b"user\ttime\turl\nann\t5\t/a\nbob\t6\t\"x\"\t\t\n\t\t\n".to_vec(),
        "\u{feff}url\tuser\r\n\u{e9}\ty\r\n".into(),
    ];
    let dictionary = words(&["\t", "\n", "\r\n", "\r", "\t\t", "user", "\u{e9}", "\"", "a\tb\tc\n"]);
    let strategy = (edited(seeds, dictionary), pieces());
    let wanted = names(&COLUMNS);
    TARGETS.fuzz("tsv", 12_000, strategy, |(bytes, pieces)| {
        let mut decoder = SeparatedDecoder::tsv(&wanted);
        same(Framing::Lines, true, &bytes.0, &pieces, &mut decoder, COLUMNS.len(), |r, h| {
            naive::tsv(r, h?, &COLUMNS)
        })
    });
}

#[test]
fn combined_logs() {
    let seeds = vec![
        br#"83.1.2.3 - - [17/May/2015:10:05:03 +0000] "GET /a?b=\"c\" HTTP/1.1" 200 203023 "http://x/" "Mozilla \\5.0""#.to_vec(),
        br#"h id a user [17/May/2015:10:05:03 +0000] "-" 400 -
::1 - bob [x] "GET /" 304 0 "-" "cut off"#
            .to_vec(),
        b"h - - [t] \"\\x16\\x03\" 400 0 \"-\" \"-\"\r\nh - - [t] \"A B C\" 200 1\n".to_vec(),
    ];
    let dictionary = words(&[
        " ",
        "\"",
        "\\",
        "\\\"",
        "[",
        "]",
        " [",
        "-",
        "\" 200 ",
        "\" \"",
        "\n",
        "1",
        "GET / HTTP/1.0",
        "\u{e9}",
    ]);
    let strategy = (edited(seeds, dictionary), pieces());
    let wanted = names(&FIELDS);
    TARGETS.fuzz("combined log", 12_000, strategy, |(bytes, pieces)| {
        let mut decoder = CombinedDecoder::new(&wanted);
        same(Framing::Lines, false, &bytes.0, &pieces, &mut decoder, FIELDS.len(), |r, _| naive::combined(r))
    });
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(text).unwrap();
    e.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    let mut e = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    e.include_checksum(true).unwrap();
    e.write_all(text).unwrap();
    e.finish().unwrap()
}

/// As much of a stream as anybody would read in a test.
const STREAM_BYTES_MAX: u64 = 64 << 20;

/// A stream ends or fails, and what is not spoiled comes out as it went in.
#[test]
fn compressed_files() {
    let one: Vec<u8> =
        (0..200).flat_map(|n| format!("{{\"n\":{n},\"t\":\"{}\"}}\n", n * n % 97).into_bytes()).collect();
    let long = b"the same line over and over\n".repeat(1_000);
    let plain: [&[u8]; 4] = [&one, b"short\n", b"", &long];
    let parts: Vec<Vec<u8>> = plain.iter().flat_map(|p| [gzip(p), zstd(p)]).collect();
    let magic = vec![
        vec![0x1f, 0x8b, 8],
        vec![0x28, 0xb5, 0x2f, 0xfd],
        vec![0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4],
        vec![0; 9],
    ];
    let spoiled = vec(edit(parts, magic), 0..3);
    let strategy = (vec(0..plain.len(), 1..4), any::<bool>(), spoiled, select(vec![1_usize, 5, 4096]));
    TARGETS.fuzz("compressed files", 2_500, strategy, |(members, is_gzip, edits, portion)| {
        let pack = if is_gzip { gzip } else { zstd };
        let mut bytes: Vec<u8> = members.iter().flat_map(|m| pack(plain[*m])).collect();
        edits.iter().for_each(|e: &Edit| e.apply(&mut bytes));
        let kind = compression::of(&bytes);
        assert!(bytes.len() < 4 || !compression::undecided(&bytes[..4]));
        let (mut framer, mut block) = (Framer::new(Framing::Lines, 0), Block::default());
        let slow = Portions { bytes: std::io::Cursor::new(bytes), most: portion };
        let Ok(stream) = compression::decoder(kind, slow) else { return Verdict::Refused };
        let mut stream = stream.take(STREAM_BYTES_MAX);
        let mut records = Vec::new();
        let end = loop {
            let read = framer.read_from(&mut block, &mut stream);
            records.extend(block.spans.iter().map(|s| (s.offset, block.record(*s).to_vec())));
            match read {
                Ok(Read::Data) => {}
                Ok(Read::Pending) => panic!("a reader has no later"),
                Ok(Read::End) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        // It fails for good, and tells the same each time it is asked.
        let more = framer.read_from(&mut block, &mut stream);
        assert!(block.spans.is_empty() && more.is_err() == end.is_err());
        if edits.is_empty() {
            end.unwrap();
            let whole: Vec<u8> = members.iter().flat_map(|m| plain[*m].to_vec()).collect();
            let (_, want) = naive::cut(false, false, &whole);
            let want: Vec<(u64, Vec<u8>)> = want.into_iter().map(|c| (c.offset, c.bytes)).collect();
            assert!(records == want, "other records");
            assert_ne!(kind, Compression::Plain);
            return Verdict::Accepted;
        }
        Verdict::accepted(end.is_ok() && kind != Compression::Plain)
    });
}

/// A reader that gives a few bytes at a time.
struct Portions {
    bytes: std::io::Cursor<Vec<u8>>,
    most: usize,
}

impl std::io::Read for Portions {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let most = to.len().min(self.most);
        self.bytes.read(&mut to[..most])
    }
}

const YEAR_1_MS: i128 = -62_135_596_800_000;
const YEAR_10000_MS: i128 = 253_402_300_800_000;

#[test]
fn times() {
    let spec = |unit, format: Option<&str>, zone: Option<&str>| TimeSpec {
        unit,
        format: format.map(str::to_owned),
        zone: zone.map(str::to_owned),
    };
    let specs = vec![
        spec(None, None, None),
        spec(None, None, Some("Europe/Berlin")),
        spec(Some(TimeUnit::Seconds), None, None),
        spec(Some(TimeUnit::Millis), None, None),
        spec(Some(TimeUnit::Micros), None, None),
        spec(None, Some("%Y-%m-%d %H:%M:%S"), Some("America/New_York")),
        spec(None, Some("%d/%b/%Y:%H:%M:%S %z"), None),
        spec(None, Some("%s"), None),
    ];
    let seeds = words(&[
        "1714521600000",
        "1714521600.123456",
        "-1",
        "1e3",
        "17145216e5",
        "2024-05-01T00:00:00Z",
        "2024-05-01T02:00:00.25+02:00",
        "2024-02-29",
        "9999-12-31T23:59:59.999Z",
        "0001-01-01T00:00:00Z",
        "2024-03-31 02:30:00",
        "17/May/2015:10:05:03 +0000",
        "31/Dec/9999:23:59:60 -2559",
        "2024-05-01T00:00:00[Europe/Berlin]",
        "2024-10-27T02:30:00",
        "-009999-01-01T00:00:00Z",
    ]);
    let dictionary = words(&[
        "9999",
        "0000",
        "0",
        "-",
        "+",
        "e",
        "E9",
        ".",
        ":",
        "T",
        "Z",
        "+25:59",
        "60",
        "[UTC]",
        "9999999999",
        " ",
        "\0",
    ]);
    let strategy = (select(specs), edited(seeds, dictionary));
    TARGETS.fuzz("times", 30_000, strategy, |(spec, text)| {
        let mut parser = TimeParser::new(&spec).unwrap();
        let text = text.0;
        let found = parser.parse(&text);
        assert_eq!(found, parser.parse(&text), "asked again, it says something else");
        let is_auto = spec.unit.is_none() && spec.format.is_none();
        let shown = String::from_utf8_lossy(&text);
        let per_second = match spec.unit {
            Some(TimeUnit::Seconds) => Some(1),
            Some(TimeUnit::Millis) => Some(1_000),
            Some(TimeUnit::Micros) => Some(1_000_000),
            None => is_auto.then_some(1_000),
        };
        let number = per_second.and_then(|p| naive::milliseconds(&text, p));
        match (number, &found) {
            (Some(ms), Ok(t)) => assert_eq!(i128::from(t.ms()), ms, "{shown}"),
            (Some(ms), Err(e)) => {
                assert_eq!(*e, TimeError::OutOfRange, "{shown}");
                assert!(!(YEAR_1_MS..YEAR_10000_MS).contains(&ms), "{shown} is in range");
            }
            (None, Ok(t)) => {
                assert!(
                    (YEAR_1_MS..YEAR_10000_MS).contains(&i128::from(t.ms())),
                    "{shown}: {t:?} is out of range"
                );
            }
            (None, Err(_)) => {}
        }
        let mut combined = TimeParser::combined();
        assert_eq!(combined.parse(&text).ok().map(|t| t.ms()), naive::clf(&text), "{shown}");
        Verdict::accepted(found.is_ok())
    });
}

/// A format is refused by the config, or one can parse with it.
#[test]
fn time_formats() {
    let seeds = words(&[
        "%Y-%m-%d %H:%M:%S",
        "%d/%b/%Y:%H:%M:%S %z",
        "%s",
        "%FT%T%.f%:z",
        "%A %e %B %Y, %I:%M %p",
        "%Q",
        "%j %Y",
    ]);
    let dictionary = words(&[
        "%",
        "%%",
        "%Y",
        "%q",
        "%.3f",
        "%-d",
        "%_H",
        "%0e",
        "%N",
        "%:Q",
        "\u{e9}",
        " ",
        "%99999999999f",
    ]);
    let texts = words(&["2024-05-01 00:00:00", "1714521600", "17/May/2015:10:05:03 +0000", ""]);
    let strategy = (edited(seeds, dictionary.clone()), edited(texts, dictionary));
    TARGETS.fuzz("time formats", 10_000, strategy, |(format, text)| {
        let format = Some(String::from_utf8_lossy(&format.0).into_owned());
        let Ok(mut parser) = TimeParser::new(&TimeSpec { format, ..TimeSpec::default() }) else {
            return Verdict::Refused;
        };
        let _ = parser.parse(&text.0);
        Verdict::Accepted
    });
}
