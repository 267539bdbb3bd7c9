//! Subscriptions and topics of Pub/Sub: the keys of a source, and of a sink, of `kind = "pubsub"`.
//!
//! A build without the feature `services` has no client for it: there neither a [`Pulled`] nor a [`Topic`] can be made, and the compiler
//! sees that nothing is done with one.

use super::diagnose::Problems;
use super::raw::Section;

/// The field of a record that has the service's id of its message.
pub(super) const ID_FIELD: &str = "pubsub_message_id";

/// What stands for a subscription where there is no client.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subscription {}

/// What stands for a topic where there is no client.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Topic {}

#[cfg(not(feature = "services"))]
impl Topic {
    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        match *self {}
    }
}

#[cfg(feature = "services")]
pub(crate) use tidemill_connect::sink::pubsub::Topic;
#[cfg(feature = "services")]
pub(crate) use tidemill_connect::source::pubsub::Subscription;

/// Project and topic, with a slash between.
pub(crate) fn full_name(topic: &Topic) -> String {
    #[cfg(feature = "services")]
    return format!("{}/{}", topic.project.project, topic.name);
    #[cfg(not(feature = "services"))]
    match *topic {}
}

/// A source that is pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pulled {
    /// Where from.
    pub(crate) subscription: Subscription,
    /// Bytes that are kept for pipelines that lag; beyond, nothing is pulled.
    pub(crate) backlog_bytes: u64,
}

impl Pulled {
    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        #[cfg(feature = "services")]
        return self.subscription.place();
        #[cfg(not(feature = "services"))]
        match self.subscription {}
    }
}

#[cfg(not(feature = "services"))]
pub(super) fn check_source(_: &mut Section<'_>, _: u64, _: &mut Problems) -> Option<Pulled> {
    None
}

#[cfg(not(feature = "services"))]
pub(super) fn check_sink(
    _: &mut Section<'_>,
    _: Option<std::time::Duration>,
    _: &mut Problems,
) -> Option<Topic> {
    None
}

#[cfg(feature = "services")]
pub(super) use self::with_client::{check_sink, check_source};

#[cfg(feature = "services")]
mod with_client {
    use super::super::bigquery::{check_credentials, endpoint, name};
    use super::super::pipeline::at_least_mib;
    use super::super::raw::Field;
    use super::{Problems, Pulled, Section, Subscription, Topic};
    use std::time::Duration;
    use tidemill_connect::pubsub::{CredentialsFrom, ENDPOINT, Project};

    /// As Google's own clients have it.
    const OUTSTANDING_MESSAGES: u32 = 1_000;
    /// More acknowledgements than this at once would be late.
    const OUTSTANDING_MESSAGES_MAX: u64 = 100_000;
    /// Enough for the rate of any disk, little beside the lanes' memory.
    const OUTSTANDING_BYTES: u64 = 64 << 20;
    /// How long an answer may take, ms, and the least of it.
    const TIMEOUT_MS: i64 = 10_000;
    const TIMEOUT_MS_MIN: i64 = 100;
    /// How long a message is ours, ms, and the service's bounds of it.
    const LEASE_MS: i64 = 60_000;
    const LEASE_MS_BOUNDS: std::ops::RangeInclusive<i64> = 10_000..=600_000;
    /// So many answers may take their time while a lease lasts: it is renewed before it has run out.
    const TIMEOUTS_PER_LEASE: i64 = 4;

