//! The whole, as somebody runs it: two data sources in topics of Kafka (Avro and JSON), or in Pub/Sub, to the validator, the checkout
//! rule and the enricher, sessions to a warehouse, and what cannot be used to a topic of dead letters. The host is killed, the broker
//! is killed, the warehouse's stream breaks; in the end readers of the table see the naive model's sessions with what is known of
//! their visitors, and readers of the topic each letter once.
//!
//! The bug family: parts that hold one by one and not together. A letter whose transaction is lost while its epoch's rows are not, a
//! row that waits for a lookup over a kill and goes out twice or never, a source that is back before the other.
//!
//! `TIDEMILL_ARCHITECTURE_EVENTS` (default 40,000), `_KILLS` (3), `_RESTARTS` (1), `_BREAKS` (1) and `_SEED` set the size; all of it
//! is `cargo xtask prove --only architecture`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod clicks;
mod streams;
mod visitors;
mod warehouse;

use clicks::{Clicks, LAST, Letter, reasons};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use streams::{Kafka, PubSub, Streams};
use tidemill_tests::component::{Made, Sessionizer};
use tidemill_tests::plugins::{lend, plugin};
use tidemill_tests::traffic::Rng;
use tidemill_tests::{Case, Process, env_number, kafka, report, same_table, wait_for};
use visitors::{Visitors, visitor};
use warehouse::{BigQuery, Postgres, Warehouse};

/// Long enough for whatever has to happen next, on a machine that does something else as well.
const SOON: Duration = Duration::from_secs(240);
/// So long nothing may change before all is taken for done, though it is not what was expected.
const STILL: Duration = Duration::from_secs(30);

/// What happens to the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    KillHost,
    KillBroker,
    BreakStream,
}

struct Size {
    seed: u64,
    events: u64,
    kills: u64,
    restarts: u64,
    breaks: u64,
}

impl Size {
    fn asked(seed: u64) -> Size {
        let number = |what: &str, default| env_number(&format!("TIDEMILL_ARCHITECTURE_{what}"), default);
        Size {
            seed: number("SEED", seed),
            events: number("EVENTS", 40_000),
            kills: number("KILLS", 3),
            restarts: number("RESTARTS", 1),
            breaks: number("BREAKS", 1),
        }
    }

    fn blows(&self, rng: &mut Rng) -> Vec<Blow> {
        let counts = [
            (Blow::KillHost, self.kills),
            (Blow::KillBroker, self.restarts),
            (Blow::BreakStream, self.breaks),
        ];
        let mut blows: Vec<Blow> =
            counts.iter().flat_map(|(blow, n)| std::iter::repeat_n(*blow, *n as usize)).collect();
        rng.shuffle(&mut blows);
        blows
    }
}

/// What is known of campaigns: of all but the last.
const CAMPAIGNS: [(&str, &str, &str); 3] =
    [("c0", "mail", "100"), ("c1", "search", "2500"), ("c2", "banner", "40")];

/// A session with what is known of its visitor and its campaign.
fn enriched(made: &Made) -> Made {
    let mut fields: Value = serde_json::from_str(&made.fields).unwrap();
    if let Some(row) = visitor(&made.row.key) {
        fields["visitor_segment"] = row["segment"].clone();
        fields["visitor_country"] = row["country"].clone();
    }
    if let Some((_, channel, budget)) = CAMPAIGNS.iter().find(|c| fields["campaign"] == c.0) {
        fields["campaign_channel"] = (*channel).into();
        fields["campaign_budget"] = (*budget).into();
    }
    Made { row: made.row.clone(), fields: fields.to_string() }
}

/// The parts around the host.
struct World<'a> {
    streams: &'a dyn Streams,
    warehouse: &'a dyn Warehouse,
    visitors: Visitors,
}

