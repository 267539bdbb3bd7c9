//! The log: kept, cut, damaged and torn in every way that a disk or a process can.

use super::marker::{MARKER_NAME, SLOT_BYTES, SLOT_OFFSETS, Slot};
use super::*;
use crate::disk::OsDisk;
use std::fs::{self, OpenOptions};

/// An epoch's sections: a letter that tells it apart, long enough that a cut can fall anywhere.
fn body(epoch: u64) -> Vec<u8> {
    format!("epoch {epoch} {}", "x".repeat(epoch as usize % 7)).into_bytes()
}

/// A log with epochs `1..=last`, a few records to a segment.
fn written(dir: &Path, last: u64, segment_bytes_max: u64) -> Vec<RecordRef> {
    let (mut log, _) = open(dir, &[]).unwrap();
    log.segment_bytes_max = segment_bytes_max;
    (1..=last).map(|e| append(&mut log, e).unwrap()).collect()
}

fn append(log: &mut EpochLog, epoch: u64) -> Result<RecordRef, StoreError> {
    log.append(1, epoch, &[(Kind::Meta, b"{}"), (Kind::State, &body(epoch))])
}

fn open(dir: &Path, evidence: &[Evidence]) -> Result<(EpochLog, Recovery), StoreError> {
    EpochLog::open(Arc::new(OsDisk), dir, 64 << 20, evidence, |_, _| Ok(()))
}

fn sink(epoch: u64) -> Vec<Evidence> {
    vec![Evidence { who: "sink `table`".to_owned(), epoch }]
}

/// Every file with its bytes.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all.into_iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect()
}

fn restore(dir: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for (path, _) in contents(dir) {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
}

/// Opening is refused with this place, and has changed nothing.
#[track_caller]
fn refused(dir: &Path, evidence: &[Evidence], at: (u64, u64, u64)) -> String {
    let before = contents(dir);
    let error = open(dir, evidence).unwrap_err();
    assert!(contents(dir) == before, "a refusal changed the disk: {error}");
    assert_eq!(error.exit_code(), 5);
    let StoreError::Damaged { file, offset, epoch, hint, .. } = &error else { panic!("{error}") };
    assert_eq!((file.clone(), *offset, *epoch), (segment_path(dir, at.0), at.1, Some(at.2)), "{error}");
    assert!(hint.contains("from a copy"), "{hint}");
    error.to_string()
}

fn set_marker(dir: &Path, bytes: &[u8]) {
    fs::write(dir.join(MARKER_NAME), bytes).unwrap();
}

#[test]
fn what_was_appended_comes_back_over_segments() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("pipelines/clicks");
    let refs = written(&dir, 10, 400);
    assert!(list_segments(&OsDisk, &dir).unwrap().len() > 2);
    let mut seen = Vec::new();
    let (mut log, recovery) = EpochLog::open(Arc::new(OsDisk), &dir, 64 << 20, &sink(10), |record, at| {
        assert_eq!(record.section(Kind::State), Some(&body(at.epoch)[..]));
        seen.push(at);
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, refs);
    let expected = Recovery { first_epoch: 1, last_epoch: 10, last_incarnation: 1, dropped_tail: None };
    assert_eq!(recovery, expected);
    assert_eq!(log.bytes_retained(), refs.iter().map(|r| r.len).sum::<u64>());
    for at in &refs {
        let expected = vec![(Kind::Meta, b"{}".to_vec()), (Kind::State, body(at.epoch))];
        assert_eq!(log.reader().read_sections(at).unwrap(), expected);
    }
    // Epochs may be left out, but neither they nor incarnations go back; a refusal is no failure.
    assert!(append(&mut log, 10).is_err());
    log.append(2, 15, &[]).unwrap();
    assert!(append(&mut log, 16).is_err());
    log.append(2, 16, &[]).unwrap();
    drop(log);
    let (log, recovery) = open(&dir, &[]).unwrap();
    assert_eq!((recovery.last_epoch, recovery.last_incarnation, log.last_epoch()), (16, 2, 16));
}

#[test]
fn read_sections_checks_what_it_reads() {
    let tmp = tempfile::tempdir().unwrap();
    let refs = written(tmp.path(), 3, 4000);
    let (log, _) = open(tmp.path(), &[]).unwrap();
    let path = segment_path(tmp.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[refs[1].offset as usize + 70] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(log.read_sections(&refs[0]).is_ok());
    let error = log.read_sections(&refs[1]).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { offset, epoch: Some(2), .. } if offset == refs[1].offset));
    let wrong = RecordRef { epoch: 9, ..refs[0] };
    assert!(matches!(log.read_sections(&wrong), Err(StoreError::Damaged { .. })));
}

