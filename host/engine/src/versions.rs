//! Versions of a session rule in one lane, each in force from its place in event time (SEMANTICS 20 to 22).
//!
//! One version is the usual case and costs nothing. While two are live, a turn is answered by the older one up to the swap's
//! place S, its state is migrated there (or the older version goes on with what it has open: drain), and the
//! newer one answers the rest. A rollback before the older one is let go puts a third behind them, with a place of its own: then
//! the two are asked as if they were one older version. What the lane sees is one answer for the turn, and who gave which
//! part of it. Rules themselves know nothing of versions.
//!
//! Invariants: at most [`LIVE_MAX`] versions are live, in the order of their places; one sees no input and no timer at or after
//! the place of the next but of sessions that it drains; reasons in answers are places in one list that only grows, so that
//! they mean the same in every version.

use crate::metrics::Metric;
use crate::pieces::{Pieces, Reach};
use crate::rule::{
    Cause, Closing, Description, END_OF_INPUT, Fault, LIMIT, PLUGIN_FAULT, Place, Rejection, Results,
    SessionRule, Span, StateAt, Timer, Turn, TurnResult, Turns,
};
use crate::time::EventTime;
use serde::{Deserialize, Serialize};

/// Versions that are live at a time: a swap, and rollbacks that came before it was settled.
pub const LIVE_MAX: usize = 4;

/// A deployment's number within its pipeline: rises with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u32);

/// What becomes of the sessions that are open at S.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Their state is migrated at S, and the new version goes on with it.
    Migrate,
    /// The version of their first event goes on with them until they close.
    Drain,
}

/// A version's place in the schedule of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// Which one.
    pub version: Version,
    /// S: it is in force from here on.
    pub from: EventTime,
    /// What became of the sessions that were open there.
    pub policy: Policy,
    /// Where those that are drained and still open end, with reason `limit`: so long the version before may be needed.
    pub drained_by: EventTime,
    /// `name@version` of its rule, as rows show it.
    pub plugin: String,
    /// SHA-256 of its component, in hex, as letters show it; none for what is built in.
    pub digest: Option<String>,
}

/// Who gave the answer for a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answered {
    /// Who gave the first closings and snapshots: up to so many of them, in order.
    before: [(Version, usize, usize); LIVE_MAX - 1],
    /// Of the others, and of the state at the end.
    pub(crate) after: Version,
    /// A state could not be migrated.
    pub(crate) unfit: bool,
}

impl Answered {
    fn by(version: Version) -> Answered {
        Answered { after: version, ..Answered::default() }
    }

    /// So many closings and snapshots of this answer, and the rest by a newer version.
    fn then(mut self, (closings, snapshots): (usize, usize), newer: Version) -> Answered {
        let mut free = 0;
        for (n, part) in self.before.iter_mut().enumerate() {
            (part.1, part.2) = (part.1.min(closings), part.2.min(snapshots));
            if (part.1, part.2) != (0, 0) {
                free = n + 1;
            }
        }
        // There is one place less than versions that are live, and the newest needs none.
        if let Some(part) = self.before.get_mut(free) {
            *part = (self.after, closings, snapshots);
        }
        Answered { after: newer, ..self }
    }

    pub(crate) fn closing(&self, n: usize) -> Version {
        self.before.iter().find(|(_, closings, _)| n < *closings).map_or(self.after, |(v, ..)| *v)
    }
    pub(crate) fn snapshot(&self, n: usize) -> Version {
        self.before.iter().find(|(.., snapshots)| n < *snapshots).map_or(self.after, |(v, ..)| *v)
    }
}

