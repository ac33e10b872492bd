//! The client's side of the OCI distribution API: documents and blobs over HTTP, as production needs them.
//!
//! reqwest carries the bytes (HTTP/1.1 only: parallel blobs get connections of their own, and nothing decodes a body behind
//! the digest's back). oci-client knows the codes in the registry's error bodies. What hosts stand in for a registry is
//! containerd's `hosts.toml`; what may be asked, how often and when again, one budget for each host decides.

mod auth;
mod blob;
mod client;
mod credentials;
mod gate;
mod hosts;
mod passing;
mod patience;
mod push;
mod send;
mod through;
mod tls;
mod upload;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use client::{Client, RawDocument, Room};
pub use credentials::{CredentialsError, Keychain, Look, Plugins};
pub use hosts::{Capabilities, Host, HostsDirs, HostsError};
pub use passing::{BlobBytes, ReadError};
pub use push::Mounted;
use reqwest::header::HeaderMap;
pub use through::{Blob, Waiting};
pub use upload::Upload;

use crate::cache::{self, Trouble};

/// Tries of one request, or of one transfer since it last came on, unless asked otherwise.
pub const DEFAULT_TRIES: u32 = 10;
/// How long a connection may be silent, unless asked otherwise.
pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_mins(1);
/// Requests under way at a host, unless asked otherwise.
pub const DEFAULT_PER_HOST: u8 = 10;
/// A host that asks for more patience than this is not waited for.
const LONGEST_PATIENCE: Duration = Duration::from_mins(15);

/// Where `hosts.toml` files are looked for, in a root and on this machine: containerd's usual `config_path`.
pub const HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// How to talk to registries.
#[derive(Clone, Default)]
pub struct Options {
    /// Plain HTTP to every registry that no `hosts.toml` is about.
    pub plain_http: bool,
    /// Who we are.
    pub keychain: Keychain,
    /// Where hosts stand in for registries.
    pub hosts: HostsDirs,
    /// Certificates to trust besides the machine's.
    pub ca_files: Vec<PathBuf>,
    /// How much, how often.
    pub manners: Manners,
    /// Where what is asked for by digest is looked for first, and what comes from registries is put.
    pub cache: Option<cache::Options>,
}

/// What is asked of hosts at most.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    /// Tries of one request, or of one transfer since it last came on.
    pub tries: u32,
    /// How long a connection may be silent.
    pub stall_timeout: Duration,
    /// Requests under way at a host.
    pub per_host: usize,
    /// Requests to a host that begin in a second; `None` for any number.
    pub requests_a_second: Option<f64>,
    /// Bytes a second from all hosts together; `None` for any number.
    pub bandwidth: Option<u64>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            tries: DEFAULT_TRIES,
            stall_timeout: DEFAULT_STALL_TIMEOUT,
            per_host: DEFAULT_PER_HOST.into(),
            requests_a_second: None,
            bandwidth: None,
        }
    }
}

impl Manners {
    /// Time between the beginnings of two requests to a host.
    fn interval(&self) -> Duration {
        let rate = self.requests_a_second.filter(|rate| *rate > 0.0);
        rate.and_then(|rate| Duration::try_from_secs_f64(1.0 / rate).ok()).unwrap_or_default()
    }
}

/// What a listener may tell the user of.
pub enum Notice<'n> {
    /// Something is asked for again.
    Again {
        /// What went wrong.
        error: &'n Error,
        /// Tries so far.
        tries: u32,
        /// Tries at most.
        of: u32,
        /// How long this waits for its own sake.
        wait: Duration,
    },
    /// A host asked for patience; nobody asks it anything for so long.
    Limited {
        /// The host.
        host: &'n str,
        /// HTTP status.
        status: u16,
        /// How long.
        wait: Duration,
    },
    /// A host says how many pulls are left.
    Quota {
        /// The host.
        host: &'n str,
        /// What it says.
        quota: Quota,
    },
    /// Something is wrong with the cache.
    Cache(&'n Trouble<'n>),
}

/// Takes notices.
pub type Notify = Arc<dyn Fn(&Notice<'_>) + Send + Sync>;

/// How many pulls a registry allows, and how many are left (Docker Hub's `RateLimit-Limit` and `RateLimit-Remaining`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Pulls in the window.
    pub limit: u64,
    /// Pulls that are left.
    pub remaining: u64,
    /// The window, in seconds.
    pub window: u64,
}

