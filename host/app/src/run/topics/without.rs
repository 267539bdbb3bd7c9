//! The same without a client: nothing of it has a value, so that nothing of it can happen.

use super::Stored;
use crate::config::kafka::Topics;
use crate::config::plan::Source;
use crate::meta::SourceMeta;
use crate::progress::Progress;
use crate::run::{Job, RunError};
use std::time::Duration;
use tidemill_connect::ConnectError;
use tidemill_connect::source::{Block, KafkaIdentity, Partition, Read};

/// None is ever opened.
#[derive(Clone, Copy)]
pub(crate) enum TopicPartition {}

impl TopicPartition {
    pub(crate) fn position(&self) -> u64 {
        match *self {}
    }
}

impl Partition for TopicPartition {
    fn read(&mut self, _: &mut Block) -> Result<Read, ConnectError> {
        match *self {}
    }
    fn header(&self) -> Option<&[u8]> {
        match *self {}
    }
}

pub(crate) struct Found {
    pub(crate) identity: KafkaIdentity,
    pub(crate) offset: u64,
    pub(crate) partition: TopicPartition,
}

pub(crate) struct Reached(TopicPartition);

impl Reached {
    pub(crate) fn reach(
        _: Job<'_>,
        _: &Source,
        topics: &Topics,
        _: &Stored,
    ) -> Result<(Reached, Vec<Found>), RunError> {
        match topics.cluster {}
    }
    pub(crate) fn found(&self) -> Option<Result<Found, RunError>> {
        match self.0 {}
    }
    pub(crate) fn is_in_trouble(&self) -> bool {
        match self.0 {}
    }
    pub(crate) fn wait(&self, _: Duration) {
        match self.0 {}
    }
    pub(crate) fn shown(&self, _: &Source, _: &Topics) -> Shown {
        match self.0 {}
    }
}

pub(crate) struct Shown(TopicPartition);

impl Shown {
    pub(crate) fn is_durable(&mut self, _: &[SourceMeta]) {
        match self.0 {}
    }
    pub(crate) fn show(&mut self, _: &Progress) {
        match self.0 {}
    }
}

pub(crate) fn foresee(_: &str, _: &Source, topics: &Topics, _: &Stored) -> Option<(&'static str, RunError)> {
    match topics.cluster {}
}