/// Why sessions cannot go over from one rule to another.
///
/// # Errors
/// A sentence for whoever wants to deploy the new one.
pub fn can_migrate(old: &Description, new: &Description) -> Result<(), String> {
    let (from, to) = (&old.state, &new.state);
    if from.rule != to.rule {
        return Err(format!(
            "open sessions have the state of `{}`, which `{}` cannot take over",
            from.rule, to.rule
        ));
    }
    let known = if from.version == to.version {
        Some(&to.shape)
    } else {
        to.from.iter().find(|(version, _)| *version == from.version).map(|(_, shape)| shape)
    };
    let Some(known) = known else {
        return Err(format!(
            "open sessions have state version {}, and the new rule of version {} does not migrate from it",
            from.version, to.version
        ));
    };
    if *known != from.shape {
        let (is, taken) = apart(&from.shape, known);
        return Err(format!(
            "state version {} of open sessions is made of `{is}`, and the new rule takes it to be made of `{taken}`: whatever \
             changes in a state needs a raised version, in Rust #[state(version = …, from = …)], and the older form as it was",
            from.version
        ));
    }
    match old.timers.iter().find(|t| !new.timers.contains(t)) {
        Some(t) => Err(format!("open sessions may wait for timer `{t}`, which the new rule does not have")),
        None => Ok(()),
    }
}

/// Two texts from a little before where they differ, cut to what a reader can take in.
fn apart<'t>(a: &'t str, b: &'t str) -> (&'t str, &'t str) {
    const BEFORE_BYTES: usize = 60;
    const SHOWN_BYTES: usize = 200;
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let shown = |text: &'t str| {
        let from = text.floor_char_boundary(same.saturating_sub(BEFORE_BYTES));
        &text[from..text.floor_char_boundary(from + SHOWN_BYTES)]
    };
    (shown(a), shown(b))
}

struct Live {
    scheduled: Scheduled,
    rule: Box<dyn SessionRule>,
    /// The rule's own reasons as places in the common list; empty: they are the same.
    reasons: Vec<u16>,
    /// The rule's own metrics as places in the common list; empty: they are the same.
    metrics: Vec<u16>,
}

impl Live {
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        out.clear();
        if turns.turns.is_empty() {
            return;
        }
        self.rule.call(turns, out);
        if !self.metrics.is_empty() {
            let common = |own: u16| self.metrics.get(own as usize).copied().unwrap_or(own);
            out.counts.iter_mut().for_each(|c| c.metric = common(c.metric));
        }
        if self.reasons.is_empty() {
            return;
        }
        let common = |own: &mut u16| *own = self.reasons.get(*own as usize).copied().unwrap_or(*own);
        out.closings.iter_mut().for_each(|c| common(&mut c.reason));
        out.rejections.iter_mut().for_each(|r| common(&mut r.reason));
    }
}

/// The versions that are live in a lane.
pub struct Versions {
    /// In the order of their places.
    live: Vec<Live>,
    /// All that rows may still name, by place in event time.
    history: Vec<Scheduled>,
    reasons: Vec<String>,
    /// Metrics of all versions; one list that only grows, as reasons do.
    metrics: Vec<Metric>,
    answered: Vec<Answered>,
    /// What the versions before each of the newer ones are asked and answer, and it itself.
    levels: Vec<Level>,
    /// Why a state could not be migrated, lately.
    why_unfit: String,
}

#[derive(Default)]
struct Level {
    older: Part,
    newer: Part,
}

#[derive(Default)]
struct Part {
    turns: Turns,
    /// Whose state each begins with, and who answered it: of the older versions.
    carried: Vec<Version>,
    answered: Vec<Answered>,
    answers: Results,
}

/// How a turn is answered while two versions are live, or a newer one and those before it.
enum Route<'a> {
    /// The older version alone.
    Older,
    /// The newer one alone.
    Newer,
    /// The older one up to S, before which there are so many inputs, the newer one from there; with who answered until then.
    Across(Box<Pieces<'a>>, usize, Answered),
    /// The older one until it has nothing open at or after S.
    Drained,
    /// The same, and what is then open ends where draining does: before that there are so many inputs.
    Ending(Box<Pieces<'a>>, usize),
    /// The older one, and the newer one from an input on; with who has answered what.
    HandedOver(Box<Pieces<'a>>, Answered),
    /// It failed.
    Failed(Fault),
}

impl std::fmt::Debug for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Versions").field("history", &self.history).finish_non_exhaustive()
    }
}

