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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

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
    /// With `tls`, only to clients that speak it.
    pub(crate) async fn serve(
        self,
        router: Router,
        tls: Option<TlsAcceptor>,
        mut stop: watch::Receiver<bool>,
    ) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
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
        let all = places.acquire_many(CONNECTIONS_MAX as u32);
        let _ = tokio::time::timeout(GOODBYE, all).await;
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
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
        let serving = tokio::spawn(listening.serve(router, Some(acceptor), stopping));

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
