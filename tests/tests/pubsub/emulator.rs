//! Google's own emulator, where the Cloud SDK is: its answers are Google's, not ours. Counted apart: no wish for services asks for it.

use super::{SOON, SUBSCRIPTION, TOPIC, clicks, configure_with, model_of, publish, publish_last};
use std::collections::BTreeMap;
use tidemill_services::pubsub::{PROJECT, emulator};
use tidemill_tests::model::Row;
use tidemill_tests::{Case, RUN_MAX, Stored, current, latest, report, same_table, stored, wait_for};

#[test]
fn what_googles_emulator_gives_and_takes_is_the_models() {
    let Some((service, _emulator)) = emulator() else { return };
    let clicks = clicks(3_000);
    let rows = model_of(&clicks);
    service.subscription(TOPIC, SUBSCRIPTION, true);
    service.subscription("out", "out-sub", false);
    let case = Case::new();
    let address = service.address();
    let sink = format!(
        "[sink.topic]\nkind = \"pubsub\"\nproject = \"{PROJECT}\"\ntopic = \"out\"\ncredentials = \"none\"\n\
         endpoint = \"http://{address}\"\n"
    );
    configure_with(&case, address, r#"to = ["sessions", "topic"]"#, &sink);
    // It does not notice that a stream has gone (version 0.8.20), and goes on giving messages to it: so nobody is killed here.
    publish(&service, &clicks);
    let mut process = case.start(&[], &[]);
    // All of it is in the table, whatever stage it has, before what ends all sessions.
    let events =
        |all: &[Stored]| all.iter().filter(|s| s.stage != "retracted").map(|s| s.row.events).sum::<u64>();
    let all: u64 = rows.iter().map(|r| r.events).sum();
    wait_for("all events", RUN_MAX, || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        (case.has_table() && events(&case.table()) == all).then_some(())
    });
    publish_last(&service);
    let (mut seen, mut copies) = (BTreeMap::new(), 0);
    let certain =
        |all: &[Stored]| all.iter().filter(|s| s.stage == "final" && s.row.key != super::LAST).count();
    wait_for("all sessions to be certain", RUN_MAX, || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        for message in service.pull("out-sub") {
            let row = stored(&message.data);
            assert_eq!(message.key, row.id, "the ordering key");
            copies += usize::from(seen.insert(message.attributes["event_id"].clone(), row).is_some());
        }
        (certain(&latest(seen.values().cloned().collect())) == rows.len()).then_some(())
    });
    process.terminate();
    process.outcome(SOON).exits(0);
    let but_last = |all: Vec<Stored>| -> Vec<Row> {
        current(&latest(all)).into_iter().filter(|r| r.key != super::LAST).collect()
    };
    same_table("Google's emulator, the table", &rows, &but_last(case.table()));
    same_table("Google's emulator, the topic", &rows, &but_last(seen.values().cloned().collect()));
    report!(
        "Google's emulator of Pub/Sub: {} sessions, {} revisions, {copies} of them came again",
        rows.len(),
        seen.len()
    );
}
