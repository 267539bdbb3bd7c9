//! Avro records: the declared fields of a value, all else gone over by the schema that it was written with.
//!
//! Three ways to that schema: it is given ([`AvroDecoder::bare`]), a container file begins with it
//! ([`AvroDecoder::of_files`]), or each record names it by number, in Confluent's framing ([`AvroDecoder::framed`]). A
//! reader's schema may be given besides; then values are as Avro's schema resolution makes them of the written ones.
//!
//! Invariants:
//! - A record decodes only if all of it is a value of its schema, and nothing follows.
//! - Values are what Avro's own JSON has, with unions as the value in them. Logical types say more: an instant is a number
//!   of milliseconds (with a fraction where it is finer), a date or a local time ISO 8601 text, a decimal a number, a
//!   16-byte uuid its text.
//! - Whatever is in a record, its walk ends (`walk`); no length in it allocates anything.
//! - Nothing is asked of a registry by [`Decoder::decode`]: only by [`Decoder::prepare`], which may fail for a while.

mod plan;
pub mod registry;
pub mod schema;
mod shape;
mod walk;

use self::plan::Plan;
use self::registry::Schemas;
use self::schema::Schema;
use self::shape::Shapes;
use self::walk::Input;
use super::paths::Paths;
use super::{Decoder, Malformed, Slots};
use crate::ConnectError;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// How deep values may be nested: a list of links as long. Each level costs some hundred bytes of stack.
const DEPTH_MAX: usize = 256;
/// How many values a record may have, those that take no bytes included: eight for each byte of the longest record.
const VALUES_MAX: u32 = 8 << 20;
/// How long the text of a record's declared values may get. JSON of the longest record is seldom twice as long.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// Schemas that are kept. Topics have some tens of versions.
const SCHEMAS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// How long a schema that does not exist is not asked for again: producers register theirs before they use them.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);

const REASON: &str = "malformed_avro";
const REASON_UNKNOWN: &str = "unknown_schema";

/// Bytes before a framed value: a zero, and the schema's number.
const FRAME_BYTES: usize = 5;

/// Decodes Avro values. See the module's invariants.
pub struct AvroDecoder {
    paths: Paths,
    wanted: usize,
    reader: Option<Schema>,
    way: Way,
}

/// Values of a schema, for whoever has to know where they end.
#[derive(Debug)]
pub struct Values {
    shapes: Shapes,
}

impl Values {
    /// Of this schema.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn new(schema: &Schema) -> Result<Values, String> {
        Ok(Values { shapes: Shapes::new(schema, None)? })
    }

    /// How many bytes the value takes that these begin with; none if they begin with none.
    #[must_use]
    pub fn length(&self, bytes: &[u8]) -> Option<usize> {
        let mut input = Input::new(bytes, 0);
        input.skip(&self.shapes, self.shapes.root, 0).ok().map(|()| input.at)
    }
}

/// How a record's schema is found.
enum Way {
    /// One for all records; none before the header.
    One(Option<Plan>),
    Framed(Framed),
}

struct Framed {
    schemas: Box<dyn Schemas>,
    plans: LruCache<u32, Plan>,
    /// Why there is none, and since when that is known.
    unknown: LruCache<u32, (String, Instant)>,
}

impl AvroDecoder {
    /// For records that are bare values of this schema. Paths as for JSON: the name of a field, or a JSON pointer; steps
    /// through maps are keys, through arrays indexes.
    ///
    /// # Errors
    /// Why values of it cannot be read as the reader's schema has them.
    pub fn bare(wanted: &[String], schema: &Schema, reader: Option<Schema>) -> Result<Self, String> {
        let mut decoder = Self::of_files(wanted, reader);
        decoder.way = Way::One(Some(decoder.plan(schema)?));
        Ok(decoder)
    }

    /// For the values in a container file, whose schema is taken by [`Decoder::header`].
    #[must_use]
    pub fn of_files(wanted: &[String], reader: Option<Schema>) -> Self {
        Self { paths: Paths::new(wanted), wanted: wanted.len(), reader, way: Way::One(None) }
    }

