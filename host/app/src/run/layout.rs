//! Where what a source's records are read for stands in the decoded slots: one way for the run and for whoever looks
//! a record up afterwards.

use crate::config::plan::{IdSpec, KeySpec, Pipeline, Plan, Source};
use tidemill_connect::format::{Kind, Slots};
use tidemill_engine::key::{KeyForm, KeyHasher, push_part};

/// The fields that are wanted of a source's records, and what each is for.
#[derive(Debug)]
pub(crate) struct Layout {
    /// What the decoder puts into the slots, in their order.
    pub(crate) wanted: Vec<String>,
    /// The id's slots.
    pub(crate) id: Id,
    /// The time's slot.
    pub(crate) time: usize,
    key: Key,
    hasher: Option<KeyHasher>,
}

/// Whose event it is.
#[derive(Debug)]
enum Key {
    Field(usize),
    Together(Vec<usize>),
    FirstOf(Vec<usize>),
}

/// What makes two records one event.
#[derive(Debug)]
pub(crate) enum Id {
    Position,
    Content,
    Field(usize),
    Fields(Vec<usize>),
    /// The first that holds something, else the position.
    FirstOf(Vec<usize>),
}

impl Id {
    /// The slots that it is read from.
    pub(crate) fn slots(&self) -> &[usize] {
        match self {
            Id::Position | Id::Content => &[],
            Id::Field(f) => std::slice::from_ref(f),
            Id::Fields(f) | Id::FirstOf(f) => f,
        }
    }
    /// Those that a record must have.
    fn required(&self) -> &[usize] {
        if let Id::FirstOf(_) = self { &[] } else { self.slots() }
    }
}

impl Layout {
    pub(crate) fn new(source: &Source) -> Layout {
        let mut layout = Layout {
            wanted: Vec::new(),
            id: Id::Position,
            time: 0,
            key: Key::FirstOf(Vec::new()),
            hasher: source.key_hmac.as_ref().and_then(|s| KeyHasher::new(s.reveal().as_bytes())),
        };
        layout.key = match &source.key {
            KeySpec::One(field) => Key::Field(layout.slot(source, field)),
            KeySpec::Together(fields) => {
                Key::Together(fields.iter().map(|f| layout.slot(source, f)).collect())
            }
            KeySpec::FirstOf(fields) => Key::FirstOf(fields.iter().map(|f| layout.slot(source, f)).collect()),
        };
        layout.time = layout.slot(source, &source.time.field);
        layout.id = match &source.id {
            IdSpec::Position => Id::Position,
            IdSpec::Content => Id::Content,
            IdSpec::Fields(fields) if fields.len() == 1 => Id::Field(layout.slot(source, &fields[0])),
            IdSpec::Fields(fields) => Id::Fields(fields.iter().map(|f| layout.slot(source, f)).collect()),
            IdSpec::FirstOf(fields) => Id::FirstOf(fields.iter().map(|f| layout.slot(source, f)).collect()),
        };
        layout
    }

    /// The slot of a field, which is wanted from now on.
    pub(crate) fn slot(&mut self, source: &Source, field: &str) -> usize {
        let path = source.path_of(field);
        self.wanted.iter().position(|w| w == path).unwrap_or_else(|| {
            self.wanted.push(path.to_owned());
            self.wanted.len() - 1
        })
    }

    /// Slots without which a record is no event: of key, id and time.
    fn required(&self) -> impl Iterator<Item = usize> {
        let key: &[usize] = match &self.key {
            Key::Field(f) => std::slice::from_ref(f),
            Key::Together(f) => f,
            Key::FirstOf(_) => &[],
        };
        key.iter().chain(self.id.required()).chain(std::slice::from_ref(&self.time)).copied()
    }

    /// The slots of a key that is the first of several, if none of them holds anything.
    fn without_key(&self, slots: &Slots) -> &[usize] {
        match &self.key {
            Key::FirstOf(f) if f.iter().all(|s| slots.kind(*s) == Kind::Missing) => f,
            _ => &[],
        }
    }

    /// Which of the required slots, and of these others, hold nothing; each once.
    pub(crate) fn missing(&self, slots: &Slots, also: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut missing = Vec::new();
        let without_key = self.without_key(slots).iter().copied();
        for slot in without_key.chain(self.required()).chain(also).filter(|s| slots.kind(*s) == Kind::Missing)
        {
            if !missing.contains(&slot) {
                missing.push(slot);
            }
        }
        missing
    }

    /// Puts the key, hashed if it is to be, in the place of what `out` holds.
    pub(crate) fn key_into(&self, slots: &Slots, record: &[u8], out: &mut Vec<u8>) {
        out.clear();
        match &self.key {
            Key::Field(slot) => out.extend_from_slice(slots.get(*slot, record)),
            Key::FirstOf(all) => {
                let first = all.iter().find(|s| slots.kind(**s) != Kind::Missing);
                out.extend_from_slice(first.map_or(&[][..], |s| slots.get(*s, record)));
            }
            Key::Together(all) => all.iter().for_each(|s| push_part(out, slots.get(*s, record))),
        }
        if let Some(h) = &self.hasher {
            let hashed = h.hash(out);
            out.clear();
            out.extend_from_slice(&hashed);
        }
    }

    /// The names of slots, as a message lists them.
    pub(crate) fn names(&self, slots: &[usize]) -> Vec<&str> {
        slots.iter().map(|s| self.wanted[*s].as_str()).collect()
    }
}

/// How the keys of a pipeline are shown.
pub(super) fn key_form(plan: &Plan, pipeline: &Pipeline) -> KeyForm {
    let mut form = KeyForm::One;
    for i in &pipeline.from {
        let s = &plan.sources[*i];
        if s.key_hmac.is_some() {
            return KeyForm::Hashed;
        }
        if matches!(s.key, KeySpec::Together(_)) {
            form = KeyForm::Together;
        }
    }
    form
}

/// What a record without some of its fields is told.
pub(crate) fn missing_message(names: &[&str]) -> String {
    format!("absent, null or empty: {}", names.join(", "))
}