impl Versions {
    /// One version. `reasons` is the common list as the store has it, `history` what rows may name besides.
    #[must_use]
    pub fn new(
        first: Scheduled,
        rule: Box<dyn SessionRule>,
        reasons: Vec<String>,
        history: Vec<Scheduled>,
    ) -> Self {
        let mut v = Versions { history, reasons, ..Versions::unknown() };
        v.add(first, rule);
        v
    }

    /// None yet: of a lane whose state is being loaded, until the store has said which versions there are.
    #[must_use]
    pub fn unknown() -> Self {
        Versions {
            live: Vec::new(),
            history: Vec::new(),
            reasons: Vec::new(),
            metrics: Vec::new(),
            answered: Vec::new(),
            levels: Vec::new(),
            why_unfit: String::new(),
        }
    }

    /// A single version that is in force from the beginning.
    #[must_use]
    pub fn single(rule: Box<dyn SessionRule>) -> Self {
        let first = Scheduled {
            version: Version::default(),
            from: EventTime::BEGINNING,
            policy: Policy::Migrate,
            drained_by: EventTime::INFINITY,
            plugin: rule.describe().plugin.clone(),
            digest: rule.describe().digest.clone(),
        };
        Versions::new(first, rule, Vec::new(), Vec::new())
    }

    /// With a newer version beside it, as recovery finds them in the middle of a swap.
    #[must_use]
    pub fn with_newer(mut self, scheduled: Scheduled, rule: Box<dyn SessionRule>) -> Self {
        self.add(scheduled, rule);
        self
    }

    /// Adds the newer version. Whoever calls has made sure that there is room for one, and that it may follow.
    pub(crate) fn add(&mut self, scheduled: Scheduled, rule: Box<dyn SessionRule>) {
        let codes = extend(&mut self.reasons, &rule.describe().reasons);
        let same = codes.iter().enumerate().all(|(n, code)| n == *code as usize);
        let reasons = if same { Vec::new() } else { codes };
        let places = extend_metrics(&mut self.metrics, &rule.describe().metrics);
        let same = places.iter().enumerate().all(|(n, place)| n == *place as usize);
        let metrics = if same { Vec::new() } else { places };
        if !self.history.contains(&scheduled) {
            self.history.push(scheduled.clone());
        }
        self.live.push(Live { scheduled, rule, reasons, metrics });
        self.levels.resize_with(self.live.len() - 1, Level::default);
    }

    /// Forgets the newer version, as if it had never been (rollback before B has reached S).
    pub(crate) fn strike(&mut self) {
        if self.live.len() > 1
            && let Some(gone) = self.live.pop()
        {
            self.levels.pop();
            self.history.retain(|s| s.version != gone.scheduled.version);
        }
    }

    /// Forgets the rules of all versions but the newest: nothing stands before its place any more.
    pub(crate) fn retire(&mut self) {
        self.live.drain(..self.live.len().saturating_sub(1));
        self.levels.clear();
    }

    /// Where a session that a version has open ends, if it is drained so long; none: it is not drained.
    pub(crate) fn drained_by(&self, version: Version) -> Option<EventTime> {
        let later = self.live.iter().map(|l| &l.scheduled).filter(|s| s.version > version);
        later.filter(|s| s.policy == Policy::Drain).map(|s| s.drained_by).min()
    }

    /// Whether event time has reached a place where the draining of live versions ends.
    pub(crate) fn has_drained(&self, w: EventTime) -> bool {
        let newer = self.live.iter().skip(1).map(|l| &l.scheduled);
        newer.filter(|s| s.policy == Policy::Drain).any(|s| s.drained_by <= w)
    }

    /// The swap at hand, if more than one version is live: the version before the newest, and the newest's place.
    pub(crate) fn swap(&self) -> Option<(Version, &Scheduled)> {
        match self.live.as_slice() {
            [.., older, newer] => Some((older.scheduled.version, &newer.scheduled)),
            _ => None,
        }
    }

    /// Whether another may come beside those that are live.
    pub(crate) fn has_room(&self) -> bool {
        self.live.len() < LIVE_MAX
    }

    /// Adds the reasons of a rule to the common list, as a lane does when the rule is deployed: so that the store has the
    /// list that the lanes' states are written by.
    pub fn extend_reasons(common: &mut Vec<String>, rule: &Description) {
        extend(common, &rule.reasons);
    }

