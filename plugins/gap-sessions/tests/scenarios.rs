//! The same cases as the built-in rule's.

use gap_sessions::Gap;
use tidemill_plugin_sdk::{fields, scenario::Scenario};

#[test]
fn the_boundary_is_outside_unless_it_is_inclusive() {
    for (boundary, table) in [
        ("exclusive", "10:00:00 .. 10:00:00 1 event gap {}\n10:30:00 .. 10:30:00 1 event gap {}"),
        ("inclusive", "10:00:00 .. 10:30:00 2 events gap {}"),
    ] {
        let mut s = Scenario::<Gap>::new(&format!(r#"{{ "gap": "30m", "boundary": "{boundary}" }}"#));
        s.at("10:00", fields! {}).at("10:30", fields! {}).end_of_input();
        s.expect(table);
    }
}

#[test]
fn max_start_and_end() {
    let config = r#"{ "gap": "30m", "max": "1h",
        "start": { "field": "type", "in": ["login"] }, "end": { "field": "type", "in": ["purchase"] } }"#;
    let mut s = Scenario::<Gap>::new(config);
    for time in ["10:00", "10:20", "10:40", "10:59:59", "11:00"] {
        s.at(time, fields! { "type": "view" });
    }
    s.at("11:05", fields! { "type": "login" });
    s.at("11:06", fields! { "type": "purchase" });
    s.at("11:07", fields! {});
    s.end_of_input();
    s.expect(
        "10:00:00 .. 10:59:59 4 events max {}
         11:00:00 .. 11:00:00 1 event start {}
         11:05:00 .. 11:06:00 2 events end {}
         11:07:00 .. 11:07:00 1 event gap {}",
    );
    s.expect_same_in_any_order(0..50);
}

#[test]
#[should_panic(expected = "/start/field: this plugin declares the field `type` alone")]
fn another_field_is_refused() {
    let _ = Scenario::<Gap>::new(r#"{ "gap": "1m", "start": { "field": "kind", "in": [] } }"#);
}
