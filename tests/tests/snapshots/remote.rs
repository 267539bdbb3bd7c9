//! Epochs that leave once the object store has them: a machine that is lost with its disk has told nobody anything that is not
//! restored.
//!
//! The bug family: an epoch that leaves before its object is there; a tail with a gap, or one that goes too early; a host that
//! goes on releasing while its place is taken.

use super::*;
use serde_json::Value;
use tidemill_services::objects::{ObjectFault, Objects};

const REMOTE: &str = "release_after = \"remote\"";

fn data_dir_is_lost(case: &Case, name: &str) {
    std::fs::remove_dir_all(case.path(name)).unwrap();
}

/// A file stands where its folder was.
fn take_store_away(case: &Case) {
    std::fs::rename(case.path("store"), case.path("store.away")).unwrap();
    case.put("store", b"no folder");
}

fn put_store_back(case: &Case) {
    std::fs::remove_file(case.path("store")).unwrap();
    std::fs::rename(case.path("store.away"), case.path("store")).unwrap();
}

/// Objects of tails in the store.
fn tail(case: &Case) -> Vec<String> {
    fn below(dir: &Path, names: &mut Vec<String>) {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for path in entries.map(|e| e.unwrap().path()) {
            match path.is_dir() {
                true => below(&path, names),
                false => names.push(path.to_str().unwrap().to_owned()),
            }
        }
    }
    let mut names = Vec::new();
    below(&case.path("store/tails"), &mut names);
    names
}

/// The same command everywhere, and each time nothing of the disk is left but the sinks.
#[test]
fn machines_that_are_lost_with_their_disks_cost_no_row() {
    const LOST: u64 = 6;
    let case = Case::new();
    let bytes = shop(33, 300_000);
    let config = config(&case.path("first"), "close");
    case.put(FILE, &bytes);
    // Half of them with snapshots on the way, which cut the tail at its front.
    let mut follower = Follower::default();
    let (mut lost, mut beyond) = (0, 0);
    for n in 0..LOST {
        let more = if n < LOST / 2 { "" } else { "snapshot = { every = \"1s\", keep = 2 }" };
        configure(&case, &config, &format!("{REMOTE}\n{more}"));
        follower.read(&case.path("rows.jsonl"));
        let until = follower.total + 1_500;
        let mut process = case.start(&[], &[]);
        wait_for("rows", RUN_MAX, || {
            follower.read(&case.path("rows.jsonl"));
            (follower.total >= until || process.ended()).then_some(())
        });
        if process.ended() {
            break;
        }
        process.kill();
        lost += 1;
        data_dir_is_lost(&case, "first");
        let seen = (case.table(), std::fs::read(case.path("rows.jsonl")).unwrap());
        let cut =
            done(&case, &["list"])["snapshots"].as_array().unwrap().last().unwrap()["pipelines"][0].clone();
        done(&case, &["drill"]);
        let restored = done(&case, &["restore"]);
        let pipeline = &restored["pipelines"][0];
        beyond += u64::from(pipeline["epoch"].as_u64() > cut["epoch"].as_u64());
        assert!(pipeline["newest_seen"].as_u64() <= pipeline["epoch"].as_u64(), "{restored}");
        let still = (case.table(), std::fs::read(case.path("rows.jsonl")).unwrap());
        assert!(seen.0 == still.0, "a row was taken back: {restored}");
        // It is cut to where the last epoch knows it to be, and the rest is sent again.
        assert!(seen.1.starts_with(&still.1), "rows were taken back: {restored}");
    }
    assert!(
        lost > LOST / 2 && beyond > 0,
        "lost {lost} times, {beyond} times with epochs behind the snapshot"
    );
    case.run().exits(0);
    same_sinks("after all of them", &model_of(&config, &bytes), &case);
    report!(
        "snapshots: {lost} machines lost with their disks, {beyond} times with epochs behind the snapshot; no row taken back"
    );
}