    /// Metrics of the rules' own: counts are places in this list.
    pub(crate) fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// A reason's name; `None` for one that nobody has.
    pub(crate) fn reason(&self, code: u16) -> Option<&str> {
        match code {
            PLUGIN_FAULT => Some("plugin_fault"),
            END_OF_INPUT => Some("end_of_input"),
            LIMIT => Some("limit"),
            n => self.reasons.get(n as usize).map(String::as_str),
        }
    }

    /// `name@version` of a version.
    pub(crate) fn plugin(&self, version: Version) -> &str {
        let found = self.history.iter().rev().find(|s| s.version == version);
        found.map_or("", |s| s.plugin.as_str())
    }

    /// The component's digest of a version.
    pub(crate) fn digest(&self, version: Version) -> Option<&str> {
        let found = self.history.iter().rev().find(|s| s.version == version);
        found.and_then(|s| s.digest.as_deref())
    }

    /// The version that is in force at a place in event time.
    pub(crate) fn at(&self, t: EventTime) -> Version {
        self.history.iter().rev().find(|s| s.from <= t).map_or_else(Version::default, |s| s.version)
    }

    /// The version that an open session's row names (SEMANTICS 22): the one that had it at its last event, which is the one in
    /// force there, or, while it was being drained, at its first. Its state may have gone over to a newer one since.
    pub(crate) fn of_open(&self, state: Version, first: EventTime, last: EventTime) -> Version {
        let began = self.at(first);
        let had_it = |s: &&Scheduled| {
            s.from <= last && s.version <= state && (s.policy == Policy::Migrate || s.version == began)
        };
        self.history.iter().rev().find(had_it).map_or(state, |s| s.version)
    }

    /// Whether any live version wants to know the key.
    pub(crate) fn wants_key(&self) -> bool {
        self.live.iter().any(|l| l.rule.describe().wants_key)
    }

    /// Who answered the `n`-th turn of the last call.
    pub(crate) fn answered(&self, n: usize) -> Answered {
        self.answered.get(n).copied().unwrap_or_else(|| Answered::by(self.newest()))
    }

    fn newest(&self) -> Version {
        self.live.last().map_or_else(Version::default, |l| l.scheduled.version)
    }

    /// Answers every turn; `carried` says whose state each begins with.
    pub(crate) fn call(&mut self, turns: &Turns, carried: &[Version], out: &mut Results) {
        self.answered.clear();
        match self.live.as_mut_slice() {
            [only] => only.call(turns, out),
            live => ask(live, &mut self.levels, turns, carried, out, &mut self.answered, &mut self.why_unfit),
        }
    }

    /// Puts states of older versions into the newest one's form, each with its timers, through those between. One answer
    /// for each.
    pub(crate) fn migrate(&mut self, states: &[(Version, &[u8], &[Timer])]) -> Vec<Migrated> {
        let mut known: Vec<(Version, Migrated)> =
            states.iter().map(|(v, state, timers)| (*v, Ok((state.to_vec(), timers.to_vec())))).collect();
        for n in 1..self.live.len() {
            let (older, newer) = self.live.split_at_mut(n);
            let Some(newer) = newer.first_mut().filter(|l| l.scheduled.policy == Policy::Migrate) else {
                continue;
            };
            let is_due = |v: &Version| *v < newer.scheduled.version;
            let due: Vec<(Version, &[u8], &[Timer])> = known
                .iter()
                .filter(|(v, _)| is_due(v))
                .filter_map(|(v, m)| m.as_ref().ok().map(|(s, t)| (*v, s.as_slice(), t.as_slice())))
                .collect();
            let mut migrated = migrate(older, newer, &due).into_iter();
            for (v, m) in known.iter_mut().filter(|(v, m)| *v < newer.scheduled.version && m.is_ok()) {
                if let Some(new) = migrated.next() {
                    (*v, *m) = (newer.scheduled.version, new);
                }
            }
        }
        known.into_iter().map(|(_, m)| m).collect()
    }

