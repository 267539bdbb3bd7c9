//! A Postgres server as the sink and the lookup reach it: where it is, how what passes is secured, and how long each answer may
//! take.
//!
//! Invariants: every wait has an end, since what lies between may swallow everything; no password is in a message; a connection
//! that failed is hung up, so that the server gives its locks back.

mod failure;
mod tls;

use self::tls::Tls;
use crate::ConnectError;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config};

/// How long to wait for a connection, of the whole time at most, ms: one that is there answers within some ms.
const CONNECT_MS_MAX: u64 = 10_000;
/// How much later than the server we lose patience, ms: its own word for what took too long says more than ours.
const GRACE_MS: u64 = 1_000;
/// Silence after which the kernel asks whether the other end is still there, how often, and how many times in vain.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// What is done about others who can read or change what passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Nothing.
    Disable,
    /// Encrypted if the server can; whoever stands between may pretend that it cannot.
    Prefer,
    /// Encrypted, with whoever answers.
    Require,
    /// Encrypted, and the server has to show a certificate for its name from one of the authorities in this PEM file.
    VerifyFull(PathBuf),
}

/// Where a server is, and as whom and how to speak to it. Its debug form shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    config: Box<Config>,
    security: Security,
    timeout: Duration,
    address: String,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}, {:?})", self.address, self.security, self.timeout)
    }
}

/// What is wrong with a URL, by whose place in a config it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlProblem {
    /// What is wrong.
    pub message: String,
    /// What to write.
    pub help: String,
}

fn problem<T>(message: &str, help: &str) -> Result<T, UrlProblem> {
    Err(UrlProblem { message: message.to_owned(), help: help.to_owned() })
}

impl Server {
    /// Of a URL without a password, and the password. Nothing is asked yet.
    ///
    /// # Errors
    /// If the URL cannot be used; the message shows nothing of it, since it may hold a password.
    pub fn new(
        url: &str,
        password: Option<&str>,
        security: Security,
        timeout: Duration,
    ) -> Result<Server, UrlProblem> {
        let mut config = Box::new(checked(url)?);
        let address = address(&config);
        if let Some(password) = password {
            config.password(password);
        }
        config.ssl_mode(match security {
            Security::Disable => SslMode::Disable,
            Security::Prefer => SslMode::Prefer,
            Security::Require | Security::VerifyFull(_) => SslMode::Require,
        });
        if config.get_application_name().is_none() {
            config.application_name("tidemill");
        }
        let (idle, interval, retries) = KEEPALIVE;
        config.connect_timeout(timeout.min(Duration::from_millis(CONNECT_MS_MAX)));
        config.tcp_user_timeout(timeout);
        config.keepalives_idle(idle).keepalives_interval(interval).keepalives_retries(retries);
        Ok(Server { config, security, timeout, address })
    }

    /// `postgres://host:port/database`, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether all of its hosts are this machine, as far as their names say.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn is_local(url: &str) -> Result<bool, UrlProblem> {
        let local = |host: &Host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                let ip: Option<std::net::IpAddr> = name.trim_matches(['[', ']']).parse().ok();
                name == "localhost" || ip.is_some_and(|a| a.is_loopback())
            }
        };
        let config = checked(url)?;
        let addresses = config.get_hostaddrs();
        Ok(config.get_hosts().iter().all(local) && addresses.iter().all(std::net::IpAddr::is_loopback))
    }

    /// Connects, and waits for no longer than it may.
    pub(crate) fn connect(&self) -> Result<Connection, ConnectError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| ConnectError::Failed(format!("{}: no runtime: {e}", self.address)))?;
        let tls = Tls::new(&self.security).map_err(|e| self.refused(&e))?;
        let most = self.timeout.min(Duration::from_millis(CONNECT_MS_MAX));
        let connecting = async { tokio::time::timeout(most, self.config.connect(tls)).await };
        let (client, connection) = match runtime.block_on(connecting) {
            Ok(connected) => connected.map_err(|e| failure::kind(&self.address, &e))?,
            Err(_) => return Err(self.late(most)),
        };
        let task = runtime.spawn(connection);
        let connection =
            Connection { client, task, address: self.address.clone(), limit: self.limit(), runtime };
        connection.prepare_session(self.timeout)?;
        Ok(connection)
    }

    fn limit(&self) -> Duration {
        self.timeout + Duration::from_millis(GRACE_MS)
    }

    fn refused(&self, why: &str) -> ConnectError {
        ConnectError::Config(format!("{}: {why}", self.address))
    }

    fn late(&self, limit: Duration) -> ConnectError {
        late(&self.address, limit)
    }
}

