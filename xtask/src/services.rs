//! The servers that the tests start for themselves: whether they are there, a line each.

use crate::steps::target_dir;
use std::path::PathBuf;

/// Where Debian and its kin put the programs of a server, which are in nobody's path.
const PACKAGED: &str = "/usr/lib/postgresql";

/// What becomes of the tests that want Postgres.
pub(crate) fn postgres() -> String {
    let packaged = std::fs::read_dir(PACKAGED).into_iter().flatten().flatten();
    let folders = packaged.map(|e| e.path().join("bin")).chain(path());
    match folders.into_iter().find(|f| ["initdb", "postgres", "psql"].iter().all(|p| f.join(p).is_file())) {
        Some(folder) => format!("Postgres: the tests start their own, of {}", folder.display()),
        None => "skipping what needs Postgres: there is no server in /usr/lib/postgresql or the path (apt-get install \
                 postgresql)"
            .to_owned(),
    }
}

/// What becomes of the tests that want Kafka.
pub(crate) fn kafka() -> String {
    let found = |name: &str| path().into_iter().map(|f| f.join(name)).find(|p| p.is_file());
    let fetched = std::fs::read_dir(target_dir().join("services")).into_iter().flatten().flatten();
    let fetched = fetched.map(|e| e.path().join("libs")).find(|l| l.join(".complete").exists());
    let missing = |what: &str, package: &str| {
        format!("skipping what needs Kafka: there is no `{what}` in the path (apt-get install {package})")
    };
    match (found("java"), found("mvn"), fetched) {
        (None, ..) => missing("java", "default-jre-headless"),
        (Some(java), _, Some(libraries)) => {
            format!("Kafka: the tests start their own, of {}, with {}", libraries.display(), java.display())
        }
        (Some(_), None, None) => missing("mvn", "maven"),
        (Some(java), Some(_), None) => {
            let java = java.display();
            format!(
                "Kafka: the tests start their own with {java}, once Maven has fetched it; if it cannot, they say so"
            )
        }
    }
}

/// What becomes of the tests that want Bigtable or Pub/Sub.
pub(crate) fn google() -> String {
    match path().into_iter().map(|f| f.join("go")).find(|p| p.is_file()) {
        Some(go) => format!(
            "Bigtable, Pub/Sub: the tests build stand-ins of Google's own libraries with {}, once that has fetched them; if it cannot, they say so",
            go.display()
        ),
        None => "skipping what needs Bigtable or Pub/Sub: there is no `go` in the path (https://go.dev/dl, or apt-get install golang)"
            .to_owned(),
    }
}

/// What becomes of the tests that ask Google's own emulators. No wish for services asks for them: the Cloud SDK alone has them.
pub(crate) fn emulators() -> String {
    match path().into_iter().map(|f| f.join("gcloud")).find(|p| p.is_file()) {
        Some(gcloud) => format!(
            "Google's emulators of Bigtable, Pub/Sub: asked besides, where the SDK of {} has them",
            gcloud.display()
        ),
        None => {
            "skipping Google's emulators: there is no `gcloud` in the path (https://cloud.google.com/sdk)"
                .to_owned()
        }
    }
}

fn path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}
