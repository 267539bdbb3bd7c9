//! What stands in the data directory besides the logs of epochs (`tidemill-store`).
//!
//! ```text
//! DATA_DIR/plugins/                      versions of plugins, by what they are (versions.rs)
//! DATA_DIR/token                         what opens the admin API (token.rs)
//! DATA_DIR/address                       where it is (address.rs)
//! ```

pub(crate) mod address;
pub(crate) mod components;
pub(crate) mod token;
pub(crate) mod versions;
