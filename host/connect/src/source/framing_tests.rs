//! The framer against a naive split that sees all bytes at once.

use super::*;
use proptest::prelude::*;
use std::io::Cursor;

/// Where it starts, what of it is kept, and its size.
type Record = (u64, Vec<u8>, u64);

/// All records of a stream, with the position to resume at after each block.
fn drain(framer: &mut Framer, bytes: &[u8]) -> (Vec<Record>, Vec<u64>) {
    let (mut reader, mut block) = (Cursor::new(bytes), Block::default());
    let (mut records, mut nexts) = (Vec::new(), Vec::new());
    loop {
        match framer.read_from(&mut block, &mut reader).unwrap() {
            Read::Data => {
                assert!(!block.spans.is_empty());
                records.extend(block.spans.iter().map(|s| (s.offset, block.record(*s).to_vec(), s.size)));
                nexts.push(block.next_offset);
            }
            Read::End => {
                assert_eq!(block.next_offset, framer.taken());
                return (records, nexts);
            }
            Read::Pending => panic!("a reader is never pending"),
        }
    }
}

/// One byte at a time, with everything in memory.
fn naive(framing: Framing, bytes: &[u8], record_max: usize) -> Vec<Record> {
    let (mut records, mut start, mut quoted) = (Vec::new(), 0, false);
    for (i, &b) in bytes.iter().enumerate() {
        let long = i - start > record_max;
        if b == b'"' && framing == Framing::Csv {
            quoted = !quoted;
        }
        if b == b'\n' && (!quoted || long) {
            let line = &bytes[start..i];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            records.push((start as u64, line[..line.len().min(record_max)].to_vec(), line.len() as u64));
            (start, quoted) = (i + 1, false);
        }
    }
    let last = &bytes[start..];
    records.push((start as u64, last[..last.len().min(record_max)].to_vec(), last.len() as u64));
    records.retain(|r| !r.1.is_empty());
    records
}

fn check(framing: Framing, text: &str, expected: &[(u64, &str)]) {
    let expected: Vec<Record> =
        expected.iter().map(|(o, r)| (*o, r.as_bytes().to_vec(), r.len() as u64)).collect();
    for chunk in [1, 2, 3, 5, 1 << 16] {
        let mut framer = Framer::new(framing, 0).with_sizes(chunk, 1 << 10);
        assert_eq!(drain(&mut framer, text.as_bytes()).0, expected, "chunk {chunk}");
    }
}

#[test]
fn line_ends() {
    check(Framing::Lines, "a\nbc\n", &[(0, "a"), (2, "bc")]);
    check(Framing::Lines, "a\r\nbc\r\n", &[(0, "a"), (3, "bc")]);
    check(Framing::Lines, "a\nbc", &[(0, "a"), (2, "bc")]);
    check(Framing::Lines, "a\rb\nc\r", &[(0, "a\rb"), (4, "c\r")]);
    check(Framing::Lines, "", &[]);
}

