//! Where a Postgres server is, for sinks and lookups alike: `url`, `password`, `sslmode`, `sslrootcert`.
//!
//! A build without the feature `services` has no client for it: there a [`Server`] is a type without values, and the compiler
//! sees that nothing is done with one.

use super::diagnose::Problems;
use super::raw::Section;

#[cfg(feature = "services")]
pub(crate) use tidemill_connect::postgres::Server;

/// See the module's documentation.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Server {}

#[cfg(not(feature = "services"))]
impl Server {
    /// Where it is, for messages.
    pub(crate) fn address(&self) -> &str {
        match *self {}
    }
}

#[cfg(not(feature = "services"))]
pub(super) fn check(s: &mut Section<'_>, _: Option<std::time::Duration>, _: &mut Problems) -> Option<Server> {
    s.forgive(&["url", "password", "sslmode", "sslrootcert"]);
    None
}

#[cfg(feature = "services")]
pub(super) use self::with_client::check;

#[cfg(feature = "services")]
mod with_client {
    use super::super::raw::Field;
    use super::{Problems, Section, Server};
    use std::path::PathBuf;
    use std::time::Duration;
    use tidemill_connect::postgres::Security;

    const MODES: [&str; 4] = ["disable", "prefer", "require", "verify-full"];

    /// Reads the keys. `timeout`: of each answer; none if it is wrong itself.
    pub(in super::super) fn check(
        s: &mut Section<'_>,
        timeout: Option<Duration>,
        p: &mut Problems,
    ) -> Option<Server> {
        let url = s.need("url", "write `url = \"postgres://tidemill@127.0.0.1:5432/clicks\"`", p);
        let url = url.and_then(|f| Some((f.text(p)?, f)));
        let password = match s.get("password") {
            None => Some(None),
            Some(f) => check_password(&f, p).map(Some),
        };
        let security = check_security(s, url.as_ref(), p);
        let (url, at) = url?;
        // A password that is wrong here must not hide what is wrong with the URL.
        let server = Server::new(url, password.flatten(), security?, timeout?);
        server.map_err(|e| at.wrong(e.message, e.help, p)).ok().filter(|_| password.is_some())
    }

    fn check_password<'a>(f: &Field<'a>, p: &mut Problems) -> Option<&'a str> {
        let password = f.text(p)?;
        if f.shown().contains("${") {
            return Some(password);
        }
        let help = "write `password = \"${env:PGPASSWORD}\"` or \"${file:PATH}\"".to_owned();
        f.wrong("a password does not belong into this file".to_owned(), help, p);
        None
    }

    /// Where nothing is said, this machine may be reached without encryption, and no other.
    fn check_security(
        s: &mut Section<'_>,
        url: Option<&(&str, Field<'_>)>,
        p: &mut Problems,
    ) -> Option<Security> {
        let root = s.get("sslrootcert");
        let mode = match s.get("sslmode") {
            Some(f) => f.word(&MODES, &["verify-ca", "allow"], p)?,
            None if root.is_some() => "verify-full",
            None => {
                let (url, at) = url?;
                // What is wrong with it is said once, by whoever uses it.
                if Server::is_local(url).unwrap_or(true) {
                    "prefer"
                } else {
                    let help = "write `sslmode = \"verify-full\"` and `sslrootcert = \"/etc/ssl/certs/ca-certificates.crt\"`, \
                                or `sslmode = \"disable\"` if the network is yours alone";
                    let message =
                        "the `url` leads beyond this machine, where anybody on the way can read along";
                    at.wrong(message.to_owned(), help.to_owned(), p);
                    return None;
                }
            }
        };
        let root = root.and_then(|f| f.text(p).map(|path| (PathBuf::from(path), f)));
        match (mode, root) {
            ("verify-full", Some((path, _))) => Some(Security::VerifyFull(path)),
            ("verify-full", None) => {
                let help = "write `sslrootcert = \"/etc/ssl/certs/ca-certificates.crt\"`: the authorities to believe";
                s.need("sslrootcert", help, p);
                None
            }
            (_, Some((_, f))) => {
                let message = format!("`sslrootcert` means nothing with `sslmode = \"{mode}\"`");
                f.wrong(message, "write `sslmode = \"verify-full\"`".to_owned(), p);
                None
            }
            ("disable", None) => Some(Security::Disable),
            ("require", None) => Some(Security::Require),
            _ => Some(Security::Prefer),
        }
    }
}