impl Quota {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = |name| headers.get(name)?.to_str().ok();
        let number = |text: &str| text.split(';').next()?.trim().parse().ok();
        let limit = value("ratelimit-limit")?;
        let window = limit.split(';').find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
        let remaining = number(value("ratelimit-remaining")?)?;
        // Others use the same words for what they allow in a second.
        let window = window.filter(|seconds| *seconds >= 3600)?;
        Some(Self { limit: number(limit)?, remaining, window })
    }

    /// Whether less than a tenth is left.
    fn is_low(self) -> bool {
        self.remaining < self.limit.div_ceil(10)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} pulls in {} hours", self.remaining, self.limit, self.window / 3600)
    }
}

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such image or blob, or the registry does not admit it.
    #[error("{host} has no {what}{detail}")]
    NotFound {
        /// Who said so.
        host: String,
        /// What was asked for.
        what: String,
        /// The host's own words, with a colon before them, or nothing.
        detail: String,
    },
    /// Credentials are missing, wrong, or not enough.
    #[error("{host} does not give {what} {who}{detail}")]
    Unauthorized {
        /// Who said so.
        host: String,
        /// What was asked for.
        what: String,
        /// With which credentials.
        who: String,
        /// The host's own words, with a colon before them, or nothing.
        detail: String,
    },
    /// The host answered with another status.
    #[error("{host} answered {status} for {what}{detail}")]
    Status {
        /// Who said so.
        host: String,
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// The host's own words, with a colon before them, or nothing.
        detail: String,
    },
    /// The host asks for patience.
    #[error("{host} answered {status} for {what}{}{detail}", wish(*retry_after))]
    Limited {
        /// Who said so.
        host: String,
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// How long it wants to be left alone, if it says so.
        retry_after: Option<Duration>,
        /// The host's own words, with a colon before them, or nothing.
        detail: String,
    },
    /// The host said that no pull is left, and was not asked.
    #[error("{host} was not asked for {what}: it said that {quota} are left; log in, or try later")]
    Quota {
        /// The host.
        host: String,
        /// What would have been asked for.
        what: String,
        /// What it said.
        quota: Quota,
    },
    /// The host could not be reached, or the connection broke.
    #[error("asking {host} for {what} failed{}", distrust(source))]
    Transport {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// Nothing came, or next to nothing.
    #[error("{host} sent next to nothing of {what} in {} s", limit.as_secs())]
    Stalled {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// The connection ended, as if that were all.
    #[error("{host} gave only {got} bytes of {what}")]
    CutOff {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What came, in bytes.
        got: u64,
    },
    /// An answer to a request for a part that is not that part.
    #[error("{host} answered a request for a part of {what} with {got}")]
    WrongRange {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said that it is.
        got: String,
    },
    /// The host says of a document that it has another digest than it has.
    #[error("{host} says that {what} is {claimed}; what it sent is {got}")]
    WrongClaim {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// `Docker-Content-Digest`.
        claimed: String,
        /// Of the bytes.
        got: String,
    },
    /// The address that a redirect led to does not give it; a signed one may have expired.
    #[error("{host}, to which the registry redirects, answered {status} for {what}")]
    Address {
        /// The host of the address.
        host: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects requests for {what} {why}")]
    Redirect {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Where to.
        why: &'static str,
    },
    /// A token server gave something else than a token.
    #[error("getting a token for {what} of {host} from {realm} failed: {why}")]
    Token {
        /// The registry.
        host: String,
        /// The token server.
        realm: String,
        /// What was asked for.
        what: String,
        /// What happened.
        why: String,
        /// Whether asking again may help.
        passing: bool,
    },
    /// Asked often enough.
    #[error("gave up after {tries} tries in {:.1} s", elapsed.as_secs_f64())]
    GaveUp {
        /// How often.
        tries: u32,
        /// For how long.
        elapsed: Duration,
        /// How the last one failed.
        source: Box<Error>,
    },
    /// No host may be asked for it.
    #[error("{what}: no host of {registry} may be asked for that; `prebake registry explain` shows why")]
    NoHost {
        /// The registry's name.
        registry: String,
        /// What was to be asked for.
        what: String,
    },
    /// A document is longer than it may be.
    #[error("{what} of {host} has more than {limit} bytes")]
    TooLarge {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// An upload went wrong in a way that another one may not.
    #[error("{what} to {host} broke off: {why}")]
    Upload {
        /// The host.
        host: String,
        /// What was uploaded.
        what: String,
        /// What happened.
        why: String,
    },
    /// What was to be pushed could not be read.
    #[error("{what}: reading what is to be pushed failed")]
    Read {
        /// What was uploaded.
        what: String,
        /// Why.
        source: ReadError,
    },
    /// What was to be pushed is something else; the upload was left unfinished.
    #[error("{what}: what came of it is {got}; it was not pushed")]
    WrongBytes {
        /// What was uploaded.
        what: String,
        /// Its size or digest.
        got: String,
    },
    /// A list of tags that cannot be used.
    #[error("{what} cannot be used: {why}")]
    NoTags {
        /// What was asked for.
        what: String,
        /// Why.
        why: String,
    },
    /// It cannot be told which hosts to ask.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// It cannot be told who we are.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A certificate or key cannot be used.
    #[error("the certificate or key in {} cannot be used", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cache that is required does not do something.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The HTTP client could not be made.
    #[error("preparing HTTP failed")]
    Setup(#[source] reqwest::Error),
}

fn wish(retry_after: Option<Duration>) -> String {
    retry_after.map_or(String::new(), |wait| format!(" and wants to be asked again in {} s", wait.as_secs()))
}

/// What helps where a host's certificate is the trouble.
fn distrust(error: &reqwest::Error) -> &'static str {
    if send::is_distrust(error) { "; where its certificate is to be trusted, --ca-file names whose it is" } else { "" }
}

impl Error {
    /// Whether the same request might succeed if it were made again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Transport { source, .. } => !send::is_distrust(source),
            Self::Stalled { .. } | Self::CutOff { .. } | Self::WrongRange { .. } | Self::Address { .. } => true,
            Self::Upload { .. } | Self::WrongBytes { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 408,
            Self::Limited { retry_after, .. } => retry_after.is_none_or(|wait| wait <= LONGEST_PATIENCE),
            Self::Token { passing, .. } => *passing,
            _ => false,
        }
    }

    /// How many tries it is worth, of at most so many.
    fn tries(&self, most: u32) -> u32 {
        match self {
            // Resolved again it works, or the registry has nothing better.
            Self::Address { .. } | Self::Upload { .. } | Self::WrongBytes { .. } => most.min(3),
            // Nobody is there: a name or port may be wrong.
            Self::Transport { source, .. } if source.is_connect() => most.min(4),
            _ => most,
        }
    }

    /// How much it tells: of several hosts' errors, the one that got furthest is shown (containerd's `firstErrPriority`).
    fn weight(&self) -> u8 {
        match self {
            Self::Transport { .. } | Self::Stalled { .. } => 1,
            Self::NotFound { .. } => 2,
            _ => 3,
        }
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// A lock whose holder may have panicked: nothing here is left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
