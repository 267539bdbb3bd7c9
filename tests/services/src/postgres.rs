//! A Postgres of the tests' own: a server in a folder that is gone with it, and databases in it, one a test.
//!
//! It is found in `/usr/lib/postgresql` or the path. A server refuses to run as root; then it runs as the user `postgres`.

use crate::{Absent, or_skip};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

/// Longest that a server may take to be there.
const START_MAX: Duration = Duration::from_secs(60);
/// Whose all is, who may do all, and its password.
pub const USER: &str = "tidemill";
/// See [`USER`].
pub const PASSWORD: &str = "wind and water";

/// The folder of a server's programs.
fn programs() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(find).as_deref()
}

fn find() -> Option<PathBuf> {
    let packaged = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = packaged.map(|e| e.path().join("bin")).collect();
    // The newest first, by its number.
    let number = |f: &PathBuf| f.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    folders.sort_by_key(|f| std::cmp::Reverse(number(f)));
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.into_iter().find(|f| ["initdb", "postgres", "psql"].iter().all(|p| f.join(p).is_file()))
}

/// A server that runs, or is stopped for a while.
pub struct Postgres {
    dir: tempfile::TempDir,
    port: u16,
    /// Set while it runs.
    process: Mutex<Option<u32>>,
    number: AtomicU64,
    options: Vec<String>,
}

/// One database of a server.
#[derive(Clone)]
pub struct Database {
    server: Arc<Postgres>,
    /// Its name.
    pub name: String,
}

/// A database in a server that tests of one process share; none if there is no Postgres.
#[must_use]
pub fn database() -> Option<Database> {
    static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let server = match shared.upgrade() {
        Some(server) => server,
        None => {
            let server = Arc::new(or_skip("Postgres", Postgres::start(&[], &[]))?);
            *shared = Arc::downgrade(&server);
            server
        }
    };
    Some(server.database())
}

/// A database in a server that may be stopped; none if there is no Postgres.
#[must_use]
pub fn database_alone() -> Option<Database> {
    Some(Arc::new(or_skip("Postgres", Postgres::start(&[], &[]))?).database())
}

/// The same in a server that encrypts, with this certificate and its key, both PEM.
#[must_use]
pub fn database_with_tls(certificate: &str, key: &str) -> Option<Database> {
    let files = [("server.crt", certificate), ("server.key", key)];
    Some(Arc::new(or_skip("Postgres", Postgres::start(&["ssl=on"], &files))?).database())
}

/// Whether we are root: a server refuses that.
fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| number(&["-u"]) == 0)
}

fn number(arguments: &[&str]) -> u32 {
    let out = Command::new("id").args(arguments).output().expect("id cannot be started");
    let text = String::from_utf8(out.stdout).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("id {arguments:?} says {text:?}"))
}

/// A program of the server's, as who may run it. It ends with the thread that starts it.
fn program(name: &str) -> Command {
    let path = programs().expect("asked for only where there is one").join(name);
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "INT", "--"]).arg(path).current_dir("/");
    command
}

/// Makes a file or folder that of who may run the server.
fn give(path: &Path) {
    if is_root() {
        let (user, group) = (number(&["-u", "postgres"]), number(&["-g", "postgres"]));
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < START_MAX, "not within {START_MAX:?}: {what}");
        std::thread::yield_now();
    }
}

fn succeeds(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    assert!(out.status.success(), "{command:?}: {}{}", text(out.stdout), text(out.stderr));
    text(out.stdout)
}

