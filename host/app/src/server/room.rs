//! Room for what clients send: the bytes that are held of it, and the bodies that are unpacked at a time, are bounded for the
//! process as a whole.
//!
//! Invariant: whatever is kept of a request until its records are durable has been asked for here first.

use super::bounds::{HELD_BYTES_MAX, ROOM_WAIT, SPLITTERS_MAX};
use super::problem::Problem;
use axum::http::StatusCode;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// What all listeners of events share.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    splitters: Arc<Semaphore>,
}

impl Room {
    /// As much as a process has.
    pub(crate) fn new() -> Room {
        Room::of(HELD_BYTES_MAX)
    }

    pub(super) fn of(held_bytes_max: usize) -> Room {
        Room {
            bytes: Arc::new(Semaphore::new(held_bytes_max)),
            splitters: Arc::new(Semaphore::new(SPLITTERS_MAX)),
        }
    }

    /// Nothing yet, for a request that begins.
    pub(super) fn hold(&self) -> Held {
        Held { all: self.bytes.clone(), permit: None }
    }

    /// A place to unpack and split in.
    pub(super) async fn splitter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        match timeout(ROOM_WAIT, self.splitters.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(busy()),
        }
    }
}

/// The bytes that one request has room for.
#[derive(Debug)]
pub(super) struct Held {
    all: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Room for so many bytes in all, once there is.
    pub(super) async fn grow_to(&mut self, bytes: usize) -> Result<(), Problem> {
        let more = bytes.saturating_sub(self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).map_err(|_| busy())?;
        let Ok(Ok(more)) = timeout(ROOM_WAIT, self.all.clone().acquire_many_owned(more)).await else {
            return Err(busy());
        };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

fn busy() -> Problem {
    let detail = "more is being taken than there is room for: send it again after a while";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after_s(1)
}
