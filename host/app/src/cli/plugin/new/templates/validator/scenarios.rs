//! Events, and the verdicts on them.

use CRATE::People;
use tidemill_plugin_sdk::fields;
use tidemill_plugin_sdk::scenario::Verdicts;

#[test]
fn people_on_this_site_are_taken() {
    let v = Verdicts::<People>::new(r#"{ "site": "https://shop.example/" }"#);
    v.accepts(fields! { url: "https://shop.example/cart", agent: "Firefox" });
    v.accepts(fields! { url: "https://shop.example/" });
    v.rejects(fields! { url: "https://elsewhere.example/", agent: "Firefox" }, "foreign_url");
    v.rejects(fields! { agent: "Firefox" }, "foreign_url");
}

#[test]
fn robots_are_rejected_however_they_write_themselves() {
    let v = Verdicts::<People>::new("{}");
    v.rejects(fields! { url: "/", agent: "GoogleBot/2.1" }, "robot");
    v.accepts(fields! { url: "/", agent: "a browser" });
}
