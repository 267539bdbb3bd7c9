//! Guests that no compiler would make, out of text: a sessionizer whose answers to anything but an empty frame are a
//! test's, and components that want what no plugin gets.

use std::fmt::Write as _;
use tidemill_tests::plugins::component;

/// The layout of frames that the host speaks.
pub(crate) const FRAME_VERSION: u32 = 2;

/// A sessionizer that speaks this version and answers with this body; `i32.const 2048` is an empty frame of results.
pub(crate) fn sessionizer(frame_version: u32, fold: &str) -> Vec<u8> {
    build(frame_version, fold, "told")
}

/// One that describes itself with this reason.
pub(crate) fn describing(reason: &str) -> Vec<u8> {
    build(FRAME_VERSION, "i32.const 2048", reason)
}

/// A body that traps at calls of a turn or two, and to longer ones answers that nothing came of so many turns.
pub(crate) fn answers_calls_of(turns: u32) -> String {
    // More than a turn of seven events has, and less than twelve turns have.
    const LONG_WORDS: u32 = 100;
    let (at, rows_at, row_bytes) = (8192, 80, 56);
    let bytes = rows_at + turns * row_bytes;
    let first = u64::from(rows_at) | u64::from(turns) << 32;
    let head = [u64::from(bytes), u64::from(FRAME_VERSION) | 2 << 16 | 8 << 32, first];
    let words = head.into_iter().chain([u64::from(bytes); 7]);
    let mut fold = format!("(if (i32.lt_u (local.get $len) (i32.const {LONG_WORDS})) (then unreachable))");
    for (n, word) in words.enumerate() {
        let _ = write!(fold, "(i64.store (i32.const {}) (i64.const {word}))", at + 8 * n as u32);
    }
    for turn in 0..turns {
        // Of the state at the end: nothing is open.
        let _ =
            write!(fold, "(i32.store (i32.const {}) (i32.const -2))", at + rows_at + turn * row_bytes + 24);
    }
    let words = bytes / 8;
    fold + &format!(
        "(i32.store (i32.const 2052) (i32.const {at})) (i32.store (i32.const 2056) (i32.const {words})) i32.const 2048"
    )
}

fn build(frame_version: u32, fold: &str, reason: &str) -> Vec<u8> {
    let wat = format!(
        r#"(module
        (import "tidemill:plugin/host@0.3.0" "log" (func $log (param i32 i32 i32)))
        (memory (export "memory") 64)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 65536)
        (func (export "describe") (result i32) i32.const 1024)
        (func (export "configure") (param i32 i32) (result i32) i32.const 256)
        (func (export "progress") (result i32) i32.const 512)
        (func (export "fold") (param $ptr i32) (param $len i32) (result i32)
          (if (i32.le_u (local.get $len) (i32.const 7)) (then (return (i32.const 2048))))
          {fold})
        (func (export "migrate") (param i32 i32 i32) (result i32) i32.const 2048)
        {})"#,
        data(frame_version, reason)
    );
    let mut module = wat::parse_str(wat).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("tidemill.wit", include_str!("../../../wit/tidemill.wit")).unwrap();
    let world = resolve.select_world(&[package], Some("sessionizer")).unwrap();
    wit_component::embed_component_metadata(
        &mut module,
        &resolve,
        world,
        wit_component::StringEncoding::UTF8,
    )
    .unwrap();
    component(&module)
}

/// At 1024 the description, at 2048 the answer `ok(4096, 10 words)`, at 4096 an empty frame of results.
fn data(frame_version: u32, reason: &str) -> String {
    let mut description = vec![0_u32; 23];
    (description[0], description[1]) = (1200, 5);
    (description[2], description[3]) = (1300, 5);
    description[4] = frame_version;
    (description[7], description[8]) = (1400, 1);
    (description[15], description[16]) = (1320, 2);
    (description[17], description[18]) = (1, 1);
    let frame: Vec<u64> =
        [80, u64::from(FRAME_VERSION) | 2 << 16 | 8 << 32].into_iter().chain([80; 8]).collect();
    let words = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let mut text = String::new();
    for (at, bytes) in [
        (1024, words(&description)),
        (1200, b"guest".to_vec()),
        (1300, b"1.0.0".to_vec()),
        (1320, b"{}".to_vec()),
        (1400, words(&[1408, reason.len() as u32])),
        (1408, reason.into()),
        (2048, words(&[0, 4096, 10])),
        (4096, frame.iter().flat_map(|w| w.to_le_bytes()).collect()),
    ] {
        let escaped: String = bytes.iter().map(|b| format!("\\{b:02x}")).collect();
        let _ = write!(text, "(data (i32.const {at}) \"{escaped}\")");
    }
    text
}

/// A component that imports this instance.
pub(crate) fn importing(import: &str) -> Vec<u8> {
    wat::parse_str(format!("(component (import \"{import}\" (instance)))")).unwrap()
}
