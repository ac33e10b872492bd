//! Signatures as `cosign sign --key` makes them, checked by a public key, offline: the "simple signing" payload names the
//! manifest's digest, and an annotation beside it holds the payload's signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;

use crate::oci::Digest;

/// Media type of a payload (cosign's signature specification).
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of a payload's descriptor that has its signature, in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

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

impl PublicKey {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(pem: &str) -> Result<Self, KeyError> {
        let (_, rest) = pem.split_once("-----BEGIN PUBLIC KEY-----").ok_or(KeyError)?;
        let (body, _) = rest.split_once("-----END PUBLIC KEY-----").ok_or(KeyError)?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| KeyError)?;
        let (algorithm, key): (&'static dyn VerificationAlgorithm, &[u8]) =
            match (der.strip_prefix(&P256), der.strip_prefix(&EDWARDS)) {
                (Some(point), _) if point.len() == 65 => (&ECDSA_P256_SHA256_ASN1, point),
                (_, Some(point)) if point.len() == 32 => (&ED25519, point),
                _ => return Err(KeyError),
            };
        Ok(Self(UnparsedPublicKey::new(algorithm, key.to_owned())))
    }

    /// Whether a payload is signed with this key, and about that manifest.
    pub fn admits(&self, manifest: &Digest, payload: &[u8], signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature.trim()) else { return false };
        let Ok(said) = serde_json::from_slice::<Payload>(payload) else { return false };
        said.critical.image.digest == manifest.as_str() && self.0.verify(payload, &signature).is_ok()
    }
}
