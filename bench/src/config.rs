//! Configs of what is measured: one pipeline from clicks to rows, in the few ways in which measurements differ.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The session rule, in the two forms that it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// `builtin:gap`.
    BuiltIn,
    /// The same as a component.
    Plugin,
}

impl Rule {
    pub(crate) const ALL: [Rule; 2] = [Rule::BuiltIn, Rule::Plugin];

    /// As configs call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Rule::BuiltIn => "builtin:gap",
            Rule::Plugin => "gap-sessions",
        }
    }
}

/// How records are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// One object a line.
    Json,
    /// With a header.
    Csv,
    /// As web servers write them.
    Combined,
}

/// Where records come from.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A file that is read to its end.
    File(PathBuf),
    /// A file that grows.
    Followed(PathBuf),
    /// Requests.
    Posted,
    /// A topic of the cluster that the job names.
    Topic(String),
}

/// Where rows go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sink {
    /// JSON lines in `rows.jsonl`.
    File,
    /// The same, of a stage that no row has here: nothing is written.
    Nothing,
    /// `sessions.db`.
    Sqlite,
    /// A topic of the job's cluster, by its number.
    Topic(u64),
    /// A table of the job's BigQuery, by its number.
    BigQuery(u64),
    /// A table of the job's Postgres, by its number.
    Postgres(u64),
    /// The topic `rows` of the job's Pub/Sub, without order.
    PubSub,
}

/// The topic of rows, by its number.
pub(crate) fn topic_of_rows(number: u64) -> String {
    format!("rows-{number}")
}

/// One pipeline, `clicks`. Its files stand in the folder of its config.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) rule: Rule,
    pub(crate) format: Format,
    pub(crate) input: Input,
    pub(crate) sink: Sink,
    pub(crate) early: bool,
    /// Whether the rule looks at a field, which then must be decoded and kept: one that ends no session here.
    pub(crate) reads: bool,
    pub(crate) epoch: &'static str,
    pub(crate) gap: &'static str,
    pub(crate) disorder: &'static str,
    /// None: as many as the host takes by itself.
    pub(crate) lanes: Option<u32>,
    /// The component of the rule.
    pub(crate) component: PathBuf,
    /// Where the service is that the source or the sink needs.
    pub(crate) service: String,
}

impl Job {
    /// JSON lines of a file to JSON lines of final sessions, as the yardstick does it.
    pub(crate) fn new(rule: Rule, input: Input, component: &Path) -> Job {
        Job {
            rule,
            format: Format::Json,
            input,
            sink: Sink::File,
            early: false,
            reads: false,
            epoch: "1s",
            gap: "30s",
            disorder: "10s",
            lanes: None,
            component: component.to_owned(),
            service: String::new(),
        }
    }

