//! What a plugin says: the one import. It can cost the host neither time nor memory beyond its bounds.

use crate::bounds;
use std::time::Instant;

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the plugin's author.
    Debug,
    /// Ordinary.
    Info,
    /// Odd.
    Warn,
    /// Wrong.
    Error,
}

/// A line that a plugin logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How grave.
    pub level: Level,
    /// At most [`bounds::LOG_LINE_BYTES_MAX`] bytes.
    pub message: String,
}

/// Lines that were let through, and how many were not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// In order.
    pub lines: Vec<LogLine>,
    /// Lines over the rate, since the last [`Log`].
    pub dropped: u64,
}

/// Lets lines through at a bounded rate, and holds them until they are taken.
#[derive(Debug)]
pub(crate) struct Throttle {
    held: Log,
    window: Instant,
    in_window: u32,
}

impl Throttle {
    pub(crate) fn new() -> Throttle {
        Throttle { held: Log::default(), window: Instant::now(), in_window: 0 }
    }

    /// Whether a line may pass. If not, it is counted; its text need not be read.
    pub(crate) fn admit(&mut self) -> bool {
        if self.in_window >= bounds::LOG_LINES_MAX && self.window.elapsed() >= bounds::LOG_WINDOW {
            (self.window, self.in_window) = (Instant::now(), 0);
        }
        let pass =
            self.in_window < bounds::LOG_LINES_MAX && self.held.lines.len() < bounds::LOG_LINES_HELD_MAX;
        if pass {
            if self.in_window == 0 {
                self.window = Instant::now();
            }
            self.in_window += 1;
        } else {
            self.held.dropped += 1;
        }
        pass
    }

    pub(crate) fn push(&mut self, level: Level, message: String) {
        self.held.lines.push(LogLine { level, message });
    }

    pub(crate) fn take(&mut self) -> Log {
        std::mem::take(&mut self.held)
    }
}

/// What a plugin remarks on one event or state, as far as it is kept.
#[must_use]
pub fn remark(said: &[u8]) -> String {
    let Some((kept, _)) =
        said.split_at_checked(bounds::REMARK_BYTES_MAX).filter(|(_, rest)| !rest.is_empty())
    else {
        return String::from_utf8_lossy(said).into_owned();
    };
    // The last character may have lost its end.
    let whole = match std::str::from_utf8(kept) {
        Err(e) if e.error_len().is_none() => &kept[..e.valid_up_to()],
        _ => kept,
    };
    format!("{}…", String::from_utf8_lossy(whole))
}

/// The beginning of a text, at most that many bytes.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_is_cut_between_characters_and_says_so() {
        let max = bounds::REMARK_BYTES_MAX;
        assert_eq!(remark(b""), "");
        assert_eq!(remark("x".repeat(max).as_bytes()), "x".repeat(max));
        assert_eq!(remark("x".repeat(max + 1).as_bytes()), "x".repeat(max) + "…");
        assert_eq!(
            remark(format!("{}ü{}", "x".repeat(max - 1), "y".repeat(1 << 20)).as_bytes()),
            "x".repeat(max - 1) + "…"
        );
        assert_eq!(remark(b"\xff."), "\u{fffd}.");
    }
}
