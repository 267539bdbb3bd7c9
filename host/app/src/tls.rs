//! The certificate that listeners show: read from PEM files, checked as a pair, read anew when the files change.
//!
//! Invariant: what was read last and was whole is what is shown; a pair of files that do not belong together (one of them
//! is still being written) changes nothing.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Where certificate and key stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// PEM: the certificate, and those between it and its root.
    pub(crate) cert: PathBuf,
    /// PEM: its private key.
    pub(crate) key: PathBuf,
}

/// Why a certificate cannot be used, and which of the two files is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The certificate's file.
    #[error("`{}` cannot be used: {why}", .file.display())]
    Cert {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key's file, or the pair.
    #[error("`{}` cannot be used: {why}", .file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl TlsFiles {
    /// Reads both, and checks that they belong together.
    ///
    /// # Errors
    /// If one of them cannot be read, is not PEM, or the key is another certificate's.
    pub(crate) fn load(&self) -> Result<CertifiedKey, TlsError> {
        let cert = |why: String| TlsError::Cert { file: self.cert.clone(), why };
        let key = |why: String| TlsError::Key { file: self.key.clone(), why };
        let chain: Vec<_> = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect)
            .map_err(|e| cert(e.to_string()))?;
        if chain.is_empty() {
            return Err(cert("there is no certificate in it".to_owned()));
        }
        let secret = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| key(e.to_string()))?;
        CertifiedKey::from_der(chain, secret, &aws_lc_rs::default_provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => {
                key(format!("it is not the key of `{}`", self.cert.display()))
            }
            other => key(other.to_string()),
        })
    }
}

/// What tells one state of a file from another: renaming another over it, or writing into it.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let m = fs::metadata(path).ok()?;
    Some((m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
}

/// The certificate that is shown now.
#[derive(Debug)]
pub(crate) struct Certificates {
    files: TlsFiles,
    current: RwLock<Arc<CertifiedKey>>,
    seen: Mutex<[Stamp; 2]>,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// As [`TlsFiles::load`].
    pub(crate) fn open(files: &TlsFiles) -> Result<Arc<Certificates>, TlsError> {
        // Before they are read: what is written meanwhile is seen as a change.
        let seen = Mutex::new([stamp(&files.cert), stamp(&files.key)]);
        let current = RwLock::new(Arc::new(files.load()?));
        Ok(Arc::new(Certificates { files: files.clone(), current, seen }))
    }

    /// Takes what the files hold if they have changed; whether it was taken. Reads files, so not for a thread of requests.
    ///
    /// # Errors
    /// Once for each change that cannot be used; what was shown before is still shown.
    pub(crate) fn refresh(&self) -> Result<bool, TlsError> {
        let now = [stamp(&self.files.cert), stamp(&self.files.key)];
        if std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), now) == now {
            return Ok(false);
        }
        let fresh = Arc::new(self.files.load()?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    /// The settings of a listener that shows it.
    ///
    /// # Errors
    /// If the provider of cryptography has none of the protocol's versions.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The settings of a client on this machine: it takes the very certificate in the host's file, whatever name that is for,
/// and no other.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let known = files.load()?.cert;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let cannot = |e: rustls::Error| TlsError::Cert { file: files.cert.clone(), why: e.to_string() };
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(cannot)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { known, provider }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned {
    known: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.known.first() == Some(shown) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of its own, and its key, in two files.
    fn pair(dir: &Path, name: &str) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files = TlsFiles { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        fs::write(&files.cert, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn a_pair_is_one_pair_and_is_read_anew_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (used, other) = (pair(dir.path(), "used"), pair(dir.path(), "other"));
        let mixed = TlsFiles { cert: used.cert.clone(), key: other.key.clone() };
        assert!(mixed.load().unwrap_err().to_string().contains("is not the key of"));
        let shown = Certificates::open(&used).unwrap();
        let first = shown.current.read().unwrap().cert.clone();
        assert!(!shown.refresh().unwrap(), "nothing has changed");
        fs::rename(&other.cert, &used.cert).unwrap();
        assert!(matches!(shown.refresh(), Err(TlsError::Key { .. })), "half of a change");
        assert_eq!(shown.current.read().unwrap().cert, first, "and the old one is still shown");
        assert!(!shown.refresh().unwrap(), "it is told once");
        fs::rename(&other.key, &used.key).unwrap();
        assert!(shown.refresh().unwrap());
        assert_ne!(shown.current.read().unwrap().cert, first);
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = pair(dir.path(), "a");
        let key_as_cert = TlsFiles { cert: files.key.clone(), key: files.key.clone() };
        assert!(key_as_cert.load().unwrap_err().to_string().contains("there is no certificate in it"));
        fs::write(&files.key, "nothing").unwrap();
        assert!(matches!(files.load(), Err(TlsError::Key { .. })));
        fs::remove_file(&files.cert).unwrap();
        assert!(matches!(files.load(), Err(TlsError::Cert { .. })));
    }
}