#[test]
fn trim_takes_whole_segments_from_the_front() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let refs = written(dir, 10, 400);
    let (mut log, _) = open(dir, &[]).unwrap();
    let before = log.bytes_retained();
    let names = list_segments(&OsDisk, dir).unwrap();
    log.trim(names[1]).unwrap();
    assert_eq!(list_segments(&OsDisk, dir).unwrap(), names[1..], "the second begins with the epoch to keep");
    log.trim(names[2] - 1).unwrap();
    assert_eq!(list_segments(&OsDisk, dir).unwrap(), names[1..], "its last epoch is still needed");
    log.trim(u64::MAX).unwrap();
    assert_eq!(list_segments(&OsDisk, dir).unwrap(), names[names.len() - 1..], "never the last");
    assert!(log.bytes_retained() < before);
    assert!(log.read_sections(&refs[9]).is_ok());
    append(&mut log, 11).unwrap();
    drop(log);
    let (_, recovery) = open(dir, &sink(11)).unwrap();
    assert_eq!((recovery.first_epoch, recovery.last_epoch), (names[names.len() - 1], 11));
}

#[test]
fn a_torn_tail_is_dropped_only_while_nothing_vouches_for_it() {
    for segment_bytes_max in [4000, 1] {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        written(dir, 2, segment_bytes_max);
        let marker = fs::read(dir.join(MARKER_NAME)).unwrap();
        let (mut log, _) = open(dir, &[]).unwrap();
        log.segment_bytes_max = segment_bytes_max;
        let last = append(&mut log, 3).unwrap();
        drop(log);
        let (path, offset) = (segment_path(dir, last.segment_first_epoch), last.offset);
        let whole = contents(dir);
        for keep in 0..last.len {
            let place = (last.segment_first_epoch, offset, 3);
            let cut = || OpenOptions::new().write(true).open(&path).unwrap().set_len(offset + keep).unwrap();
            restore(dir, &whole);
            cut();
            // Nothing left of the record: the log just ends before it.
            let place_if_gone =
                if keep == 0 && offset == 0 { (last.segment_first_epoch, 0, 3) } else { place };
            assert!(refused(dir, &[], place_if_gone).contains(MARKER_NAME));
            set_marker(dir, &marker);
            assert!(refused(dir, &sink(3), place).contains("sink `table`"));
            let (mut log, recovery) = open(dir, &sink(2)).unwrap();
            let dropped = (keep > 0).then(|| DroppedTail { file: path.clone(), offset, bytes: keep });
            assert_eq!((recovery.last_epoch, recovery.dropped_tail), (2, dropped), "kept {keep}");
            // The epoch after the drop may be another one, in another start.
            log.append(2, 4, &[(Kind::Rows, b"again")]).unwrap();
            drop(log);
            let (_, recovery) = open(dir, &sink(4)).unwrap();
            assert_eq!((recovery.last_epoch, recovery.last_incarnation), (4, 2));
        }
    }
}

#[test]
fn a_tail_of_zeros_is_torn_and_a_newer_format_is_not() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let refs = written(dir, 2, 4000);
    let end = refs[1].offset + refs[1].len;
    let good = contents(dir);
    let with_tail = |tail: &[u8]| {
        restore(dir, &good);
        let file = OpenOptions::new().write(true).open(segment_path(dir, 1)).unwrap();
        file.write_all_at(tail, end).unwrap();
    };
    with_tail(&[0; 4096]);
    let (_, recovery) = open(dir, &[]).unwrap();
    assert_eq!(recovery.dropped_tail.unwrap().bytes, 4096);
    with_tail(b"TMEP\x02\x00 of another version");
    assert!(refused(dir, &[], (1, end, 3)).contains("format 2"));
    with_tail(&[0; 10]);
    let mut marker = fs::read(dir.join(MARKER_NAME)).unwrap();
    marker[0] ^= 1; // the slot of epoch 1: might have been one of epoch 3
    set_marker(dir, &marker);
    assert!(refused(dir, &[], (1, end, 3)).contains(MARKER_NAME));
}