    /// A session has ended because its state could not be migrated: the rule answers for it, once for each.
    pub(crate) fn was_unfit(&mut self) {
        if let Some(newest) = self.live.last_mut() {
            newest.rule.was_unfit(&self.why_unfit);
        }
    }
}

/// Adds the names that the list lacks; returns the place of each.
fn extend(list: &mut Vec<String>, names: &[String]) -> Vec<u16> {
    let place = |name: &String| {
        let at = list.iter().position(|r| r == name).unwrap_or_else(|| {
            list.push(name.clone());
            list.len() - 1
        });
        at as u16
    };
    names.iter().map(place).collect()
}

/// Adds the metrics that the list lacks; returns the place of each.
fn extend_metrics(list: &mut Vec<Metric>, metrics: &[Metric]) -> Vec<u16> {
    let place = |metric: &Metric| {
        let at = list.iter().position(|m| m == metric).unwrap_or_else(|| {
            list.push(metric.clone());
            list.len() - 1
        });
        at as u16
    };
    metrics.iter().map(place).collect()
}

/// A state and its timers in the newer form, or why they cannot be taken over.
type Migrated = Result<(Vec<u8>, Vec<Timer>), String>;

/// Puts states of older versions into the newer one's form.
fn migrate(older: &[Live], newer: &mut Live, states: &[(Version, &[u8], &[Timer])]) -> Vec<Migrated> {
    let unknown = || Err("its version is not live any more".to_owned());
    let mut all: Vec<Migrated> = states.iter().map(|_| unknown()).collect();
    for from in older {
        let of_it = |n: &usize| states[*n].0 == from.scheduled.version;
        let which: Vec<usize> = (0..states.len()).filter(of_it).collect();
        if which.is_empty() {
            continue;
        }
        let some: Vec<(&[u8], &[Timer])> = which.iter().map(|n| (states[*n].1, states[*n].2)).collect();
        for (n, migrated) in which.into_iter().zip(migrate_from(from, newer, &some)) {
            all[n] = migrated;
        }
    }
    all
}

fn migrate_from(older: &Live, newer: &mut Live, states: &[(&[u8], &[Timer])]) -> Vec<Migrated> {
    let (from, to) = (older.rule.describe(), newer.rule.describe());
    let number = |t: &Timer| {
        let name = from.timers.get(t.number as usize);
        let number = name.and_then(|name| to.timers.iter().position(|n| n == name));
        number
            .map(|n| Timer { number: n as u8, ..*t })
            .ok_or_else(|| "a pending timer has no place in the new rule".to_owned())
    };
    let timers: Vec<Result<Vec<Timer>, String>> =
        states.iter().map(|(_, timers)| timers.iter().map(number).collect()).collect();
    let same = from.state.version == to.state.version;
    let version = from.state.version;
    let states: Vec<&[u8]> = states.iter().map(|(state, _)| *state).collect();
    let states: Vec<Result<Vec<u8>, String>> = if same {
        states.iter().map(|s| Ok(s.to_vec())).collect()
    } else {
        newer.rule.migrate(version, &states)
    };
    states.into_iter().zip(timers).map(|(state, timers)| Ok((state?, timers?))).collect()
}

/// Asks live versions, and says who answered what.
fn ask(
    live: &mut [Live],
    levels: &mut [Level],
    turns: &Turns,
    carried: &[Version],
    out: &mut Results,
    answered: &mut Vec<Answered>,
    why_unfit: &mut String,
) {
    match (live, levels) {
        ([older @ .., newer], [below @ .., level]) if !older.is_empty() => {
            let (first, second) = (&mut level.older, &mut level.newer);
            let mut both = Both { older, newer, below, first, second, why_unfit };
            both.call(turns, carried, out, answered);
        }
        ([only], _) => {
            only.call(turns, out);
            answered.extend(turns.turns.iter().map(|_| Answered::by(only.scheduled.version)));
        }
        _ => out.clear(),
    }
}

/// The newest of some live versions and those before it, and what they are asked and answer.
struct Both<'v> {
    older: &'v mut [Live],
    newer: &'v mut Live,
    /// Where those before it are asked, if they are several.
    below: &'v mut [Level],
    first: &'v mut Part,
    second: &'v mut Part,
    why_unfit: &'v mut String,
}

