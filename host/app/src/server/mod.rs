//! What the host answers over the network: one runtime of its own, apart from the threads that events pass through.
//!
//! Two kinds of listener, each with its own router and its own keys: those that take events (`ingest`), and the one that
//! an operator asks (`admin`).

mod access;
mod admin;
mod bounds;
mod ingest;
mod listen;
mod logins;
mod metrics;
mod page;
mod problem;
mod room;
mod split;

use self::access::Access;
use self::admin::Admin;
use self::ingest::Inlet;
use self::listen::{Listening, Places};
use self::metrics::HttpMetrics;
use self::room::Room;
use crate::config::plan::{Http, Plan};
use crate::control::Control;
use crate::journal::{Journal, Level};
use crate::store::address::AddressFile;
use crate::store::token::TokenFile;
use crate::tls::Certificates;
use axum::middleware;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tidemill_connect::source::ingest_log::IngestLog;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Threads for requests: they wait for the disk, not for the processor.
const THREADS: usize = 2;
/// How often it is looked whether certificate or token have changed.
const REFRESH: Duration = Duration::from_secs(1);

/// Tells the user.
pub(crate) type Say = &'static (dyn Fn(&str) + Sync);

/// Why nothing listens, by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// Another program has the address.
    #[error("{who} cannot listen on {address}: {error}")]
    Address {
        /// The listener.
        who: String,
        /// Where.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The config or a file that it names is wrong.
    #[error("{0}")]
    Refused(String),
    /// The system has no threads left.
    #[error("no thread can be started for requests: {0}")]
    Threads(io::Error),
}

/// The listeners. Dropping it stops them; requests at hand are answered first.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    inlets: Vec<Arc<Inlet>>,
    admin: Option<Arc<Admin>>,
}

/// What the listeners are made of.
struct Parts<'a> {
    plan: &'a Plan,
    server: Server,
    runtime: &'a Runtime,
    certificates: Option<Arc<Certificates>>,
    tls: Option<TlsAcceptor>,
    http: Arc<HttpMetrics>,
    room: Room,
    for_events: Places,
    for_operators: Places,
    stopping: watch::Receiver<bool>,
    teller: Teller,
}

/// Tells the user, and whoever asks later.
#[derive(Clone)]
struct Teller {
    journal: Arc<Journal>,
    say: Say,
}

impl Teller {
    fn tell(&self, level: Level, line: &str) {
        self.journal.keep(None, level, line);
        (self.say)(line);
    }
}

impl Server {
    /// Listens for everything that the plan names. Until [`open`](Server::open), what is posted is answered with 503. None
    /// if there is nothing to listen for.
    pub(crate) fn start(
        plan: &Plan,
        control: &Arc<Control>,
        say: Say,
    ) -> Result<Option<Server>, ServerError> {
        let posted = plan.sources.iter().filter_map(|s| s.http());
        let refused = |e: &dyn std::fmt::Display| ServerError::Refused(e.to_string());
        AddressFile::of(&plan.server.data_dir).clear().map_err(|e| refused(&e))?;
        let mut by_address: BTreeMap<&str, Vec<(&str, &Http)>> = BTreeMap::new();
        for (name, http) in posted {
            by_address.entry(&http.listen).or_default().push((name, http));
        }
        // A run over files ends by itself: it needs no port, unless somebody wants to look on.
        let steered = plan.server.listen_named || plan.sources.iter().any(|s| s.is_live());
        if by_address.is_empty() && !steered {
            return Ok(None);
        }
        let parts = plan.sources.len() + plan.pipelines.len() + plan.sinks.len() + plan.lookups.len();
        let (for_events, for_operators) = Places::split(files_max(), parts);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(ServerError::Threads)?;
        let certificates =
            plan.server.tls.as_ref().map(Certificates::open).transpose().map_err(|e| refused(&e))?;
        let config = certificates.as_ref().map(Certificates::server_config).transpose();
        let (stop, stopping) = watch::channel(false);
        let server = Server { runtime: None, stop, serving: Vec::new(), inlets: Vec::new(), admin: None };
        let mut parts = Parts {
            plan,
            server,
            runtime: &runtime,
            certificates,
            tls: config.map_err(|e| refused(&e))?.map(TlsAcceptor::from),
            http: Arc::new(HttpMetrics::new().map_err(|e| refused(&e))?),
            room: Room::new(),
            for_events,
            for_operators,
            stopping,
            teller: Teller { journal: control.journal.clone(), say },
        };
        for sources in by_address.values() {
            parts.listen_for_events(sources)?;
        }
        let access = if steered { parts.listen_for_operators(control)? } else { None };
        parts.refresh(access);
        let mut server = parts.server;
        server.runtime = Some(runtime);
        Ok(Some(server))
    }

    /// Gives each source the log that it writes to: requests are taken from now on.
    pub(crate) fn open(&self, log_of: impl Fn(&str) -> Option<Arc<IngestLog>>) {
        for inlet in &self.inlets {
            if let Some(log) = log_of(&inlet.source) {
                // It is opened once.
                let _ = inlet.log.set(log);
            }
        }
        if let Some(admin) = &self.admin {
            admin.opened();
        }
    }
}

