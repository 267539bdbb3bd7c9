//! What is taken and what is not.

use clickstream_validator::Checks;
use tidemill_plugin_sdk::{Time, fields, scenario::Verdicts};

#[test]
fn events_are_judged_by_the_config() {
    let v = Verdicts::<Checks>::new(r#"{ "types": ["page_view"], "required": ["type", "url", "user"] }"#);
    v.accepts(fields! { "type": "page_view", url: "https://shop.example/a?b", user: 7 });
    v.rejects(fields! { "type": "page_view", url: "/a" }, "missing_field");
    v.rejects(fields! { "type": "click", url: "/a", user: "u" }, "unknown_type");
    for url in ["a", "https://", "https:///x", "/a b", "ftp://x"] {
        v.rejects(fields! { "type": "page_view", url: url, user: "u" }, "bad_url");
    }
}

#[test]
fn times_have_bounds_and_both_belong() {
    let v = Verdicts::<Checks>::new(r#"{ "required": [], "min_time": 1000, "max_time": 2000 }"#);
    let judge = |ms| v.verdict(Time::from_millis(ms), &fields! {}).map(|(reason, _)| reason);
    assert_eq!([999, 1000, 2000, 2001].map(judge), [Some("time_range"), None, None, Some("time_range")]);
}
