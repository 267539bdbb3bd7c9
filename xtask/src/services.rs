//! The servers that the tests start for themselves: whether they are there, a line each.

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

fn path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}