impl Parts<'_> {
    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    fn serve(&mut self, listening: Listening, router: axum::Router, places: Places) {
        let serving = listening.serve(router, self.tls.clone(), places, self.stopping.clone());
        self.server.serving.push(self.runtime.spawn(serving));
    }

    /// A listener of one or several sources.
    fn listen_for_events(&mut self, sources: &[(&str, &Http)]) -> Result<(), ServerError> {
        let Some((name, http)) = sources.first() else { return Ok(()) };
        let listening = self.runtime.block_on(Listening::bind(&http.listen)).map_err(|error| {
            ServerError::Address { who: format!("source `{name}`"), address: http.listen.clone(), error }
        })?;
        let inlets: Vec<Arc<Inlet>> =
            sources.iter().map(|(name, http)| Arc::new(inlet(name, http))).collect();
        let (scheme, address) = (self.scheme(), listening.address());
        for inlet in &inlets {
            let source = &inlet.source;
            let line = format!("source `{source}` takes events at {scheme}://{address}/v1/events");
            self.teller.tell(Level::Info, &line);
        }
        self.server.inlets.extend(inlets.iter().cloned());
        let router = ingest::router(inlets, self.room.clone())
            .layer(middleware::from_fn_with_state((self.http.clone(), "ingest"), metrics::count));
        self.serve(listening, router, self.for_events.clone());
        Ok(())
    }

    /// The admin listener; none if its address is taken and nobody has asked for that one.
    fn listen_for_operators(
        &mut self,
        control: &Arc<Control>,
    ) -> Result<Option<(TokenFile, Arc<Access>)>, ServerError> {
        let wanted = &self.plan.server;
        let listening = match self.runtime.block_on(Listening::bind(&wanted.listen)) {
            Ok(listening) => listening,
            Err(error) if wanted.listen_named => {
                let (who, address) = ("the admin API".to_owned(), wanted.listen.clone());
                return Err(ServerError::Address { who, address, error });
            }
            Err(error) => {
                let line = format!(
                    "there is no admin API: {} cannot be had ({error}); `listen` in [server] names another address",
                    wanted.listen
                );
                self.teller.tell(Level::Warn, &line);
                return Ok(None);
            }
        };
        let file = TokenFile::of(&wanted.data_dir);
        let (token, new) = file.read_or_make().map_err(|e| ServerError::Refused(e.to_string()))?;
        let (scheme, address) = (self.scheme(), listening.address());
        let at = AddressFile::of(&wanted.data_dir).write(&address.to_string());
        at.map_err(|e| ServerError::Refused(e.to_string()))?;
        self.teller.tell(Level::Info, &format!("the admin API is at {scheme}://{address}"));
        if new {
            // Shown, and not kept.
            (self.teller.say)(&format!(
                "its token, shown this once (`tidemill token` prints it again): {}",
                token.reveal()
            ));
        }
        let hosts = wanted.hosts.iter().cloned().chain(host_of(&wanted.listen)).collect();
        let access = Arc::new(Access::new(token, hosts, self.tls.is_some()));
        let (http, stopping) = (self.http.clone(), self.stopping.clone());
        let admin = Arc::new(Admin::new(Arc::new(self.plan.clone()), control.clone(), http, stopping));
        self.server.admin = Some(admin.clone());
        let router = admin::router(admin, access.clone());
        self.serve(listening, router, self.for_operators.clone());
        Ok(Some((file, access)))
    }

    /// Looks now and then whether certificate or token have changed.
    fn refresh(&mut self, access: Option<(TokenFile, Arc<Access>)>) {
        let (certificates, teller) = (self.certificates.clone(), self.teller.clone());
        let mut stopping = self.stopping.clone();
        let look = move || {
            match certificates.as_ref().map(|c| c.refresh()) {
                Some(Ok(true)) => {
                    teller.tell(
                        Level::Info,
                        "the certificate has changed, and the new one is shown from now on",
                    );
                }
                Some(Err(e)) => {
                    let line = format!("the certificate has changed, and the old one is still shown: {e}");
                    teller.tell(Level::Warn, &line);
                }
                Some(Ok(false)) | None => {}
            }
            // A token that cannot be read is none that anybody could have been given: the last one holds.
            if let Some((file, access)) = &access
                && let Ok(Some(token)) = file.read()
            {
                access.rotate(token);
            }
        };
        let look = Arc::new(look);
        self.server.serving.push(self.runtime.spawn(async move {
            while tokio::time::timeout(REFRESH, stopping.wait_for(|s| *s)).await.is_err() {
                let look = look.clone();
                // It only ends early by a panic; the next look is as good.
                let _ = tokio::task::spawn_blocking(move || look()).await;
            }
        }));
    }
}

/// The name in an address that was written as one.
fn host_of(listen: &str) -> Option<String> {
    listen.parse::<SocketAddr>().is_err().then(|| listen.rsplit_once(':').map(|(host, _)| host.to_owned()))?
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let Some(runtime) = self.runtime.take() else { return };
        for serving in self.serving.drain(..) {
            // A listener that panicked has nothing left to answer.
            let _ = runtime.block_on(serving);
        }
    }
}

fn inlet(name: &str, http: &Http) -> Inlet {
    Inlet {
        source: name.to_owned(),
        write_keys: http.write_keys.clone(),
        cors: http.cors.clone(),
        log: OnceLock::new(),
    }
}

/// As many open files as the system lets us have, each connection is one; and how many that are.
fn files_max() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it there are fewer connections at a time.
    let _ = setrlimit(Resource::Nofile, limit);
    // No limit is none.
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}
