//! TLS: whom to trust, and who we are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

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
        let mut trusted = None;
        if files.skip_verify != Some(true) {
            let mut roots = self.roots().clone();
            for path in &files.ca {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|source| tls(path, source))?;
                }
            }
            let roots = Arc::new(roots);
            let chains = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
            trusted = Some((roots, chains.map_err(|source| tls(Path::new(""), source))?));
        }
        let verifier = Verifier { provider, trusted };
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
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

/// As Go, and so containerd, verifies servers.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// Without any, whoever answers is believed to be the server: `skip_verify`.
    trusted: Option<(Arc<RootCertStore>, Arc<WebPkiServerVerifier>)>,
}

/// webpki's word for a certificate that could sign others; openssl makes such by default, also for servers.
const CA_AS_SERVER: &str = "CaUsedAsEndEntity";

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some((roots, chains)) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        match chains.verify_server_cert(certificate, between, name, ocsp, now) {
            // Its time was looked at before that. If it is trusted itself, only its name is left to be.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
                if other.to_string() == CA_AS_SERVER && is_among(roots, certificate) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate is one of those that are trusted: the same name and key.
fn is_among(roots: &RootCertStore, certificate: &CertificateDer<'_>) -> bool {
    let mut own = RootCertStore::empty();
    let _ = own.add(certificate.clone().into_owned());
    let same = |root: &TrustAnchor<'_>, own: &TrustAnchor<'_>| {
        root.subject == own.subject && root.subject_public_key_info == own.subject_public_key_info
    };
    own.roots.iter().any(|own| roots.roots.iter().any(|root| same(root, own)))
}
