//! What a component wants and gives, read from its bytes before anything is compiled.

use std::collections::BTreeSet;
use std::fmt;
use wasmparser::{ComponentTypeRef, Encoding, Parser, Payload, TypeBounds};

/// The package that plugins are written against.
const PACKAGE: &str = "tidemill:plugin";
/// What may be imported: the log, and the interface of types, which has no functions.
const IMPORTS: [&str; 2] = ["tidemill:plugin/host@0.3.0", "tidemill:plugin/types@0.3.0"];
/// What every plugin exports.
const COMMON: [&str; 3] = ["describe", "configure", "progress"];

/// The kind of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum World {
    /// Judges events.
    Validator,
    /// Says where sessions begin and end.
    Sessionizer,
    /// Adds fields to sessions.
    Enricher,
}

impl World {
    const ALL: [World; 3] = [World::Validator, World::Sessionizer, World::Enricher];

    /// As in the WIT.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            World::Validator => "validator",
            World::Sessionizer => "sessionizer",
            World::Enricher => "enricher",
        }
    }

    const fn own(self) -> &'static [&'static str] {
        match self {
            World::Validator => &["validate"],
            World::Sessionizer => &["fold", "migrate"],
            World::Enricher => &["requests", "apply"],
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why these bytes are no plugin, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongShape {
    /// Not WebAssembly.
    #[error("this is not WebAssembly: {0}")]
    NotWasm(String),
    /// A core module.
    #[error(
        "this is a core WebAssembly module, not a component; make one of it with `tidemill plugin build`, or with \
         `wasm-tools component new`"
    )]
    CoreModule,
    /// It wants what plugins do not get. All of it.
    #[error("it imports what a plugin does not get: {}{}", .0.join(", "), import_hint(.0))]
    Imports(Vec<String>),
    /// It is none of the worlds.
    #[error("it is no validator, sessionizer or enricher: it exports {}{}", list(.exports), lacks(.missing))]
    NoWorld {
        /// What it exports.
        exports: Vec<String>,
        /// The world that comes nearest, and what is missing for it.
        missing: Option<(World, Vec<String>)>,
    },
    /// It is more than one.
    #[error("it is {} at once; a plugin is one of them", .0.iter().map(|w| w.name()).collect::<Vec<_>>().join(" and "))]
    SeveralWorlds(Vec<World>),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

fn lacks(nearest: &Option<(World, Vec<String>)>) -> String {
    nearest
        .as_ref()
        .map(|(world, names)| format!("; to be a {world} it lacks {}", names.join(", ")))
        .unwrap_or_default()
}

fn import_hint(imports: &[String]) -> String {
    let any = |start: &str| imports.iter().any(|i| i.starts_with(start));
    let mut hint = String::new();
    if any("wasi:") || any("wasi_") {
        hint += ". A plugin is a pure function and gets no WASI: build Rust for wasm32-unknown-unknown (not wasm32-wasip1 \
                 or wasip2), and Python and JavaScript with WASI stubbed out";
    }
    if any(PACKAGE) {
        hint +=
            ". It is built against another version of the contract; this host speaks tidemill:plugin@0.3.0";
    }
    hint
}

/// What a component is, by the names that it imports and exports.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) world: World,
    /// What it imports: some of [`IMPORTS`].
    pub(crate) imports: Vec<String>,
}

/// Says which world a component is.
pub(crate) fn check(bytes: &[u8]) -> Result<Shape, WrongShape> {
    let bad = |e: wasmparser::BinaryReaderError| WrongShape::NotWasm(e.to_string());
    if !bytes.starts_with(b"\0asm") {
        return Err(WrongShape::NotWasm("it does not begin with \\0asm".into()));
    }
    let (mut given, mut imports, mut exports) = (Vec::new(), Vec::new(), BTreeSet::new());
    // Components contain modules and components; only the outermost one's names count.
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(bad)? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                return Err(WrongShape::CoreModule);
            }
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let import = import.map_err(bad)?;
                    let name = import.name.name;
                    // A world's name for a type of the contract's; nothing that could be called.
                    let alias = matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_)));
                    if alias {
                        continue;
                    }
                    let list = if IMPORTS.contains(&name) { &mut given } else { &mut imports };
                    list.push(name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export.map_err(bad)?;
                    exports.insert(export.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    if !imports.is_empty() {
        return Err(WrongShape::Imports(imports));
    }
    Ok(Shape { world: world(&exports)?, imports: given })
}

fn world(exports: &BTreeSet<String>) -> Result<World, WrongShape> {
    let without = |world: World| -> Vec<String> {
        let wanted = COMMON.iter().chain(world.own());
        wanted.filter(|name| !exports.contains(**name)).map(|name| (*name).to_owned()).collect()
    };
    let fits: Vec<World> = World::ALL.into_iter().filter(|w| without(*w).is_empty()).collect();
    match fits[..] {
        [world] => Ok(world),
        [] => Err(WrongShape::NoWorld {
            exports: exports.iter().cloned().collect(),
            missing: World::ALL
                .into_iter()
                .filter(|w| w.own().iter().any(|name| exports.contains(*name)))
                .map(|w| (w, without(w)))
                .min_by_key(|(_, names)| names.len()),
        }),
        _ => Err(WrongShape::SeveralWorlds(fits)),
    }
}
