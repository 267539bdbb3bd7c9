//! How much a plugin is asked in one call: as much as it answers in a fraction of the time that it has.
//!
//! A call is for many events, since each costs some; but a rule that takes a tenth of a millisecond for an event is slow and no
//! runaway, and what is asked at once must shrink until it is in time. Grows slowly and shrinks fast, so that a rule
//! whose events cost now more and now less is stopped seldom.

use super::CALL_DEADLINE;
use std::time::Duration;

/// A call that was answered within this time could have been longer.
const EASY: Duration = Duration::from_millis(CALL_DEADLINE.as_millis() as u64 / 5);
/// One that took longer than this was near its end.
const HARD: Duration = Duration::from_millis(CALL_DEADLINE.as_millis() as u64 / 2);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pace {
    now: usize,
    most: usize,
}

impl Pace {
    /// Begins with as much as there may ever be.
    pub(crate) fn new(most: usize) -> Pace {
        Pace { now: most, most }
    }

    /// How many to ask about at once.
    pub(crate) fn now(&self) -> usize {
        self.now
    }

    /// So many were answered, in so much time.
    pub(crate) fn answered(&mut self, asked: usize, took: Duration) {
        if took > HARD {
            self.now = self.now.min(asked / 2).max(1);
        } else if took < EASY && self.now < self.most && asked * 2 >= self.now {
            self.now = (self.now + self.now / 4 + 1).min(self.most);
        }
    }

    /// So many were asked, and it had to be stopped, at this one if that is known.
    pub(crate) fn overdue(&mut self, asked: usize, at: Option<usize>) {
        let half = asked.min(self.now) / 2;
        self.now = at.map_or(half, |at| at.min(half)).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens to a rule that takes so long for an event: how many calls are stopped, and the events of a call in the end.
    fn settle(us: u64) -> (u32, usize) {
        let (mut pace, mut stopped) = (Pace::new(1024), 0);
        for _ in 0..2_000 {
            let asked = pace.now();
            let took = Duration::from_micros(us * asked as u64);
            if took > CALL_DEADLINE {
                stopped += 1;
                pace.overdue(asked, Some((CALL_DEADLINE.as_micros() as u64 / us) as usize));
            } else {
                pace.answered(asked, took);
            }
        }
        (stopped, pace.now())
    }

    #[test]
    fn a_slow_rule_is_asked_less_at_once_and_stopped_seldom() {
        assert_eq!(settle(0), (0, 1024));
        assert_eq!(settle(4), (0, 1024));
        for us in [20, 100, 400, 3_000, 20_000] {
            let (stopped, asked) = settle(us);
            assert!(stopped <= 2, "{us} µs an event: {stopped} calls were stopped");
            let took = Duration::from_micros(us * asked as u64);
            assert!(took < CALL_DEADLINE && (asked == 1 || took > EASY / 2), "{us} µs an event: {asked}");
        }
    }

    #[test]
    fn it_recovers_from_one_bad_event() {
        let mut pace = Pace::new(1024);
        pace.overdue(1024, Some(0));
        assert_eq!(pace.now(), 1);
        for _ in 0..40 {
            pace.answered(pace.now(), Duration::from_micros(10));
        }
        assert_eq!(pace.now(), 1024);
        // What was not asked for much says nothing about more.
        pace.overdue(1024, None);
        pace.answered(3, Duration::ZERO);
        assert_eq!(pace.now(), 512);
    }
}
