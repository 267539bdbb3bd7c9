//! The table after any delivery: equal, guarded, fenced, and refused where it cannot be filled.

use super::*;
use proptest::prelude::*;
use tempfile::TempDir;
use tidemill_engine::event::{Position, RowHead, Rows};
use tidemill_engine::gap::{Boundary, Gap, GapConfig};
use tidemill_engine::key::{KeyForm, key_hash};
use tidemill_engine::lane::{Barrier, Lane, LaneConfig, Origin};
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Versions;

/// One revision: id, stage, and a number that makes its content its own.
type Revision = (u8, Stage, i64);

fn rows(list: &[Revision]) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, stage, n) in list {
        let row = SessionRow {
            id: [*id; 16],
            key: "it's \"k\"",
            start: EventTime::from_ms(*n),
            end: EventTime::from_ms(n + 1),
            events: 2,
            stage: *stage,
            reason: (*stage != Stage::Early).then_some("gap"),
            plugin: "builtin:gap@1",
            fields: "{}",
        };
        row.encode(&mut out);
    }
    out
}

fn sink_of(dir: &TempDir, pipeline: &str) -> SqliteSink {
    let mut s =
        SqliteSink::new(dir.path().join("s.db"), "my \"t".into(), pipeline.into(), "out".into(), Stages::ALL);
    s.busy_wait = Duration::from_millis(50);
    s
}

fn opened(dir: &TempDir, incarnation: u64) -> SqliteSink {
    let mut s = sink_of(dir, "p");
    s.open(incarnation, None).unwrap();
    s
}

fn table(dir: &TempDir) -> Vec<OwnedRow> {
    let mut all =
        SqliteReader::open(&dir.path().join("s.db"), "my \"t").unwrap().rows(&Filter::default()).unwrap();
    all.sort_by(|a, b| a.session_id.cmp(&b.session_id));
    all
}

/// Stage, first half and second half of the revision, content.
fn short(dir: &TempDir) -> Vec<(String, i64, i64, i64)> {
    table(dir).into_iter().map(|r| (r.stage, r.incarnation, r.epoch, r.start_ms)).collect()
}

fn put(s: &mut SqliteSink, incarnation: u64, epoch: u64, list: &[Revision]) -> Cursor {
    s.deliver(&Outbox::new(incarnation, epoch, &rows(list), b"")).unwrap()
}

