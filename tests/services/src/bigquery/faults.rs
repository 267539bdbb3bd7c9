//! What a test may have happen: each fault holds until it is taken back, or for as many requests as it was ordered for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tonic::{Code, Status};

/// What becomes of a request for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused with this code in the answer; the connection goes on.
    Answer(i32),
    /// The connection ends with this code, and nothing was taken.
    End(i32),
    /// Rows are taken, and the connection breaks before the answer.
    BreakAfter,
    /// Rows are taken, and the answer never comes; the connection stays.
    Silence,
    /// Rows are taken, and the answer comes so much later, ms.
    Late(u64),
}

/// `RESOURCE_EXHAUSTED`: too many requests.
pub const THROTTLED: i32 = Code::ResourceExhausted as i32;
/// `UNAVAILABLE`.
pub const UNAVAILABLE: i32 = Code::Unavailable as i32;

#[derive(Default)]
pub(super) struct Faults {
    pub(super) down: AtomicBool,
    /// Every request for rows takes so long, ms.
    pub(super) delay_ms: AtomicU64,
    /// Tables are not answered for: status and reason.
    pub(super) rest: Mutex<Option<(u16, String)>>,
    /// Every request over REST takes so long, ms.
    pub(super) rest_delay_ms: AtomicU64,
    /// After so many pages of rows they are refused: status and reason.
    pub(super) pages: Mutex<Option<(u64, u16, String)>>,
    /// Requests for pages of rows.
    pub(super) pages_asked: AtomicU64,
    /// Who asks has to show this token.
    pub(super) token: Mutex<Option<String>>,
    /// Rows with this text anywhere in them are bad.
    pub(super) bad_text: Mutex<Option<String>>,
    next: Mutex<Vec<(Fault, u64)>>,
    pub(super) met: AtomicU64,
}

impl Faults {
    pub(super) fn order(&self, fault: Fault, times: u64) {
        locked(&self.next).push((fault, times));
    }

    pub(super) fn clear(&self) {
        locked(&self.next).clear();
    }

    /// The fault that this request meets.
    pub(super) fn meet(&self) -> Option<Fault> {
        let mut next = locked(&self.next);
        let (fault, times) = next.first_mut()?;
        let fault = *fault;
        *times = times.saturating_sub(1);
        if *times == 0 {
            next.remove(0);
        }
        self.met.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }

    /// With what the next page of rows is refused.
    pub(super) fn refuse_page(&self) -> Option<(u16, String)> {
        self.pages_asked.fetch_add(1, Ordering::Relaxed);
        let mut pages = locked(&self.pages);
        let (left, status, reason) = pages.as_mut()?;
        if *left == 0 {
            return Some((*status, reason.clone()));
        }
        *left -= 1;
        None
    }

    /// Whether somebody who shows this may come in.
    pub(super) fn check(&self, shown: Option<&str>) -> Result<(), Status> {
        let token = locked(&self.token).clone();
        match token {
            Some(token) if shown != Some(format!("Bearer {token}").as_str()) => {
                Err(Status::unauthenticated("Request had invalid authentication credentials"))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
