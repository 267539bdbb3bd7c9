//! Browsers that may look: a link that works once, or the token typed in, is exchanged for a cookie. A cookie opens only what is
//! read; to change something a request has to bring the token itself, which no page of another origin can make a browser send.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// How long a link works.
const LINK_LASTS: Duration = Duration::from_secs(10 * 60);
/// How long a browser may look before it has to log in again.
const COOKIE_LASTS: Duration = Duration::from_secs(12 * 60 * 60);
/// Links that wait to be used; the oldest go first.
const LINKS_MAX: usize = 16;
/// Browsers at a time; the oldest go first.
const COOKIES_MAX: usize = 64;
/// The cookie's name.
const COOKIE: &str = "tidemill";

/// Secrets with the instants up to which they are good, oldest first.
type Secrets = VecDeque<(String, Instant)>;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    links: Mutex<Secrets>,
    cookies: Mutex<Secrets>,
}

fn add(to: &Mutex<Secrets>, secret: &str, lasts: Duration, most: usize) {
    let mut all = to.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= most {
        all.pop_front();
    }
    all.push_back((secret.to_owned(), Instant::now() + lasts));
}

/// Where a secret is that is still good; every one is compared, so that the time says nothing.
fn find(all: &mut Secrets, given: &str, now: Instant) -> Option<usize> {
    all.retain(|(_, until)| *until > now);
    let same = |s: &str| bool::from(s.as_bytes().ct_eq(given.as_bytes()));
    all.iter().enumerate().fold(None, |found, (n, (secret, _))| if same(secret) { Some(n) } else { found })
}

impl Logins {
    /// A link's secret is good from now on, once.
    pub(crate) fn add_link(&self, secret: &str) {
        add(&self.links, secret, LINK_LASTS, LINKS_MAX);
    }

    /// Whether a link's secret is good; it is not any more.
    pub(crate) fn use_link(&self, given: &str) -> bool {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let found = find(&mut links, given, Instant::now());
        found.is_some_and(|n| links.remove(n).is_some())
    }

    /// Lets a browser look; what is to be set as its cookie.
    pub(crate) fn add_cookie(&self, secret: &str, secure: bool) -> String {
        add(&self.cookies, secret, COOKIE_LASTS, COOKIES_MAX);
        let seconds = COOKIE_LASTS.as_secs();
        let secure = if secure { "; Secure" } else { "" };
        format!("{COOKIE}={secret}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")
    }

    /// Whether one of the cookies of a request lets it look.
    pub(crate) fn knows(&self, cookies: &str) -> bool {
        let given = cookies.split(';').filter_map(|c| c.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        let mut all = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        given.into_iter().any(|g| find(&mut all, g, now).is_some())
    }

    /// Nobody may look any more: the token is another one.
    pub(crate) fn forget(&self) {
        for all in [&self.links, &self.cookies] {
            all.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_works_once_and_a_cookie_until_it_is_forgotten() {
        let logins = Logins::default();
        logins.add_link("one");
        assert!(!logins.use_link("two") && logins.use_link("one") && !logins.use_link("one"));
        let cookie = logins.add_cookie("secret", false);
        assert!(
            cookie.starts_with("tidemill=secret; ")
                && cookie.contains("HttpOnly")
                && !cookie.contains("Secure")
        );
        assert!(logins.knows("a=b; tidemill=secret") && logins.knows("tidemill=secret"));
        assert!(!logins.knows("tidemill=secre") && !logins.knows("xtidemill=secret") && !logins.knows(""));
        logins.forget();
        assert!(!logins.knows("tidemill=secret"));
    }

    #[test]
    fn there_are_never_more_than_may_be() {
        let logins = Logins::default();
        (0..=LINKS_MAX).for_each(|n| logins.add_link(&format!("link {n}")));
        assert!(!logins.use_link("link 0") && logins.use_link("link 1"));
        (0..=COOKIES_MAX).for_each(|n| drop(logins.add_cookie(&format!("c{n}"), true)));
        assert!(!logins.knows("tidemill=c0") && logins.knows("tidemill=c1"));
    }

    #[test]
    fn what_is_over_is_over() {
        let mut all =
            Secrets::from([("old".into(), Instant::now()), ("new".into(), Instant::now() + LINK_LASTS)]);
        let now = Instant::now();
        assert_eq!((find(&mut all, "old", now), find(&mut all, "new", now), all.len()), (None, Some(0), 1));
    }
}