impl Both<'_> {
    fn call(&mut self, turns: &Turns, carried: &[Version], out: &mut Results, answered: &mut Vec<Answered>) {
        out.clear();
        self.first.turns.clear();
        self.first.carried.clear();
        self.first.answered.clear();
        self.second.turns.clear();
        let mut routes: Vec<Route<'_>> =
            turns.turns.iter().zip(carried).map(|(turn, c)| self.route(turns, turn, *c)).collect();
        let at = self.newer.scheduled.from;
        for ((route, turn), carried) in routes.iter().zip(&turns.turns).zip(carried) {
            match route {
                Route::Older | Route::Drained => copy_turn(turns, turn, &mut self.first.turns),
                Route::Across(pieces, before, _) => pieces
                    .part(Reach::Inputs { inputs: *before, until: Some(at.minus(1)) }, &mut self.first.turns),
                Route::Ending(pieces, before) => {
                    let until = self.newer.scheduled.drained_by.minus(1);
                    pieces.last_part(*before, until, &mut self.first.turns);
                }
                Route::Newer | Route::HandedOver(..) | Route::Failed(_) => continue,
            }
            self.first.carried.push(*carried);
        }
        let Part { turns: asked, carried, answered: by, answers } = &mut *self.first;
        ask(self.older, self.below, asked, carried, answers, by, self.why_unfit);
        self.take_older(turns, &mut routes);
        self.hand_over(&mut routes);
        for (route, turn) in routes.iter().zip(&turns.turns) {
            match route {
                Route::Newer => copy_turn(turns, turn, &mut self.second.turns),
                Route::HandedOver(pieces, ..) => pieces.part(Reach::Everything, &mut self.second.turns),
                Route::Older | Route::Across(..) | Route::Drained | Route::Ending(..) | Route::Failed(_) => {}
            }
        }
        self.newer.call(&self.second.turns, &mut self.second.answers);
        self.assemble(routes, out, answered);
    }

    fn route<'a>(&self, turns: &'a Turns, turn: &'a Turn, carried: Version) -> Route<'a> {
        let at = self.newer.scheduled.from;
        let is_open = turn.open.is_some();
        if is_open && carried == self.newer.scheduled.version {
            return Route::Newer;
        }
        let inputs = &turns.inputs[turn.inputs.range()];
        let before = inputs.partition_point(|i| i.time < at);
        let reaches = before < inputs.len() || turn.until >= at || turn.at_end;
        match self.newer.scheduled.policy {
            _ if !is_open && before == 0 && reaches => Route::Newer,
            _ if !reaches => Route::Older,
            Policy::Migrate => Route::Across(Box::new(Pieces::all(turns, turn)), before, Answered::default()),
            Policy::Drain => {
                let end = self.newer.scheduled.drained_by;
                let before = inputs.partition_point(|i| i.time < end);
                if before == inputs.len() && turn.until < end {
                    return Route::Drained;
                }
                Route::Ending(Box::new(Pieces::all(turns, turn)), before)
            }
        }
    }

    /// Takes in what the older version has answered of the turns that go on.
    fn take_older<'a>(&mut self, turns: &'a Turns, routes: &mut [Route<'a>]) {
        let newer = self.newer.scheduled.version;
        let mut answers = self.first.answers.turns.iter().zip(&self.first.answered);
        let given = &self.first.answers;
        for (route, turn) in routes.iter_mut().zip(&turns.turns) {
            if matches!(route, Route::Newer) {
                continue;
            }
            let Some((r, by)) = answers.next() else {
                *route = Route::Failed(Fault::unknown("the rule gave fewer answers than turns"));
                continue;
            };
            if let Some(f) = &r.fault {
                *route = Route::Failed(f.clone());
                continue;
            }
            match route {
                Route::Across(pieces, before, until) => {
                    pieces.take_first(r, given, *before);
                    *until = *by;
                }
                Route::Drained => {
                    let at = self.newer.scheduled.from;
                    if let Some((input, closings)) = handover(turns, turn, r, given, at) {
                        let mut pieces = Box::new(Pieces::all(turns, turn));
                        pieces.take_until(r, given, closings, input);
                        let by = by.then(pieces.answered(), newer);
                        *route = Route::HandedOver(pieces, by);
                    }
                }
                Route::Ending(pieces, before) => {
                    match handover(turns, turn, r, given, self.newer.scheduled.from) {
                        Some((input, closings)) => pieces.take_until(r, given, closings, input),
                        None => {
                            pieces.take_first(r, given, *before);
                            let at = self.newer.scheduled.drained_by;
                            let fields = &given.bytes[r.open_fields.range()];
                            pieces.close(Cause::Timer(Timer { at, number: 0 }), LIMIT, fields);
                        }
                    }
                    let by = by.then(pieces.answered(), newer);
                    let pieces = std::mem::replace(pieces, Box::new(Pieces::all(turns, turn)));
                    *route = Route::HandedOver(pieces, by);
                }
                _ => {}
            }
        }
    }

    /// Migrates what is open at S. A session whose state cannot be migrated ends there, as one that its rule failed at.
    fn hand_over(&mut self, routes: &mut [Route<'_>]) {
        let at = self.newer.scheduled.from;
        let newer = self.newer.scheduled.version;
        let open: Vec<(Version, &[u8], &[Timer])> = routes.iter().filter_map(across).collect();
        let mut migrated = migrate(self.older, self.newer, &open).into_iter();
        for route in routes {
            let (mut pieces, by) = match std::mem::replace(route, Route::Newer) {
                Route::Across(pieces, _, by) => (pieces, by),
                other => {
                    *route = other;
                    continue;
                }
            };
            let mut by = by.then(pieces.answered(), newer);
            match pieces.open_state().and_then(|_| migrated.next()) {
                Some(Ok((state, timers))) => pieces.put_state(state, timers),
                Some(Err(why)) => {
                    pieces.close(Cause::Timer(Timer { at, number: 0 }), PLUGIN_FAULT, b"");
                    by.unfit = true;
                    *self.why_unfit = why;
                }
                None => {}
            }
            *route = Route::HandedOver(pieces, by);
        }
    }

    fn assemble(&mut self, routes: Vec<Route<'_>>, out: &mut Results, answered: &mut Vec<Answered>) {
        let newer = self.newer.scheduled.version;
        let mut first = self.first.answers.turns.iter().zip(&self.first.answered);
        let mut second = self.second.answers.turns.iter();
        let missing = || TurnResult::failed(Fault::unknown("the rule gave fewer answers than turns"));
        for route in routes {
            let mut by = Answered::by(newer);
            let r = match route {
                Route::Older | Route::Across(..) | Route::Drained | Route::Ending(..) => match first.next() {
                    Some((r, who)) => {
                        by = *who;
                        copy_answer(&self.first.answers, r, out)
                    }
                    None => missing(),
                },
                Route::Newer => match second.next() {
                    Some(r) => copy_answer(&self.second.answers, r, out),
                    None => missing(),
                },
                Route::HandedOver(mut pieces, who) => {
                    first.next();
                    by = who;
                    match second.next() {
                        Some(r) if r.fault.is_none() => {
                            pieces.take(r, &self.second.answers);
                            pieces.finish(out)
                        }
                        Some(r) => r.clone(),
                        None => missing(),
                    }
                }
                Route::Failed(f) => {
                    first.next();
                    TurnResult::failed(f)
                }
            };
            out.turns.push(r);
            answered.push(by);
        }
    }
}