impl<'a> World<'a> {
    fn new(streams: &'a dyn Streams, warehouse: &'a dyn Warehouse, users: u64) -> World<'a> {
        let visitors = Visitors::start((0..=users).map(|n| format!("u{n}")).chain([LAST.to_owned()]));
        World { streams, warehouse, visitors }
    }

    fn case(&self) -> Case {
        let case = Case::new();
        let campaigns = CAMPAIGNS.map(|(id, channel, budget)| format!("{id},{channel},{budget}\n")).concat();
        case.put("campaigns.csv", format!("id,channel,budget\n{campaigns}").as_bytes());
        let component = |name: &str| format!("path = {:?}", plugin(name).display().to_string());
        let text = format!(
            r#"[server]
data_dir = {state:?}
epoch = "50ms"

[source.web]
{web}
[source.app]
{app}
[plugin.validator]
{validator}
config = {{ types = ["page_view", "checkout", "purchase", "scroll"] }}
[plugin.checkout]
{checkout}
config = {{ idle = "30s" }}
[plugin.profile]
{profile}
lookups = {{ visitor = "visitors", campaign = "campaigns" }}

[lookup.visitors]
{visitors}
[lookup.campaigns]
kind = "file"
path = {campaigns:?}
key = "id"

[pipeline.visits]
from = ["web", "app"]
validate = ["validator"]
session = {{ plugin = "checkout" }}
enrich = ["profile"]
to = ["table"]
dead = "letters"

[sink.letters]
{letters}{table}"#,
            state = case.path("state").display().to_string(),
            web = self.streams.source(0),
            app = self.streams.source(1),
            validator = component("clickstream-validator"),
            checkout = component("checkout-sessions"),
            profile = component("profile-enricher"),
            visitors = self.visitors.lookup(),
            campaigns = case.path("campaigns.csv").display().to_string(),
            letters = self.streams.letters(),
            table = self.warehouse.sink(&case),
        );
        case.put("pipeline.toml", text.as_bytes());
        lend(&case.path("state"));
        case
    }

    /// Looks at something again and again, never for more than a tenth of the time: whoever is looked at has to work.
    fn sees<T>(&self, what: &str, process: &mut Process, mut look: impl FnMut(&str) -> Option<T>) -> T {
        let mut next = Instant::now();
        wait_for(what, SOON, || {
            if Instant::now() < next {
                return None;
            }
            let begun = Instant::now();
            let said = process.said_so_far();
            assert!(!process.ended(), "it has ended while a test waited for {what}:\n{said}");
            let found = look(&said);
            next = Instant::now() + 10 * begun.elapsed();
            found
        })
    }

    /// Waits until this many further events are in the table.
    fn reaches(&self, process: &mut Process, events: u64) {
        let target = self.warehouse.events() + events;
        self.sees("events in the table", process, |_| (self.warehouse.events() >= target).then_some(()));
    }

    /// Waits until it says something once more than it had.
    fn hears(&self, process: &mut Process, text: &str, heard: usize) {
        self.sees(&format!("it to say {text:?}"), process, |said| {
            (said.matches(text).count() > heard).then_some(())
        });
    }

    /// Waits until all is there, or for [`STILL`] nothing more comes.
    fn settles(&self, process: &mut Process, sessions: u64, letters: usize) {
        let (mut last, mut since) = ((0, 0), Instant::now());
        self.sees("all of it", process, |_| {
            let certain = self.warehouse.certain(LAST);
            // The topic is read as a whole, so only if the table is complete.
            let written = if certain < sessions { 0 } else { self.streams.written().len() };
            if (certain, written) != last {
                (last, since) = ((certain, written), Instant::now());
            }
            let done = certain == sessions && written >= letters;
            (done || since.elapsed() > STILL).then_some(())
        });
    }

    /// Waits until more may be sent.
    fn is_read(&self, process: &mut Process) {
        self.sees("what was sent to be read", process, |_| self.streams.is_read().then_some(()));
    }
}

const TABLE_AWAY: &str = "sink `table` is unavailable";
const TABLE_BACK: &str = "sink `table` is back after";
const SOURCE_AWAY: &str = "source `web` is unavailable";
const SOURCE_BACK: &str = "source `web` is back after";

/// One blow while a piece of the clicks is on its way, which is sent by halves; the host that goes on, if it does.
fn strike(
    world: &World<'_>,
    blow: Blow,
    mut host: Process,
    send: impl Fn(usize),
    events: u64,
) -> Option<Process> {
    let heard = |host: &Process, text: &str| host.said_so_far().matches(text).count();
    match blow {
        Blow::KillHost => {
            send(0);
            send(1);
            world.reaches(&mut host, events);
            host.kill();
            return None;
        }
        Blow::KillBroker => {
            send(0);
            world.reaches(&mut host, events / 2);
            let before = [SOURCE_AWAY, SOURCE_BACK].map(|text| heard(&host, text));
            world.streams.stop();
            world.hears(&mut host, SOURCE_AWAY, before[0]);
            world.streams.start_again();
            send(1);
            world.hears(&mut host, SOURCE_BACK, before[1]);
        }
        Blow::BreakStream => {
            let before = [TABLE_AWAY, TABLE_BACK].map(|text| heard(&host, text));
            world.warehouse.break_off();
            send(0);
            send(1);
            world.hears(&mut host, TABLE_AWAY, before[0]);
            world.warehouse.mend();
            world.hears(&mut host, TABLE_BACK, before[1]);
        }
    }
    Some(host)
}