    /// Reads the keys. `backlog_bytes`: what is kept if nothing else is said.
    pub(in super::super) fn check_source(
        s: &mut Section<'_>,
        backlog_bytes: u64,
        p: &mut Problems,
    ) -> Option<Pulled> {
        let project = project(s, p);
        let subscription = s.need("subscription", "write `subscription = \"clicks\"`; it has to be there", p);
        let subscription = subscription.and_then(|f| name(&f, "-_.~+%", p));
        let lease = s.get("lease").map_or(Some(LEASE_MS), |f| lease(&f, p));
        let timeout = timeout(s.get("timeout"), lease.unwrap_or(LEASE_MS), p);
        let messages =
            s.get("outstanding_messages").map_or_else(|| Some(OUTSTANDING_MESSAGES), |f| messages(&f, p));
        let bytes = s.get("outstanding_bytes").map_or(Some(OUTSTANDING_BYTES), |f| at_least_mib(&f, p));
        let backlog_bytes = s.get("backlog_bytes").map_or(Some(backlog_bytes), |f| at_least_mib(&f, p));
        let timeout = timeout.map(|ms| Duration::from_millis(ms.unsigned_abs()));
        let subscription = Subscription {
            project: project_with(s, project, timeout, p)?,
            name: subscription?,
            outstanding_messages: messages?,
            outstanding_bytes: bytes?,
            lease: Duration::from_millis(lease?.unsigned_abs()),
        };
        Some(Pulled { subscription, backlog_bytes: backlog_bytes? })
    }

    /// Reads the keys of a sink. `timeout`: of each answer; none if it is wrong itself.
    pub(in super::super) fn check_sink(
        s: &mut Section<'_>,
        timeout: Option<Duration>,
        p: &mut Problems,
    ) -> Option<Topic> {
        let project = project(s, p);
        let topic = s.need("topic", "write `topic = \"sessions\"`; it has to be there", p);
        let topic = topic.and_then(|f| name(&f, "-_.~+%", p));
        let ordered = s.get("ordered").map_or(Some(true), |f| f.boolean(p));
        let project = project_with(s, project, timeout, p);
        Some(Topic { project: project?, name: topic?, ordered: ordered? })
    }

    fn project(s: &mut Section<'_>, p: &mut Problems) -> Option<String> {
        s.need("project", "write `project = \"my-project\"`", p).and_then(|f| name(&f, "-.:", p))
    }

    /// With the keys that say how it is reached.
    fn project_with(
        s: &mut Section<'_>,
        project: Option<String>,
        timeout: Option<Duration>,
        p: &mut Problems,
    ) -> Option<Project> {
        let credentials = check_credentials(s.get("credentials"), p);
        let is_open = credentials == Some(CredentialsFrom::None);
        let endpoint = endpoint(s.get("endpoint"), ENDPOINT, is_open, p);
        Some(Project { project: project?, endpoint: endpoint?, credentials: credentials?, timeout: timeout? })
    }

    /// `lease_ms`: within it several answers must have their time.
    fn timeout(f: Option<Field<'_>>, lease_ms: i64, p: &mut Problems) -> Option<i64> {
        let most = lease_ms / TIMEOUTS_PER_LEASE;
        let Some(f) = f else { return Some(TIMEOUT_MS.min(most)) };
        let ms = f.duration_ms(p)?;
        if (TIMEOUT_MS_MIN..=most).contains(&ms) {
            return Some(ms);
        }
        let message = format!("`{}` must lie between 100ms and a quarter of `lease`, {most}ms", f.path);
        f.wrong(message, "\"10s\" is usual".to_owned(), p);
        None
    }

    fn lease(f: &Field<'_>, p: &mut Problems) -> Option<i64> {
        let ms = f.duration_ms(p)?;
        if LEASE_MS_BOUNDS.contains(&ms) && ms % 1_000 == 0 {
            return Some(ms);
        }
        let message = format!("`{}` must be whole seconds between 10s and 10m", f.path);
        f.wrong(message, "\"60s\" is usual".to_owned(), p);
        None
    }

    fn messages(f: &Field<'_>, p: &mut Problems) -> Option<u32> {
        let count = f.count(1, p)?;
        if count <= OUTSTANDING_MESSAGES_MAX {
            return u32::try_from(count).ok();
        }
        f.wrong(format!("`{}` is {OUTSTANDING_MESSAGES_MAX} at most", f.path), "1000 is usual".to_owned(), p);
        None
    }
}
