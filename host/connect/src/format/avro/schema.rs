//! Avro schemas: their JSON, read into nodes that name each other by number.
//!
//! Parsed here and not by `apache-avro`, which brings two dozen crates (procedural macros, big numbers, regular expressions)
//! of which a reader of schemas needs none. It is what the tests hold this against.
//!
//! Invariants: every number in a node is that of a node; a schema may contain itself (linked lists), so nobody may walk one
//! without a bound. What the specification tells readers to ignore is ignored: unknown logical types, and those that do not
//! fit their type.

use serde_json::{Map, Value};
use std::collections::HashMap;

/// The longest text of a schema that is read. Real ones have some ten thousand bytes.
pub const SCHEMA_BYTES_MAX: usize = 4 << 20;

/// Digits of a decimal: more than 128 bits hold have no reader here.
const DECIMAL_DIGITS_MAX: u64 = 1000;

/// A schema, and those that it refers to.
#[derive(Debug, Clone)]
pub struct Schema {
    pub(super) nodes: Vec<Node>,
    pub(super) root: usize,
}

/// One type in a schema.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// With its namespace; only records, enums and fixed have one.
    pub(super) name: Option<String>,
    pub(super) aliases: Vec<String>,
    pub(super) kind: Type,
    pub(super) logical: Option<Logical>,
}

#[derive(Debug, Clone)]
pub(super) enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Enum { symbols: Vec<String>, default: Option<String> },
    Record(Vec<Field>),
    Array(usize),
    Map(usize),
    Union(Vec<usize>),
}

/// A field of a record.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    pub(super) schema: usize,
    pub(super) default: Option<Value>,
}

/// What a type stands for, where that changes how a value reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logical {
    Date,
    /// An instant in so many decimal places below a millisecond.
    Timestamp(u32),
    /// A civil time, likewise.
    LocalTimestamp(u32),
    Decimal {
        scale: u32,
    },
    Uuid,
    Duration,
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub fn parse(text: &str) -> Result<Schema, String> {
        Schema::parse_with(text, std::iter::empty())
    }

    /// Reads a schema that names types of others; each of these may name types of those before it.
    ///
    /// # Errors
    /// What is wrong with any of them.
    pub fn parse_with<'t>(text: &str, others: impl Iterator<Item = &'t str>) -> Result<Schema, String> {
        let mut parser = Parser { nodes: Vec::new(), names: HashMap::new() };
        for other in others {
            parser.root(other)?;
        }
        let root = parser.root(text)?;
        Ok(Schema { nodes: parser.nodes, root })
    }

    /// The name of the outermost type, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.nodes[self.root].name.as_deref()
    }
}

