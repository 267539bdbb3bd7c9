//! Events at times, and the sessions that must come of them.

use CRATE::Visits;
use tidemill_plugin_sdk::fields;
use tidemill_plugin_sdk::scenario::Scenario;

#[test]
fn silence_ends_a_visit() {
    let mut s = Scenario::<Visits>::new(r#"{ "gap": "15m" }"#);
    s.at("10:00", fields! { url: "/" });
    s.at("10:14", fields! { url: "/prices" });
    // Exactly a gap later is too late.
    s.at("10:29", fields! { url: "/" });
    s.end_of_input();
    s.expect(
        r#"10:00:00 .. 10:14:00 2 events silence {"entry":"/","pages":2}
           10:29:00 .. 10:29:00 1 event silence {"entry":"/","pages":1}"#,
    );
    // Late, doubled, shuffled: the rule never notices.
    s.expect_same_in_any_order(0..50);
}

#[test]
fn a_purchase_is_the_last_event_of_its_visit() {
    let mut s = Scenario::<Visits>::new("{}");
    s.at("10:00", fields! { url: "/cart" });
    s.at("10:01", fields! { url: "/thanks", kind: "purchase" });
    s.at("10:02", fields! { url: "/" });
    // The clock goes on, but not far enough for the second visit to end.
    s.advance_to("10:31");
    s.expect(
        r#"10:00:00 .. 10:01:00 2 events purchase {"entry":"/cart","pages":2}
           10:02:00 .. 10:02:00 1 event open {"entry":"/","pages":1}"#,
    );
}
