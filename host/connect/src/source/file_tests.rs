//! Files in every coding, resumed everywhere, damaged, followed and rotated.

use super::*;
use std::io::Write;
use tempfile::TempDir;

type Record = (u64, Vec<u8>);

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn put(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn append(path: &Path, bytes: &[u8]) {
    File::options().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// With a checksum, as the command line tool writes it; without one, changed bytes may go unnoticed.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Lines that do not compress to nothing, so that codings have several blocks.
fn lines(n: u64) -> Vec<u8> {
    let mut text = Vec::new();
    for i in 0..n {
        writeln!(text, "{{\"n\":{i},\"x\":\"{:016x}\"}}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
    }
    text
}

/// Reads until there is nothing (now): the records and what ended them.
fn drain(partition: &mut FilePartition) -> (Vec<Record>, Result<Read, ConnectError>) {
    let (mut block, mut records) = (Block::default(), Vec::new());
    loop {
        match partition.read(&mut block) {
            Ok(Read::Data) => {
                assert!(!block.spans.is_empty());
                records.extend(block.spans.iter().map(|s| (s.offset, block.record(*s).to_vec())));
            }
            other => return (records, other),
        }
    }
}

fn all(path: &Path, has_header: bool, offset: u64) -> Vec<Record> {
    let mut partition = FilePartition::open(path, Framing::Lines, has_header, offset, false).unwrap();
    let (records, end) = drain(&mut partition);
    assert_eq!(end.unwrap(), Read::End);
    records
}

fn naive(text: &[u8]) -> Vec<Record> {
    let mut at = 0;
    let mut records = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        if !line.is_empty() {
            records.push((at, line.to_vec()));
        }
        at += line.len() as u64 + 1;
    }
    records
}

fn texts(records: &[Record]) -> Vec<&str> {
    records.iter().map(|r| std::str::from_utf8(&r.1).unwrap()).collect()
}

/// One text in every coding: with several members and frames, cut where no line ends.
fn codings(dir: &TempDir, text: &[u8]) -> Vec<PathBuf> {
    let (a, b) = text.split_at((text.len() / 3 + 5).min(text.len()));
    // A skippable frame before the data, as pzstd writes it.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip", &zstd(a), &zstd(b)].concat();
    vec![
        put(dir, "plain", text),
        put(dir, "one.gz", &gzip(text)),
        put(dir, "two.gz", &[gzip(a), gzip(b)].concat()),
        put(dir, "one.zst", &zstd(text)),
        put(dir, "two.zst", &[zstd(a), zstd(b)].concat()),
        put(dir, "skippable.zst", &skippable),
    ]
}

#[test]
fn every_coding_gives_the_same_records() {
    let (dir, text) = (dir(), lines(40_000));
    let expected = naive(&text);
    for path in codings(&dir, &text) {
        assert!(all(&path, false, 0) == expected, "{}", path.display());
        assert!(all(&path, true, 0) == expected[1..], "{} with header", path.display());
    }
}

#[test]
fn resuming_anywhere_gives_the_tail() {
    let (dir, text) = (dir(), lines(100));
    let expected = naive(&text);
    for path in codings(&dir, &text) {
        for (i, (offset, _)) in expected.iter().enumerate() {
            assert_eq!(all(&path, false, *offset), expected[i..]);
            assert_eq!(all(&path, true, *offset), expected[i.max(1)..]);
        }
        assert_eq!(all(&path, true, text.len() as u64), []);
    }
}

#[test]
fn a_block_says_where_to_resume() {
    let (dir, text) = (dir(), lines(40_000));
    let expected = naive(&text);
    for path in codings(&dir, &text) {
        let (mut partition, mut block) =
            (FilePartition::open(&path, Framing::Lines, true, 0, false).unwrap(), Block::default());
        let (mut seen, mut blocks) = (1, 0);
        while partition.read(&mut block).unwrap() == Read::Data {
            seen += block.spans.len();
            blocks += 1;
            assert!(all(&path, true, block.next_offset) == expected[seen..]);
        }
        assert!(blocks > 3);
        assert_eq!(seen, expected.len());
    }
}

#[test]
fn the_header_is_there_from_the_start() {
    let (dir, text) = (dir(), b"\xef\xbb\xbftime,user\n1,a\n2,b\n");
    for path in codings(&dir, text) {
        for (offset, rest) in [(0, &["1,a", "2,b"][..]), (13, &["1,a", "2,b"]), (17, &["2,b"]), (21, &[])] {
            let mut partition = FilePartition::open(&path, Framing::Csv, true, offset, false).unwrap();
            assert_eq!(partition.header(), Some(&b"time,user"[..]));
            assert_eq!(texts(&drain(&mut partition).0), rest, "{} from {offset}", path.display());
            assert_eq!(partition.header(), Some(&b"time,user"[..]));
        }
    }
    let empty = put(&dir, "empty", b"");
    let mut partition = FilePartition::open(&empty, Framing::Csv, true, 0, false).unwrap();
    assert_eq!(partition.header(), None);
    assert_eq!(drain(&mut partition).1.unwrap(), Read::End);
}

#[test]
fn line_ends_and_quotes_in_files() {
    let dir = dir();
    let path = put(&dir, "a", b"a\r\n\r\n\nb\r\nc");
    assert_eq!(texts(&all(&path, false, 0)), ["a", "b", "c"]);
    let path = put(&dir, "b.csv", b"h,i\n1,\"x\ny\"\n2,z");
    let mut partition = FilePartition::open(&path, Framing::Csv, true, 0, false).unwrap();
    assert_eq!(texts(&drain(&mut partition).0), ["1,\"x\ny\"", "2,z"]);
}

#[test]
fn damage_comes_after_the_records_before_it() {
    let (dir, text) = (dir(), lines(40_000));
    let expected = naive(&text);
    for (name, whole) in [("a.gz", gzip(&text)), ("a.zst", zstd(&text))] {
        let mut flipped = whole.clone();
        let middle = whole.len() / 2;
        flipped[middle..middle + 64].iter_mut().for_each(|b| *b ^= 0x5a);
        let cut = whole[..whole.len() * 2 / 3].to_vec();
        let without_trailer = whole[..whole.len() - 3].to_vec();
        for (kind, bytes, least) in
            [("cut", cut, 10_000), ("flipped", flipped, 1_000), ("trailer", without_trailer, 30_000)]
        {
            let path = put(&dir, name, &bytes);
            let mut partition = FilePartition::open(&path, Framing::Lines, false, 0, false).unwrap();
            let (records, end) = drain(&mut partition);
            assert!(records.len() > least, "{name} {kind}: only {} records", records.len());
            if kind != "flipped" {
                assert!(records == expected[..records.len()], "{name} {kind}");
            }
            for end in [end, drain(&mut partition).1] {
                let Err(ConnectError::Failed(message)) = end else { panic!("{name} {kind}: {end:?}") };
                assert!(message.contains(path.to_str().unwrap()) && message.contains("beyond byte"));
            }
            // Put a whole copy in its place, and it goes on.
            let next = records.last().map_or(0, |r| r.0 + r.1.len() as u64 + 1);
            let path = put(&dir, name, &whole);
            if kind != "flipped" {
                assert!(all(&path, false, next) == expected[records.len()..]);
            }
        }
    }
}

#[test]
fn garbage_behind_a_member_is_damage() {
    let dir = dir();
    let path = put(&dir, "a.gz", &[gzip(b"a\nb\n"), b"garbage".to_vec()].concat());
    let mut partition = FilePartition::open(&path, Framing::Lines, true, 0, false).unwrap();
    let (records, end) = drain(&mut partition);
    assert_eq!(texts(&records), ["b"]);
    assert!(matches!(end, Err(ConnectError::Failed(_))));
}

#[test]
fn unusable_paths_are_config_errors() {
    let dir = dir();
    let missing = dir.path().join("missing.log");
    let config = |result: Result<FilePartition, ConnectError>| match result {
        Err(ConnectError::Config(message)) => message,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened"),
    };
    let message = config(FilePartition::open(&missing, Framing::Lines, false, 0, false));
    assert!(message.contains(missing.to_str().unwrap()) && message.contains("os error 2"), "{message}");
    let message = config(FilePartition::open(dir.path(), Framing::Lines, false, 0, false));
    assert!(message.contains("directory") && message.contains("os error 21"), "{message}");
    let message = config(FilePartition::open("/dev/null", Framing::Lines, false, 0, false));
    assert!(message.contains("/dev/null"), "{message}");
    assert!(matches!(identity(&missing), Err(ConnectError::Config(_))));
}

#[test]
fn a_file_shorter_than_what_was_read_is_a_conflict() {
    let dir = dir();
    for path in codings(&dir, b"a\nb\n") {
        let result = FilePartition::open(&path, Framing::Lines, false, 100, false)
            .and_then(|mut partition| drain(&mut partition).1);
        let Err(ConnectError::Conflict(message)) = result else { panic!("{result:?}") };
        assert!(message.contains("byte 4") && message.contains("byte 100"), "{message}");
    }
}

#[test]
fn identity_survives_growth_and_rename() {
    let dir = dir();
    let path = put(&dir, "a.log", b"first line\n");
    let stored = identity(&path).unwrap();
    assert_eq!((stored.head_len, stored.path.as_str()), (11, path.to_str().unwrap()));
    append(&path, &lines(100));
    assert!(same_file(&stored, &path).unwrap());
    let moved = dir.path().join("a.log.1");
    fs::rename(&path, &moved).unwrap();
    assert!(same_file(&stored, &moved).unwrap());

    let grown = identity(&moved).unwrap();
    assert_eq!(grown.head_len, 1024);
    let copy = put(&dir, "copy.log", &fs::read(&moved).unwrap());
    assert!(!same_file(&grown, &copy).unwrap(), "another inode under another name");
    fs::remove_file(&moved).unwrap();
    fs::rename(&copy, &moved).unwrap();
    assert!(same_file(&grown, &moved).unwrap(), "copied back to its path");

    put(&dir, "a.log", b"second one\nand more\n");
    assert!(!same_file(&stored, &path).unwrap(), "same path, another head");
    File::options().write(true).open(&moved).unwrap().set_len(1023).unwrap();
    assert!(!same_file(&grown, &moved).unwrap(), "shorter than its head");
}

#[test]
fn lists_paths_and_patterns() {
    let dir = dir();
    for name in ["b.log", "a.log", ".c.log", "d[1].log"] {
        put(&dir, name, b"");
    }
    fs::create_dir(dir.path().join("e.log")).unwrap();
    let list = |pattern: &str| list(&format!("{}/{pattern}", dir.path().display()));
    let names = |pattern: &str| -> Vec<String> {
        let paths = list(pattern).unwrap();
        paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("*.log"), ["a.log", "b.log", "d[1].log"]);
    assert_eq!(names("b.log"), ["b.log"]);
    assert_eq!(names("d[1].log"), ["d[1].log"]);
    for wrong in ["*.json", "missing.log", "***", "e.log", "e*"] {
        let Err(ConnectError::Config(message)) = list(wrong) else { panic!("{wrong}") };
        assert!(message.contains(wrong), "{message}");
    }
}

#[test]
fn twins_are_copies_of_one_name() {
    let paths = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(PathBuf::from).collect() };
    let list = paths(&["a.gz", "a", "b.gz", "c.zst", "c.gz", "d/a.gz", "e.log", "e.log.1.gz", "a.zst"]);
    let expected: Vec<(PathBuf, PathBuf)> = [("a", "a.gz"), ("a", "a.zst"), ("c.gz", "c.zst")]
        .map(|(a, b)| (PathBuf::from(a), PathBuf::from(b)))
        .into();
    assert_eq!(compressed_twins(&list), expected);
}

fn follow(path: &Path, has_header: bool) -> FilePartition {
    FilePartition::open(path, Framing::Lines, has_header, 0, true).unwrap()
}

/// What a followed file has now; it must then be pending.
fn now(partition: &mut FilePartition) -> Vec<String> {
    let (records, end) = drain(partition);
    assert_eq!(end.unwrap(), Read::Pending);
    texts(&records).into_iter().map(str::to_owned).collect()
}

#[test]
fn following_waits_for_whole_lines() {
    let dir = dir();
    let path = put(&dir, "a.log", b"");
    let mut partition = follow(&path, false);
    assert!(now(&mut partition).is_empty());
    append(&path, b"one\ntw");
    assert_eq!(now(&mut partition), ["one"]);
    append(&path, b"o");
    assert!(now(&mut partition).is_empty());
    append(&path, b"\r\nthree\n");
    assert_eq!(now(&mut partition), ["two", "three"]);
    assert_eq!(partition.rotated().unwrap(), Rotation::No);
}

#[test]
fn a_followed_file_gets_its_header_later() {
    let dir = dir();
    let path = put(&dir, "a.csv", b"ti");
    let mut partition = follow(&path, true);
    assert_eq!(partition.header(), None);
    append(&path, b"me\n");
    assert!(now(&mut partition).is_empty());
    assert_eq!(partition.header(), Some(&b"time"[..]));
    append(&path, b"1\n");
    assert_eq!(now(&mut partition), ["1"]);
}

#[test]
fn rotation_by_rename_loses_nothing() {
    let dir = dir();
    let path = put(&dir, "a.log", b"one\n");
    let mut partition = follow(&path, false);
    assert_eq!(now(&mut partition), ["one"]);
    let moved = dir.path().join("a.log.1");
    fs::rename(&path, &moved).unwrap();
    assert_eq!(partition.rotated().unwrap(), Rotation::No, "the new file is not there yet");
    append(&moved, b"two\n");
    assert_eq!(now(&mut partition), ["two"]);
    put(&dir, "a.log", b"four\n");
    assert_eq!(partition.rotated().unwrap(), Rotation::Renamed);
    append(&moved, b"three");
    assert!(now(&mut partition).is_empty());
    partition.finish();
    let (records, end) = drain(&mut partition);
    assert_eq!((texts(&records), end.unwrap()), (vec!["three"], Read::End));
    assert_eq!(now(&mut follow(&path, false)), ["four"]);
}

#[test]
fn truncation_is_seen_even_when_the_file_has_grown_again() {
    let dir = dir();
    let path = put(&dir, "a.log", b"");
    let mut partition = follow(&path, false);
    append(&path, b"one\ntwo\n");
    assert_eq!(now(&mut partition), ["one", "two"]);
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert_eq!(now(&mut partition), Vec::<String>::new());
    assert_eq!(partition.rotated().unwrap(), Rotation::Truncated, "shorter");

    append(&path, b"new\nnew\nnew\n");
    assert_eq!(now(&mut partition), Vec::<String>::new(), "it continues nothing");
    assert_eq!(partition.rotated().unwrap(), Rotation::Truncated, "longer, with another head");
    assert_eq!(now(&mut follow(&path, false)), ["new", "new", "new"]);
}

#[test]
fn a_cut_behind_the_head_is_truncation() {
    let dir = dir();
    let path = put(&dir, "a.log", &lines(100));
    let mut partition = follow(&path, false);
    assert_eq!(now(&mut partition).len(), 100);
    File::options().write(true).open(&path).unwrap().set_len(1500).unwrap();
    assert_eq!(partition.rotated().unwrap(), Rotation::Truncated);
}

#[test]
fn a_compressed_file_is_read_to_its_end_even_when_followed() {
    let dir = dir();
    let path = put(&dir, "a.log.1.gz", &gzip(b"one\n"));
    let mut partition = follow(&path, false);
    let (records, end) = drain(&mut partition);
    assert_eq!((texts(&records), end.unwrap()), (vec!["one"], Read::End));
}