#[test]
fn what_was_posted_and_has_left_comes_back_with_no_newer_snapshot() {
    let case = Case::new();
    let mut all = 0..0;
    for n in 0..4 {
        let data_dir = format!("data-{n}");
        configure_http(&case, &data_dir, REMOTE);
        if n > 0 {
            done(&case, &["restore"]);
        }
        let (mut process, host) = listening(&case);
        wait_for("rows of before", SOON, || (users(&case) == names(all.clone())).then_some(()));
        // Some in epochs of their own, and the last ones with others that may or may not be lost.
        for _ in 0..5 {
            post(&host, all.end..all.end + 100);
            all.end += 100;
            wait_for("rows", SOON, || (users(&case) == names(all.clone())).then_some(()));
        }
        process.kill();
        data_dir_is_lost(&case, &data_dir);
    }
    assert_eq!(ids(&case).len(), 4, "one at each start");
    let of = |object: &String| object.split("/tails/").nth(1).map(|rest| rest[..20].to_owned());
    let starts: BTreeSet<_> = tail(&case).iter().map(|object| of(object).unwrap()).collect();
    assert_eq!(starts.len(), 1, "those of earlier starts are in the newest snapshot");
    configure_http(&case, "last", REMOTE);
    done(&case, &["restore"]);
    let (process, _) = listening(&case);
    wait_for("rows", SOON, || (users(&case) == names(all.clone())).then_some(()));
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
    assert_eq!(users(&case), names(all));
}

fn epoch_and_away(case: &Case) -> (Option<u64>, Option<String>) {
    let answer = admin_in(case, "data").try_ask("GET", "/api/v1/pipelines/visits", &[], b"").unwrap();
    let view: Value = serde_json::from_slice(&answer.body).unwrap();
    (view["epoch"].as_u64(), view["store_away"]["why"].as_str().map(str::to_owned))
}

#[test]
fn while_the_store_is_away_nothing_leaves_and_then_all_of_it_does() {
    let case = Case::new();
    configure_http(&case, "data", REMOTE);
    let (process, host) = listening(&case);
    post(&host, 0..100);
    wait_for("rows", SOON, || (users(&case) == names(0..100)).then_some(()));
    take_store_away(&case);
    post(&host, 100..200);
    let (committed, why) = wait_for("the word that it is away", SOON, || {
        let (epoch, away) = epoch_and_away(&case);
        Some((epoch?, away?))
    });
    assert!(why.contains("store"), "{why}");
    // They are durable here, and epochs go on.
    post(&host, 200..300);
    wait_for("a later epoch", SOON, || epoch_and_away(&case).0.filter(|e| *e > committed));
    let metrics = admin_in(&case, "data").try_ask("GET", "/metrics", &[], b"").unwrap();
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(metrics.contains("tidemill_store_available{pipeline=\"visits\"} 0"), "{metrics}");
    assert_eq!(users(&case), names(0..100), "what the store has not has left");
    put_store_back(&case);
    wait_for("all of it", SOON, || (users(&case) == names(0..300)).then_some(()));
    assert_eq!(epoch_and_away(&case).1, None);
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}

/// A host that is asked to end, or begins, while its store is away: what waits leaves at a later start.
#[test]
fn an_end_and_a_start_without_the_store_lose_nothing() {
    let case = Case::new();
    configure_http(&case, "data", REMOTE);
    let (process, host) = listening(&case);
    post(&host, 0..100);
    wait_for("rows", SOON, || (users(&case) == names(0..100)).then_some(()));
    take_store_away(&case);
    post(&host, 100..200);
    wait_for("the word that it is away", SOON, || epoch_and_away(&case).1);
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
    assert_eq!(users(&case), names(0..100));

    let (process, host) = listening(&case);
    post(&host, 200..300);
    wait_for("the word that it is away", SOON, || epoch_and_away(&case).1);
    assert_eq!(users(&case), names(0..100));
    put_store_back(&case);
    wait_for("all of it", SOON, || (users(&case) == names(0..300)).then_some(()));
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}

