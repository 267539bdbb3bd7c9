//! The partition over a pipe whose writer the test holds.

use super::*;
use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// A pipe of portions: `read` waits for the next one, as a real pipe does.
struct Pipe(Receiver<io::Result<Vec<u8>>>, Vec<u8>);

impl io::Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.1.is_empty() {
            match self.0.recv() {
                Ok(portion) => self.1 = portion?,
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.1.len());
        buf[..n].copy_from_slice(&self.1[..n]);
        self.1.drain(..n);
        Ok(n)
    }
}

fn pipe(has_header: bool, skip: u64) -> (Sender<io::Result<Vec<u8>>>, StdinPartition) {
    let (sender, receiver) = channel();
    let pipe = Pipe(receiver, Vec::new());
    (sender, StdinPartition::from_reader(pipe, Framing::Lines, has_header, skip).unwrap())
}

/// Reads until `n` records are there or no more can come.
fn take(partition: &mut StdinPartition, n: usize) -> (Vec<(u64, String)>, Result<Read, ConnectError>) {
    let (mut block, mut records) = (Block::default(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(20);
    while records.len() < n {
        match partition.read(&mut block) {
            Ok(Read::Data) => records.extend(
                block.spans.iter().map(|s| (s.offset, String::from_utf8(block.record(*s).to_vec()).unwrap())),
            ),
            Ok(Read::Pending) => {
                assert!(Instant::now() < deadline, "{n} records wanted, {} came", records.len());
                thread::yield_now();
            }
            end => return (records, end),
        }
    }
    (records, Ok(Read::Data))
}

fn rows(rows: &[(u64, &str)]) -> Vec<(u64, String)> {
    rows.iter().map(|(o, r)| (*o, (*r).to_owned())).collect()
}

#[test]
fn whole_records_come_at_once_and_reading_never_waits() {
    let (sender, mut partition) = pipe(false, 0);
    let mut block = Block::default();
    assert_eq!(partition.read(&mut block).unwrap(), Read::Pending);
    sender.send(Ok(b"a\nb".to_vec())).unwrap();
    assert_eq!(take(&mut partition, 1).0, rows(&[(0, "a")]));
    assert_eq!(partition.read(&mut block).unwrap(), Read::Pending);
    sender.send(Ok(b"c\n".to_vec())).unwrap();
    assert_eq!(take(&mut partition, 1).0, rows(&[(2, "bc")]));
    sender.send(Ok(b"last".to_vec())).unwrap();
    drop(sender);
    let (records, end) = take(&mut partition, usize::MAX);
    assert_eq!(records, rows(&[(5, "last")]));
    assert_eq!(end.unwrap(), Read::End);
    assert_eq!(partition.read(&mut block).unwrap(), Read::End);
}

#[test]
fn a_short_first_line_is_not_held_back() {
    let (sender, mut partition) = pipe(false, 0);
    sender.send(Ok(b"P\n".to_vec())).unwrap();
    assert_eq!(take(&mut partition, 1).0, rows(&[(0, "P")]));
}

#[test]
fn resuming_keeps_the_header_and_reads_over_what_was_read() {
    let text = "time\n1\n2\n3\n";
    for (skip, rest) in [(0, &[(5, "1"), (7, "2"), (9, "3")][..]), (7, &[(7, "2"), (9, "3")]), (11, &[])] {
        let (sender, mut partition) = pipe(true, skip);
        for byte in text.bytes() {
            sender.send(Ok(vec![byte])).unwrap();
        }
        drop(sender);
        let (records, end) = take(&mut partition, usize::MAX);
        assert_eq!(records, rows(rest));
        assert_eq!(end.unwrap(), Read::End);
        assert_eq!(partition.header(), Some(&b"time"[..]));
    }
}

#[test]
fn another_shorter_input_is_a_conflict() {
    let (sender, mut partition) = pipe(false, 100);
    sender.send(Ok(b"a\n".to_vec())).unwrap();
    drop(sender);
    let Err(ConnectError::Conflict(message)) = take(&mut partition, 1).1 else { panic!() };
    assert!(message.contains("byte 2") && message.contains("byte 100"), "{message}");
}

#[test]
fn more_than_the_channel_holds_arrives_whole() {
    let text: String = (0..300_000).map(|i| format!("{i}\n")).collect();
    let reader = io::Cursor::new(text.clone().into_bytes());
    let mut partition = StdinPartition::from_reader(reader, Framing::Lines, false, 0).unwrap();
    let (records, end) = take(&mut partition, usize::MAX);
    assert_eq!(end.unwrap(), Read::End);
    assert!(records.iter().map(|r| r.1.as_str()).eq(text.lines()));
}

#[test]
fn compressed_input_is_recognised_and_its_damage_reported() {
    let text = "a\nb\nc\n".repeat(1000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
    for bytes in [gzip, zstd] {
        let cut = bytes[..bytes.len() - 1].to_vec();
        let read = |bytes: Vec<u8>| {
            let reader = io::Cursor::new(bytes);
            take(&mut StdinPartition::from_reader(reader, Framing::Lines, false, 0).unwrap(), usize::MAX)
        };
        let (records, end) = read(bytes);
        assert_eq!((records.len(), end.unwrap()), (3000, Read::End));
        let end = read(cut).1;
        let Err(ConnectError::Failed(message)) = end else { panic!("{end:?}") };
        assert!(message.contains("stdin"), "{message}");
    }
}

#[test]
fn an_error_comes_after_the_records() {
    let (sender, mut partition) = pipe(false, 0);
    sender.send(Ok(b"a\nb".to_vec())).unwrap();
    sender.send(Err(io::Error::other("unplugged"))).unwrap();
    let (records, end) = take(&mut partition, usize::MAX);
    assert_eq!(records, rows(&[(0, "a")]));
    let Err(ConnectError::Failed(message)) = end else { panic!("{end:?}") };
    assert!(message.contains("unplugged") && message.contains("byte 3"), "{message}");
}

#[test]
fn a_thread_that_died_is_no_end_of_input() {
    struct Dying;
    impl io::Read for Dying {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("the test wants this thread to die")
        }
    }
    let mut partition = StdinPartition::from_reader(Dying, Framing::Lines, false, 0).unwrap();
    assert!(matches!(take(&mut partition, 1).1, Err(ConnectError::Failed(_))));
}
