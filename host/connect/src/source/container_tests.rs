//! Files as `apache-avro` writes them, read, resumed and damaged.

use super::*;
use crate::format::avro::AvroDecoder;
use crate::format::{Decoder as _, Slots};
use apache_avro::types::Value as Avro;
use apache_avro::{Codec as Packing, DeflateSettings, Writer, ZstandardSettings};
use proptest::prelude::*;

const SCHEMA: &str =
    r#"{"type":"record","name":"R","fields":[{"name":"n","type":"long"},{"name":"s","type":"string"}]}"#;

fn packings() -> [Packing; 4] {
    [
        Packing::Null,
        Packing::Deflate(DeflateSettings::default()),
        Packing::Snappy,
        Packing::Zstandard(ZstandardSettings::default()),
    ]
}

/// A file of blocks with so many records; record `n` has a text of `n % 50` characters.
fn file(packing: Packing, blocks: &[usize]) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(SCHEMA).unwrap();
    let mut writer = Writer::with_codec(&schema, Vec::new(), packing).unwrap();
    let mut n = 0;
    for block in blocks {
        for _ in 0..*block {
            let text = "x".repeat(n % 50);
            let fields = vec![("n".to_owned(), Avro::Long(n as i64)), ("s".to_owned(), Avro::String(text))];
            writer.append_value(Avro::Record(fields)).unwrap();
            n += 1;
        }
        writer.flush().unwrap();
    }
    writer.into_inner().unwrap()
}

/// What can be read of a file from an offset on: offsets with the records' numbers, and how it ends.
fn read(bytes: &[u8], offset: u64) -> (Vec<(u64, String)>, Result<u64, ConnectError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.avro");
    std::fs::write(&path, bytes).unwrap();
    let mut partition = ContainerPartition::open(&path, offset).unwrap();
    let mut decoder = AvroDecoder::of_files(&["n".to_owned()], None);
    decoder.header(partition.header().unwrap()).unwrap();
    let (mut block, mut slots, mut records) = (Block::default(), Slots::default(), Vec::new());
    loop {
        match partition.read(&mut block) {
            Ok(Read::Data) => {}
            Ok(_) => {
                assert_eq!(partition.bytes_taken(), bytes.len() as u64);
                return (records, Ok(block.next_offset));
            }
            Err(e) => {
                assert!(block.spans.is_empty());
                return (records, Err(e));
            }
        }
        assert!(!block.spans.is_empty());
        for span in &block.spans {
            let record = block.record(*span);
            let text = match decoder.decode(record, &mut slots) {
                Ok(()) => String::from_utf8(slots.get(0, record).to_vec()).unwrap(),
                Err(e) => e.message,
            };
            records.push((span.offset, text));
        }
    }
}

fn numbers(records: &[(u64, String)]) -> Vec<usize> {
    records.iter().map(|(_, n)| n.parse().unwrap()).collect()
}

#[test]
fn files_of_every_packing_are_read_and_resumed_at_every_record() {
    for packing in packings() {
        let bytes = file(packing, &[3, 100, 1]);
        let (all, end) = read(&bytes, 0);
        assert_eq!(numbers(&all), (0..104).collect::<Vec<_>>());
        assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
        let end = end.unwrap();
        for (i, (offset, _)) in all.iter().enumerate() {
            assert_eq!(read(&bytes, *offset).0, all[i..]);
        }
        assert_eq!(read(&bytes, end).0, []);
        assert!(matches!(read(&bytes, end + 1).1, Err(ConnectError::Conflict(_))));
    }
    assert_eq!(read(&file(Packing::Null, &[]), 0).1.unwrap(), 0);
}

/// Blocks are larger than what is handed out at once, and what is handed out says where to go on.
#[test]
fn large_blocks_come_in_portions() {
    let bytes = file(Packing::Snappy, &[40_000]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.avro");
    std::fs::write(&path, &bytes).unwrap();
    let (mut block, mut offset, mut count, mut portions) = (Block::default(), 0, 0, 0);
    loop {
        let mut partition = ContainerPartition::open(&path, offset).unwrap();
        if partition.read(&mut block).unwrap() == Read::End {
            break;
        }
        assert!(block.bytes.len() < 2 * CHUNK_BYTES);
        (offset, count, portions) = (block.next_offset, count + block.spans.len(), portions + 1);
    }
    assert_eq!(count, 40_000);
    assert!(portions > 2, "{portions}");
}

#[test]
fn damage_is_told_after_what_came_before_it() {
    for packing in packings() {
        let bytes = file(packing, &[5, 5, 5]);
        let marker = &bytes[bytes.len() - MARKER_BYTES..];
        let ends: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(marker)).collect();
        // Of the header, and of three blocks.
        assert_eq!(ends.len(), 4);
        let failed = |bytes: &[u8], part: &str| {
            let (records, end) = read(bytes, 0);
            assert_eq!(numbers(&records), (0..5).collect::<Vec<_>>());
            let Err(ConnectError::Failed(why)) = end else { panic!("{end:?}") };
            assert!(why.contains(part), "{why}");
        };
        failed(&bytes[..ends[2] - 1], "cut off inside a block");
        failed(&bytes[..ends[2] + 3], "cut off inside a block");
        let mut spoiled = bytes.clone();
        spoiled[ends[2]] ^= 1;
        failed(&spoiled, "file's marker");
        // The second block's first byte is how many records it has.
        let mut spoiled = bytes.clone();
        spoiled[ends[1] + MARKER_BYTES] = 1;
        failed(&spoiled, "a block has -1 records");
        // Which has a checksum; the others may unpack to something else.
        if packing == Packing::Snappy {
            let mut spoiled = bytes.clone();
            spoiled[ends[2] - 2] ^= 0xff;
            let (records, end) = read(&spoiled, 0);
            assert_eq!(numbers(&records), (0..5).collect::<Vec<_>>(), "{packing:?}");
            assert!(matches!(end, Err(ConnectError::Failed(_))), "{end:?}");
        }
    }
}