/// Nobody has fenced its sinks yet, and still it releases nothing that is not restored.
#[test]
fn a_host_whose_place_is_taken_releases_nothing_more() {
    let case = Case::new();
    configure_http(&case, "data", REMOTE);
    let (old, host) = listening(&case);
    post(&host, 0..100);
    wait_for("rows", SOON, || (users(&case) == names(0..100)).then_some(()));
    // Sinks elsewhere: the store alone stands between the two.
    let table = case.path("sessions.db");
    std::fs::copy(&table, case.path("copy.db")).unwrap();
    configure_http(&case, "second", REMOTE);
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    case.put("pipeline.toml", text.replace("sessions.db", "copy.db").as_bytes());
    done(&case, &["restore"]);
    post(&host, 100..200);
    old.outcome(RUN_MAX).exits(6).says("has taken the place of this data directory");
    assert_eq!(users(&case), names(0..100), "it has released what the other does not know of");
}

#[test]
fn when_epochs_leave_is_checked_with_the_rest_of_the_config() {
    let case = Case::new();
    case.put(FILE, &shop(1, 10));
    configure(&case, &config(&case.path("first"), "close"), "release_after = \"later\"");
    let out = Command::new(binary()).arg("check").arg(case.path("pipeline.toml")).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        out.status.code() == Some(4) && said.contains("release_after") && said.contains("remote"),
        "{said}"
    );
}

/// The same by S3's API over sockets, where requests are throttled, break, and are made without an answer.
#[test]
fn a_bucket_that_fails_now_and_then_costs_no_row_either() {
    let server = Objects::start();
    server.demand(Some("AKIDEXAMPLE"));
    let case = Case::new();
    let bytes = shop(34, 200_000);
    let config = config(&case.path("first"), "close");
    case.put(FILE, &bytes);
    case.configure(&config);
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let text = text.replace("epoch = \"10ms\"", "epoch = \"10ms\"\nsegment = \"64KiB\"");
    let options = "region = \"eu-west-1\", allow_http = \"true\", access_key_id = \"AKIDEXAMPLE\"";
    let state = format!(
        "{text}\n[state]\nstore = \"s3://clicks/tidemill\"\n{REMOTE}\nsnapshot = {{ every = \"1s\", keep = 2 }}\n\
         options = {{ endpoint = \"{}\", {options}, secret_access_key = \"${{env:WRITE_KEY}}\" }}\n",
        server.endpoint()
    );
    case.put("pipeline.toml", state.as_bytes());
    let (mut follower, mut lost) = (Follower::default(), 0);
    for (n, fault) in
        [ObjectFault::Throttled, ObjectFault::Unanswered, ObjectFault::Broken].into_iter().enumerate()
    {
        server.order_every(Some((7, fault)));
        follower.read(&case.path("rows.jsonl"));
        let until = follower.total + 500;
        let mut process = case.start(&[], &[("WRITE_KEY", KEY.into())]);
        wait_for("rows", RUN_MAX, || {
            follower.read(&case.path("rows.jsonl"));
            (follower.total >= until || process.ended()).then_some(())
        });
        if process.ended() {
            break;
        }
        process.kill();
        lost += 1;
        data_dir_is_lost(&case, "first");
        let seen = case.table();
        done(&case, &["restore"]);
        assert!(seen == case.table(), "turn {n}: a row was taken back");
    }
    assert!(lost > 1 && server.met() > 6, "lost {lost} times, {} faults", server.met());
    server.order_every(None);
    case.start(&[], &[("WRITE_KEY", KEY.into())]).outcome(RUN_MAX).exits(0);
    same_sinks("after all of them", &model_of(&config, &bytes), &case);
    assert!(
        server.names().iter().any(|n| n.starts_with("clicks/tidemill/snapshots/")),
        "{:?}",
        server.names()
    );
    report!("snapshots: a bucket by S3's API, {} requests failed", server.met());
}