    /// For records that begin with the number of their schema.
    #[must_use]
    pub fn framed(wanted: &[String], reader: Option<Schema>, schemas: Box<dyn Schemas>) -> Self {
        let (plans, unknown) = (LruCache::new(SCHEMAS_MAX), LruCache::new(SCHEMAS_MAX));
        Self { way: Way::Framed(Framed { schemas, plans, unknown }), ..Self::of_files(wanted, reader) }
    }

    fn plan(&self, schema: &Schema) -> Result<Plan, String> {
        Plan::new(&self.paths, schema, self.reader.as_ref())
    }
}

/// Which of these paths no value of a schema can have: for a config's check.
///
/// # Errors
/// Why values of it cannot be read as the reader's schema has them.
pub fn absent(wanted: &[String], schema: &Schema, reader: Option<&Schema>) -> Result<Vec<usize>, String> {
    let paths = Paths::new(wanted);
    Ok(Plan::new(&paths, schema, reader)?.absent(&paths, wanted.len()))
}

impl Decoder for AvroDecoder {
    fn prepare(&mut self, records: &mut dyn Iterator<Item = &[u8]>) -> Result<(), ConnectError> {
        let Way::Framed(framed) = &mut self.way else { return Ok(()) };
        let mut last = None;
        for id in records.filter_map(|r| frame(r).ok()) {
            if last.replace(id) != Some(id) {
                framed.find(id, &self.paths, self.reader.as_ref())?;
            }
        }
        Ok(())
    }

    fn header(&mut self, record: &[u8]) -> Result<(), Malformed> {
        let malformed = |message| Malformed { reason: REASON, message };
        self.way = Way::One(None);
        let text = std::str::from_utf8(record).map_err(|_| malformed("the schema is no UTF-8".to_owned()))?;
        let schema = Schema::parse(text).map_err(malformed)?;
        self.way = Way::One(Some(self.plan(&schema).map_err(malformed)?));
        Ok(())
    }

    fn decode(&mut self, record: &[u8], out: &mut Slots) -> Result<(), Malformed> {
        out.reset(self.wanted);
        let malformed = |message| Malformed { reason: REASON, message };
        let (plan, at) = match &mut self.way {
            Way::One(Some(plan)) => (&*plan, 0),
            Way::One(None) => return Err(malformed("no schema came before".to_owned())),
            Way::Framed(framed) => {
                let id = frame(record).map_err(malformed)?;
                match framed.plans.get(&id) {
                    Some(plan) => (plan, FRAME_BYTES),
                    None => return Err(framed.unknown(id)),
                }
            }
        };
        plan.run(&self.paths, record, at, out)
            .map_err(|wrong| malformed(format!("at byte {}: {}", wrong.at, wrong.what)))
    }
}

impl Framed {
    fn find(&mut self, id: u32, paths: &Paths, reader: Option<&Schema>) -> Result<(), ConnectError> {
        let is_unknown = |(_, since): &(String, Instant)| since.elapsed() < UNKNOWN_FOR;
        if self.plans.get(&id).is_some() || self.unknown.get(&id).is_some_and(is_unknown) {
            return Ok(());
        }
        match self.schemas.find(id)?.and_then(|schema| Plan::new(paths, &schema, reader)) {
            Ok(plan) => {
                self.unknown.pop(&id);
                self.plans.put(id, plan);
            }
            Err(why) => {
                self.unknown.put(id, (why, Instant::now()));
            }
        }
        Ok(())
    }

    fn unknown(&self, id: u32) -> Malformed {
        let why = self.unknown.peek(&id).map_or("it was not asked for", |(why, _)| why);
        Malformed { reason: REASON_UNKNOWN, message: format!("schema {id}: {why}") }
    }
}

/// The number of a framed record's schema.
fn frame(record: &[u8]) -> Result<u32, String> {
    match record {
        [0, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        [0, ..] => Err(format!("a frame has {FRAME_BYTES} bytes, and the record {}", record.len())),
        [] => Err("the record is empty, and has no frame".to_owned()),
        [first, ..] => Err(format!("a frame begins with a zero, and the record with {first}")),
    }
}

#[cfg(test)]
#[path = "avro/tests.rs"]
mod tests;
