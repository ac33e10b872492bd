//! TLS: who this registry is to its clients.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{Error, Result};

/// A certificate with its key.
pub struct Identity(Arc<ServerConfig>);

impl Identity {
    /// Reads PEM files: the certificate, with those between it and its authority behind it, and its key.
    ///
    /// # Errors
    /// [`Error::Tls`].
    pub fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let unusable = |path: &Path, why: String| Error::Tls { path: path.to_owned(), why };
        let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|error| unusable(certificate, error.to_string()))?;
        let key_bytes = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key_bytes))
            .map_err(|error| unusable(certificate, error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn into_acceptor(self) -> TlsAcceptor {
        self.0.into()
    }
}
