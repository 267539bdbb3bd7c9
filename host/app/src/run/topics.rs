//! Topics of Kafka as a pipeline reads them: reached at the start, found again in the log of epochs, and watched while they are read.
//!
//! Invariants: a position that the log has is taken up as it is, or the start fails and says why; `start` decides of topics alone
//! that the log knows nothing of; what a partition has that was added later is new, so it is read from its first record.
//! The reader is never held up by a cluster that does not answer: whatever is asked while it reads is asked by a thread of
//! its own, which ends with it.
//!
//! A build without the feature `services` has no client: there all of it has no values.

#[cfg(feature = "services")]
mod with_client;
#[cfg(not(feature = "services"))]
mod without;

#[cfg(feature = "services")]
pub(super) use self::with_client::{Found, Reached, Shown, TopicPartition, foresee};
#[cfg(not(feature = "services"))]
pub(super) use self::without::{Found, Reached, Shown, TopicPartition, foresee};

/// The partitions of a source that the newest epoch has, and where reading goes on.
pub(super) type Stored = Vec<(tidemill_connect::source::KafkaIdentity, u64)>;