fn late(address: &str, limit: Duration) -> ConnectError {
    ConnectError::Unavailable(format!("{address}: no answer within {} s", limit.as_secs_f32()))
}

fn checked(url: &str) -> Result<Config, UrlProblem> {
    const EXAMPLE: &str = "write `url = \"postgres://tidemill@127.0.0.1:5432/clicks\"`";
    for key in ["sslmode", "sslrootcert"] {
        if url.contains(&format!("{key}=")) {
            let message = format!("`{key}` does not belong into the `url`");
            return problem(&message, &format!("write `{key} = ..` beside it"));
        }
    }
    let Ok(config) = url.parse::<Config>() else {
        return problem("that is no URL of a Postgres database", EXAMPLE);
    };
    if config.get_password().is_some() {
        let help = "write `password = \"${env:PGPASSWORD}\"` or \"${file:PATH}\" beside it";
        return problem("a password does not belong into the `url`", help);
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return problem("the `url` names no host", EXAMPLE);
    }
    if config.get_user().is_none() {
        return problem("the `url` names no user", EXAMPLE);
    }
    Ok(config)
}

fn address(config: &Config) -> String {
    let ports = config.get_ports();
    let port = |n: usize| ports.get(n).or(ports.first()).copied().unwrap_or(5432);
    let mut hosts: Vec<String> =
        config.get_hosts().iter().enumerate().map(|(n, h)| shown(h, port(n))).collect();
    if hosts.is_empty() {
        hosts = config.get_hostaddrs().iter().enumerate().map(|(n, a)| format!("{a}:{}", port(n))).collect();
    }
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("postgres://{}/{database}", hosts.join(","))
}

fn shown(host: &Host, port: u16) -> String {
    match host {
        Host::Tcp(name) => format!("{name}:{port}"),
        Host::Unix(path) => format!("{}:{port}", path.display()),
    }
}

/// A connection, and the thread's own runtime that drives it.
pub(crate) struct Connection {
    client: Client,
    task: JoinHandle<Result<(), tokio_postgres::Error>>,
    address: String,
    limit: Duration,
    runtime: Runtime,
}

