//! What becomes of visits, and of what the version before remembered of them.

use checkout_sessions_next::{Checkout, Visit};
use tidemill_plugin_sdk::{State as _, fields, scenario::Scenario};

#[test]
fn what_is_put_into_the_cart_is_counted() {
    let mut s = Scenario::<Checkout>::new("{}");
    s.at("10:00", fields! { kind: "page_view", campaign: "spring" });
    s.at("10:01", fields! { kind: "add_to_cart" });
    s.at("10:02", fields! { kind: "add_to_cart" });
    s.at("10:05", fields! { kind: "checkout" });
    s.at("10:06", fields! { kind: "purchase", amount: 12.5 });
    s.expect(
        r#"10:00:00 .. 10:06:00 5 events purchase {"campaign":"spring","pages":1,"carts":2,"checkouts":1,"paid":12.5}"#,
    );
    s.expect_same_in_any_order(0..20);
}

#[test]
fn states_of_the_version_before_are_taken_over() {
    let before = checkout_sessions_next::VisitBefore::form();
    assert_eq!((Visit::VERSION, Visit::migrates_from()), (2, vec![before.clone()]));
    // As `checkout-sessions` 0.1.0 describes it: whoever changes this cannot take over its states.
    assert_eq!(
        (before.version, before.shape.as_str()),
        (1, "{pages: u32, checkouts: u32, paid: Option<f64>, campaign: String}")
    );
}