impl Postgres {
    /// Starts one with these options, and these files beside its data, and waits until it answers.
    ///
    /// # Errors
    /// If there is no server here.
    ///
    /// # Panics
    /// If there is one and it does not start.
    pub fn start(options: &[&str], files: &[(&str, &str)]) -> Result<Postgres, Absent> {
        if programs().is_none() {
            return Err(Absent::Missing(
                "no server in /usr/lib/postgresql or the path (apt-get install postgresql)".to_owned(),
            ));
        }
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("password");
        std::fs::write(&secret, PASSWORD).unwrap();
        [dir.path(), &secret].into_iter().for_each(give);
        let mut init = program("initdb");
        init.args([
            "--no-sync",
            "--no-instructions",
            "--locale=C",
            "--encoding=UTF8",
            "--auth=scram-sha-256",
        ]);
        init.args(["--username", USER, "--pwfile"]).arg(&secret).arg("-D").arg(dir.path().join("data"));
        succeeds(&mut init);
        for (name, text) in files {
            let path = dir.path().join("data").join(name);
            std::fs::write(&path, text).unwrap();
            // A key that others may read is refused.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            give(&path);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        let number = AtomicU64::new(0);
        let server = Postgres { dir, port, process: Mutex::new(None), number, options };
        server.resume();
        Ok(server)
    }

    /// Starts it, or starts it again where it was.
    pub fn resume(&self) {
        let mut command = program("postgres");
        command.arg("-D").arg(self.dir.path().join("data"));
        let settings = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".into(),
            "unix_socket_directories=".into(),
            "fsync=off".into(),
            "shared_buffers=16MB".into(),
            "max_connections=60".into(),
            "autovacuum=off".into(),
        ];
        for setting in settings.iter().chain(&self.options) {
            command.args(["-c", setting]);
        }
        let log = self.dir.path().join("log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let (started, news) = mpsc::channel();
        // The server is told when the thread that started it is gone: one of its own, not that of the test that came first.
        std::thread::spawn(move || {
            let mut child: Child = command.spawn().expect("the server cannot be started");
            started.send(child.id()).unwrap();
            child.wait()
        });
        *self.process.lock().unwrap() = Some(news.recv().unwrap());
        until("Postgres answers", || self.psql("postgres", "SELECT 1").is_ok());
    }

    /// Ends it at once, as a crash does.
    pub fn crash(&self) {
        let Some(id) = self.process.lock().unwrap().take() else { return };
        let kill = Command::new("kill").args(["-QUIT", &id.to_string()]).status();
        assert!(kill.is_ok_and(|s| s.success()), "the server cannot be signalled");
        until("the server is gone", || {
            let gone = !Path::new(&format!("/proc/{id}")).exists();
            gone && TcpStream::connect(("127.0.0.1", self.port)).is_err()
        });
    }

    /// host:port.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A database of its own, empty.
    #[must_use]
    pub fn database(self: &Arc<Self>) -> Database {
        let name = format!("test_{}", self.number.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}")).unwrap();
        Database { server: self.clone(), name }
    }

    fn psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = Command::new(programs().unwrap().join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", USER])
            .args(["-p", &self.port.to_string(), "-d", database, "-c", sql])
            .env("PGPASSWORD", PASSWORD)
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGTZ", "UTC")
            .stdin(Stdio::null());
        let out = psql.output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the last of what Postgres said:\n{}",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
        self.crash();
    }
}

impl Database {
    /// Its server.
    #[must_use]
    pub fn server(&self) -> &Postgres {
        &self.server
    }
    /// The URL for a config, of a user and of who stands at an address.
    #[must_use]
    pub fn url_of(&self, user: &str, address: &str) -> String {
        format!("postgres://{user}@{address}/{}", self.name)
    }
    /// The URL for a config.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(USER, &self.server.address())
    }
    /// What a query says, a line a row.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, sql: &str) -> String {
        self.server.psql(&self.name, sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }
    /// Does something, and hears nothing of it.
    #[track_caller]
    pub fn run(&self, sql: &str) {
        let _ = self.ask(sql);
    }
    /// One number.
    #[track_caller]
    #[must_use]
    pub fn number(&self, sql: &str) -> i64 {
        let text = self.ask(sql);
        text.trim().parse().unwrap_or_else(|_| panic!("{sql}: {text}"))
    }
    /// Whether it has a table of this name.
    #[must_use]
    pub fn has(&self, table: &str) -> bool {
        self.ask(&format!("SELECT to_regclass('{table}') IS NOT NULL")).trim() == "t"
    }
    /// Ends the connections of a user, as an operator does.
    pub fn end_connections_of(&self, user: &str) {
        self.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}' AND datname = current_database() AND pid <> pg_backend_pid()"));
    }
}