#[test]
fn a_record_written_in_full_is_committed_though_the_marker_lags() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    written(dir, 2, 4000);
    let marker = fs::read(dir.join(MARKER_NAME)).unwrap();
    let (mut log, _) = open(dir, &[]).unwrap();
    append(&mut log, 3).unwrap();
    drop(log);
    let segment = fs::read(segment_path(dir, 1)).unwrap();
    for old in [marker, Vec::new()] {
        set_marker(dir, &old);
        let (_, recovery) = open(dir, &[]).unwrap();
        assert_eq!((recovery.last_epoch, recovery.dropped_tail), (3, None));
        assert_eq!(fs::read(segment_path(dir, 1)).unwrap(), segment, "written again, the same bytes");
        // It was found and is released: damaged later, it is no torn tail.
        let mut bad = segment.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(segment_path(dir, 1), bad).unwrap();
        assert!(open(dir, &[]).unwrap_err().to_string().contains("COMMITTED vouches for epoch 3"));
        fs::write(segment_path(dir, 1), &segment).unwrap();
    }
}

/// Bug family: a start that writes where nothing is to be written, and a COMMITTED that needs space when the disk is full.
#[test]
fn opening_a_sound_log_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    drop(open(dir, &[]).unwrap());
    let whole = SLOT_OFFSETS[1] + SLOT_BYTES as u64;
    assert_eq!(fs::metadata(dir.join(MARKER_NAME)).unwrap().len(), whole, "there is room for both slots");
    written(dir, 3, 400);
    let before = contents(dir);
    drop(open(dir, &sink(3)).unwrap());
    assert!(contents(dir) == before);
}

#[test]
fn the_first_epoch_follows_none() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let put = |epoch, previous| {
        let mut bytes = Vec::new();
        record::encode_into(&mut bytes, &record::Header { incarnation: 1, epoch, previous }, &[]);
        fs::write(segment_path(dir, epoch), bytes).unwrap();
    };
    put(1, 7);
    assert!(refused(dir, &[], (1, 0, 1)).contains("does not follow"), "what stood before it is missing");
    fs::remove_file(segment_path(dir, 1)).unwrap();
    // What stood before a later one may have been trimmed.
    put(2, 7);
    assert_eq!(open(dir, &[]).unwrap().1.last_epoch, 2);
}

#[test]
fn every_flipped_bit_of_a_committed_record_is_refused_with_its_place() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let refs = written(dir, 6, 400);
    let good = contents(dir);
    // The last one, one in the middle of a segment, and the first of a segment.
    let first = refs.iter().position(|r| r.epoch > 1 && r.offset == 0).unwrap();
    for at in [refs[5], refs[1], refs[first]] {
        let path = segment_path(dir, at.segment_first_epoch);
        let bytes = fs::read(&path).unwrap();
        for bit in at.offset * 8..(at.offset + at.len) * 8 {
            let mut bad = bytes.clone();
            bad[bit as usize / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            refused(dir, &[], (at.segment_first_epoch, at.offset, at.epoch));
        }
        restore(dir, &good);
    }
    open(dir, &sink(6)).unwrap();
}

#[test]
fn a_sound_record_after_the_damage_proves_the_commit_without_a_marker() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let refs = written(dir, 3, 4000);
    let path = segment_path(dir, 1);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(dir.join(MARKER_NAME)).unwrap();
    for bit in refs[1].offset * 8..(refs[1].offset + refs[1].len) * 8 {
        let mut bad = bytes.clone();
        bad[bit as usize / 8] ^= 1 << (bit % 8);
        fs::write(&path, bad).unwrap();
        let text = refused(dir, &[], (1, refs[1].offset, 2));
        assert!(text.contains("epoch 3 stands") || text.contains("format"), "{text}");
    }
    // The same record torn, with nothing behind it, is nobody's.
    fs::write(&path, &bytes[..refs[2].offset as usize - 1]).unwrap();
    assert_eq!(open(dir, &[]).unwrap().1.last_epoch, 1);
}

