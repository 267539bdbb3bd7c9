//! The three worlds as wasmtime's `bindgen!` makes them, over one set of types.
//!
//! Answers come as a `Vec<u64>`, one copy out of the guest's memory. To read them in place is not possible: wasmtime
//! runs the guest's `post-return`, which frees the list, before a typed call comes back.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "generated")]
#![allow(clippy::all, reason = "generated")]

/// The sessionizer, and the types of all.
pub mod sessionizer {
    wasmtime::component::bindgen!({ path: "../../wit/tidemill.wit", world: "sessionizer" });
}
/// The validator.
pub mod validator {
    wasmtime::component::bindgen!({
        path: "../../wit/tidemill.wit",
        world: "validator",
        with: {
            "tidemill:plugin/host@0.3.0": super::sessionizer::tidemill::plugin::host,
            "tidemill:plugin/types@0.3.0": super::sessionizer::tidemill::plugin::types,
        },
    });
}
/// The enricher.
pub mod enricher {
    wasmtime::component::bindgen!({
        path: "../../wit/tidemill.wit",
        world: "enricher",
        with: {
            "tidemill:plugin/host@0.3.0": super::sessionizer::tidemill::plugin::host,
            "tidemill:plugin/types@0.3.0": super::sessionizer::tidemill::plugin::types,
        },
    });
}

pub use enricher::{Enricher, EnricherPre};
pub use sessionizer::tidemill::plugin::host::Level;
pub use sessionizer::tidemill::plugin::types::{
    ConfigError, Description, FieldType, Metric, MetricKind, StateForm,
};
pub use sessionizer::{Sessionizer, SessionizerPre};
pub use validator::{Validator, ValidatorPre};