#[test]
fn empty_lines_are_no_records() {
    check(Framing::Lines, "\n\r\n\na\n\n\r\nb\n\n", &[(4, "a"), (9, "b")]);
    check(Framing::Csv, "\n\r\na\n\n\"\"\n", &[(3, "a"), (6, "\"\"")]);
    check(Framing::Lines, "\n\n\n", &[]);
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_record() {
    let records =
        |text: &str| drain(&mut Framer::new(Framing::Lines, 0).with_sizes(2, 1 << 10), text.as_bytes()).0;
    let bom = "\u{feff}";
    assert_eq!(
        records(&format!("{bom}ab\n{bom}c\n")),
        [(0, b"ab".to_vec(), 2), (6, format!("{bom}c").into_bytes(), 4),]
    );
    assert_eq!(records(&format!("{bom}\na\n")), [(4, b"a".to_vec(), 1)]);
    assert_eq!(records(bom), []);
}

#[test]
fn quotes_hide_line_ends_in_csv_only() {
    let text = "a,\"x\ny\"\r\nb,\"say \"\"\n\"\"\",2\nc\n";
    check(Framing::Csv, text, &[(0, "a,\"x\ny\""), (9, "b,\"say \"\"\n\"\"\",2"), (25, "c")]);
    check(Framing::Lines, "a,\"x\ny\"\n", &[(0, "a,\"x"), (5, "y\"")]);
}

#[test]
fn a_long_record_is_cut_and_the_next_found() {
    for framing in [Framing::Lines, Framing::Csv] {
        let mut bytes = b"first\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', 5 * RECORD_BYTES_MAX));
        bytes.extend(b"\nlast\n");
        let mut framer = Framer::new(framing, 0);
        let (mut reader, mut block, mut records) = (Cursor::new(&bytes), Block::default(), Vec::new());
        while framer.read_from(&mut block, &mut reader).unwrap() == Read::Data {
            assert!(block.bytes.capacity() <= 2 * (RECORD_BYTES_MAX + 2 * CHUNK_BYTES));
            records.extend(block.spans.iter().map(|s| (s.offset, block.record(*s).len(), s.size)));
        }
        let last = 6 + 5 * RECORD_BYTES_MAX as u64 + 1;
        assert_eq!(records, [(0, 5, 5), (6, RECORD_BYTES_MAX, 5 * RECORD_BYTES_MAX as u64), (last, 4, 4)]);
    }
}

#[test]
fn an_unclosed_quote_costs_one_record_only() {
    let text = b"a,\"b\nc,d\ne,f\ng,h\ni,\"j\nk\"\n";
    let mut framer = Framer::new(Framing::Csv, 0).with_sizes(4, 7);
    let expected = [
        (0, b"a,\"b\nc,".to_vec(), 8),
        (9, b"e,f".to_vec(), 3),
        (13, b"g,h".to_vec(), 3),
        (17, b"i,\"j\nk\"".to_vec(), 7),
    ];
    assert_eq!(naive(Framing::Csv, text, 7), expected);
    assert_eq!(drain(&mut framer, text).0, expected);
}

#[test]
fn a_header_that_is_cut_names_no_columns() {
    let mut framer = Framer::new(Framing::Lines, 0).with_header(true).with_sizes(4, 7);
    let (mut reader, mut block) = (Cursor::new(b"key\ttime\na\t1\n"), Block::default());
    for _ in 0..2 {
        let failed = framer.read_from(&mut block, &mut reader).unwrap_err();
        assert!(failed.to_string().contains("longer than 7 bytes") && block.spans.is_empty(), "{failed}");
    }
}

#[test]
fn lines_of_nothing_take_no_memory() {
    let bytes = vec![b'\n'; 20 << 20];
    let (mut framer, mut block) = (Framer::new(Framing::Lines, 0), Block::default());
    assert_eq!(framer.read_from(&mut block, &mut Cursor::new(bytes)).unwrap(), Read::End);
    assert!(block.bytes.capacity() <= 2 << 20);
}

#[test]
fn a_live_tail_waits_for_its_line_end() {
    let mut parts = vec!["two\nthr", "", "ee", "", "\n", ""].into_iter();
    let (mut framer, mut block) = (Framer::new(Framing::Lines, 100), Block::default());
    let mut seen = Vec::new();
    for _ in 0..6 {
        let found = framer.fill(&mut block, |bytes, _| match parts.next() {
            Some("") | None => Ok(Supply::Nothing),
            Some(part) => {
                bytes.extend(part.as_bytes());
                Ok(Supply::Bytes)
            }
        });
        match found.unwrap() {
            Read::Data => seen.extend(block.spans.iter().map(|s| (s.offset, block.record(*s).to_vec()))),
            other => assert_eq!(other, Read::Pending),
        }
    }
    assert_eq!(seen, [(100, b"two".to_vec()), (104, b"three".to_vec())]);
    assert_eq!(framer.fill(&mut block, |_, _| Ok(Supply::End)).unwrap(), Read::End);
}

#[test]
fn an_error_comes_after_the_records_and_stays() {
    struct Broken(u8);
    impl io::Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 > 1 {
                return Err(io::Error::other("gone"));
            }
            buf[..5].copy_from_slice(b"a\nb\nc");
            Ok(5)
        }
    }
    let (mut framer, mut block, mut broken) = (Framer::new(Framing::Lines, 0), Block::default(), Broken(0));
    assert_eq!(framer.read_from(&mut block, &mut broken).unwrap(), Read::Data);
    assert_eq!((block.spans.len(), block.next_offset), (2, 4));
    for _ in 0..2 {
        assert!(framer.read_from(&mut block, &mut broken).unwrap_err().to_string().contains("gone"));
    }
}

fn bytes_of_interest() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(b'\n'), 2 => Just(b'\r'), 2 => Just(b'"'), 8 => any::<u8>()];
    proptest::collection::vec(byte, 0..200)
}

