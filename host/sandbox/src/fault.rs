//! What can go wrong in a call, told apart by what a reader needs to know.

use crate::{bounds, log};
use std::fmt;
use std::time::Duration;
use tidemill_contract::FRAME_VERSION;
use tidemill_contract::rows::progress;

/// A call that gave no usable answer. The guest's doing, but for [`FaultKind::Host`].
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// Where in the frame the guest was, if it trapped or was stopped and had said where its progress word is.
    pub progress: Option<Progress>,
    /// How long the call ran.
    pub ran: Duration,
}

/// See [`Fault`].
#[derive(Clone, Debug, PartialEq)]
pub enum FaultKind {
    /// It panicked; with the message that it logged before, or none.
    Panic(Option<String>),
    /// Another trap.
    Trap(TrapKind),
    /// It ran past its deadline.
    Deadline(Duration),
    /// It trapped after it was refused memory.
    Memory {
        /// Bytes that it wanted its memory to have.
        wanted: usize,
    },
    /// It answered with an error for the whole call.
    Guest(String),
    /// Its answer is no frame.
    Malformed(Malformed),
    /// Not the guest: the host could not make the call. A bound of the engine, or a mistake in it.
    Host(String),
}

/// Traps other than a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapKind {
    /// Guests keep their stack at the low end of their memory, so deep recursion shows as an access out of bounds.
    MemoryOrStack,
    /// The host's stack, as far as a guest may use it.
    StackOverflow,
    /// A number divided by zero.
    DivisionByZero,
    /// The least number divided by -1, or a float too large for an integer.
    IntegerOverflow,
    /// A float that is no number, made an integer.
    BadConversion,
    /// A call through a pointer to no function, or to one of another type.
    BadCall,
    /// A broken rule of the component model: a bad pointer or text in an answer, a call out of order.
    ComponentRule,
    /// None of these.
    Other,
}

/// Why an answer is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No words at all, or not even a header.
    Short {
        /// How many words.
        words: usize,
    },
    /// Word 0 says another length.
    Length {
        /// Bytes, as the frame says.
        said: u64,
        /// Bytes of the list.
        is: usize,
    },
    /// Another version of the layout.
    Version(u16),
    /// More bytes than a call may hand over.
    TooLarge,
    /// Where the list is said to be, there is no memory, or it is not aligned.
    Place,
    /// A text that is not UTF-8, or an unknown case.
    Value,
}

/// The progress word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The turn, event or session at hand.
    pub row: u32,
    /// The input's index within the turn, or one of [`progress`].
    pub input: u32,
}

impl Progress {
    pub(crate) fn of(word: u64) -> Progress {
        Progress { row: word as u32, input: (word >> 32) as u32 }
    }
}

impl FaultKind {
    /// A short name for counters and dead letters.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            FaultKind::Panic(_) => "panic",
            FaultKind::Trap(_) => "trap",
            FaultKind::Deadline(_) => "deadline",
            FaultKind::Memory { .. } => "memory",
            FaultKind::Guest(_) => "error",
            FaultKind::Malformed(_) => "malformed",
            FaultKind::Host(_) => "host",
        }
    }
}

impl TrapKind {
    pub(crate) fn of(trap: wasmtime::Trap) -> TrapKind {
        use wasmtime::Trap;
        match trap {
            Trap::MemoryOutOfBounds => TrapKind::MemoryOrStack,
            Trap::StackOverflow => TrapKind::StackOverflow,
            Trap::IntegerDivisionByZero => TrapKind::DivisionByZero,
            Trap::IntegerOverflow => TrapKind::IntegerOverflow,
            Trap::BadConversionToInteger => TrapKind::BadConversion,
            Trap::IndirectCallToNull | Trap::BadSignature | Trap::TableOutOfBounds => TrapKind::BadCall,
            Trap::CannotEnterComponent
            | Trap::CannotLeaveComponent
            | Trap::InvalidChar
            | Trap::StringOutOfBounds
            | Trap::ListOutOfBounds => TrapKind::ComponentRule,
            _ => TrapKind::Other,
        }
    }
}

impl fmt::Display for TrapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrapKind::MemoryOrStack => "memory out of bounds or stack exhausted",
            TrapKind::StackOverflow => "the host's stack exhausted",
            TrapKind::DivisionByZero => "integer divided by zero",
            TrapKind::IntegerOverflow => "integer overflow",
            TrapKind::BadConversion => "a float that fits no integer",
            TrapKind::BadCall => "a call through a bad function pointer",
            TrapKind::ComponentRule => "a breach of the component model",
            TrapKind::Other => "a trap",
        })
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Short { words } => write!(f, "{words} words, which is less than a header"),
            Malformed::Length { said, is } => write!(f, "{is} bytes long, but it says {said}"),
            Malformed::Version(v) => write!(f, "of version {v}, where {FRAME_VERSION} is spoken"),
            Malformed::TooLarge => write!(f, "more than {} bytes", bounds::OUTPUT_BYTES_MAX),
            Malformed::Place => write!(f, "outside the plugin's memory, or not aligned"),
            Malformed::Value => write!(f, "not of its declared type"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FaultKind::Panic(Some(message)) => write!(f, "the plugin panicked: {message}")?,
            FaultKind::Panic(None) => write!(f, "the plugin panicked without a message")?,
            FaultKind::Trap(kind) => write!(f, "the plugin trapped: {kind}")?,
            FaultKind::Deadline(limit) => write!(
                f,
                "the plugin was stopped after {:.1} ms, where {:.1} ms are allowed",
                self.ran.as_secs_f64() * 1e3,
                limit.as_secs_f64() * 1e3
            )?,
            FaultKind::Memory { wanted } => write!(
                f,
                "the plugin ran out of memory: it wanted {} MiB, where {} MiB are allowed",
                wanted >> 20,
                bounds::MEMORY_BYTES_MAX >> 20
            )?,
            FaultKind::Guest(message) => write!(f, "the plugin gave up: {message}")?,
            FaultKind::Malformed(why) => write!(f, "the plugin's answer is malformed: {why}")?,
            FaultKind::Host(why) => write!(f, "the plugin could not be called: {why}")?,
        }
        match self.progress {
            None => Ok(()),
            Some(Progress { row, input: progress::FRAME }) => write!(f, " (at row {row}, in the frame)"),
            Some(Progress { row, input: progress::TIMER }) => write!(f, " (at row {row}, in a timer)"),
            Some(Progress { row, input: progress::OUTPUT }) => write!(f, " (at row {row}, in its output)"),
            Some(Progress { row, input }) => write!(f, " (at row {row}, input {input})"),
        }
    }
}
impl std::error::Error for Fault {}

pub(crate) fn guest_message(text: &str) -> String {
    log::cut(text, bounds::MESSAGE_BYTES_MAX)
}