fn exec(dir: &TempDir, sql: &str) {
    Connection::open(dir.path().join("s.db")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn reopened_and_resent_the_table_is_the_same() {
    let dir = TempDir::new().unwrap();
    let mut s = sink_of(&dir, "p");
    assert_eq!(s.open(1, None).unwrap(), Some(Cursor::default()));
    put(&mut s, 1, 1, &[(1, Stage::Early, 1), (2, Stage::Early, 2)]);
    put(&mut s, 1, 2, &[(1, Stage::Final, 3)]);
    assert_eq!(put(&mut s, 1, 3, &[]), Cursor { epoch: 3, length: 2 });
    let before = table(&dir);
    assert_eq!(before[0].session_id, "01".repeat(16));
    assert_eq!((before[1].reason.as_deref(), before[1].key.as_str()), (None, "it's \"k\""));
    drop(s);
    let mut s = sink_of(&dir, "p");
    assert_eq!(
        s.open(2, Some(Cursor { epoch: 1, length: 0 })).unwrap(),
        Some(Cursor { epoch: 2, length: 2 })
    );
    // Skipped: what is delivered is not looked at again, whatever it holds.
    assert_eq!(put(&mut s, 1, 2, &[(9, Stage::Final, 3)]), Cursor { epoch: 2, length: 2 });
    assert_eq!(table(&dir), before);
}

#[test]
fn what_came_after_a_cut_is_retracted_until_it_comes_again() {
    let dir = TempDir::new().unwrap();
    let mut s = opened(&dir, 1);
    assert_eq!(s.witness().unwrap(), Some(0));
    put(&mut s, 1, 1, &[(1, Stage::Final, 1), (2, Stage::Early, 2)]);
    put(&mut s, 1, 2, &[(2, Stage::Early, 3), (3, Stage::Early, 4)]);
    put(&mut s, 1, 3, &[(3, Stage::Final, 5)]);
    drop(s);
    let mut other = sink_of(&dir, "q");
    other.open(1, None).unwrap();
    put(&mut other, 1, 9, &[(9, Stage::Final, 9)]);
    drop(other);
    let mut s = sink_of(&dir, "p");
    assert_eq!(s.witness().unwrap(), Some(3));
    let stored = Cursor { epoch: 1, length: 1 };
    assert_eq!(s.take_back(2, 1, Some(stored)).unwrap(), TakenBack::Retracted(2));
    assert_eq!(s.witness().unwrap(), Some(1));
    let of = |stage: &str, i, e, n| (stage.to_owned(), i, e, n);
    let kept = of("final", 1, 1, 1);
    let foreign = of("final", 1, 9, 9);
    assert_eq!(
        short(&dir),
        [kept.clone(), of("retracted", 2, 1, 3), of("retracted", 2, 1, 5), foreign.clone()]
    );
    // The new branch: what it sends holds, under epochs that the old one had too.
    assert_eq!(s.open(3, Some(stored)).unwrap(), Some(stored));
    put(&mut s, 3, 2, &[(2, Stage::Early, 2)]);
    assert_eq!(short(&dir), [kept, of("early", 3, 2, 2), of("retracted", 2, 1, 5), foreign]);
}

#[test]
fn rows_are_a_witness_where_the_cursor_is_lost() {
    let dir = TempDir::new().unwrap();
    let mut s = opened(&dir, 1);
    exec(&dir, "DELETE FROM tidemill_cursor");
    assert_eq!(s.witness().unwrap(), None, "no rows");
    s.open(1, None).unwrap();
    put(&mut s, 1, 2, &[(2, Stage::Early, 2)]);
    put(&mut s, 1, 4, &[(1, Stage::Final, 1)]);
    exec(&dir, "DELETE FROM tidemill_cursor");
    assert_eq!(s.witness().unwrap(), Some(4));
    assert_eq!(sink_of(&dir, "q").witness().unwrap(), None, "another's rows");
}

#[test]
fn the_guard_compares_incarnation_before_epoch() {
    let dir = TempDir::new().unwrap();
    let mut s = opened(&dir, 2);
    s.apply(&Outbox::new(2, 1, &rows(&[(1, Stage::Final, 21)]), b"")).unwrap();
    s.apply(&Outbox::new(1, 9, &rows(&[(1, Stage::Early, 19)]), b"")).unwrap();
    assert_eq!(short(&dir), [("final".into(), 2, 1, 21)]);
    s.apply(&Outbox::new(2, 1, &rows(&[(1, Stage::Early, 99)]), b"")).unwrap();
    assert_eq!(short(&dir), [("final".into(), 2, 1, 21)]);
}

#[test]
fn a_retraction_keeps_the_content_and_a_revival_replaces_it() {
    let dir = TempDir::new().unwrap();
    let mut s = opened(&dir, 1);
    put(&mut s, 1, 1, &[(1, Stage::Final, 10)]);
    put(&mut s, 1, 2, &[(1, Stage::Retracted, 77), (2, Stage::Retracted, 5)]);
    assert_eq!(short(&dir), [("retracted".into(), 1, 2, 10), ("retracted".into(), 1, 2, 5)]);
    let db = Connection::open(dir.path().join("s.db")).unwrap();
    let count =
        || db.query_row("SELECT count(*) FROM \"my \"\"t_current\"", [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 0);
    s.apply(&Outbox::new(1, 1, &rows(&[(1, Stage::Final, 10)]), b"")).unwrap();
    assert_eq!(count(), 0, "a lower revision revives nothing");
    put(&mut s, 1, 3, &[(1, Stage::Early, 11)]);
    assert_eq!(short(&dir)[0], ("early".into(), 1, 3, 11));
    assert_eq!(count(), 1);
}

#[test]
fn an_older_incarnation_is_fenced() {
    let dir = TempDir::new().unwrap();
    let mut old = opened(&dir, 1);
    put(&mut old, 1, 1, &[(1, Stage::Early, 1)]);
    let mut new = opened(&dir, 2);
    let e = old.deliver(&Outbox::new(1, 2, &rows(&[(1, Stage::Final, 2)]), b""));
    assert!(matches!(e, Err(ConnectError::Conflict(_))));
    assert!(matches!(old.delete_all(), Err(ConnectError::Conflict(_))));
    let e = sink_of(&dir, "p").open(1, None);
    assert!(matches!(e, Err(ConnectError::Conflict(m)) if m.contains("incarnation 2")));
    assert_eq!(short(&dir), [("early".into(), 1, 1, 1)]);
    put(&mut new, 1, 2, &[(1, Stage::Final, 2)]);
    assert_eq!(short(&dir), [("final".into(), 1, 2, 2)]);
}

#[test]
fn a_lost_cursor_stays_lost_until_rows_are_sent_again() {
    let dir = TempDir::new().unwrap();
    let stored = Some(Cursor { epoch: 7, length: 0 });
    for incarnation in [1, 2] {
        assert_eq!(sink_of(&dir, "p").open(incarnation, stored).unwrap(), None);
    }
    let mut s = sink_of(&dir, "p");
    assert_eq!(s.open(3, stored).unwrap(), None);
    put(&mut s, 2, 8, &[(1, Stage::Final, 1)]);
    assert_eq!(sink_of(&dir, "p").open(4, stored).unwrap(), Some(Cursor { epoch: 8, length: 8 }));
}

#[test]
fn a_table_put_back_from_an_older_copy_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut s = sink_of(&dir, "p");
    s.open(1, None).unwrap();
    put(&mut s, 1, 4, &[(1, Stage::Final, 1)]);
    drop(s);
    // Epochs without rows have come since: the table need not know of them.
    let known = sink_of(&dir, "p").open(2, Some(Cursor { epoch: 9, length: 4 })).unwrap();
    assert_eq!(known, Some(Cursor { epoch: 9, length: 4 }));
    let e = sink_of(&dir, "p").open(3, Some(Cursor { epoch: 9, length: 6 }));
    assert!(matches!(e, Err(ConnectError::Conflict(m)) if m.contains("--resend") && m.contains("epoch 6")));
}

#[test]
fn epochs_of_a_new_branch_below_the_old_cursor_are_not_skipped() {
    let dir = TempDir::new().unwrap();
    put(&mut opened(&dir, 1), 1, 100, &[(1, Stage::Final, 1)]);
    let mut s = sink_of(&dir, "p");
    s.open(2, Some(Cursor { epoch: 50, length: 0 })).unwrap();
    assert_eq!(put(&mut s, 2, 51, &[(1, Stage::Final, 2)]).epoch, 51);
    assert_eq!(short(&dir), [("final".into(), 2, 51, 2)]);
}

#[test]
fn a_locked_database_says_what_to_do() {
    let dir = TempDir::new().unwrap();
    let mut s = opened(&dir, 1);
    let other = Connection::open(dir.path().join("s.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let list = rows(&[(1, Stage::Final, 1)]);
    let e = s.deliver(&Outbox::new(1, 1, &list, b""));
    assert!(
        matches!(e, Err(ConnectError::Conflict(m)) if m.contains("locked by another program") && m.contains("close it"))
    );
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(s.deliver(&Outbox::new(1, 1, &list, b"")).unwrap().epoch, 1);
    assert_eq!(table(&dir).len(), 1);
}

#[test]
fn a_table_of_another_shape_is_refused_by_the_columns_name() {
    let full =
        COLUMNS.map(|(n, t)| format!("{n} {t}{}", if n == "session_id" { " PRIMARY KEY" } else { "" }));
    let refused = |columns: String, words: &str| {
        let dir = TempDir::new().unwrap();
        exec(&dir, &format!("CREATE TABLE \"my \"\"t\" ({columns})"));
        match sink_of(&dir, "p").open(1, None) {
            Err(ConnectError::Config(m)) => assert!(m.contains(words), "{m}"),
            other => panic!("{words}: {other:?}"),
        }
    };
    refused("id TEXT".into(), "column `session_id` is missing");
    refused(full[..11].join(", "), "column `fields` is missing");
    refused(full.join(", ").replace("start_ms INTEGER", "start_ms TEXT"), "column `start_ms` is TEXT");
    refused(full.join(", ").replace(" PRIMARY KEY", ""), "primary key");
    refused(format!("{}, mine TEXT NOT NULL", full.join(", ")), "column `mine`");
    let dir = TempDir::new().unwrap();
    exec(&dir, &format!("CREATE TABLE \"my \"\"t\" ({}, note TEXT)", full.join(", ")));
    put(&mut opened(&dir, 1), 1, 1, &[(1, Stage::Final, 1)]);
    assert_eq!(table(&dir).len(), 1);
}

#[test]
fn names_and_paths_that_cannot_be_used_are_the_configs_fault() {
    let dir = TempDir::new().unwrap();
    for name in ["", "sqlite_x", "Tidemill_Cursor", "a\0b"] {
        let mut s =
            SqliteSink::new(dir.path().join("n.db"), name.into(), "p".into(), "out".into(), Stages::ALL);
        assert!(matches!(s.open(1, None), Err(ConnectError::Config(_))), "{name:?}");
    }
    std::fs::write(dir.path().join("text"), "not a database, but long enough to be read as one".repeat(50))
        .unwrap();
    for path in ["no/such/s.db", "text"] {
        let mut s = SqliteSink::new(dir.path().join(path), "t".into(), "p".into(), "out".into(), Stages::ALL);
        assert!(matches!(s.open(1, None), Err(ConnectError::Config(_))), "{path}");
    }
}

#[test]
fn two_pipelines_share_a_table_and_each_deletes_its_own() {
    let dir = TempDir::new().unwrap();
    let mut p = opened(&dir, 1);
    let mut q = sink_of(&dir, "q");
    q.open(9, None).unwrap();
    put(&mut p, 1, 1, &[(1, Stage::Final, 1)]);
    put(&mut q, 9, 4, &[(2, Stage::Early, 2), (3, Stage::Final, 3)]);
    let reader = SqliteReader::open(&dir.path().join("s.db"), "my \"t").unwrap();
    let q_only = Filter { pipeline: Some("q".into()), newest_first: true, ..Filter::default() };
    let starts = |f: &Filter| reader.rows(f).unwrap().iter().map(|r| r.start_ms).collect::<Vec<_>>();
    assert_eq!(starts(&q_only), [3, 2]);
    assert_eq!(starts(&Filter { limit: Some(1), ..Filter::default() }), [1]);
    assert_eq!(starts(&Filter { stage: Some(Stage::Early), ..Filter::default() }), [2]);
    assert!(starts(&Filter { key: Some("none".into()), ..Filter::default() }).is_empty());
    let summary = reader.summary().unwrap();
    let counts: Vec<_> =
        summary.iter().map(|c| (c.stage.as_str(), c.reason.as_deref(), c.sessions)).collect();
    assert_eq!(counts, [("early", None, 1), ("final", Some("gap"), 2)]);
    p.delete_all().unwrap();
    assert_eq!(starts(&Filter::default()), [2, 3]);
    // The fence outlives the rows: the sink goes on with the first epoch.
    put(&mut p, 1, 1, &[(1, Stage::Final, 1)]);
    drop(p);
    sink_of(&dir, "p").delete_all().unwrap();
    assert_eq!(starts(&Filter::default()), [2, 3]);
    assert_eq!(sink_of(&dir, "p").open(1, None).unwrap(), Some(Cursor::default()));
}

#[test]
fn a_users_trigger_sees_each_offer() {
    let dir = TempDir::new().unwrap();
    let mut s = opened(&dir, 1);
    exec(
        &dir,
        "CREATE TABLE seen (epoch INTEGER); CREATE TRIGGER watch BEFORE INSERT ON \"my \"\"t\" \
         BEGIN INSERT INTO seen VALUES (new.epoch); END",
    );
    for epoch in [2, 1, 2] {
        s.apply(&Outbox::new(1, epoch, &rows(&[(1, Stage::Final, 1)]), b"")).unwrap();
    }
    let db = Connection::open(dir.path().join("s.db")).unwrap();
    let seen: i64 = db.query_row("SELECT count(*) FROM seen", [], |r| r.get(0)).unwrap();
    assert_eq!(seen, 3);
}

/// Epochs of random revisions: at most one per session id in each.
fn epochs() -> impl Strategy<Value = Vec<Vec<Revision>>> {
    let epoch = proptest::collection::btree_map(0_u8..5, (0_usize..4, 0_i64..1000), 1..4)
        .prop_map(|m| m.into_iter().map(|(id, (stage, n))| (id, Stage::ALL[stage], n)).collect());
    proptest::collection::vec(epoch, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// For the bug family of a resend that lowers a row, and of one that depends on the order.
    #[test]
    fn repeated_and_reordered_epochs_leave_the_table_as_in_order(
        list in epochs(), again in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
    ) {
        let revision = |i: usize| (1 + i as u64 / 3, 1 + i as u64);
        let offer = |s: &mut SqliteSink, i: usize| {
            let (incarnation, epoch) = revision(i);
            s.apply(&Outbox::new(incarnation, epoch, &rows(&list[i]), b"")).unwrap();
        };
        let (straight, repeated, shuffled) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
        let mut s = opened(&straight, 9);
        (0..list.len()).for_each(|i| offer(&mut s, i));
        let wanted = table(&straight);

        let mut s = opened(&repeated, 9);
        (0..list.len()).for_each(|i| offer(&mut s, i));
        again.iter().for_each(|i| offer(&mut s, i.index(list.len())));
        prop_assert_eq!(&table(&repeated), &wanted);

        // In any first order too, but for the content of retracted rows: what was sent last before the
        // retraction is known only to those who saw it before.
        let mut s = opened(&shuffled, 9);
        again.iter().for_each(|i| offer(&mut s, i.index(list.len())));
        (0..list.len()).rev().for_each(|i| offer(&mut s, i));
        let got = table(&shuffled);
        prop_assert_eq!(got.len(), wanted.len());
        for (g, w) in got.iter().zip(&wanted) {
            if w.stage == "retracted" {
                prop_assert_eq!(
                    (&g.session_id, &g.stage, g.incarnation, g.epoch), (&w.session_id, &w.stage, w.incarnation, w.epoch)
                );
            } else {
                prop_assert_eq!(g, w);
            }
        }
    }
}

/// Epochs as the fold of a lane makes them: events come up to 20 ms late and twice, the lateness is 15 ms, and every
/// barrier tells what is open; so sessions are corrected, merged (and then one of them retracted) and revived.
fn folded(seed: u64) -> Vec<Vec<u8>> {
    let gap = GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let config = LaneConfig {
        pipeline: "p".into(),
        key_form: KeyForm::One,
        lateness_ms: 15,
        early: true,
        events_per_key: 1000,
        suffix_bytes: 1 << 20,
        open_sessions: 100,
        groups: 0..1024,
        sources: vec!["s".into()],
        layout: Vec::new(),
    };
    let mut lane = Lane::new(config, Versions::single(Box::new(Gap::new(&gap))));
    let mut random = seed;
    let mut below = |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % n
    };
    let origin = Origin { source: "s", partition: "p", raw: b"" };
    let mut epochs = Vec::new();
    let (mut now, mut offset, mut watermark) = (0_i64, 0, EventTime::BEGINNING);
    for _ in 0..60 {
        let mut batch = Rows::default();
        for _ in 0..8 {
            now += below(4) as i64;
            let time = EventTime::from_ms(now - below(20) as i64);
            if time < watermark.minus(15) {
                continue;
            }
            let key = [b'a' + below(4) as u8];
            let key_at = batch.bytes.len() as u32;
            batch.bytes.extend_from_slice(&key);
            offset += below(2);
            batch.heads.push(RowHead {
                key_hash: key_hash(&key),
                time,
                position: Position { source: 0, partition: 0, offset },
                key_at,
                key_len: 1,
                ext_len: 0,
                raw_at: 0,
                raw_len: 0,
            });
        }
        lane.insert(&batch, watermark, origin).unwrap();
        watermark = watermark.max(EventTime::from_ms(now - 5));
        epochs.push(lane.barrier(Barrier { watermark, early_tick: true, at_end: false }).unwrap().rows);
    }
    let end = Barrier { watermark: EventTime::INFINITY, early_tick: false, at_end: true };
    epochs.push(lane.barrier(end).unwrap().rows);
    epochs
}

/// The same of what the engine really sends.
#[test]
fn epochs_of_a_fold_may_come_again_and_in_any_order() {
    let mut retracted = 0;
    for seed in 1..9 {
        let list = folded(seed);
        let offer = |s: &mut SqliteSink, i: usize| {
            s.apply(&Outbox::new(1, 1 + i as u64, &list[i], b"")).unwrap();
        };
        let (straight, again) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let mut s = opened(&straight, 9);
        (0..list.len()).for_each(|i| offer(&mut s, i));
        let wanted = table(&straight);
        let mut s = opened(&again, 9);
        (0..list.len()).step_by(3).for_each(|i| offer(&mut s, i));
        let last_first: Vec<usize> = (0..list.len()).rev().collect();
        let in_order: Vec<usize> = (0..list.len()).collect();
        for order in [&last_first, &in_order, &last_first] {
            order.iter().for_each(|i| offer(&mut s, *i));
            let got = table(&again);
            assert_eq!(got.len(), wanted.len());
            for (g, w) in got.iter().zip(&wanted) {
                if w.stage == "retracted" {
                    retracted += 1;
                    let of = |r: &OwnedRow| (r.session_id.clone(), r.stage.clone(), r.incarnation, r.epoch);
                    assert_eq!(of(g), of(w), "seed {seed}");
                } else {
                    assert_eq!(g, w, "seed {seed}");
                }
            }
        }
    }
    assert!(retracted > 10, "{retracted} retracted rows prove nothing");
}

#[test]
fn sinks_of_several_pipelines_open_one_new_file_at_once() {
    for round in 0..20 {
        let dir = TempDir::new().unwrap();
        let gate = std::sync::Barrier::new(6);
        std::thread::scope(|scope| {
            for n in 0..6 {
                let (dir, gate) = (&dir, &gate);
                scope.spawn(move || {
                    let s = SqliteSink::new(
                        dir.path().join("s.db"),
                        format!("t{n}"),
                        format!("p{n}"),
                        "s".into(),
                        Stages::ALL,
                    );
                    gate.wait();
                    s.connect().map(drop).unwrap_or_else(|e| panic!("round {round}: {e}"));
                });
            }
        });
    }
}
