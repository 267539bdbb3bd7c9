//! Appending, reading, trimming and recovering an ingest log, whatever was cut off.

use super::*;
use std::sync::mpsc;

const MANY: u64 = 1 << 40;

fn append(log: &IngestLog, records: &[&str]) -> Result<(), Refused> {
    let (told, answer) = mpsc::channel();
    let records = records.iter().map(|r| r.as_bytes().to_vec()).collect();
    log.append(records, Box::new(move |r| told.send(r).unwrap()))?;
    answer.recv().unwrap()
}

fn read(log: &IngestLog, offset: u64) -> Vec<(u64, String)> {
    let mut reader = log.reader(offset);
    let mut all = Vec::new();
    let mut block = Block::default();
    loop {
        block.clear();
        match reader.read(&mut block).unwrap() {
            Read::Data => {
                let text = |s: &Span| String::from_utf8(block.record(*s).to_vec()).unwrap();
                all.extend(block.spans.iter().map(|s| (s.offset, text(s))));
            }
            Read::Pending => return all,
            Read::End => panic!("it has no end"),
        }
    }
}

fn texts(log: &IngestLog, offset: u64) -> Vec<String> {
    read(log, offset).into_iter().map(|(_, text)| text).collect()
}

fn refused(dir: &Path, read_from: u64) -> String {
    match IngestLog::open(dir, Some(read_from), MANY) {
        Err(ConnectError::Storage(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn last_segment(dir: &Path) -> PathBuf {
    list(dir).unwrap().pop_last().unwrap().1
}

#[test]
fn what_was_acknowledged_is_read_again_from_any_record_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = IngestLog::open(dir.path(), Some(0), MANY).unwrap();
    assert_eq!(texts(&log, 0), [""; 0]);
    append(&log, &["a", "", "ccc"]).unwrap();
    append(&log, &["dd"]).unwrap();
    let all = read(&log, 0);
    assert_eq!(all, [(0, "a".into()), (9, String::new()), (17, "ccc".into()), (28, "dd".into())]);
    assert_eq!(texts(&log, 17), ["ccc", "dd"]);
    drop(log);
    let log = IngestLog::open(dir.path(), Some(17), MANY).unwrap();
    append(&log, &["e"]).unwrap();
    assert_eq!(texts(&log, 17), ["ccc", "dd", "e"]);
}

#[test]
fn the_bytes_are_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let log = IngestLog::open(dir.path(), Some(7), MANY).unwrap();
    append(&log, &["a"]).unwrap();
    drop(log);
    let path = dir.path().join("00000000000000000007.log");
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes[..16], *b"TMIL\x01\0\0\0\x07\0\0\0\0\0\0\0");
    assert_eq!(bytes[16..], [1, 0, 0, 0, FROZEN[0], FROZEN[1], FROZEN[2], FROZEN[3], b'a']);
}

/// XXH3 of `a` seeded with 7, its low half, made odd.
const FROZEN: [u8; 4] = [149, 160, 162, 197];

#[test]
fn long_logs_are_cut_into_segments_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let log = IngestLog::open(dir.path(), Some(0), MANY).unwrap();
    let record = "x".repeat(RECORD_BYTES_MAX);
    let mut written = 0;
    for _ in 0..70 {
        append(&log, &[&record, "y"]).unwrap();
        written += (RECORD_BYTES_MAX + 1 + 2 * FRAME_HEAD_BYTES) as u64;
    }
    assert_eq!(list(dir.path()).unwrap().len(), 2);
    let all = read(&log, 0);
    assert_eq!(all.len(), 140);
    assert!(all.iter().all(|(_, r)| *r == record || r == "y"));
    assert_eq!(log.kept_bytes(), written);
    log.trimmer().trim(all[100].0).unwrap();
    assert_eq!(list(dir.path()).unwrap().len(), 2, "the first segment still has what is behind");
    log.trimmer().trim(all[139].0).unwrap();
    assert_eq!(list(dir.path()).unwrap().len(), 1);
    assert_eq!(texts(&log, all[139].0), ["y"]);
    drop(log);
    assert!(refused(dir.path(), 0).contains("records that were acknowledged are missing"));
    assert_eq!(texts(&IngestLog::open(dir.path(), Some(all[139].0), MANY).unwrap(), all[139].0), ["y"]);
}