/// The state to migrate of a turn that goes over, and whose it is.
fn across<'r>(route: &'r Route<'_>) -> Option<(Version, &'r [u8], &'r [Timer])> {
    match route {
        Route::Across(pieces, _, by) => pieces.open_state().map(|(state, timers)| (by.after, state, timers)),
        _ => None,
    }
}

/// Where a draining turn goes over: the first input at or after `at` before which nothing is open, and how many
/// sessions were closed before it.
fn handover(
    turns: &Turns,
    turn: &Turn,
    r: &TurnResult,
    from: &Results,
    at: EventTime,
) -> Option<(u32, usize)> {
    let inputs = &turns.inputs[turn.inputs.range()];
    let closings = &from.closings[r.closings.range()];
    let rejections = &from.rejections[r.rejections.range()];
    let is_rejected = |i: u32| rejections.binary_search_by_key(&i, |x| x.input).is_ok();
    let mut nothing_open_from = turn.open.is_none().then_some(0);
    let mut closed = 0;
    loop {
        if let Some(from) = nothing_open_from {
            let begins = |i: &u32| inputs[*i as usize].time >= at || !is_rejected(*i);
            let next = (from..inputs.len() as u32).find(begins)?;
            if inputs[next as usize].time >= at {
                return Some((next, closed));
            }
        }
        let c = closings.get(closed)?;
        closed += 1;
        nothing_open_from = Some(match (c.cause, c.last) {
            (Cause::Input(i), Place::Input(j)) if i == j => i + 1,
            (Cause::Input(i), _) => i,
            (Cause::Timer(t), last) => {
                let behind = if let Place::Input(j) = last { j + 1 } else { 0 };
                behind.max(inputs.partition_point(|i| i.time < t.at) as u32)
            }
            (Cause::End, _) => inputs.len() as u32,
        });
    }
}

