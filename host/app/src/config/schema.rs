//! What formats with schemas are told besides: where the schemas are, and which message a record is.

use super::diagnose::{Problems, Spot, nearest};
use super::plan::{Format, IdSpec, KeySpec, Secret, Source, SourceKind};
use super::raw::{Field, Section, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidemill_connect::format::avro::{self, registry};
use tidemill_connect::format::protobuf::ProtobufDecoder;
use tidemill_connect::format::protobuf::descriptor::Descriptors;
use tidemill_connect::source::container::ContainerPartition;
use tidemill_connect::source::{Partition as _, file};

/// Keys that only such formats have.
pub(super) const SCHEMA_ONLY: [(&str, &str); 6] = [
    ("schema", "only format = \"avro\" has it"),
    ("schemas", "only format = \"avro\" has it"),
    ("registry", "only format = \"avro\" has it"),
    ("descriptors", "only format = \"protobuf\" has it"),
    ("message", "only format = \"protobuf\" has it"),
    ("framed", "only format = \"protobuf\" has it"),
];

/// How a source's records are to be understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Schema {
    /// By themselves.
    None,
    Avro(Avro),
    Protobuf(Protobuf),
}

/// Settings of Avro.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Avro {
    /// The reader's schema, if values are not to be as they were written, and its place.
    pub(crate) reader: Option<(PathBuf, Spot)>,
    /// Where the schemas are that values were written with.
    pub(crate) from: Written,
}

/// Where the schemas are that Avro's values were written with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Written {
    /// At the beginning of container files.
    Files,
    /// Each record names one of a folder's files.
    Folder(PathBuf, Spot),
    /// Each record names one of a registry's.
    Registry {
        url: String,
        /// Name and password.
        login: Option<(String, Secret)>,
    },
}

/// Settings of Protobuf.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Protobuf {
    /// The descriptor set, and its place.
    pub(crate) descriptors: (PathBuf, Spot),
    /// The name of the message, and its place.
    pub(crate) message: (String, Spot),
    /// Whether records stand in Confluent's framing.
    pub(crate) framed: bool,
}

impl Schema {
    /// Whether the source's files are Avro's container files.
    pub(crate) fn in_files(&self) -> bool {
        matches!(self, Schema::Avro(Avro { from: Written::Files, .. }))
    }
}

pub(super) fn check(s: &mut Section<'_>, format: Option<Format>, p: &mut Problems) -> Option<Schema> {
    match format {
        Some(Format::Avro) => check_avro(s, p).map(Schema::Avro),
        Some(Format::Protobuf) => check_protobuf(s, p).map(Schema::Protobuf),
        Some(_) => Some(Schema::None),
        None => {
            // Nobody can say whether they belong here.
            s.forgive(&SCHEMA_ONLY.map(|(key, _)| key));
            Some(Schema::None)
        }
    }
}

fn path(f: &Field<'_>, p: &mut Problems) -> Option<(PathBuf, Spot)> {
    Some((PathBuf::from(f.text(p)?), f.node.at))
}

fn check_avro(s: &mut Section<'_>, p: &mut Problems) -> Option<Avro> {
    let reader = s.get("schema").map(|f| path(&f, p));
    let (folder, registry) = (s.get("schemas"), s.get("registry"));
    let from = match (folder, registry) {
        (None, None) => Some(Written::Files),
        (Some(f), None) => path(&f, p).map(|(folder, at)| Written::Folder(folder, at)),
        (None, Some(f)) => check_registry(&f, p),
        (Some(_), Some(f)) => {
            let help = "leave one out".to_owned();
            f.wrong("`schemas` and `registry` cannot stand together".to_owned(), help, p);
            None
        }
    };
    let reader = match reader {
        Some(path) => Some(path?),
        None => None,
    };
    Some(Avro { reader, from: from? })
}

fn check_registry(f: &Field<'_>, p: &mut Problems) -> Option<Written> {
    let help = "write `registry = \"http://registry:8081\"`, or { url = \"..\", user = \"..\", password = \"${env:..}\" }";
    if let Value::Text { .. } = f.node.value {
        return Some(Written::Registry { url: check_url(f, p)?, login: None });
    }
    let mut table = f.section(help, p)?;
    let url = table.need("url", "write `url = \"http://registry:8081\"`", p).and_then(|f| check_url(&f, p));
    let user = table.get("user");
    let password = match &user {
        Some(_) => table.need("password", "write `password = \"${env:REGISTRY_PASSWORD}\"`", p),
        None => None,
    };
    if let Some(password) = password.as_ref().filter(|f| !f.shown().contains("${")) {
        let help = "write \"${env:REGISTRY_PASSWORD}\"".to_owned();
        p.warn(password.key_at, &password.path, "a secret stands in the config file itself".to_owned(), help);
    }
    table.finish(&[("password", "it goes with a `user`")], p);
    let login = match (user, password) {
        (Some(user), password) => {
            let password = Secret::new(password?.text(p)?.to_owned());
            Some((user.text(p)?.to_owned(), password))
        }
        _ => None,
    };
    Some(Written::Registry { url: url?, login })
}

fn check_url(f: &Field<'_>, p: &mut Problems) -> Option<String> {
    let url = f.text(p)?;
    if let Some(why) = registry::url_problem(url) {
        f.wrong(format!("`{}` cannot be asked: {why}", f.shown()), None, p);
        return None;
    }
    Some(url.to_owned())
}

