//! Says in the journal which keys are hot: once, and again only after a while.

use crate::journal::Level;
use crate::progress::Progress;
use std::time::{Duration, Instant};
use tidemill_engine::bounds::HOT_KEYS;
use tidemill_engine::hot::HotKey;

/// How long a key that goes on being hot is not named again: an epoch lasts a second or less.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// The hot keys of the newest epoch that had enough events to tell, and which were named when.
#[derive(Debug, Default)]
pub(crate) struct HotNames {
    newest: Vec<HotKey>,
    /// At most [`HOT_KEYS`].
    named: Vec<(String, Instant)>,
}

impl HotNames {
    /// Of a pipeline that goes on.
    pub(crate) fn going_on(newest: Vec<HotKey>) -> HotNames {
        HotNames { newest, named: Vec::new() }
    }

    /// Those of an epoch: names the ones that were not named lately.
    pub(crate) fn say(&mut self, hot: Vec<HotKey>, progress: &Progress) {
        for line in self.lines(&hot, Instant::now()) {
            progress.tell(Level::Warn, &line);
        }
        self.newest = hot;
    }

    pub(crate) fn newest(&self) -> &[HotKey] {
        &self.newest
    }

    fn lines(&mut self, hot: &[HotKey], now: Instant) -> Vec<String> {
        self.named.retain(|(_, at)| now.saturating_duration_since(*at) < SAY_AGAIN);
        let mut lines = Vec::new();
        for h in hot {
            if self.named.len() < HOT_KEYS && !self.named.iter().any(|(key, _)| *key == h.key) {
                self.named.push((h.key.clone(), now));
                lines.push(format!(
                    "key {:?} brings {:.0} % of its lane's events: one key stays on one lane, so more lanes do not help it; \
                     a bot or a shared default value is better left out at the source",
                    h.key,
                    h.share * 100.0
                ));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_once_in_a_while_and_the_list_stays_short() {
        let hot = |keys: std::ops::Range<usize>| -> Vec<HotKey> {
            keys.map(|n| HotKey { key: format!("k{n}"), share: 0.3 }).collect()
        };
        let (mut names, now) = (HotNames::default(), Instant::now());
        let lines = names.lines(&hot(0..1), now);
        assert!(lines.len() == 1 && lines[0].contains("\"k0\" brings 30 %"), "{lines:?}");
        assert_eq!(names.lines(&hot(0..2), now + SAY_AGAIN / 2).len(), 1, "only the new one");
        assert_eq!(names.lines(&hot(0..2), now + SAY_AGAIN).len(), 1, "the first one again");
        assert_eq!(names.lines(&hot(10..100), now + SAY_AGAIN).len(), HOT_KEYS - 2);
        assert_eq!(names.named.len(), HOT_KEYS);
    }
}