#[test]
fn missing_segments_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let refs = written(dir, 10, 400);
    let good = contents(dir);
    let names = list_segments(&OsDisk, dir).unwrap();
    let n = names.len();
    let before_last = refs.iter().rfind(|r| r.segment_first_epoch == names[n - 2]).unwrap();
    let end = before_last.offset + before_last.len;
    let remove = |name: u64| {
        restore(dir, &good);
        fs::remove_file(segment_path(dir, name)).unwrap();
    };

    remove(names[n - 1]);
    let place = (names[n - 2], end, before_last.epoch + 1);
    let gone = (names[n - 1], 0, before_last.epoch + 1);
    assert!(refused(dir, &[], gone).contains("COMMITTED vouches for epoch 10"));
    // Marker gone too: an older copy of the directory. The sink knows better.
    fs::remove_file(dir.join(MARKER_NAME)).unwrap();
    assert!(refused(dir, &sink(10), place).contains("sink `table` has confirmed epoch 10"));
    assert_eq!(open(dir, &sink(before_last.epoch)).unwrap().1.last_epoch, before_last.epoch);

    remove(names[1]);
    assert!(refused(dir, &[], (names[2], 0, names[2])).contains("does not follow"));

    restore(dir, &good);
    fs::write(segment_path(dir, names[1]), b"").unwrap();
    refused(dir, &[], (names[1], 0, names[1]));

    restore(dir, &good);
    fs::rename(segment_path(dir, names[0]), segment_path(dir, names[0] + 1)).unwrap();
    refused(dir, &[], (names[0] + 1, 0, names[0] + 1));
}

#[test]
fn evidence_without_any_log_is_refused_and_creates_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("pipelines/clicks");
    assert!(matches!(open(&dir, &sink(4)), Err(StoreError::Damaged { .. })));
    assert!(!tmp.path().join("pipelines").exists());
}

#[test]
fn a_log_from_another_branch_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
    written(&a, 3, 4000);
    let (mut log, _) = open(&b, &[]).unwrap();
    let at = log.append(1, 1, &[]).unwrap();
    let second = log.append(1, 2, &[]).unwrap();
    let third = log.append(1, 3, &[]).unwrap();
    drop(log);
    // The marker of one log beside the segment of another.
    fs::copy(a.join(MARKER_NAME), b.join(MARKER_NAME)).unwrap();
    refused(&b, &[], (1, third.offset, 3));
    // A record exchanged for one of another log.
    let mut mixed = fs::read(segment_path(&a, 1)).unwrap();
    let first_of_a = record::decode(&mixed).unwrap().len;
    let other = fs::read(segment_path(&b, 1)).unwrap();
    mixed.truncate(first_of_a);
    mixed.extend_from_slice(&other[second.offset as usize..third.offset as usize]);
    fs::write(segment_path(&a, 1), &mixed).unwrap();
    fs::remove_file(a.join(MARKER_NAME)).unwrap();
    assert!(refused(&a, &[], (1, first_of_a as u64, 2)).contains("does not follow"));
    assert_eq!(at.offset, 0);
}

#[test]
fn a_full_disk_stops_the_log_for_good() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    written(dir, 2, 4000);
    let (mut log, _) = open(dir, &[]).unwrap();
    let healthy = log.active.replace(OsDisk.open(Path::new("/dev/full"), Open::Write).unwrap());
    let error = append(&mut log, 3).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    let StoreError::Storage { file, epoch: Some(3), source, .. } = &error else { panic!("{error}") };
    assert_eq!(*file, segment_path(dir, 1));
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    let cause = std::error::Error::source(&error).and_then(|c| c.downcast_ref::<io::Error>());
    assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::StorageFull), "whoever asks on is told");
    // There is space again, but the log has given up.
    log.active = healthy;
    let before = contents(dir);
    assert!(append(&mut log, 3).unwrap_err().to_string().contains("start again"));
    assert!(log.trim(2).is_err());
    assert!(contents(dir) == before);
    drop(log);
    assert_eq!(open(dir, &sink(2)).unwrap().1.last_epoch, 2);
}