impl Connection {
    /// Does something with it. Each answer is waited for with [`Asking::within`].
    pub(crate) fn run<T>(
        &self,
        work: impl AsyncFnOnce(&Asking<'_>) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let asking = Asking { client: &self.client, address: &self.address, limit: self.limit };
        self.runtime.block_on(work(&asking))
    }

    /// Whether the other end has hung up, as far as the kernel knows by now.
    pub(crate) fn is_closed(&self) -> bool {
        self.runtime.block_on(async {
            // Lets the task look at what has arrived since it was last driven.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        });
        self.client.is_closed()
    }

    /// Hangs up. What the connection has ended with says more than that it is closed: the server may have said why.
    pub(crate) fn hang_up(mut self, e: ConnectError) -> ConnectError {
        let ended = self.runtime.block_on(async {
            tokio::task::yield_now().await;
            if self.task.is_finished() { (&mut self.task).await.ok() } else { None }
        });
        match (ended, &e) {
            (Some(Err(why)), ConnectError::Unavailable(_)) => failure::kind(&self.address, &why),
            _ => e,
        }
    }

    /// The server's own limits: so a transaction whose client is gone without a word does not keep its locks.
    fn prepare_session(&self, timeout: Duration) -> Result<(), ConnectError> {
        let ms = timeout.as_millis();
        let sql = format!(
            "SET statement_timeout = {ms}; SET lock_timeout = {ms}; SET idle_in_transaction_session_timeout = {ms}; \
             SET client_min_messages = error; SET timezone = 'UTC'"
        );
        self.run(async |asking| {
            asking.within(asking.client.batch_execute(&sql)).await?;
            let encoding = asking.within(asking.client.query_one("SHOW server_encoding", &[])).await?;
            let encoding: String = encoding.try_get(0).map_err(|e| asking.kind(&e))?;
            if encoding == "UTF8" {
                return Ok(());
            }
            Err(ConnectError::Config(format!(
                "{}: the database is encoded as {encoding}, which cannot hold every key; it has to be one with \
                 `ENCODING 'UTF8'`",
                self.address
            )))
        })
    }
}

impl Drop for Connection {
    /// Closes the socket now, not when the runtime happens to be driven again.
    fn drop(&mut self) {
        self.task.abort();
        if !self.task.is_finished() {
            // It was aborted: what it says of that is nothing new.
            let _ = self.runtime.block_on(&mut self.task);
        }
    }
}

/// What a connection is used with.
pub(crate) struct Asking<'a> {
    pub(crate) client: &'a Client,
    address: &'a str,
    limit: Duration,
}

impl Asking<'_> {
    /// Waits for an answer, and no longer than it may.
    pub(crate) async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, ConnectError> {
        self.within_limit(self.limit, answer).await
    }

    /// The same with another limit, for what takes its time.
    pub(crate) async fn within_limit<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, ConnectError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.map_err(|e| self.kind(&e)),
            Err(_) => Err(late(self.address, limit)),
        }
    }

    /// Whose move a failure is.
    pub(crate) fn kind(&self, e: &tokio_postgres::Error) -> ConnectError {
        failure::kind(self.address, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Result<Server, UrlProblem> {
        Server::new(url, Some("hush"), Security::Prefer, Duration::from_secs(1))
    }

    #[test]
    fn an_address_says_where_and_nothing_that_is_secret() {
        for (url, address) in [
            ("postgres://me@db.example/clicks", "postgres://db.example:5432/clicks"),
            ("postgresql://me@db.example:6543", "postgres://db.example:6543/me"),
            ("host=a,b port=1,2 user=me dbname=d", "postgres://a:1,b:2/d"),
            ("postgres://me@%2Frun%2Fpg/d", "postgres:///run/pg:5432/d"),
            ("hostaddr=10.0.0.1 user=me dbname=d", "postgres://10.0.0.1:5432/d"),
        ] {
            let server = server(url).unwrap();
            assert_eq!(server.address(), address);
            assert!(!format!("{server:?}").contains("hush"));
        }
    }

    #[test]
    fn urls_that_cannot_be_used_are_not_shown() {
        for (url, words) in [
            ("postgres://me:hush@h/d", "password does not belong"),
            ("postgres://me@h/d?sslmode=require", "`sslmode` does not belong"),
            ("postgres://h/d", "names no user"),
            ("user=me dbname=d", "names no host"),
            ("http://me@h/d", "no URL"),
            ("postgres://me@h:x/d", "no URL"),
        ] {
            let problem = server(url).unwrap_err();
            assert!(problem.message.contains(words), "{url}: {problem:?}");
            assert!(!format!("{problem:?}").contains("hush"));
        }
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for (url, local) in [
            ("postgres://me@localhost/d", true),
            ("postgres://me@127.0.0.9:1/d", true),
            ("postgres://me@[::1]:1/d", true),
            ("postgres://me@%2Frun%2Fpg/d", true),
            ("postgres://me@db.example/d", false),
            ("host=localhost,db.example user=me", false),
            ("host=localhost hostaddr=10.0.0.1 user=me", false),
        ] {
            assert_eq!(Server::is_local(url).unwrap(), local, "{url}");
        }
    }
}