#[test]
fn a_torn_end_is_cut_and_damage_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let log = IngestLog::open(dir.path(), Some(0), MANY).unwrap();
    append(&log, &["first", "second", "third"]).unwrap();
    drop(log);
    let path = last_segment(dir.path());
    let whole = fs::read(&path).unwrap();
    let third = whole.len() - FRAME_HEAD_BYTES - 5;
    for cut in third..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let log = IngestLog::open(dir.path(), Some(0), MANY).unwrap();
        assert_eq!(texts(&log, 0), ["first", "second"], "cut at {cut}");
        append(&log, &["again"]).unwrap();
        assert_eq!(texts(&log, 0), ["first", "second", "again"]);
    }
    // The epoch had read the third: it is no torn end then.
    fs::write(&path, &whole[..third + 3]).unwrap();
    assert!(refused(dir.path(), (whole.len() - HEADER_BYTES) as u64).contains("are missing"));
    for bit in 0..8 * (third - HEADER_BYTES) {
        let mut flipped = whole.clone();
        flipped[HEADER_BYTES + bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).unwrap();
        assert!(refused(dir.path(), 0).contains("sound ones stand behind it"), "bit {bit}");
    }
    let mut other = whole;
    other[4] = 9;
    fs::write(&path, &other).unwrap();
    assert!(refused(dir.path(), 0).contains("another version"));
}

#[test]
fn a_full_log_refuses_and_takes_again_when_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let log = IngestLog::open(dir.path(), Some(0), 65 << 20).unwrap();
    let record = "x".repeat(RECORD_BYTES_MAX);
    while append(&log, &[&record]).is_ok() {}
    assert_eq!(append(&log, &[&record]), Err(Refused::Full));
    let all = read(&log, 0);
    assert_eq!(all.len(), 65);
    log.trimmer().trim(all[64].0).unwrap();
    append(&log, &["y"]).unwrap();
}

/// Bug family: a log that may keep less than a segment holds, and stays full for ever because its last segment is never deleted.
#[test]
fn a_log_that_may_keep_little_has_room_again_once_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = IngestLog::open(dir.path(), Some(0), 1 << 20).unwrap();
    let record = "x".repeat(100 << 10);
    for round in 0..3 {
        while append(&log, &[&record]).is_ok() {}
        let kept = log.kept_bytes();
        assert!((1 << 20..2 << 20).contains(&kept), "round {round}: {kept} bytes");
        log.trimmer().trim(log.first() + kept).unwrap();
        assert!(log.kept_bytes() <= 400 << 10, "round {round}: {} bytes", log.kept_bytes());
    }
    assert!(read(&log, log.first()).len() < 5);
}

/// Bug family: told to be durable what could not be written, or tried once more on a disk that nobody knows.
#[test]
fn a_write_that_failed_is_told_to_everyone_and_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(IngestLog::open(dir.path(), None, 1 << 20).unwrap());
    let segment = last_segment(dir.path());
    let shared = Arc::new(Shared {
        dir: dir.path().to_owned(),
        durable: AtomicU64::new(0),
        segments: Mutex::new([(0, segment.clone())].into()),
        kept_bytes_max: 1 << 20,
        failed: AtomicBool::new(false),
        why: Mutex::new(String::new()),
    });
    let mut writer = Writer::open(shared.clone(), 0).unwrap();
    let sound = std::mem::replace(&mut writer.file, File::open(&segment).unwrap());
    let (told, answers) = bounded(8);
    let append = |writer: &mut Writer| {
        let (queue, appends) = bounded(2);
        for _ in 0..2 {
            let told = told.clone();
            let done: Done = Box::new(move |answer| drop(told.send(answer)));
            queue.send(Append { records: vec![b"x".to_vec()], done }).unwrap();
        }
        drop(queue);
        writer.run(&appends);
        [answers.recv().unwrap(), answers.recv().unwrap()]
    };
    let failed = |answer: &Result<(), Refused>| matches!(answer, Err(Refused::Failed(_)));
    let first = append(&mut writer);
    assert!(first.iter().all(failed), "{first:?}");
    // The disk would take it now; what is behind the end is unknown all the same.
    writer.file = sound;
    let second = append(&mut writer);
    assert!(second.iter().all(failed), "{second:?}");
    assert_eq!(std::fs::metadata(&segment).unwrap().len(), HEADER_BYTES as u64);
    let mut reader = IngestPartition { shared, offset: 0, file: None };
    assert!(matches!(reader.read(&mut Block::default()), Err(ConnectError::Storage(_))));
}

