//! Signatures as `cosign sign --key` makes them, checked by a public key, offline. Since cosign 3 they are sigstore bundles: a
//! DSSE envelope around an in-toto statement about the manifest's digest. Before, a "simple signing" payload names that digest,
//! and an annotation beside it holds the payload's signature.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;

use crate::oci::Digest;

/// Media type of a payload (cosign's signature specification).
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of a payload's descriptor that has its signature, in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// What media types of bundles begin with, their version behind it (cosign's bundle specification).
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// What a statement says that signs an image, rather than attests something else about it.
pub const SIGNS: &str = "https://sigstore.dev/cosign/sign/v1";

/// What a `SubjectPublicKeyInfo` of a P-256 key begins with; 65 bytes of a point follow (RFC 5480).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The same of Ed25519; 32 bytes follow (RFC 8410).
const EDWARDS: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A public key that signatures are checked with.
#[derive(Debug, Clone)]
pub struct PublicKey(UnparsedPublicKey<Vec<u8>>);

/// A text that is no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a public key of ECDSA P-256 or Ed25519 in PEM, as cosign.pub is")]
pub struct KeyError;

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: HashMap<String, String>,
}

/// What a DSSE envelope's signature is of (DSSE, "Pre-Authentication Encoding").
pub fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Whether a layer of an artifact may be a signature, by its media type.
pub fn is_signature(media_type: &str) -> bool {
    media_type == PAYLOAD || media_type.starts_with(BUNDLE)
}

/// What a private key in PEM stands between.
const PRIVATE: (&str, &str) = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----");
const PUBLIC: (&str, &str) = ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----");
/// Characters of a line in PEM (RFC 7468).
const LINE: usize = 64;

fn from_pem(text: &str, (begin, end): (&str, &str)) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(begin)?;
    let (body, _) = rest.split_once(end)?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

fn to_pem(der: &[u8], (begin, end): (&str, &str)) -> String {
    let body = STANDARD.encode(der);
    let lines = body.as_bytes().chunks(LINE).flat_map(|line| line.iter().chain(b"\n"));
    let lines: String = lines.map(|byte| char::from(*byte)).collect();
    format!("{begin}\n{lines}{end}\n")
}

/// A key that signs: Ed25519, in PKCS #8 (RFC 8410), as `openssl genpkey -algorithm ed25519` makes it as well.
pub struct SigningKey(Ed25519KeyPair);

/// A text that is no private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a private key of Ed25519 in PEM, as `prebake bundle keygen` makes")]
pub struct SigningKeyError;

impl SigningKey {
    /// A new one, in PEM.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> std::io::Result<String> {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let der = der.map_err(|_| std::io::Error::other("the system has no random numbers"))?;
        Ok(to_pem(der.as_ref(), PRIVATE))
    }

    /// Reads a key in PEM.
    ///
    /// # Errors
    /// [`SigningKeyError`].
    pub fn parse(pem: &str) -> Result<Self, SigningKeyError> {
        let der = from_pem(pem, PRIVATE).ok_or(SigningKeyError)?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map(Self).map_err(|_| SigningKeyError)
    }

    /// A signature of these bytes, in base64.
    pub fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(bytes))
    }

    /// The key that such signatures are checked with, in PEM.
    pub fn public_key(&self) -> String {
        to_pem(&[&EDWARDS[..], self.0.public_key().as_ref()].concat(), PUBLIC)
    }
}

impl PublicKey {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(pem: &str) -> Result<Self, KeyError> {
        let der = from_pem(pem, PUBLIC).ok_or(KeyError)?;
        let (algorithm, key): (&'static dyn VerificationAlgorithm, &[u8]) =
            match (der.strip_prefix(&P256), der.strip_prefix(&EDWARDS)) {
                (Some(point), _) if point.len() == 65 => (&ECDSA_P256_SHA256_ASN1, point),
                (_, Some(point)) if point.len() == 32 => (&ED25519, point),
                _ => return Err(KeyError),
            };
        Ok(Self(UnparsedPublicKey::new(algorithm, key.to_owned())))
    }

    /// Whether `signature`, in base64, is one of these bytes with this key.
    pub fn signed(&self, bytes: &[u8], signature: &str) -> bool {
        self.has_signed(bytes, signature) == Some(true)
    }

    /// Whether a layer of an artifact is a signature with this key, of that manifest. `annotation` is the layer's
    /// [`SIGNATURE`].
    pub fn admits(&self, manifest: &Digest, media_type: &str, bytes: &[u8], annotation: Option<&str>) -> bool {
        let admits = match annotation {
            Some(signature) if media_type == PAYLOAD => self.admits_payload(manifest, bytes, signature),
            _ if media_type.starts_with(BUNDLE) => self.admits_bundle(manifest, bytes),
            _ => None,
        };
        admits == Some(true)
    }

    fn admits_payload(&self, manifest: &Digest, payload: &[u8], signature: &str) -> Option<bool> {
        let said: Payload = serde_json::from_slice(payload).ok()?;
        Some(said.critical.image.digest == manifest.as_str() && self.has_signed(payload, signature)?)
    }

    fn admits_bundle(&self, manifest: &Digest, bundle: &[u8]) -> Option<bool> {
        let Bundle { dsse_envelope: Envelope { payload, payload_type, signatures } } =
            serde_json::from_slice(bundle).ok()?;
        let payload = STANDARD.decode(payload).ok()?;
        let said: Statement = serde_json::from_slice(&payload).ok()?;
        let is_about = |subject: &Subject| {
            subject.digest.get(manifest.algorithm().name()).is_some_and(|hex| hex == manifest.hex())
        };
        let signed = pre_authentication(&payload_type, &payload);
        Some(
            said.predicate_type == SIGNS
                && said.subject.iter().any(is_about)
                && signatures.iter().any(|signature| self.has_signed(&signed, &signature.sig) == Some(true)),
        )
    }

    fn has_signed(&self, bytes: &[u8], signature: &str) -> Option<bool> {
        let signature = STANDARD.decode(signature.trim()).ok()?;
        Some(self.0.verify(bytes, &signature).is_ok())
    }
}