/// A file by hand: a header, and blocks of (count, bytes).
fn by_hand(schema: &str, codec: &str, blocks: &[(i64, &[u8])]) -> Vec<u8> {
    let long = |n: i64| {
        let (mut n, mut bytes) = (((n << 1) ^ (n >> 63)) as u64, Vec::new());
        while n >= 0x80 {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    let text = |t: &str| [long(t.len() as i64), t.as_bytes().to_vec()].concat();
    let entries = [text("avro.schema"), text(schema), text("avro.codec"), text(codec)].concat();
    // The entries as a block with its length.
    let mut file =
        [MAGIC.to_vec(), long(-2), long(entries.len() as i64), entries, vec![0], vec![7; 16]].concat();
    for (count, bytes) in blocks {
        file.extend([long(*count), long(bytes.len() as i64), bytes.to_vec(), vec![7; 16]].concat());
    }
    file
}

#[test]
fn a_record_that_is_none_takes_the_rest_of_its_block() {
    let bytes =
        by_hand(SCHEMA, "null", &[(2, &[2, 2, b'a', 4, 0]), (3, &[6, 0, 8, 2, 0xff, 10, 0]), (1, &[12, 0])]);
    let (records, end) = read(&bytes, 0);
    assert_eq!(records.iter().map(|r| r.0).collect::<Vec<_>>(), [0, 3, 5, 7, 12]);
    assert_eq!(records[2].1, "3");
    assert!(records[3].1.contains("no UTF-8"), "{records:?}");
    assert_eq!((records[4].1.as_str(), end.unwrap()), ("6", 14));
    // Counts that do not fit what is there.
    for (count, part) in
        [(1, "4 bytes follow"), (4, "fewer records than it says"), (9, "9 records in 6 bytes")]
    {
        let bytes = by_hand(SCHEMA, "null", &[(count, &[2, 0, 4, 2, b'b', 6])]);
        let bytes = if count == 4 { by_hand(SCHEMA, "null", &[(count, &[2, 0, 4, 0])]) } else { bytes };
        let (_, end) = read(&bytes, 0);
        let Err(ConnectError::Failed(why)) = end else { panic!("{end:?}") };
        assert!(why.contains(part), "{why}");
    }
    let nulls = by_hand(r#"{"type":"record","name":"R","fields":[]}"#, "null", &[(i64::MAX, b"")]);
    assert!(matches!(read(&nulls, 0).1, Err(ConnectError::Failed(_))));
}

#[test]
fn files_that_are_none_are_refused_when_they_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.avro");
    let opened = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match ContainerPartition::open(&path, 0) {
            Ok(_) => panic!("it was opened"),
            Err(ConnectError::Config(why)) => why,
            Err(other) => panic!("{other:?}"),
        }
    };
    let good = by_hand(SCHEMA, "null", &[]);
    for cut in 0..good.len() {
        let why = opened(&good[..cut]);
        assert!(why.contains("it is no Avro container file"), "{why}");
    }
    assert!(opened(b"{\"a\":1}").contains("begins with \"Obj\""));
    assert!(opened(&by_hand(SCHEMA, "bzip2", &[])).contains("packed with `bzip2`"));
    assert!(opened(&by_hand("{", "null", &[])).contains("is no JSON"));
    let many = [MAGIC.to_vec(), vec![0xfe, 0xff, 0x7f], vec![0; 10_000]].concat();
    assert!(opened(&many).contains("more than 1000 entries"));
    let long = [MAGIC.to_vec(), vec![2, 0xfe, 0xff, 0xff, 0xff, 0x7f]].concat();
    assert!(opened(&long).contains("a text in its header is"));
    assert!(matches!(ContainerPartition::open(dir.path().join("none"), 0), Err(ConnectError::Config(_))));
}

proptest! {
    /// Bug family: a damaged file that never ends, takes memory by its own word, or is read otherwise a second time.
    #[test]
    fn damaged_files_end(
        packing in 0..4_usize,
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = file(packings()[packing], &[4, 7]);
        let header = by_hand(SCHEMA, "zstandard", &[]).len();
        let at = header + at.index(bytes.len() - header);
        bytes[at] ^= 1 << bit;
        if cut.index(4) == 0 {
            bytes.truncate(header + cut.index(bytes.len() - header));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.avro");
        std::fs::write(&path, &bytes).unwrap();
        let Ok(mut partition) = ContainerPartition::open(&path, 0) else { return Ok(()) };
        let (mut block, mut records) = (Block::default(), 0);
        while matches!(partition.read(&mut block), Ok(Read::Data)) {
            records += block.spans.len();
            prop_assert!(records <= bytes.len());
        }
        let again = partition.read(&mut block);
        prop_assert!(block.spans.is_empty() && !matches!(again, Ok(Read::Data)));
    }
}
