//! From the core module that cargo made to a component that the host takes; checked by the host's own loader, so that
//! what is built here is never refused by `run`.

use std::io::Write as _;
use std::path::Path;

use tidemill_sandbox::{Component, Engine};
use wit_component::ComponentEncoder;

use super::super::out::Failure;

/// Starts the engine that plugins run in.
///
/// # Errors
/// If the machine does not give what it needs.
pub(super) fn engine() -> Result<Engine, Failure> {
    Engine::new().map_err(|e| Failure::new(1, e.to_string(), None))
}

/// A component of a core module.
///
/// # Errors
/// If it cannot become one: mostly because it wants what no plugin is given.
pub(super) fn make(module: &[u8]) -> Result<Vec<u8>, Failure> {
    let encoder = ComponentEncoder::default().validate(true).module(module);
    encoder.and_then(|mut e| e.encode()).map_err(|e| {
        Failure::new(
            4,
            format!("no component can be made of it: {e:#}"),
            "a plugin is a pure function and is given no clock, randomness, files or sockets; look for a crate that wants \
             them with `cargo tree --target wasm32-unknown-unknown` (rand, getrandom, chrono and uuid often do), and leave \
             it out or switch that feature off"
                .to_owned(),
        )
    })
}

/// Loads it as `run` would.
///
/// # Errors
/// If the host refuses it.
pub(super) fn load(engine: &Engine, bytes: &[u8], what: &Path) -> Result<Component, Failure> {
    Component::load(engine, bytes, None).map_err(|e| {
        let code = if e.is_host() { 1 } else { 4 };
        Failure::new(code, format!("{}: {e}", what.display()), None)
    })
}

/// Puts it in its place in one step: whoever has the old one open never sees half of the new one.
///
/// # Errors
/// If it cannot be written there.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed =
        |e: std::io::Error| Failure::new(4, format!("{} cannot be written: {e}", path.display()), None);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut file = tempfile::Builder::new();
    #[cfg(unix)]
    file.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let mut file = file.tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}
