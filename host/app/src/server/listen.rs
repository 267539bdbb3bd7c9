//! Listening sockets: every connection is bounded in number and in time, so that slow or idle clients cost little and
//! end by themselves.
//!
//! Invariants: the connections of all listeners together leave the process the open files that it needs for itself; a client
//! that was refused while it was still sending gets to read why.

use super::bounds::{
    CONNECTIONS_MAX, FILES_OF_HOST, FILES_OF_PART, GOODBYE, HEAD_BYTES_MAX, HEAD_TIMEOUT, LINGER_BYTES_MAX,
    LINGER_IDLE_MAX, LINGER_MAX, OPERATORS_SHARE,
};
use super::problem::Problem;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// After an error of the socket (too many open files): some connections will have ended by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections at a time, of one listener or several that share them.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    all: u32,
}

impl Places {
    fn of(all: usize) -> Places {
        // There are never more than `CONNECTIONS_MAX`.
        Places { free: Arc::new(Semaphore::new(all)), all: all as u32 }
    }

    /// For those who post events, and for operators: as many as `files_max` open files allow beside those that the host needs
    /// for itself and for its `parts`.
    pub(crate) fn split(files_max: usize, parts: usize) -> (Places, Places) {
        let own = FILES_OF_HOST + parts * FILES_OF_PART;
        // Where there are hardly any, the host has most of them.
        let all = files_max.saturating_sub(own).max(files_max / OPERATORS_SHARE).clamp(2, CONNECTIONS_MAX);
        let operators = (all / OPERATORS_SHARE).max(1);
        (Places::of(all - operators), Places::of(operators))
    }
}

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
    /// With `tls`, only to clients that speak it.
    /// Each connection takes one of the `places`.
    pub(crate) async fn serve(
        self,
        router: Router,
        tls: Option<TlsAcceptor>,
        places: Places,
        mut stop: watch::Receiver<bool>,
    ) {
        let router = router.layer(middleware::from_fn(one_host));
        loop {
            let place = tokio::select! {
                place = places.free.clone().acquire_owned() => place,
                _ = stop.wait_for(|s| *s) => break,
            };
            let Ok(place) = place else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = stop.wait_for(|s| *s) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
                    // Answers are small and awaited; without it they would wait for more to send.
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(async move {
                        match tls {
                            None => connection(stream, router, stop).await,
                            // A client that does not shake hands is gone: there is no way to tell it anything.
                            Some(tls) => {
                                let shaken = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await;
                                if let Ok(Ok(stream)) = shaken {
                                    connection(stream, router, stop).await;
                                }
                            }
                        }
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
        drop(self.listener);
        // All places are free once the last connection has ended.
        let all = places.free.acquire_many(places.all);
        let _ = tokio::time::timeout(GOODBYE, all).await;
    }
}

async fn connection(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).half_close(false);
    http.max_buf_size(HEAD_BYTES_MAX);
    {
        let service = TowerToHyperService::new(router);
        let mut served = pin!(http.serve_connection(TokioIo::new(&mut stream), service));
        let ended = tokio::select! {
            ended = served.as_mut() => Some(ended),
            _ = stop.wait_for(|s| *s) => None,
        };
        match ended {
            Some(Ok(())) => {}
            // It was no request, and that has been answered.
            Some(Err(e)) if e.is_parse() => {}
            // The client went away, or was too slow.
            Some(Err(_)) => return,
            None => {
                served.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(GOODBYE, served).await;
                return;
            }
        }
    }
    tokio::select! {
        () = linger(&mut stream) => {}
        _ = stop.wait_for(|s| *s) => {}
    }
}

/// Reads what a client is still sending after its last answer, for a while: to close on it would take the answer back.
async fn linger(stream: &mut (impl AsyncRead + Unpin)) {
    let mut waste = vec![0; 16 << 10];
    let drained = async {
        let mut left = LINGER_BYTES_MAX;
        loop {
            let read = poll_fn(|cx| {
                let mut piece = ReadBuf::new(&mut waste);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut piece))?;
                Poll::Ready(io::Result::Ok(piece.filled().len()))
            });
            match tokio::time::timeout(LINGER_IDLE_MAX, read).await {
                Ok(Ok(read)) if read > 0 && read < left => left -= read,
                _ => return,
            }
        }
    };
    // Whoever has more is cut off.
    let _ = tokio::time::timeout(LINGER_MAX, drained).await;
}

/// Two names of the host are none: whoever stands in between may have taken the other one.
async fn one_host(request: Request, next: Next) -> Response {
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        let detail = "the request names several hosts: send `Host` once";
        return Problem::new(StatusCode::BAD_REQUEST, "host", detail).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Certificates, TlsFiles};
    use axum::body::Body;
    use axum::http::Request;
    use rustls::client::Resumption;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use std::fs;
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    /// A certificate in these files, and what a client must know to take it.
    fn certificate(files: &TlsFiles) -> TlsConnector {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(&files.cert, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(made.cert.der().to_vec())).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        // A session that is resumed shows no certificate.
        config.resumption = Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }

    /// The status of the answer.
    async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> hyper::Result<u16> {
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get("/").header("host", "localhost").body(Body::empty()).unwrap();
        Ok(client.send_request(request).await?.status().as_u16())
    }

    async fn ask_with(address: SocketAddr, tls: &TlsConnector) -> Option<u16> {
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.ok()?;
        ask(stream).await.ok()
    }

    #[test]
    fn connections_leave_the_host_its_files_and_operators_their_places() {
        let all = |files_max, parts| {
            let (events, operators) = Places::split(files_max, parts);
            (events.all, operators.all)
        };
        assert_eq!(all(1024, 4), (448, 64));
        assert_eq!(all(256, 4), (28, 4), "few, but some");
        assert_eq!(all(0, 4), (1, 1));
        assert_eq!(all(usize::MAX, 4), (14_336, 2_048));
    }

    #[tokio::test]
    async fn with_tls_only_who_speaks_it_is_answered_and_a_new_certificate_is_shown_without_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: dir.path().join("c.pem"), key: dir.path().join("c.key") };
        let first = certificate(&files);
        let certificates = Certificates::open(&files).unwrap();
        let acceptor = TlsAcceptor::from(certificates.server_config().unwrap());
        let listening = Listening::bind("127.0.0.1:0").await.unwrap();
        let address = listening.address();
        let (stop, stopping) = watch::channel(false);
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let (places, _) = Places::split(1024, 4);
        let serving = tokio::spawn(listening.serve(router, Some(acceptor), places, stopping));

        assert_eq!(ask_with(address, &first).await, Some(200));
        let ours = || TlsConnector::from(crate::tls::client_config(&files).unwrap());
        assert_eq!(ask_with(address, &ours()).await, Some(200), "a command takes the host's own certificate");
        let plain = TcpStream::connect(address).await.unwrap();
        assert!(ask(plain).await.is_err(), "answered without TLS");

        let second = certificate(&files);
        assert_eq!(ask_with(address, &second).await, None, "not yet");
        assert_eq!(ask_with(address, &ours()).await, None, "and no other");
        assert!(certificates.refresh().unwrap());
        assert_eq!(ask_with(address, &second).await, Some(200));
        assert_eq!(ask_with(address, &first).await, None, "the old one is shown no more");
        stop.send_replace(true);
        serving.await.unwrap();
    }
}