#[test]
fn a_visitor_can_stop_the_opening() {
    let tmp = tempfile::tempdir().unwrap();
    written(tmp.path(), 3, 4000);
    let stopped = EpochLog::open(Arc::new(OsDisk), tmp.path(), 64 << 20, &[], |_, at| match at.epoch {
        2 => Err(damaged(tmp.path(), 0, 2, 1, "state of another pipeline")),
        _ => Ok(()),
    });
    assert!(stopped.unwrap_err().to_string().contains("another pipeline"));
}

#[test]
fn destroy_leaves_nothing_and_may_be_repeated() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("pipelines/clicks");
    destroy(&OsDisk, &dir).unwrap();
    written(&dir, 3, 4000);
    destroy(&OsDisk, &dir).unwrap();
    destroy(&OsDisk, &dir).unwrap();
    assert_eq!(fs::read_dir(tmp.path().join("pipelines")).unwrap().count(), 0);
    assert_eq!(open(&dir, &[]).unwrap().1, Recovery::default());
}

/// A slot of COMMITTED in format 1, frozen.
#[test]
fn a_slot_survives_its_own_bytes_only() {
    let tip = Tip { epoch: 7, incarnation: 2, checksum: 0xabcd };
    let slot = Slot { tip, segment_first_epoch: 5, end: 300 };
    let bytes = slot.encode();
    let back = Slot::decode(&bytes).unwrap();
    assert_eq!((back.tip.epoch, back.tip.incarnation, back.tip.checksum), (7, 2, 0xabcd));
    assert_eq!((back.segment_first_epoch, back.end), (5, 300));
    for bit in 0..SLOT_BYTES * 8 {
        let mut bad = bytes;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Slot::decode(&bad).is_none(), "bit {bit}");
    }
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        "07000000000000000200000000000000cdab000000000000000000000000000005000000000000002c010000000000002327a1a9c5347b72f0329b1f7eae5fbb"
    );
}

/// Puts what was captured elsewhere and opens it: the epochs in it.
fn put_elsewhere(captured: &Captured) -> Vec<u64> {
    let tmp = tempfile::tempdir().unwrap();
    for segment in &captured.segments {
        fs::write(tmp.path().join(segment.name()), segment.read().unwrap()).unwrap();
    }
    let mut epochs = Vec::new();
    let (_, recovery) = EpochLog::open(Arc::new(OsDisk), tmp.path(), 64 << 20, &[], |_, at| {
        epochs.push(at.epoch);
        Ok(())
    })
    .unwrap();
    assert_eq!((recovery.last_epoch, recovery.dropped_tail), (captured.epoch, None));
    epochs
}

#[test]
fn what_is_captured_is_the_log_up_to_what_is_vouched_for() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    assert!(capture(&OsDisk, &dir.join("none")).unwrap().is_none());
    assert!(capture(&OsDisk, dir).unwrap().is_none());
    written(dir, 10, 400);
    let captured = capture(&OsDisk, dir).unwrap().unwrap();
    assert_eq!((captured.epoch, captured.incarnation, &captured.meta[..]), (10, 1, &b"{}"[..]));
    assert_eq!(put_elsewhere(&captured), (1..=10).collect::<Vec<_>>());

    // Epochs that are written and not vouched for may be lost yet: of the same segment, and of one more.
    let marker = fs::read(dir.join(MARKER_NAME)).unwrap();
    let (mut log, _) = open(dir, &[]).unwrap();
    log.segment_bytes_max = 400;
    for epoch in 11..=15 {
        append(&mut log, epoch).unwrap();
        let newer = fs::read(dir.join(MARKER_NAME)).unwrap();
        set_marker(dir, &marker);
        assert_eq!(put_elsewhere(&capture(&OsDisk, dir).unwrap().unwrap()).last(), Some(&10));
        set_marker(dir, &newer);
        assert_eq!(put_elsewhere(&capture(&OsDisk, dir).unwrap().unwrap()).last(), Some(&epoch));
    }
}

#[test]
fn a_log_that_is_not_what_was_vouched_for_is_not_captured() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let refs = written(dir, 10, 400);
    let good = contents(dir);
    for at in &refs {
        let file = segment_path(dir, at.segment_first_epoch);
        let mut bytes = fs::read(&file).unwrap();
        bytes[(at.offset + at.len / 2) as usize] ^= 1;
        fs::write(&file, bytes).unwrap();
        let error = capture(&OsDisk, dir).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { epoch, .. } if *epoch == Some(at.epoch)), "{error}");
        restore(dir, &good);
    }
    // A whole segment from the middle.
    fs::remove_file(segment_path(dir, refs[5].segment_first_epoch)).unwrap();
    assert!(matches!(capture(&OsDisk, dir), Err(StoreError::Damaged { .. })));
}

