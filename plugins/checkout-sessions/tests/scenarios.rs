//! What becomes of visits.

use checkout_sessions::Checkout;
use tidemill_plugin_sdk::{Duration, fields, scenario::Scenario};

fn shop() -> Scenario<Checkout> {
    Scenario::new("{}")
}

#[test]
fn a_purchase_closes_and_silence_closes() {
    let mut s = shop();
    s.at("10:00", fields! { kind: "page_view", campaign: "spring" });
    s.at("10:05", fields! { kind: "checkout" });
    s.at("10:06", fields! { kind: "purchase", amount: 12.5 });
    s.at("10:07", fields! { kind: "page_view" });
    s.at("10:36:59.999", fields! { kind: "scroll" });
    s.advance_to("11:06:59.998");
    s.expect(
        r#"10:00:00 .. 10:06:00 3 events purchase {"campaign":"spring","pages":1,"checkouts":1,"paid":12.5}
           10:07:00 .. 10:36:59.999 2 events open {"campaign":"","pages":1,"checkouts":0,"paid":null}"#,
    );
    s.advance_to("11:06:59.999");
    s.expect(
        r#"10:00:00 .. 10:06:00 3 events purchase {"campaign":"spring","pages":1,"checkouts":1,"paid":12.5}
           10:07:00 .. 10:36:59.999 2 events idle {"campaign":"","pages":1,"checkouts":0,"paid":null}"#,
    );
    s.expect_same_in_any_order(0..50);
}

#[test]
fn another_campaign_splits() {
    let mut s = shop();
    s.at("10:00", fields! { kind: "page_view", campaign: "spring" });
    s.at("10:01", fields! { kind: "page_view", campaign: "mail" });
    s.end_of_input();
    s.expect(
        r#"10:00:00 .. 10:00:00 1 event campaign {"campaign":"spring","pages":1,"checkouts":0,"paid":null}
           10:01:00 .. 10:01:00 1 event idle {"campaign":"mail","pages":1,"checkouts":0,"paid":null}"#,
    );
}

#[test]
fn a_checkout_without_a_page_is_no_visit() {
    let mut s = shop();
    s.at("10:00", fields! { kind: "checkout" });
    s.expect(r#"10:00:00 .. 10:00:00 1 event discarded: incomplete {"campaign":"","pages":0,"checkouts":0,"paid":null}"#);
}

#[test]
fn copies_are_dropped_and_what_is_late_is_late() {
    let mut s = shop();
    s.disorder(Duration::minutes(1));
    s.event("a", "10:00", &fields! { kind: "page_view" });
    s.event("a", "10:00", &fields! { kind: "page_view" });
    s.event("b", "10:05", &fields! { kind: "page_view" });
    s.event("c", "10:04", &fields! { kind: "page_view" });
    s.event("d", "10:03:59", &fields! { kind: "page_view" });
    assert_eq!((s.copies(), s.late()), (1, &["10:03:59".to_owned()][..]));
    s.expect(r#"10:00:00 .. 10:05:00 3 events open {"campaign":"","pages":3,"checkouts":0,"paid":null}"#);
}