proptest! {
    /// Bugs of borders: between chunks, at the longest record, at the end, at the place of resumption.
    #[test]
    fn any_bytes_in_any_chunks_are_as_a_naive_split(
        bytes in bytes_of_interest(), chunk in 1usize..64, record_max in 1usize..40, csv: bool, header: bool,
    ) {
        let framing = if csv { Framing::Csv } else { Framing::Lines };
        let mut expected = naive(framing, &bytes, record_max);
        prop_assume!(!header || expected.first().is_none_or(|h| h.2 <= record_max as u64));
        let mut framer = Framer::new(framing, 0).with_header(header).with_sizes(chunk, record_max);
        let (records, nexts) = drain(&mut framer, &bytes);
        if header && !expected.is_empty() {
            let first = expected.remove(0).1;
            prop_assert_eq!(framer.header(), Some(first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&first)));
        }
        prop_assert_eq!(&records, &expected);
        for next in nexts.into_iter().chain(expected.iter().map(|r| r.0)) {
            let tail: Vec<Record> = expected.iter().filter(|r| r.0 >= next).cloned().collect();
            let mut sought = Framer::new(framing, next).with_sizes(chunk, record_max);
            prop_assert_eq!(&drain(&mut sought, &bytes[next as usize..]).0, &tail);
            let mut over = Framer::new(framing, 0).with_header(header).resuming_at(next)
                .with_sizes(chunk, record_max);
            prop_assert_eq!(&drain(&mut over, &bytes).0, &tail);
        }
    }
}

/// Records with their lengths before them.
fn delimited(records: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        let mut length = record.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(record);
    }
    bytes
}

/// What is read before an error, and the error.
fn failing(framer: &mut Framer, bytes: &[u8]) -> (Vec<Record>, String) {
    let (mut reader, mut block, mut records) = (Cursor::new(bytes), Block::default(), Vec::new());
    loop {
        match framer.read_from(&mut block, &mut reader) {
            Ok(Read::Data) => {
                records.extend(block.spans.iter().map(|s| (s.offset, block.record(*s).to_vec(), s.size)));
            }
            Ok(other) => panic!("{other:?}"),
            Err(e) => {
                let again = framer.read_from(&mut block, &mut reader).unwrap_err();
                assert_eq!((again.to_string(), block.spans.len()), (e.to_string(), 0));
                return (records, e.to_string());
            }
        }
    }
}

#[test]
fn records_that_are_cut_off_or_too_long_end_a_delimited_stream() {
    let framer = |chunk| Framer::new(Framing::Delimited, 0).with_sizes(chunk, 300);
    let good = delimited(&[vec![b'a'; 200], vec![], b"\xef\xbb\xbf\n".to_vec()]);
    for chunk in [1, 2, 7, 1 << 16] {
        let (records, nexts) = drain(&mut framer(chunk), &good);
        let offsets: Vec<(u64, usize)> = records.iter().map(|r| (r.0, r.1.len())).collect();
        assert_eq!((offsets, nexts.last()), (vec![(0, 200), (202, 0), (203, 4)], Some(&208)));
        let cut = failing(&mut framer(chunk), &good[..206]);
        assert_eq!((cut.0.len(), cut.1.as_str()), (2, "the record at byte 203 is cut off"));
        let long = failing(&mut framer(chunk), &[good.clone(), delimited(&[vec![0; 301]])].concat());
        assert_eq!(long.0.len(), 3);
        assert_eq!(long.1, "the record at byte 208 says that it has 301 bytes, and none has more than 300");
        let endless = failing(&mut framer(chunk), &[0xff; 20]);
        assert!(endless.1.contains("says that it has"), "{}", endless.1);
        let half = failing(&mut framer(chunk), &[0xff; 3]);
        assert_eq!(half.1, "the record at byte 0 is cut off");
    }
}

proptest! {
    /// Bug family: a record that depends on how its bytes came, a position where reading cannot go on.
    #[test]
    fn delimited_records_come_back(
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
        chunk in 1..300_usize,
    ) {
        let bytes = delimited(&records);
        let (found, nexts) = drain(&mut Framer::new(Framing::Delimited, 0).with_sizes(chunk, 1 << 10), &bytes);
        prop_assert_eq!(found.iter().map(|r| r.1.clone()).collect::<Vec<_>>(), records);
        for next in nexts {
            let rest = &bytes[next as usize..];
            let (again, _) = drain(&mut Framer::new(Framing::Delimited, next).with_sizes(chunk, 1 << 10), rest);
            let after: Vec<Record> = found.iter().filter(|r| r.0 >= next).cloned().collect();
            prop_assert_eq!(again, after);
        }
    }
}
