//! Where the host listens, under which names, and whether what passes there can be read on the way.

use super::diagnose::Problems;
use super::plan::{Http, Server, Source};
use super::raw::{Field, Section};
use crate::tls::TlsFiles;
use std::path::PathBuf;

/// The keys of `[server]` that say how to listen.
pub(crate) fn check(s: &mut Section<'_>, server: &mut Server, p: &mut Problems) {
    server.insecure = s.get("insecure").and_then(|f| f.boolean(p)).unwrap_or(false);
    if let Some(f) = s.get("tls") {
        server.tls_at = f.key_at;
        server.tls = check_tls(&f, p);
        if server.tls.is_none() {
            // One mistake is one problem: what is wrong with TLS has been said.
            server.insecure = true;
        }
    }
    if let Some(f) = s.get("hosts") {
        server.hosts = f.elements().iter().filter_map(|e| check_host(e, p)).collect();
    }
    if let Some(f) = s.get("listen")
        && let Some(listen) = f.text(p)
    {
        listen.clone_into(&mut server.listen);
        server.listen_named = true;
        if let Some(loopback) = address(&f, p) {
            check_plain(&f, loopback, server, p);
        }
    }
}

fn check_tls(f: &Field<'_>, p: &mut Problems) -> Option<TlsFiles> {
    let mut t = f.section("write [server.tls] with `cert` and `key`", p)?;
    let mut file = |key: &'static str, help: &str, p: &mut Problems| {
        t.need(key, help, p).and_then(|f| f.text(p)).map(PathBuf::from)
    };
    let cert = file("cert", "write `cert = \"host.pem\"`: the certificate and those above it", p);
    let key = file("key", "write `key = \"host.key\"`: its private key", p);
    t.finish(&[], p);
    Some(TlsFiles { cert: cert?, key: key? })
}

fn check_host(f: &Field<'_>, p: &mut Problems) -> Option<String> {
    let host = f.text(p)?;
    if host.contains(['/', ':', '*']) {
        let help = "write \"tidemill.example\", without scheme and port".to_owned();
        f.wrong(format!("`{}` is not the name of a host", f.shown()), help, p);
    }
    Some(host.to_owned())
}

/// What is said beyond loopback can be read on the way, a key or a token too.
pub(crate) fn check_plain(f: &Field<'_>, loopback: bool, server: &Server, p: &mut Problems) {
    if loopback || server.insecure || server.tls.is_some() {
        return;
    }
    let port = f.shown().rsplit(':').next().unwrap_or_default();
    let help = format!(
        "write [server.tls] with `cert` and `key`, or \"127.0.0.1:{port}\"; or `insecure = true` in [server] if the \
         network is yours alone"
    );
    f.wrong(format!("`{}` is beyond loopback, where anybody on the way can read along", f.shown()), help, p);
}

/// Sources of one listener are told apart by their write keys alone.
pub(crate) fn check_shared(sources: &[Option<Source>], p: &mut Problems) {
    let posted: Vec<(&str, &Http)> = sources.iter().flatten().filter_map(|s| s.http()).collect();
    for (n, (name, http)) in posted.iter().enumerate() {
        for (other, before) in posted.iter().take(n).filter(|(_, b)| b.listen == http.listen) {
            let same = if http.write_keys.is_empty() && before.write_keys.is_empty() {
                "have no write key"
            } else if http.write_keys.iter().any(|k| before.write_keys.contains(k)) {
                "have the same write key"
            } else {
                continue;
            };
            let message =
                format!("`{other}` listens there too, and both {same}: nobody can tell whose a request is");
            let help = "give each its own `write_keys`, or an address of its own".to_owned();
            p.error(http.at, &format!("source.{name}.listen"), message, help);
        }
    }
}

/// Whether a host:port is only for this machine; none if it is no host:port.
pub(crate) fn address(f: &Field<'_>, p: &mut Problems) -> Option<bool> {
    let text = f.text(p)?;
    let Some((host, _)) = text.rsplit_once(':').filter(|(h, n)| !h.is_empty() && n.parse::<u16>().is_ok())
    else {
        f.wrong(format!("`{}` is not host:port", f.shown()), "write \"127.0.0.1:7300\"".to_owned(), p);
        return None;
    };
    let ip: Option<std::net::IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    Some(host == "localhost" || ip.is_some_and(|a| a.is_loopback()))
}
