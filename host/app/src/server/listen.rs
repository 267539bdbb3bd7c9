//! Listening sockets: every connection is bounded in number and in time, so that slow or idle clients cost little and
//! end by themselves.

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Connections of one listener at a time; more wait in the system's queue. Each costs some 10 KiB.
const CONNECTIONS_MAX: usize = 16_384;
/// From the connection, or the last answer, to the end of the next request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// After a stop, for requests that are being answered.
const GOODBYE: Duration = Duration::from_secs(10);
/// After an error of the socket (too many open files): some connections will have ended by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket that listens, and is not yet served.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listening {
    /// Binds an address. Must be called within the runtime.
    pub(crate) async fn bind(address: &str) -> io::Result<Listening> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Listening { listener, address })
    }

    /// The address, with the port that the system chose if none was wanted.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` says so; then answers what has been asked, for a while.
    pub(crate) async fn serve(self, router: Router, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = stop.wait_for(|s| *s) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (router, stop) = (router.clone(), stop.clone());
                    tokio::spawn(async move {
                        connection(stream, router, stop).await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
        drop(self.listener);
        // All places are free once the last connection has ended.
        let all = places.acquire_many(CONNECTIONS_MAX as u32);
        let _ = tokio::time::timeout(GOODBYE, all).await;
    }
}

async fn connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // Answers are small and awaited; without it they would wait for more to send.
    let _ = stream.set_nodelay(true);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).half_close(false);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    tokio::select! {
        // An error is the client's: it went away, was too slow, or spoke something else.
        _ = served.as_mut() => return,
        _ = stop.wait_for(|s| *s) => served.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(GOODBYE, served).await;
}
