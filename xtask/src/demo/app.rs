//! The shop's app, as the demo plays it: visits that are posted over HTTP, by nothing but a socket.
//!
//! What a real client must do it does too: it repeats a request that got no answer, with the same ids. Now and then it
//! repeats one that was answered, as a client does whose answer was lost on its way.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two requests.
const EVERY: Duration = Duration::from_millis(250);
/// For one answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// What a visitor of the app does, a step a request.
const STEPS: [&str; 6] = ["page_view", "page_view", "add_to_cart", "page_view", "checkout", "purchase"];
/// A new visitor comes every so many requests.
const VISITOR_EVERY: u64 = 3;
/// So many of them come again and again.
const VISITORS: u64 = 40;
/// One request in so many is sent twice.
const AGAIN_EVERY: u64 = 10;
/// One in so many has an event that is none.
const BROKEN_EVERY: u64 = 25;

/// What the app has done.
#[derive(Default)]
pub(crate) struct Posted {
    /// Events that were acknowledged, copies included.
    pub(crate) accepted: AtomicU64,
    /// Events that were sent a second time.
    pub(crate) repeated: AtomicU64,
    /// Requests that failed and were sent again.
    pub(crate) failed: AtomicU64,
}

/// The app, posting until it is stopped.
pub(crate) struct App {
    pub(crate) posted: Arc<Posted>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl App {
    /// Posts to `address` from now on.
    pub(crate) fn start(address: String) -> App {
        let (posted, stop) = (Arc::new(Posted::default()), Arc::new(AtomicBool::new(false)));
        let (to, until) = (posted.clone(), stop.clone());
        let thread = std::thread::spawn(move || post(&address, &to, &until));
        App { posted, stop, thread: Some(thread) }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; the demo goes on without it.
            let _ = thread.join();
        }
    }
}

fn post(address: &str, posted: &Posted, stop: &AtomicBool) {
    let mut request = 0;
    while !stop.load(Ordering::Relaxed) {
        let (body, events) = body(request, now_ms());
        let mut times = match (events, request % AGAIN_EVERY) {
            (0, _) => 0,
            (_, 0) => 2,
            _ => 1,
        };
        while times > 0 && !stop.load(Ordering::Relaxed) {
            match send(address, &body) {
                Some(202) => {
                    posted.accepted.fetch_add(events, Ordering::Relaxed);
                    posted.repeated.fetch_add(if times > 1 { events } else { 0 }, Ordering::Relaxed);
                    times -= 1;
                }
                _ => {
                    posted.failed.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(EVERY);
                }
            }
        }
        request += 1;
        std::thread::sleep(EVERY);
    }
}

/// The events of a request, one for each visitor that is under way, and how many they are.
fn body(request: u64, now_ms: u128) -> (String, u64) {
    let mut events = Vec::new();
    for (step, kind) in STEPS.iter().enumerate() {
        // A visitor makes a step every VISITOR_EVERY requests.
        let Some(begun) = request.checked_sub(step as u64 * VISITOR_EVERY) else { continue };
        if begun % VISITOR_EVERY == 0 {
            let visitor = begun / VISITOR_EVERY % VISITORS + 1;
            let amount =
                if *kind == "purchase" { format!(",\"amount\":{}.5", 10 + visitor) } else { String::new() };
            events.push(event(
                request,
                visitor,
                kind,
                &format!("/p/{}", 100 * visitor + step as u64),
                &amount,
                now_ms,
            ));
        }
    }
    if request % BROKEN_EVERY == BROKEN_EVERY - 1 {
        events.push(event(request, 0, "page_view", "no address", "", now_ms));
    }
    (format!("[{}]", events.join(",")), events.len() as u64)
}

fn event(request: u64, visitor: u64, kind: &str, url: &str, more: &str, now_ms: u128) -> String {
    format!(
        "{{\"messageId\":\"app-{request}-{visitor}\",\"user\":\"app-{visitor:05}\",\"ts\":{now_ms},\"type\":\"{kind}\",\
         \"url\":\"{url}\",\"campaign\":\"app-push\"{more}}}"
    )
}

/// The status of the answer; none if there was none.
fn send(address: &str, body: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visitor_comes_to_a_purchase_and_ids_are_those_of_the_request() {
        let all: Vec<String> = (0..60).map(|n| body(n, 1_000).0).collect();
        let of_five: Vec<&str> = all
            .iter()
            .flat_map(|b| b.split("},{"))
            .filter(|e| e.contains("\"app-00005\""))
            .filter_map(|e| crate::rows::value(e, "type"))
            .collect();
        assert_eq!(of_five, STEPS);
        assert_eq!(body(30, 1_000), body(30, 1_000));
        assert!(body(24, 1).0.contains("no address") && body(30, 1).1 == 6 && body(31, 1).1 == 0);
    }
}
