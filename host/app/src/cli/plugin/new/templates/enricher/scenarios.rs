//! Sessions, and the fields that they are given.

use CRATE::Visitors;
use tidemill_plugin_sdk::fields;
use tidemill_plugin_sdk::scenario::Lookups;

#[test]
fn sessions_are_given_what_is_known_of_their_visitor() {
    let e = Lookups::<Visitors>::new("{}")
        .row("visitor", "alice", fields! { segment: "gold", country: "NL", salary: 1 })
        .row("visitor", "bob", fields! { country: "BE" });
    assert_eq!(e.enrich("alice", fields! {}).to_json(), r#"{"segment":"gold","country":"NL"}"#);
    assert_eq!(e.enrich("bob", fields! {}).to_json(), r#"{"country":"BE"}"#);
}

#[test]
fn a_visitor_without_a_row_is_no_mistake() {
    let e = Lookups::<Visitors>::new(r#"{ "columns": ["country"] }"#);
    assert_eq!(e.enrich("carol", fields! {}).to_json(), "{}");
}
