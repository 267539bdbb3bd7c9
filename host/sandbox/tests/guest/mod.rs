//! Guests out of text: a sessionizer that answers every frame with an empty one, of which a test changes a part.
//!
//! Memory: 256 the answer of `configure`, 512 the progress word, 1024 the description, 2048 the answer of `fold`, 4096
//! its frame, from 65536 what the host passes.

use std::fmt::Write;
use tidemill_contract::frame::{FrameWriter, Kind};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// Parts of a guest.
pub(crate) struct Guest {
    /// Functions, globals and the like of its own.
    pub(crate) items: &'static str,
    /// Body of `describe`.
    pub(crate) describe: &'static str,
    /// Body of `configure`.
    pub(crate) configure: &'static str,
    /// Body of `fold`, with `$ptr` and `$len` (in words) of the frame, for frames with something in them.
    pub(crate) fold: String,
    pub(crate) frame_version: u32,
    pub(crate) name: &'static str,
}

impl Default for Guest {
    fn default() -> Self {
        Guest {
            items: "",
            describe: "i32.const 1024",
            configure: "i32.const 256",
            fold: "i32.const 2048".into(),
            frame_version: u32::from(tidemill_contract::FRAME_VERSION),
            name: "guest",
        }
    }
}

/// A guest whose `fold` does this.
pub(crate) fn folding(fold: &str) -> Guest {
    Guest { fold: fold.into(), ..Guest::default() }
}

/// Has `fold` answer with these many words at this place.
pub(crate) fn answering(ptr: u32, words: u32) -> String {
    format!(
        "(i32.store (i32.const 2052) (i32.const {ptr})) (i32.store (i32.const 2056) (i32.const {words})) i32.const 2048"
    )
}

impl Guest {
    pub(crate) fn build(&self) -> Vec<u8> {
        let wat = format!(
            r#"(module
            (import "tidemill:plugin/host@0.3.0" "log" (func $log (param i32 i32 i32)))
            (memory (export "memory") 64)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 65536)
            {items}
            (func (export "describe") (result i32) {describe})
            (func (export "configure") (param i32 i32) (result i32) {configure})
            (func (export "progress") (result i32) i32.const 512)
            (func $fold (export "fold") (param $ptr i32) (param $len i32) (result i32) (local $i i32)
              (if (i32.le_u (local.get $len) (i32.const 7)) (then (return (i32.const 2048))))
              (i64.store (i32.const 512) (i64.const 0x0000000300000002))
              {fold})
            (func (export "migrate") (param i32 i32 i32) (result i32) i32.const 2048)
            {data})"#,
            items = self.items,
            describe = self.describe,
            configure = self.configure,
            fold = self.fold,
            data = self.data(),
        );
        component(&wat, tidemill_contract::WIT, "sessionizer")
    }

    fn data(&self) -> String {
        let mut d = vec![0_u32; 23];
        (d[0], d[1]) = (1200, self.name.len() as u32);
        (d[2], d[3]) = (1300, 5);
        d[4] = self.frame_version;
        (d[15], d[16]) = (1320, 2);
        (d[17], d[18]) = (1, 1);
        let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let mut frame = FrameWriter::default();
        frame.begin(Kind::Results);
        (0..8).for_each(|_| frame.section::<u64>(&[]));
        let words = frame.into_words();
        let mut text = String::new();
        for (at, bytes) in [
            (1024, bytes(&d)),
            (1200, self.name.into()),
            (1300, b"1.0.0".to_vec()),
            (1320, b"{}".to_vec()),
            (1400, b"a message".to_vec()),
            (2048, bytes(&[0, 4096, words.len() as u32])),
            (4096, words.iter().flat_map(|w| w.to_le_bytes()).collect()),
        ] {
            let escaped: String = bytes.iter().map(|b| format!("\\{b:02x}")).collect();
            write!(text, "(data (i32.const {at}) \"{escaped}\")").unwrap();
        }
        text
    }
}

/// Makes a component of a core module's text.
pub(crate) fn component(wat: &str, wit: &str, world: &str) -> Vec<u8> {
    of_module(wat::parse_str(wat).unwrap(), wit, world).unwrap()
}

/// The same of a core module, if one can be made of it.
pub(crate) fn of_module(mut module: Vec<u8>, wit: &str, world: &str) -> Result<Vec<u8>, String> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("world.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut e| e.encode())
        .map_err(|e| format!("{e:#}"))
}

/// A frame `turns` with that many bytes in its last section.
pub(crate) fn frame(bytes: usize) -> Vec<u64> {
    let mut frame = FrameWriter::default();
    frame.begin(Kind::Turns);
    (0..4).for_each(|_| frame.section::<u64>(&[]));
    frame.section(&vec![7_u8; bytes]);
    frame.into_words()
}
