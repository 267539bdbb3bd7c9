//! Where words go: stdout for what was asked, stderr for the rest; errors with what to do about them.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use crate::config::Problems;
use crate::rows::RowsError;
use crate::run::RunError;
use tidemill_connect::ConnectError;

/// Headings.
pub(super) const BOLD: Style = Style::new().bold();
/// What matters less.
pub(super) const DIM: Style = Style::new().dimmed();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const HELP: Style = AnsiColor::Cyan.on_default().bold();
const NOTE: Style = AnsiColor::Green.on_default().bold();

/// Standard output, locked and buffered; escape sequences only on a terminal. Flush it when done.
pub(super) fn stdout() -> impl Write {
    BufWriter::new(AutoStream::auto(io::stdout().lock()))
}

/// Prints one JSON value as a line on stdout.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut out = stdout();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// Why a command ends without its result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Stdout cannot be written.
    Output(io::Error),
    /// The config is wrong.
    Config(Problems),
    /// Anything else.
    Told {
        /// Exit code.
        code: u8,
        /// What is wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

impl Failure {
    /// With a message and what to do about it.
    pub(super) fn new(code: u8, message: impl Into<String>, help: impl Into<Option<String>>) -> Failure {
        Failure::Told { code, message: message.into(), help: help.into() }
    }

    /// Says it on stderr, with `as_json` also on stdout; the exit code.
    pub(super) fn tell(&self, as_json: bool) -> u8 {
        let (code, value) = match self {
            Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => return 0,
            Failure::Output(e) => {
                error(&format!("standard output cannot be written: {e}"), None);
                return 1;
            }
            Failure::Config(problems) => {
                tell_problems(problems);
                (4, json!({"problems": problems.to_json(), "exit_code": 4}))
            }
            Failure::Told { code, message, help } => {
                error(message, help.as_deref());
                (*code, json!({"error": message, "help": help, "exit_code": code}))
            }
        };
        if as_json { tell_value(&value, code) } else { code }
    }
}

/// A closed stdout makes even an error quiet.
fn tell_value(value: &Value, code: u8) -> u8 {
    match print_json(value) {
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => 0,
        _ => code,
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::Output(e)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Failure {
        Failure::Config(problems)
    }
}

impl From<RunError> for Failure {
    fn from(e: RunError) -> Failure {
        Failure::Told { code: e.exit_code(), message: e.to_string(), help: None }
    }
}

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Failure {
        let code = match e {
            ConnectError::Config(_) => 4,
            ConnectError::Conflict(_) => 6,
            ConnectError::Failed(_) | ConnectError::Unavailable(_) => 1,
            ConnectError::Storage(_) => 5,
        };
        Failure::new(code, e.to_string(), None)
    }
}

impl From<RowsError> for Failure {
    fn from(e: RowsError) -> Failure {
        match e {
            RowsError::Sink(e) => e.into(),
            RowsError::Unreadable { message, help } => Failure::new(4, message, help),
        }
    }
}

/// `error: …` and `help: …` on stderr. There is nobody to tell if that fails.
pub(super) fn error(message: &str, help: Option<&str>) {
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{ERROR}error{ERROR:#}: {message}");
    if let Some(help) = help {
        let _ = writeln!(err, "{HELP}help{HELP:#}: {help}");
    }
}

/// A line on stderr for the user.
pub(super) fn note(message: impl Display) {
    let _ = writeln!(anstream::stderr().lock(), "{NOTE}note{NOTE:#}: {message}");
}

/// Findings about a config on stderr, with their lines.
pub(super) fn tell_problems(problems: &Problems) {
    if problems.is_empty() {
        return;
    }
    let colour = AutoStream::choice(&io::stderr()) != ColorChoice::Never;
    let _ = write!(anstream::stderr().lock(), "{}", problems.render(colour));
}
