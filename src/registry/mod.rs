//! The client's side of the OCI distribution API: documents and blobs over HTTP.
//!
//! reqwest carries the bytes (HTTP/1.1 only: parallel blobs get connections of their own, and nothing decodes a body behind
//! the digest's back). oci-client does what it does well: the exchange of credentials for a Bearer token, and the codes
//! in the registry's error bodies.

mod auth;
mod client;
mod credentials;

pub use client::{Blob, Client, Options, RawDocument, Room};
pub use credentials::{Credentials, CredentialsError};

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such image or blob, or the registry does not admit it.
    #[error("{registry} has no {what}{detail}")]
    NotFound {
        /// The registry's name.
        registry: String,
        /// What was asked for.
        what: String,
        /// The registry's own words, with a colon before them, or nothing.
        detail: String,
    },
    /// Credentials are missing, wrong, or not enough.
    #[error("{registry} does not give {what} {who}{detail}")]
    Unauthorized {
        /// The registry's name.
        registry: String,
        /// What was asked for.
        what: String,
        /// With which credentials.
        who: &'static str,
        /// The registry's own words, with a colon before them, or nothing.
        detail: String,
    },
    /// The registry answered with another status.
    #[error("{registry} answered {status} for {what}{detail}")]
    Status {
        /// The registry's name.
        registry: String,
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// The registry's own words, with a colon before them, or nothing.
        detail: String,
    },
    /// The registry could not be reached, or the connection broke.
    #[error("asking {registry} for {what} failed")]
    Transport {
        /// The registry's name.
        registry: String,
        /// What was asked for.
        what: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The token exchange failed.
    #[error("getting a token for {what} of {registry} failed")]
    Token {
        /// The registry's name.
        registry: String,
        /// What was asked for.
        what: String,
        /// What happened.
        source: Box<oci_client::errors::OciDistributionError>,
    },
    /// The registry wants a token over TLS and this machine has no certificates to check it with.
    #[error("no CA certificates were found on this machine; name a bundle in SSL_CERT_FILE")]
    NoCertificates,
    /// A document is longer than it may be.
    #[error("{what} of {registry} has more than {limit} bytes")]
    TooLarge {
        /// The registry's name.
        registry: String,
        /// What was asked for.
        what: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The HTTP client could not be made.
    #[error("preparing HTTP failed")]
    Setup(#[source] reqwest::Error),
}

impl Error {
    /// Whether the same request might succeed if it were made again now.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Token { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            _ => false,
        }
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;
