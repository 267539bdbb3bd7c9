//! Which cursor holds when a sink is opened: the sink's own, the store's, or neither (DESIGN 4, "What wins").

/// Why a sink and the store contradict each other. A human decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contradiction {
    /// The sink was known to have an epoch, and has lost its cursor.
    Lost {
        /// The epoch that it was known to have.
        known: u64,
    },
    /// The sink has an epoch, and the store knows nothing of the pipeline at all.
    OfAnotherState {
        /// The epoch that the sink has.
        confirmed: u64,
    },
    /// The sink has an epoch that the log has not.
    AheadOfTheLog {
        /// The epoch that the sink has.
        confirmed: u64,
    },
}

/// The newest epoch that a sink need not be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since<C> {
    /// Everything after the sink's own cursor, or the store's.
    Cursor(C),
    /// It is new to the pipeline, and gets what is committed from now on; at the first start, everything.
    New {
        /// The newest committed epoch.
        epoch: u64,
    },
}

/// Decides from what the sink says of itself (`own`), what the store has of it, and the newest committed epoch. `epoch_of`
/// reads a cursor.
///
/// # Errors
/// What contradicts each other.
pub fn since<C: Copy>(
    own: Option<C>,
    stored: Option<C>,
    last_epoch: u64,
    epoch_of: impl Fn(&C) -> u64,
) -> Result<Since<C>, Contradiction> {
    match (own, stored) {
        (None, Some(stored)) => Err(Contradiction::Lost { known: epoch_of(&stored) }),
        (None, None) => Ok(Since::New { epoch: last_epoch }),
        (Some(own), _) => match epoch_of(&own) {
            confirmed if confirmed <= last_epoch => Ok(Since::Cursor(own)),
            confirmed if last_epoch == 0 => Err(Contradiction::OfAnotherState { confirmed }),
            confirmed => Err(Contradiction::AheadOfTheLog { confirmed }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_and_the_store_agree_or_a_human_decides() {
        let ask = |own, stored, last| since(own, stored, last, |c: &u64| *c);
        assert_eq!(ask(Some(3), Some(2), 5), Ok(Since::Cursor(3)), "the store's may lag behind");
        assert_eq!(ask(Some(2), Some(2), 2), Ok(Since::Cursor(2)));
        assert_eq!(ask(None, None, 5), Ok(Since::New { epoch: 5 }));
        assert_eq!(ask(None, Some(4), 5), Err(Contradiction::Lost { known: 4 }));
        assert_eq!(ask(Some(6), Some(2), 5), Err(Contradiction::AheadOfTheLog { confirmed: 6 }));
        assert_eq!(ask(Some(6), None, 0), Err(Contradiction::OfAnotherState { confirmed: 6 }));
    }
}