/// Whoever captures holds nobody up, and is held up by nobody: the log goes on, and leaves at the front.
#[test]
fn a_log_that_goes_on_and_is_trimmed_is_captured_whole() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    const BEHIND: u64 = 20;
    let done = &std::sync::atomic::AtomicBool::new(false);
    let captures = std::thread::scope(|scope| {
        let looks = scope.spawn(move || {
            let mut captures = Vec::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                if let Some(captured) = capture(&OsDisk, dir).unwrap() {
                    let epochs = put_elsewhere(&captured);
                    assert!(epochs.windows(2).all(|w| w[0] + 1 == w[1]), "{epochs:?}");
                    captures.push((epochs[0], captured.epoch));
                }
            }
            captures
        });
        let (mut log, _) = open(dir, &[]).unwrap();
        log.segment_bytes_max = 400;
        for epoch in 1..=2_000 {
            append(&mut log, epoch).unwrap();
            log.trim(epoch.saturating_sub(BEHIND)).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        looks.join().unwrap()
    });
    assert!(captures.iter().any(|(first, _)| *first > 1), "{captures:?}");
    for (first, last) in captures {
        assert!(first == 1 || first <= last - BEHIND, "epochs {first} to {last} lack some that are needed");
    }
}

/// Bug family: a run between the cut and the decision, which nobody has told that sinks took something back.
#[test]
fn until_somebody_who_goes_back_has_written_so_nobody_else_goes_on() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let refs = written(dir, 10, 400);
    let decide = |incarnation, at: &RecordRef| {
        let decision = Decision { incarnation, sections: &[(Kind::Meta, b"{}")] };
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        EpochLog::cut_after(&disk, dir, at, 400, &decision).unwrap();
    };
    decide(2, &refs[6]);
    let (log, recovery) = open(dir, &[]).unwrap();
    assert_eq!((recovery.last_epoch, recovery.last_incarnation), (8, 2));
    drop(log);
    // The same once more; and the power is gone after any of its steps.
    let before = contents(dir);
    let cut_off: Vec<_> =
        before.iter().filter(|(path, _)| path.ends_with(format!("{:020}.seg", 8))).collect();
    fs::write(dir.join("CUT"), "7\n").unwrap();
    for step in ["begun", "cut"] {
        if step == "cut" {
            fs::remove_file(dir.join(MARKER_NAME)).unwrap();
            cut_off.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
        }
        let error = open(dir, &[]).unwrap_err();
        let StoreError::Damaged { file, epoch, hint, .. } = &error else { panic!("{step}: {error}") };
        assert_eq!((file, *epoch), (&dir.join("CUT"), Some(7)), "{step}");
        assert!(hint.contains("recover --to 7"), "{step}: {hint}");
        assert_eq!(error.exit_code(), 5);
    }
    decide(3, &refs[6]);
    let (_, recovery) = open(dir, &[]).unwrap();
    assert_eq!((recovery.last_epoch, recovery.last_incarnation), (8, 3));
}

/// Records as they stand in the log, one text for all of them.
fn copied(log: &EpochLog, refs: &[RecordRef]) -> Vec<u8> {
    refs.iter().flat_map(|at| log.reader().read_record(at).unwrap()).collect()
}

