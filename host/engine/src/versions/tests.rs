//! Tests of what goes over from one version to another; what several answer together is held to the naive model in `tests/fold`.

use super::*;
use crate::gap::{Boundary, Gap, GapConfig};

fn gap() -> Gap {
    Gap::new(&GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None })
}

/// A rule with this version of its state, which takes older ones.
fn description(version: u32, shape: &str, from: &[(u32, &str)], timers: &[&str]) -> Description {
    let mut d = gap().describe().clone();
    d.state.version = version;
    d.state.shape = shape.into();
    d.state.from = from.iter().map(|(v, shape)| (*v, (*shape).into())).collect();
    d.timers = timers.iter().map(|t| (*t).into()).collect();
    d
}

/// Bug family: a deployment that is refused though its rule takes the open sessions, or let in though it does not.
#[test]
fn sessions_go_over_to_a_rule_that_knows_their_state() {
    let old = description(2, "b", &[], &["gap"]);
    let other = {
        let mut d = old.clone();
        d.state.rule = "other".into();
        d
    };
    let cases = [
        (description(2, "b", &[], &["max", "gap"]), Ok(())),
        (description(3, "c", &[(1, "a"), (2, "b")], &["gap"]), Ok(())),
        (other, Err("have the state of")),
        (description(3, "c", &[], &["gap"]), Err("does not migrate from it")),
        (description(3, "c", &[(1, "b")], &["gap"]), Err("does not migrate from it")),
        (description(2, "c", &[], &["gap"]), Err("is made of `b`")),
        (description(3, "b", &[(2, "c"), (1, "b")], &["gap"]), Err("is made of `b`")),
        (description(2, "b", &[], &["max"]), Err("may wait for timer `gap`")),
    ];
    for (new, want) in cases {
        match (can_migrate(&old, &new), want) {
            (Ok(()), Ok(())) => {}
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (got, want) => panic!("{got:?} for {:?}, where {want:?} should be", new.state),
        }
    }
}

/// The built-in rule, whose state is a list of the migrations that it has been through; it does not take `bad` ones.
struct Listing(Gap, Description);

impl SessionRule for Listing {
    fn describe(&self) -> &Description {
        &self.1
    }
    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        let step = format!(" {from}>{}", self.1.state.version);
        let taken =
            |s: &&[u8]| if *s == b"bad" { Err("bad".into()) } else { Ok([s, step.as_bytes()].concat()) };
        states.iter().map(taken).collect()
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        self.0.call(turns, out);
    }
}

/// Bug family: a session that goes on with another one's state.
#[test]
fn each_state_is_migrated_through_the_versions_behind_its_own() {
    let scheduled = |n: u32| Scheduled {
        version: Version(n),
        from: if n == 0 { EventTime::BEGINNING } else { EventTime::from_ms(i64::from(n)) },
        policy: Policy::Migrate,
        drained_by: EventTime::INFINITY,
        plugin: format!("listing@{n}"),
        digest: None,
    };
    let rule = |n: u32| Box::new(Listing(gap(), description(n, "list", &[], &["gap", "max"])));
    let mut versions = Versions::new(scheduled(0), rule(0), Vec::new(), Vec::new())
        .with_newer(scheduled(1), rule(1))
        .with_newer(scheduled(2), rule(2));
    let timers = [Timer { at: EventTime::from_ms(50), number: 1 }];
    let states: Vec<(Version, &[u8], &[Timer])> =
        [(1, "a"), (0, "b"), (0, "bad"), (2, "c"), (1, "d"), (1, "bad"), (0, "e")]
            .map(|(n, state)| (Version(n), state.as_bytes(), &timers[..]))
            .to_vec();
    let migrated: Vec<Result<String, String>> = versions
        .migrate(&states)
        .into_iter()
        .map(|m| {
            let (state, kept) = m?;
            assert_eq!(kept, timers);
            Ok(String::from_utf8(state).unwrap())
        })
        .collect();
    let want = ["a 1>2", "b 0>1 1>2", "bad", "c", "d 1>2", "bad", "e 0>1 1>2"];
    assert_eq!(migrated, want.map(|s| if s == "bad" { Err(s.to_owned()) } else { Ok(s.to_owned()) }));
}
