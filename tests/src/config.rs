//! A pipeline's config as values, and the TOML that says the same.

use crate::model::{Format, Gap, Match, Source, Unit};
use crate::plugins::plugin;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What folds events into sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// `builtin:gap` with the config's gap.
    Builtin,
    /// The component `gap-sessions` with the config's gap: it must say the same.
    Component,
    /// Another plugin.
    Plugin(Plugin),
}

impl Session {
    /// The two that the naive model of the gap knows.
    pub const GAPS: [Session; 2] = [Session::Builtin, Session::Component];
}

/// A plugin in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The name of its crate.
    pub name: String,
    /// The inside of a TOML table.
    pub config: String,
    /// The same, of an enricher's lookups.
    pub lookups: String,
}

impl Plugin {
    /// A plugin and its config, the inside of a TOML table.
    #[must_use]
    pub fn new(name: &str, config: &str) -> Plugin {
        Plugin { name: name.into(), config: config.into(), lookups: String::new() }
    }
}

/// A pipeline's config as values; `text` writes it as TOML.
#[derive(Clone, Debug)]
pub struct Config {
    /// Epoch length.
    pub epoch: String,
    /// Its sources.
    pub sources: Vec<Source>,
    /// Its validators.
    pub validate: Vec<Plugin>,
    /// Its enrichers.
    pub enrich: Vec<Plugin>,
    /// TOML of the tables of their lookups.
    pub lookups: String,
    /// Its rule, if it is that of the gap.
    pub gap: Gap,
    /// What runs the rule.
    pub session: Session,
    /// The TOML value of `early`.
    pub early: String,
    /// When rows leave; empty: the default.
    pub mode: String,
    /// Lateness, ms.
    pub lateness_ms: i64,
    /// `close` or `hold`; empty: the default.
    pub end_of_input: String,
    /// The TOML value of `to`, of the sinks `sessions` (SQLite, sessions.db) and `rows` (JSON lines, rows.jsonl).
    pub to: String,
    /// Where the admin API listens; none: where it does by itself.
    pub listen: Option<String>,
    /// Threads that fold; none: as the machine has cores.
    pub lanes: Option<u32>,
    /// Where the state is, if not in the case's folder.
    pub data_dir: Option<PathBuf>,
}

