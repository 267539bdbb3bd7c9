//! Makes a component of a plugin that `cargo build --target wasm32-unknown-unknown` made, and says what it wants:
//!
//! ```text
//! cargo run -p tidemill-plugin-sdk --example componentize -- MODULE.wasm PLUGIN.wasm
//! ```

use std::io::Write;
use std::process::ExitCode;
use wit_component::{ComponentEncoder, DecodedWasm, decode};
use wit_parser::WorldItem;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(module), Some(component)) = (args.next(), args.next()) else {
        let _ = writeln!(std::io::stderr(), "usage: componentize MODULE.wasm PLUGIN.wasm");
        return ExitCode::from(2);
    };
    match run(&module, &component) {
        Ok(said) => {
            let _ = writeln!(std::io::stdout(), "{said}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{module}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(module: &str, component: &str) -> Result<String, Box<dyn std::error::Error>> {
    let bytes = std::fs::read(module)?;
    let made = ComponentEncoder::default().validate(true).module(&bytes)?.encode()?;
    let DecodedWasm::Component(resolve, world) = decode(&made)? else { return Err("no component".into()) };
    let world = &resolve.worlds[world];
    // `types` holds no functions, and the types that the world takes from it are none either: the host gives nothing for
    // them.
    let given_by_host = world.imports.iter().filter(|(_, item)| !matches!(item, WorldItem::Type { .. }));
    let wanted: Vec<String> = given_by_host.map(|(k, _)| resolve.name_world_key(k)).collect();
    let given = |name: &str| ["tidemill:plugin/host@0.1.0", "tidemill:plugin/types@0.1.0"].contains(&name);
    let foreign: Vec<&String> = wanted.iter().filter(|name| !given(name)).collect();
    if !foreign.is_empty() {
        return Err(format!("it wants what no plugin is given: {foreign:?}").into());
    }
    std::fs::write(component, &made)?;
    let exports: Vec<String> = world.exports.keys().map(|k| resolve.name_world_key(k)).collect();
    Ok(format!(
        "{component}: {} bytes; imports {}; exports {}",
        made.len(),
        wanted.join(", "),
        exports.join(", ")
    ))
}
