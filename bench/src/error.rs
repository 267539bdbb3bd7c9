//! Why a measurement ends: a sentence for whoever runs it.

use std::fmt::{self, Display, Formatter};
use tidemill_services::Absent;

/// A sentence, and the exit code that goes with it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    message: String,
}

/// What most functions here answer.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// Something went wrong.
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure { code: 1, message: message.into() }
    }
    /// The command line, or what it names, is wrong; or the machine cannot be measured on now.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { code: 2, message: message.into() }
    }
    /// The results differ, or a promise is missed and nobody has said why.
    pub(crate) fn differs(message: impl Into<String>) -> Failure {
        Failure { code: 3, message: message.into() }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A service that was started; one that cannot be had ends the measurement.
pub(crate) fn there<T>(what: &str, started: Result<T, Absent>) -> Outcome<T> {
    started.map_err(|e| match e {
        Absent::Missing(why) => Failure::usage(format!("there is no {what} here: {why}")),
        Absent::Broken(why) => Failure::new(format!("{what}: {why}")),
    })
}

/// Adds to an error what was being done.
pub(crate) trait Doing<T> {
    /// The same, but for an error's message.
    fn doing(self, what: impl Display) -> Outcome<T>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Outcome<T> {
        self.map_err(|e| Failure::new(format!("{what}: {e}")))
    }
}