fn check_protobuf(s: &mut Section<'_>, p: &mut Problems) -> Option<Protobuf> {
    let help = "write `descriptors = \"clicks.binpb\"`, made by `protoc --include_imports --descriptor_set_out=clicks.binpb`";
    let descriptors = s.need("descriptors", help, p).and_then(|f| path(&f, p));
    let message = s.need("message", "write `message = \"shop.Click\"`: its name with the package", p);
    let message = message.and_then(|f| Some((f.text(p)?.to_owned(), f.node.at)));
    let framed = s.get("framed").and_then(|f| f.boolean(p)).unwrap_or(false);
    Some(Protobuf { descriptors: descriptors?, message: message?, framed })
}

/// Reads the reader's schema.
pub(crate) fn reader(path: &Path) -> Result<avro::schema::Schema, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("`{shown}` cannot be read: {e}"))?;
    avro::schema::Schema::parse(&text).map_err(|e| format!("`{shown}`: {e}"))
}

/// Reads a descriptor set.
pub(crate) fn descriptors(path: &Path) -> Result<Arc<Descriptors>, String> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|e| format!("`{shown}` cannot be read: {e}"))?;
    Descriptors::parse(&bytes).map(Arc::new).map_err(|e| format!("`{shown}`: {e}"))
}

/// What is wrong with the schemas that a source names, and which of its fields they do not have.
pub(super) fn probe(source: &Source, p: &mut Problems) {
    match &source.schema {
        Schema::None => {}
        Schema::Avro(a) => probe_avro(source, a, p),
        Schema::Protobuf(b) => probe_protobuf(source, b, p),
    }
}

fn probe_avro(source: &Source, settings: &Avro, p: &mut Problems) {
    let key = |name: &str| format!("source.{}.{name}", source.name);
    if let Written::Folder(folder, at) = &settings.from
        && !folder.is_dir()
    {
        p.error(*at, &key("schemas"), format!("`{}` is no folder", folder.display()), None);
    }
    let given = match &settings.reader {
        Some((path, at)) => match reader(path) {
            Ok(schema) => Some((schema, path.display().to_string())),
            Err(why) => return p.error(*at, &key("schema"), why, None),
        },
        None => first_file(source),
    };
    if let Some((schema, named)) = given {
        let (fields, paths) = declared(source);
        match avro::absent(&paths, &schema, None) {
            Ok(absent) => tell(source, &named, absent.into_iter().map(|i| &fields[i]), p),
            Err(why) => p.error(source.at, &key("schema"), why, None),
        }
    }
}

/// The schema of the first of a source's files, which the others probably have too.
fn first_file(source: &Source) -> Option<(avro::schema::Schema, String)> {
    let SourceKind::File { pattern, .. } = &source.kind else { return None };
    if !source.schema.in_files() {
        return None;
    }
    // Files that are not there, or are none, are told of elsewhere.
    let first = file::list(pattern).ok()?.into_iter().next()?;
    let opened = ContainerPartition::open(&first, 0).ok()?;
    let text = std::str::from_utf8(opened.header()?).ok()?;
    Some((avro::schema::Schema::parse(text).ok()?, first.display().to_string()))
}

fn probe_protobuf(source: &Source, settings: &Protobuf, p: &mut Problems) {
    let key = |name: &str| format!("source.{}.{name}", source.name);
    let (path, at) = &settings.descriptors;
    let set = match descriptors(path) {
        Ok(set) => set,
        Err(why) => return p.error(*at, &key("descriptors"), why, None),
    };
    let (fields, paths) = declared(source);
    let (message, at) = &settings.message;
    match ProtobufDecoder::new(&paths, set.clone(), message, settings.framed) {
        Ok(decoder) => {
            let absent = decoder.absent();
            tell(source, message, absent.into_iter().map(|i| &fields[i]), p);
        }
        Err(why) => {
            let near = nearest(message, set.names()).map(|n| format!("did you mean \"{n}\"?"));
            p.error(*at, &key("message"), why, near);
        }
    }
}

/// A field that the config names.
struct Declared {
    /// The key of the source that names it.
    by: &'static str,
    path: String,
    /// Whether no record without it is an event.
    required: bool,
}

fn declared(source: &Source) -> (Vec<Declared>, Vec<String>) {
    let mut fields = Vec::new();
    let mut add = |by, names: &[String], required| {
        fields.extend(names.iter().map(|n| Declared { by, path: source.path_of(n).to_owned(), required }));
    };
    match &source.key {
        KeySpec::One(one) => add("key", std::slice::from_ref(one), true),
        KeySpec::Together(all) => add("key", all, true),
        KeySpec::FirstOf(all) => add("key", all, false),
    }
    add("time", std::slice::from_ref(&source.time.field), true);
    match &source.id {
        IdSpec::Position | IdSpec::Content => {}
        IdSpec::Fields(all) => add("id", all, true),
        IdSpec::FirstOf(all) => add("id", all, false),
    }
    let mapped = source.fields.values();
    fields.extend(mapped.map(|path| Declared { by: "fields", path: path.clone(), required: false }));
    let paths = fields.iter().map(|f| f.path.clone()).collect();
    (fields, paths)
}

fn tell<'d>(source: &Source, schema: &str, absent: impl Iterator<Item = &'d Declared>, p: &mut Problems) {
    for field in absent {
        let key = format!("source.{}.{}", source.name, field.by);
        let message = format!("the schema ({schema}) has no field `{}`", field.path);
        if field.required {
            p.error(source.at, &key, message, "without it no record is an event".to_owned());
        } else {
            p.warn(source.at, &key, message, None);
        }
    }
}
