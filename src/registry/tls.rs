//! TLS: whom to trust, and who we are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts::TlsFiles;
use super::{Error, Result};

/// Certificates that are trusted everywhere: the machine's, and what the user names.
#[derive(Default)]
pub(super) struct Trust {
    extra: Vec<CertificateDer<'static>>,
    roots: OnceLock<RootCertStore>,
}

impl Trust {
    pub(super) fn new(ca_files: &[PathBuf]) -> Result<Self> {
        let mut extra = Vec::new();
        for path in ca_files {
            extra.extend(certificates(path)?);
        }
        Ok(Self { extra, roots: OnceLock::new() })
    }

    /// The machine's certificates, or the bundled ones where it has none, as a chroot or a small container.
    fn roots(&self) -> &RootCertStore {
        self.roots.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            }
            roots.add_parsable_certificates(self.extra.iter().cloned());
            roots
        })
    }

    /// What to speak TLS with to a host.
    pub(super) fn config(&self, files: &TlsFiles) -> Result<ClientConfig> {
        let provider =
            CryptoProvider::get_default().cloned().ok_or_else(|| tls(Path::new(""), "no TLS provider is installed"))?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|source| tls(Path::new(""), source))?;
        let builder = if files.skip_verify == Some(true) {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        } else if files.ca.is_empty() {
            builder.with_root_certificates(self.roots().clone())
        } else {
            let mut roots = self.roots().clone();
            for path in &files.ca {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|source| tls(path, source))?;
                }
            }
            builder.with_root_certificates(roots)
        };
        // One identity: which of several a server wants, containerd leaves to Go; the first is what it mostly is.
        let Some((certificate, key)) = files.client.first() else { return Ok(builder.with_no_client_auth()) };
        let private = PrivateKeyDer::from_pem_file(key).map_err(|source| tls(key, source))?;
        builder.with_client_auth_cert(certificates(certificate)?, private).map_err(|source| tls(certificate, source))
    }
}

fn tls(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Tls { path: path.to_owned(), source: source.into() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|source| tls(path, source))?;
    if all.is_empty() { Err(tls(path, "there is no certificate in it")) } else { Ok(all) }
}

/// `skip_verify`: whoever answers is believed to be the server.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