/// Copies a turn into another batch.
fn copy_turn(from: &Turns, turn: &Turn, to: &mut Turns) {
    let put = |to: &mut Turns, span: Span| {
        let at = to.bytes.len();
        to.bytes.extend_from_slice(&from.bytes[span.range()]);
        Span::between(at, to.bytes.len())
    };
    let (timers, inputs, wanted) = (to.timers.len(), to.inputs.len(), to.wanted.len());
    let (key, state) = (put(to, turn.key), put(to, turn.state));
    to.timers.extend_from_slice(&from.timers[turn.timers.range()]);
    for i in &from.inputs[turn.inputs.range()] {
        let ext = put(to, i.ext);
        to.inputs.push(crate::rule::Input { ext, ..*i });
    }
    to.wanted.extend_from_slice(&from.wanted[turn.wanted.range()]);
    to.turns.push(Turn {
        key,
        state,
        timers: Span::between(timers, to.timers.len()),
        inputs: Span::between(inputs, to.inputs.len()),
        wanted: Span::between(wanted, to.wanted.len()),
        ..*turn
    });
}

/// Copies the answer for a turn behind others.
fn copy_answer(from: &Results, r: &TurnResult, to: &mut Results) -> TurnResult {
    if r.fault.is_some() {
        return r.clone();
    }
    let put = |to: &mut Results, span: Span| {
        let at = to.bytes.len();
        to.bytes.extend_from_slice(&from.bytes[span.range()]);
        Span::between(at, to.bytes.len())
    };
    let put_state = |to: &mut Results, s: &StateAt| {
        let at = to.timers.len();
        to.timers.extend_from_slice(&from.timers[s.timers.range()]);
        let timers = Span::between(at, to.timers.len());
        StateAt { state: put(to, s.state), timers, ..*s }
    };
    let (closings, snapshots, rejections) = (to.closings.len(), to.snapshots.len(), to.rejections.len());
    let counts = to.counts.len();
    to.counts.extend_from_slice(&from.counts[r.counts.range()]);
    for c in &from.closings[r.closings.range()] {
        let fields = put(to, c.fields);
        to.closings.push(Closing { fields, ..*c });
    }
    for s in &from.snapshots[r.snapshots.range()] {
        let s = put_state(to, s);
        to.snapshots.push(s);
    }
    for x in &from.rejections[r.rejections.range()] {
        let message = put(to, x.message);
        to.rejections.push(Rejection { message, ..*x });
    }
    TurnResult {
        fault: None,
        closings: Span::between(closings, to.closings.len()),
        snapshots: Span::between(snapshots, to.snapshots.len()),
        rejections: Span::between(rejections, to.rejections.len()),
        counts: Span::between(counts, to.counts.len()),
        end: put_state(to, &r.end),
        open_fields: put(to, r.open_fields),
    }
}

#[cfg(test)]
mod tests;