#[test]
fn frames_that_a_copy_was_kept_of_go_on_where_the_log_ends() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|d| dir.path().join(d));
    // A segment each few records.
    let log = IngestLog::open(&first, Some(0), 4_000).unwrap();
    let records: Vec<String> = (0..12).map(|n| format!("{n:0300}")).collect();
    let mut copies: Vec<(u64, Vec<u8>)> = Vec::new();
    for record in &records {
        append(&log, &[record]).unwrap();
        let from = copies.last().map_or(0, |(at, bytes)| at + bytes.len() as u64);
        let bytes = log.copy(from, MANY).unwrap();
        assert_eq!(bytes.len(), 308);
        copies.push((from, bytes));
    }
    assert_eq!(log.copy(log.durable(), MANY).unwrap(), b"");
    assert_eq!(log.copy(0, 1).unwrap().len() % 308, 0, "whole frames, one at least");

    // The copy has a beginning, with a record that was not whole yet; and what is kept begins before its end.
    fs::create_dir_all(&second).unwrap();
    let begun = IngestLog::open(&second, Some(0), MANY).unwrap();
    records[..3].iter().for_each(|r| append(&begun, &[r]).unwrap());
    drop(begun);
    let mut file = OpenOptions::new().append(true).open(last_segment(&second)).unwrap();
    file.write_all(&copies[3].1[..100]).unwrap();
    for (at, bytes) in &copies[2..] {
        graft(&second, *at, bytes).unwrap();
        graft(&second, *at, bytes).unwrap();
    }
    let again = IngestLog::open(&second, Some(0), MANY).unwrap();
    assert_eq!((texts(&again, 0), again.durable()), (records.clone(), log.durable()));
    append(&again, &["more"]).unwrap();
    assert_eq!(texts(&again, log.durable()), ["more"]);

    // Nothing stands there yet: it begins where what is kept begins.
    let third = dir.path().join("third");
    copies[5..].iter().for_each(|(at, bytes)| graft(&third, *at, bytes).unwrap());
    let begun = IngestLog::open(&third, Some(copies[7].0), MANY).unwrap();
    assert_eq!((begun.first(), texts(&begun, copies[7].0)), (copies[5].0, records[7..].to_vec()));
}

#[test]
fn frames_behind_a_gap_are_not_put_into_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|d| dir.path().join(d));
    let log = IngestLog::open(&first, Some(0), MANY).unwrap();
    append(&log, &["a", "b", "c"]).unwrap();
    drop(IngestLog::open(&second, Some(0), MANY).unwrap());
    let why = graft(&second, 9, &log.copy(9, MANY).unwrap()).unwrap_err().to_string();
    assert!(why.contains("begins at offset 9, and the log ends at 0"), "{why}");
    assert_eq!(fs::metadata(last_segment(&second)).unwrap().len(), HEADER_BYTES as u64);
    // A record that was damaged is not copied as if it were sound.
    let mut bytes = fs::read(last_segment(&first)).unwrap();
    bytes[HEADER_BYTES + 9 + FRAME_HEAD_BYTES] ^= 1;
    fs::write(last_segment(&first), bytes).unwrap();
    assert_eq!(log.copy(0, MANY).unwrap().len(), 9);
    assert!(log.copy(9, MANY).unwrap_err().to_string().contains("a record is damaged"));
}