/// What follows the last dot of a name.
pub(super) fn unqualified(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

struct Parser {
    nodes: Vec<Node>,
    /// By name with namespace.
    names: HashMap<String, usize>,
}

impl Parser {
    fn root(&mut self, text: &str) -> Result<usize, String> {
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(format!("the schema has more than {SCHEMA_BYTES_MAX} bytes"));
        }
        // serde_json bounds the depth, and so ours.
        let value: Value = serde_json::from_str(text).map_err(|e| format!("the schema is no JSON: {e}"))?;
        self.schema(&value, "")
    }

    fn push(&mut self, kind: Type) -> usize {
        self.nodes.push(Node { name: None, aliases: Vec::new(), kind, logical: None });
        self.nodes.len() - 1
    }

    fn schema(&mut self, value: &Value, namespace: &str) -> Result<usize, String> {
        match value {
            Value::String(name) => self.named(name, namespace),
            Value::Array(branches) => self.union(branches, namespace),
            Value::Object(object) => self.object(object, namespace),
            other => Err(format!("`{other}` is no schema")),
        }
    }

    /// A type that is only named: of Avro itself, or one defined before.
    fn named(&mut self, name: &str, namespace: &str) -> Result<usize, String> {
        if let Some(kind) = primitive(name) {
            return Ok(self.push(kind));
        }
        let full = qualified(name, namespace);
        let known = self.names.get(&full).or_else(|| self.names.get(name));
        known.copied().ok_or_else(|| format!("the type `{full}` is not defined before it is used"))
    }

    fn union(&mut self, branches: &[Value], namespace: &str) -> Result<usize, String> {
        let union = self.push(Type::Null);
        let branches =
            branches.iter().map(|b| self.schema(b, namespace)).collect::<Result<Vec<usize>, String>>()?;
        if branches.iter().any(|b| matches!(self.nodes[*b].kind, Type::Union(_))) {
            return Err("a union holds another one directly".to_owned());
        }
        self.nodes[union].kind = Type::Union(branches);
        Ok(union)
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<usize, String> {
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            // `{"type": {..}}`: the inner one is meant.
            Some(inner @ (Value::Object(_) | Value::Array(_))) => return self.schema(inner, namespace),
            _ => return Err("a schema has no `type`".to_owned()),
        };
        let at = match kind {
            "array" => {
                let at = self.push(Type::Null);
                let items = object.get("items").ok_or("an array has no `items`")?;
                self.nodes[at].kind = Type::Array(self.schema(items, namespace)?);
                at
            }
            "map" => {
                let at = self.push(Type::Null);
                let values = object.get("values").ok_or("a map has no `values`")?;
                self.nodes[at].kind = Type::Map(self.schema(values, namespace)?);
                at
            }
            "record" | "error" => self.record(object, namespace)?,
            "enum" => self.enumeration(object, namespace)?,
            "fixed" => {
                let size = object.get("size").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
                let size = size.ok_or("a fixed has no `size`")?;
                self.define(object, namespace, Type::Fixed(size))?.0
            }
            name => self.named(name, namespace)?,
        };
        // A reference to a named type takes no attributes: they are the definition's.
        if matches!(kind, "fixed") || primitive(kind).is_some() {
            self.nodes[at].logical = logical(object, &self.nodes[at].kind);
        }
        Ok(at)
    }

    /// A new node with a name; also the namespace of what is in it.
    fn define(
        &mut self,
        object: &Map<String, Value>,
        namespace: &str,
        kind: Type,
    ) -> Result<(usize, String), String> {
        let name = text(object, "name").ok_or("a record, enum or fixed has no `name`")?;
        let outer = text(object, "namespace").unwrap_or(namespace);
        let full = qualified(name, outer);
        let inner = full.rsplit_once('.').map_or("", |(space, _)| space).to_owned();
        let aliases = texts(object, "aliases").map(|a| qualified(a, &inner)).collect();
        self.nodes.push(Node { name: Some(full.clone()), aliases, kind, logical: None });
        let at = self.nodes.len() - 1;
        if self.names.insert(full.clone(), at).is_some() {
            return Err(format!("the type `{full}` is defined twice"));
        }
        Ok((at, inner))
    }

    fn record(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<usize, String> {
        let (at, inner) = self.define(object, namespace, Type::Record(Vec::new()))?;
        let list = object.get("fields").and_then(Value::as_array).ok_or("a record has no `fields`")?;
        let mut fields: Vec<Field> = Vec::with_capacity(list.len());
        let mut names = std::collections::HashSet::new();
        for field in list {
            let field = field.as_object().ok_or("a field of a record is no object")?;
            let name = text(field, "name").ok_or("a field of a record has no `name`")?.to_owned();
            if !names.insert(name.clone()) {
                return Err(format!("a record has the field `{name}` twice"));
            }
            let kind = field.get("type").ok_or_else(|| format!("the field `{name}` has no `type`"))?;
            fields.push(Field {
                aliases: texts(field, "aliases").map(str::to_owned).collect(),
                schema: self.schema(kind, &inner)?,
                default: field.get("default").cloned(),
                name,
            });
        }
        self.nodes[at].kind = Type::Record(fields);
        Ok(at)
    }

    fn enumeration(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<usize, String> {
        let list = object.get("symbols").and_then(Value::as_array).ok_or("an enum has no `symbols`")?;
        let symbols: Option<Vec<String>> = list.iter().map(|s| s.as_str().map(str::to_owned)).collect();
        let symbols = symbols.ok_or("a symbol of an enum is no text")?;
        let default = text(object, "default").map(str::to_owned);
        Ok(self.define(object, namespace, Type::Enum { symbols, default })?.0)
    }
}

fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long,
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::String,
        _ => return None,
    })
}

fn qualified(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() {
        // A leading dot is how some write "no namespace".
        return name.strip_prefix('.').unwrap_or(name).to_owned();
    }
    format!("{namespace}.{name}")
}

fn text<'v>(object: &'v Map<String, Value>, key: &str) -> Option<&'v str> {
    object.get(key)?.as_str()
}

fn texts<'v>(object: &'v Map<String, Value>, key: &str) -> impl Iterator<Item = &'v str> {
    object.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn logical(object: &Map<String, Value>, kind: &Type) -> Option<Logical> {
    Some(match (text(object, "logicalType")?, kind) {
        ("date", Type::Int) => Logical::Date,
        ("timestamp-millis", Type::Long) => Logical::Timestamp(0),
        ("timestamp-micros", Type::Long) => Logical::Timestamp(3),
        ("timestamp-nanos", Type::Long) => Logical::Timestamp(6),
        ("local-timestamp-millis", Type::Long) => Logical::LocalTimestamp(0),
        ("local-timestamp-micros", Type::Long) => Logical::LocalTimestamp(3),
        ("local-timestamp-nanos", Type::Long) => Logical::LocalTimestamp(6),
        ("uuid", Type::Fixed(16)) => Logical::Uuid,
        ("duration", Type::Fixed(12)) => Logical::Duration,
        ("decimal", Type::Bytes | Type::Fixed(_)) => {
            let precision =
                object.get("precision")?.as_u64().filter(|p| (1..=DECIMAL_DIGITS_MAX).contains(p))?;
            let scale = object.get("scale").map_or(Some(0), Value::as_u64).filter(|s| *s <= precision)?;
            Logical::Decimal { scale: scale as u32 }
        }
        _ => return None,
    })
}