fn architecture(streams: &dyn Streams, warehouse: &dyn Warehouse, size: &Size) {
    let begun = Instant::now();
    let world = World::new(streams, warehouse, clicks::users(size.events));
    let mut rng = Rng::new(size.seed);
    let clicks = Clicks::new(size.seed, size.events, streams);
    let case = world.case();
    let blows = size.blows(&mut rng);
    let pieces = blows.len() + 1;
    let mut running = None;
    for (n, blow) in blows.iter().enumerate() {
        let mut host = running.take().unwrap_or_else(|| case.start(&[], &[]));
        world.is_read(&mut host);
        // Less than the piece has, also without what is rejected and discarded; some at their start.
        let events = if n % 3 == 2 { 0 } else { rng.below(clicks.events / (4 * pieces as u64)) };
        running = strike(&world, *blow, host, |half| clicks.send(streams, 2 * n + half, 2 * pieces), events);
        eprintln!("{:>4} s  {blow:?} after {events} events", begun.elapsed().as_secs());
    }
    let mut host = running.unwrap_or_else(|| case.start(&[], &[]));
    world.is_read(&mut host);
    clicks.send(streams, pieces - 1, pieces);
    world.is_read(&mut host);
    clicks.send_last(streams);

    let (log, bytes) = clicks.log();
    let mut rule = Sessionizer::new("checkout-sessions", r#"{"idle":"30s"}"#);
    let (kept, gone) = rule.sessions(&log, bytes, &BTreeSet::new(), &[]);
    let mut sessions: Vec<Made> = kept.iter().map(enriched).collect();
    sessions.sort();
    let mut letters = clicks.letters.clone();
    letters.sort();
    // Where a letter names a record by its text, copies have one.
    letters.dedup();
    letters.extend(gone.into_iter().map(Letter::Session));
    letters.sort();
    world.settles(&mut host, sessions.len() as u64, letters.len());
    host.terminate();
    let outcome = host.outcome(SOON);
    outcome.exits(0);

    let rows: Vec<_> = warehouse.rows().into_iter().filter(|s| s.row.key != LAST).collect();
    let revisions = rows.len();
    let (retracted, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|s| s.stage == "retracted");
    let early = rows.iter().find(|s| s.stage == "early");
    let mut seen: Vec<Made> =
        rows.iter().map(|s| Made { row: s.row.clone(), fields: s.fields.clone() }).collect();
    seen.sort();
    same_table(warehouse.name(), &sessions, &seen);
    assert!(early.is_none(), "still early in the end: {early:?}");
    let mut written = streams.written();
    written.sort();
    same_table("letters", &letters, &written);
    proves_something(&sessions, &letters, retracted.len(), streams.is_avro(0));
    report!(
        "{} to {}: {} records of {} events and more, {} kills, {} restarts of the broker, {} breaks of the stream; {} sessions, \
         {revisions} ids with those retracted; {} letters ({}), {}, {}; {} s",
        streams.name(),
        warehouse.name(),
        clicks.records(),
        clicks.events,
        size.kills,
        size.restarts,
        size.breaks,
        sessions.len(),
        letters.len(),
        reasons(&letters),
        streams.beyond(),
        world.visitors.asked(),
        begun.elapsed().as_secs(),
    );
}

/// Every way for a session to end, and every kind of letter, was there to be compared.
fn proves_something(sessions: &[Made], letters: &[Letter], retracted: usize, with_avro: bool) {
    for reason in ["purchase", "campaign", "idle"] {
        let some = sessions.iter().any(|m| m.row.reason.as_deref() == Some(reason));
        assert!(some, "no session ends by {reason}: it proves nothing");
    }
    for field in ["visitor_segment", "campaign_budget"] {
        assert!(sessions.iter().any(|m| m.fields.contains(field)), "no session has {field}");
    }
    let told = reasons(letters);
    let of_avro = ["malformed_avro", "unknown_schema"];
    let of_all = [
        "malformed_json",
        "missing_field",
        "rejected: missing_field",
        "rejected: bad_url",
        "rejected: unknown_type",
        "sessions: incomplete",
    ];
    for reason in of_avro.into_iter().filter(|_| with_avro).chain(of_all) {
        assert!(told.contains(&format!("{reason} ")), "no letter of {reason}: it proves nothing");
    }
    assert!(retracted > 0, "no session was taken back: it proves nothing");
}

#[test]
fn from_kafka_to_bigquery_all_is_the_models_whatever_breaks() {
    let Some(broker) = kafka::broker() else { return };
    architecture(&Kafka::on(broker), &BigQuery::start(), &Size::asked(1));
}

#[test]
fn from_pubsub_to_postgres_all_is_the_models_whatever_breaks() {
    let Some(streams) = PubSub::start() else { return };
    let Some(warehouse) = Postgres::start() else { return };
    architecture(&streams, &warehouse, &Size::asked(2));
}