#[test]
fn records_that_a_copy_was_kept_of_go_on_where_the_log_ends() {
    let tmp = tempfile::tempdir().unwrap();
    let refs = written(&tmp.path().join("first"), 12, 400);
    let (first, _) = open(&tmp.path().join("first"), &[]).unwrap();
    let dir = tmp.path().join("second");
    written(&dir, 4, 400);
    let (mut log, _) = open(&dir, &[]).unwrap();
    // Some that the log has are among them, and some come twice.
    assert_eq!(log.graft(&copied(&first, &refs[2..8])).unwrap(), 4);
    assert_eq!(log.graft(&copied(&first, &refs[5..12])).unwrap(), 4);
    assert_eq!((log.graft(&copied(&first, &refs[..12])).unwrap(), log.last_epoch()), (0, 12));
    let at = append(&mut log, 13).unwrap();
    assert_eq!(log.read_sections(&at).unwrap()[1].1, body(13));
    drop(log);
    let mut epochs = Vec::new();
    let (_, recovery) = EpochLog::open(Arc::new(OsDisk), &dir, 64 << 20, &sink(13), |record, at| {
        assert_eq!(record.section(Kind::State), Some(&body(at.epoch)[..]));
        epochs.push(at.epoch);
        Ok(())
    })
    .unwrap();
    assert_eq!((epochs, recovery.dropped_tail), ((1..=13).collect(), None));

    // A log that nothing stands in begins with what its copy begins with.
    let (mut log, _) = open(&tmp.path().join("third"), &[]).unwrap();
    assert_eq!((log.graft(&copied(&first, &refs)).unwrap(), log.last_epoch()), (12, 12));
}

#[test]
fn records_that_do_not_follow_are_not_put_into_the_log() {
    let tmp = tempfile::tempdir().unwrap();
    let refs = written(&tmp.path().join("first"), 12, 400);
    let (first, _) = open(&tmp.path().join("first"), &[]).unwrap();
    let dir = tmp.path().join("second");
    written(&dir, 4, 400);
    let (mut log, _) = open(&dir, &[]).unwrap();
    let before = contents(&dir);
    let mut refuse = |records: &[u8], why: &str| {
        let error = log.graft(records).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(contents(&dir) == before && log.last_epoch() == 4, "{error}");
    };
    // One is missing between; one is damaged, or cut off.
    refuse(&copied(&first, &refs[5..]), "does not go on after epoch 4: epoch 6");
    refuse(&copied(&first, &[refs[4], refs[6]]), "does not go on after epoch 5: epoch 7");
    let good = copied(&first, &refs[4..]);
    let mut bytes = good.clone();
    bytes[refs[4].len as usize + 9] ^= 1;
    refuse(&bytes, "does not go on after epoch 5");
    refuse(&good[..good.len() - 1], "does not go on after epoch 11");
    // Of another log of this name.
    let dir = tmp.path().join("another");
    let (mut another, _) = open(&dir, &[]).unwrap();
    let refs: Vec<_> = (1..=6).map(|e| another.append(2, e, &[(Kind::Meta, b"{}")]).unwrap()).collect();
    refuse(&copied(&another, &refs), "does not go on after epoch 4: epoch 5");
    assert_eq!(log.graft(&good).unwrap(), 8);
}

/// Somebody who only looks: no log is no error, and nothing is made by looking.
#[test]
fn the_newest_epoch_is_found_by_looking_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("clicks");
    assert!(EpochLog::newest(&OsDisk, &dir).unwrap().is_none() && !dir.exists());
    written(&dir, 7, 400);
    assert!(list_segments(&OsDisk, &dir).unwrap().len() > 1);
    let newest = EpochLog::newest(&OsDisk, &dir).unwrap().unwrap();
    assert_eq!((newest.epoch, newest.incarnation, newest.meta), (7, 1, b"{}".to_vec()));
}

/// The smallest record that there is proves a commit as well as any other, at the very end of the file too.
#[test]
fn a_record_without_sections_after_the_damage_proves_the_commit() {
    let tmp = tempfile::tempdir().unwrap();
    let (mut log, _) = open(tmp.path(), &[]).unwrap();
    let refs: Vec<RecordRef> = (1..=3).map(|e| append(&mut log, e).unwrap()).collect();
    let smallest = log.append(1, 4, &[]).unwrap();
    assert_eq!(smallest.len, tidemill_engine::record::RECORD_BYTES_MIN as u64);
    drop(log);
    set_marker(tmp.path(), b"");
    let file = segment_path(tmp.path(), 1);
    let mut bytes = fs::read(&file).unwrap();
    bytes[refs[2].offset as usize + 40] ^= 1;
    fs::write(&file, bytes).unwrap();
    let said = refused(tmp.path(), &[], (1, refs[2].offset, 3));
    assert!(said.contains("epoch 4 stands"), "{said}");
}