    /// As TOML.
    pub(crate) fn text(&self) -> String {
        let mut t =
            format!("[server]\ndata_dir = \"state\"\nlisten = \"127.0.0.1:0\"\nepoch = {:?}\n", self.epoch);
        if let Some(lanes) = self.lanes {
            let _ = writeln!(t, "lanes = {lanes}");
        }
        t += "\n[source.clicks]\n";
        match &self.input {
            Input::File(path) => {
                let _ = writeln!(t, "kind = \"file\"\npath = {}", quoted(path));
            }
            Input::Followed(path) => {
                let _ = writeln!(t, "kind = \"file\"\npath = {}\nfollow = true\nidle = \"1h\"", quoted(path));
            }
            Input::Posted => {
                t += "kind = \"http\"\nlisten = \"127.0.0.1:0\"\nfar_future = \"off\"\nidle = \"60s\"\n";
            }
            Input::Topic(topic) => {
                let at = &self.service;
                let _ = writeln!(t, "kind = \"kafka\"\nbrokers = {at:?}\ntopics = {topic:?}\nidle = \"1h\"");
            }
        }
        let (format, key, time) = match self.format {
            Format::Json => ("json", "user_id", "{ field = \"ts\", unit = \"ms\" }"),
            Format::Csv => ("csv", "user_id", "{ field = \"ts\", unit = \"ms\" }"),
            Format::Combined => ("combined", "host", "{ field = \"time\" }"),
        };
        let _ = writeln!(
            t,
            "format = \"{format}\"\nkey = \"{key}\"\ntime = {time}\nid = \"position\"\ndisorder = {:?}\n",
            self.disorder
        );
        if self.format == Format::Combined {
            t += "[source.clicks.fields]\ntype = \"method\"\n\n";
        }
        if self.rule == Rule::Plugin {
            let _ = writeln!(t, "[plugin.gap-sessions]\npath = {}\n", quoted(&self.component));
        }
        let early = if self.early { "epoch" } else { "off" };
        let end = if self.reads { ", end = { field = \"type\", in = [\"logout\"] }" } else { "" };
        let to = match self.sink {
            Sink::Nothing => "{ sink = \"rows\", stages = [\"retracted\"] }",
            _ if self.early => "\"rows\"",
            _ => "{ sink = \"rows\", stages = [\"final\"] }",
        };
        let at = &self.service;
        let sink = match self.sink {
            Sink::Sqlite => "kind = \"sqlite\"\npath = \"sessions.db\"\ntable = \"sessions\"".to_owned(),
            Sink::File | Sink::Nothing => "kind = \"file\"\npath = \"rows.jsonl\"".to_owned(),
            Sink::Topic(n) => {
                format!("kind = \"kafka\"\nbrokers = {at:?}\ntopic = {:?}", topic_of_rows(n))
            }
            Sink::Postgres(n) => format!("kind = \"postgres\"\nurl = {at:?}\ntable = \"rows_{n}\""),
            Sink::PubSub => format!(
                "kind = \"pubsub\"\nproject = \"p\"\ntopic = \"rows\"\nordered = false\ncredentials = \"none\"\nendpoint = {at:?}"
            ),
            Sink::BigQuery(n) => format!(
                "kind = \"bigquery\"\nproject = \"p\"\ndataset = \"d\"\ntable = \"rows_{n}\"\ncredentials = \"none\"\n\
                 endpoint = {at:?}\nstorage_endpoint = {at:?}"
            ),
        };
        let _ = write!(
            t,
            "[pipeline.clicks]\nfrom = [\"clicks\"]\n\
             session = {{ plugin = {:?}, config = {{ gap = {:?}, boundary = \"inclusive\"{end} }} }}\n\
             early = \"{early}\"\nto = [{to}]\ndead = \"dead\"\nlimits = {{ open_sessions = 40000000 }}\n\n\
             [sink.rows]\n{sink}\n\n[sink.dead]\nkind = \"file\"\npath = \"dead.jsonl\"\n",
            self.rule.name(),
            self.gap,
        );
        t
    }
}

/// A path as TOML has it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_says_what_it_differs_in() {
        let job = Job::new(Rule::BuiltIn, Input::File("in.jsonl".into()), Path::new("gap.wasm"));
        let text = job.text();
        assert!(text.contains("path = \"in.jsonl\"") && text.contains("stages = [\"final\"]"), "{text}");
        assert!(
            !text.contains("lanes =") && !text.contains("gap.wasm") && !text.contains("follow"),
            "{text}"
        );
        let other = Job {
            rule: Rule::Plugin,
            format: Format::Combined,
            input: Input::Followed("x.log".into()),
            early: true,
            lanes: Some(2),
            reads: true,
            ..job
        };
        let text = other.text();
        let topics = Job {
            input: Input::Topic("clicks".to_owned()),
            sink: Sink::Topic(3),
            service: "b:1".to_owned(),
            ..other
        };
        let of_topics = topics.text();
        for part in ["topics = \"clicks\"", "brokers = \"b:1\"", "topic = \"rows-3\""] {
            assert!(of_topics.contains(part), "no {part} in {of_topics}");
        }
        for part in [
            "lanes = 2",
            "\"inclusive\", end = { field",
            "gap.wasm",
            "follow = true",
            "early = \"epoch\"",
            "to = [\"rows\"]",
            "type = \"method\"",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