/// The one field that the component declares.
const COMPONENT_FIELD: &str = "type";

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl Config {
    /// One source by `builtin:gap` into SQLite and JSON lines, everything else as the defaults are.
    #[must_use]
    pub fn new(source: Source, gap: Gap) -> Config {
        Config {
            epoch: "1s".into(),
            sources: vec![source],
            validate: Vec::new(),
            enrich: Vec::new(),
            lookups: String::new(),
            gap,
            session: Session::Builtin,
            early: "\"epoch\"".into(),
            mode: String::new(),
            lateness_ms: 0,
            end_of_input: String::new(),
            to: r#"["sessions", "rows"]"#.into(),
            listen: None,
            lanes: None,
            data_dir: None,
        }
    }

    /// The config's file, for a case in this folder.
    pub(crate) fn text(&self, dir: &Path) -> String {
        let inside = |name: &str| quoted(dir.join(name).to_str().unwrap());
        let mut t = String::new();
        let state = self.data_dir.clone().unwrap_or_else(|| dir.join("state"));
        let _ = writeln!(
            t,
            "[server]\ndata_dir = {}\nepoch = \"{}\"",
            quoted(state.to_str().unwrap()),
            self.epoch
        );
        if let Some(listen) = &self.listen {
            let _ = writeln!(t, "listen = {}", quoted(listen));
        }
        if let Some(lanes) = self.lanes {
            let _ = writeln!(t, "lanes = {lanes}");
        }
        for s in &self.sources {
            self.source(&mut t, s, dir);
        }
        for p in self.validate.iter().chain(&self.enrich).cloned().chain(self.session_plugin()) {
            let _ =
                writeln!(t, "\n[plugin.{}]\npath = {}", p.name, quoted(plugin(&p.name).to_str().unwrap()));
            let _ = writeln!(t, "config = {{ {} }}\nlookups = {{ {} }}", p.config, p.lookups);
        }
        let _ = writeln!(t, "{}", self.lookups);
        let from: Vec<&str> = self.sources.iter().map(|s| s.name.as_str()).collect();
        let names = |list: &[Plugin]| Value::from(list.iter().map(|p| p.name.clone()).collect::<Vec<_>>());
        let _ = writeln!(t, "\n[pipeline.visits]\nfrom = {}", Value::from(from));
        let _ = writeln!(t, "validate = {}\nenrich = {}", names(&self.validate), names(&self.enrich));
        let _ = match self.session_plugin() {
            Some(p) => writeln!(t, "session = {{ plugin = {} }}", quoted(&p.name)),
            None => writeln!(t, "session = {{ plugin = \"builtin:gap\", config = {{ {} }} }}", self.rule()),
        };
        let _ = writeln!(t, "early = {}\nlateness = \"{}ms\"", self.early, self.lateness_ms);
        if !self.mode.is_empty() {
            let _ = writeln!(t, "mode = \"{}\"", self.mode);
        }
        if !self.end_of_input.is_empty() {
            let _ = writeln!(t, "end_of_input = \"{}\"", self.end_of_input);
        }
        let _ = writeln!(t, "to = {}\ndead = \"dead\"", self.to);
        if self.to.contains("\"sessions\"") {
            let _ = writeln!(
                t,
                "\n[sink.sessions]\nkind = \"sqlite\"\npath = {}\ntable = \"sessions\"",
                inside("sessions.db")
            );
        }
        if self.to.contains("\"rows\"") {
            let _ = writeln!(t, "\n[sink.rows]\nkind = \"file\"\npath = {}", inside("rows.jsonl"));
        }
        let _ = writeln!(t, "\n[sink.dead]\nkind = \"file\"\npath = {}", inside("dead.jsonl"));
        t
    }

    /// Whether a run compiles anything.
    pub(crate) fn has_plugins(&self) -> bool {
        self.session != Session::Builtin || !self.validate.is_empty() || !self.enrich.is_empty()
    }

    fn source(&self, t: &mut String, s: &Source, dir: &Path) {
        let kind = if s.path == "-" {
            "kind = \"stdin\"".into()
        } else {
            format!("kind = \"file\"\npath = {}", quoted(dir.join(&s.path).to_str().unwrap()))
        };
        let format = match s.format {
            Format::Json => "json",
            Format::Tsv => "tsv",
            Format::Csv => "csv",
            Format::Combined => "combined",
        };
        let unit = match s.unit {
            Unit::Seconds => ", unit = \"s\"",
            Unit::Millis => ", unit = \"ms\"",
            Unit::Micros => ", unit = \"us\"",
            Unit::Clf => "",
        };
        let key = if s.key.len() == 1 { quoted(&s.key[0]) } else { Value::from(s.key.clone()).to_string() };
        let _ = writeln!(t, "\n[source.{}]\n{kind}\nformat = \"{format}\"\nkey = {key}", s.name);
        let _ = writeln!(t, "time = {{ field = {}{unit} }}", quoted(&s.time));
        let _ = writeln!(t, "id = {}", quoted(s.id.as_deref().unwrap_or("position")));
        let _ = writeln!(t, "disorder = \"{}ms\"\n{}", s.disorder_ms, s.more);
        let mut fields = s.fields.clone();
        if self.session == Session::Component
            && let Some(m) = self.matched()
        {
            let place = fields.iter().find(|(f, _)| *f == m.field).map_or(&m.field, |(_, at)| at).clone();
            fields = vec![(COMPONENT_FIELD.into(), place)];
        }
        if !fields.is_empty() {
            let _ = writeln!(t, "[source.{}.fields]", s.name);
        }
        for (field, at) in &fields {
            let _ = writeln!(t, "{field} = {}", quoted(at));
        }
    }

    /// What the gap matches, of which the component knows one field only.
    fn matched(&self) -> Option<&Match> {
        let both = [&self.gap.start, &self.gap.end];
        let mut all = both.into_iter().flatten();
        let first = all.next()?;
        assert!(all.all(|m| m.field == first.field), "gap-sessions looks at one field");
        Some(first)
    }

    fn session_plugin(&self) -> Option<Plugin> {
        match &self.session {
            Session::Builtin => None,
            Session::Component => Some(Plugin::new("gap-sessions", &self.rule())),
            Session::Plugin(p) => Some(p.clone()),
        }
    }

    /// The config of the gap, as the built-in rule and the component both take it.
    fn rule(&self) -> String {
        let boundary = if self.gap.inclusive { "inclusive" } else { "exclusive" };
        let mut rule = format!("gap = \"{}ms\", boundary = \"{boundary}\"", self.gap.gap_ms);
        if let Some(max) = self.gap.max_ms {
            let _ = write!(rule, ", max = \"{max}ms\"");
        }
        for (name, m) in [("start", &self.gap.start), ("end", &self.gap.end)] {
            if let Some(m) = m {
                let field = if self.session == Session::Component { COMPONENT_FIELD } else { &m.field };
                let values = Value::from(m.values.clone());
                let _ = write!(rule, ", {name} = {{ field = {}, in = {values} }}", quoted(field));
            }
        }
        rule
    }
}
