//! What the host answers over the network: one runtime of its own, apart from the threads that events pass through.

mod ingest;
mod listen;
mod problem;
mod split;

use self::ingest::Inlet;
use self::listen::Listening;
use crate::config::plan::{Http, Plan, SourceKind};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};
use tidemill_connect::source::ingest_log::IngestLog;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Threads for requests: they wait for the disk, not for the processor.
const THREADS: usize = 2;

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
#[error("source `{source_name}` cannot listen on {address}: {error}")]
pub(crate) struct CannotListen {
    source_name: String,
    address: String,
    error: io::Error,
}

/// The listeners. Dropping it stops them; requests at hand are answered first.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    inlets: Vec<Arc<Inlet>>,
    /// What listens where, for the user.
    pub(crate) notes: Vec<String>,
}

impl Server {
    /// Listens for everything that the plan names. Until [`open`](Server::open), what is posted is answered with 503. None
    /// if there is nothing to listen for.
    pub(crate) fn start(plan: &Plan) -> Result<Option<Server>, CannotListen> {
        let posted = plan.sources.iter().filter_map(|s| match &s.kind {
            SourceKind::Http(http) => Some((s.name.as_str(), http)),
            _ => None,
        });
        let mut by_address: BTreeMap<&str, Vec<(&str, &Http)>> = BTreeMap::new();
        for (name, http) in posted {
            by_address.entry(&http.listen).or_default().push((name, http));
        }
        let Some(first) = by_address.values().flatten().next() else { return Ok(None) };
        let cannot = |name: &str, http: &Http, error| CannotListen {
            source_name: name.to_owned(),
            address: http.listen.clone(),
            error,
        };
        more_descriptors();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(|e| cannot(first.0, first.1, e))?;
        let (stop, stopping) = watch::channel(false);
        let mut server =
            Server { runtime: None, stop, serving: Vec::new(), inlets: Vec::new(), notes: Vec::new() };
        for sources in by_address.values() {
            let Some((name, http)) = sources.first() else { continue };
            let listening =
                runtime.block_on(Listening::bind(&http.listen)).map_err(|e| cannot(name, http, e))?;
            let inlets: Vec<Arc<Inlet>> =
                sources.iter().map(|(name, http)| Arc::new(inlet(name, http))).collect();
            for inlet in &inlets {
                let address = listening.address();
                let source = &inlet.source;
                server.notes.push(format!("source `{source}` takes events at http://{address}/v1/events"));
            }
            server.inlets.extend(inlets.iter().cloned());
            let router = ingest::router(Arc::new(inlets));
            server.serving.push(runtime.spawn(listening.serve(router, stopping.clone())));
        }
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
    }
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

/// As many open files as the system lets us have: each connection is one.
fn more_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it there are fewer connections at a time.
    let _ = setrlimit(Resource::Nofile, limit);
}
