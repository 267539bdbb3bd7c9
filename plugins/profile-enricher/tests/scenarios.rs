//! What sessions are given.

use profile_enricher::Profile;
use tidemill_plugin_sdk::{fields, scenario::Lookups};

#[test]
fn attributes_of_visitor_and_campaign_are_added() {
    let e = Lookups::<Profile>::new("{}")
        .row("visitor", "alice", fields! { segment: "gold", country: "NL", secret: 1 })
        .row("campaign", "spring", fields! { channel: "mail", budget: 100 });
    assert_eq!(
        e.enrich("alice", fields! { campaign: "spring" }).to_json(),
        r#"{"visitor_segment":"gold","visitor_country":"NL","campaign_channel":"mail","campaign_budget":100}"#
    );
    assert_eq!(e.enrich("bob", fields! { campaign: "autumn" }).to_json(), "{}");
    assert_eq!(
        e.enrich("alice", fields! {}).to_json(),
        r#"{"visitor_segment":"gold","visitor_country":"NL"}"#
    );
}
