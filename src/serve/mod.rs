//! A read-only registry (OCI distribution specification 1.1: pull and content discovery) over a place that holds images.
//!
//! What is served is known when it starts ([`Server::bind`] looks at all documents); blobs are read as they are asked for, in
//! buffers that all connections share. `docs/serve.md` says how images become repositories.

mod answer;
mod auth;
mod body;
mod buffers;
mod connection;
mod holdings;
mod metrics;
mod range;
mod route;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use answer::Shared;
pub use auth::Users;
pub use connection::{GRACE, MAX_CONNECTIONS, STALL_TIMEOUT};
use holdings::Holdings;
pub use tls::Identity;

use crate::source::{self, Local};

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The place cannot be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The address cannot be listened on.
    #[error("listening on {address} failed")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// Anyone could read everything.
    #[error(
        "{address} can be reached from other machines, and anyone there could read every image: protect it by --tls-cert \
         and --tls-key or by --auth-file, or say --public if that is meant"
    )]
    Exposed {
        /// The address to listen on.
        address: SocketAddr,
    },
    /// A file cannot be read.
    #[error("reading {} failed", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A line of a file of users is no user with a password.
    #[error("line {line} of {} is not USER:PASSWORD", path.display())]
    AuthLine {
        /// Which file.
        path: PathBuf,
        /// Which line, counted from 1.
        line: usize,
    },
    /// A file of users has none.
    #[error("{} has no USER:PASSWORD line: nobody could ask for anything", path.display())]
    NoUsers {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate or its key cannot be used.
    #[error("{} cannot be used for TLS: {why}", path.display())]
    Tls {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A thread of prebake's own was lost.
    #[error("an internal task failed")]
    Task,
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How to serve.
pub struct Options {
    /// Where; port 0 is any that is free.
    pub listen: SocketAddr,
    /// Whom clients see by TLS; plain HTTP without.
    pub identity: Option<Identity>,
    /// Who may ask; anyone without.
    pub users: Option<Users>,
    /// Whether anyone may ask from other machines.
    pub public: bool,
    /// How long a client may take no byte of what is sent to it; [`STALL_TIMEOUT`] unless there is a reason.
    pub stall: Duration,
}

/// A request that is over.
#[derive(Debug)]
pub struct Access<'a> {
    /// Who asked.
    pub peer: SocketAddr,
    /// How.
    pub method: &'a str,
    /// For what, as it was written.
    pub path: &'a str,
    /// What it was answered with.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// Whether those are all there were to send.
    pub whole: bool,
    /// How long it took.
    pub elapsed: Duration,
    /// What went wrong here, which the client is not told.
    pub problem: Option<&'a str>,
}

/// Gets every request that is over. It is called where requests are answered, so it must not wait.
pub type Log = Arc<dyn Fn(&Access<'_>) + Send + Sync>;

/// A registry that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Identity>,
    shared: Arc<Shared>,
    stall: Duration,
}

impl Server {
    /// Looks at what there is, and listens. Requests are answered by [`Server::run`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn bind(local: Local, options: Options, log: Log) -> Result<Self> {
        let Options { listen, identity, users, public, stall } = options;
        if !(listen.ip().is_loopback() || identity.is_some() || users.is_some() || public) {
            return Err(Error::Exposed { address: listen });
        }
        let local = Arc::new(local);
        let place = local.clone();
        let holdings = tokio::task::spawn_blocking(move || Holdings::of(&place)).await.map_err(|_| Error::Task)??;
        let bind = |source| Error::Bind { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let shared = Shared { local, holdings, users, metrics: Arc::default(), buffers: Arc::default(), log };
        Ok(Self { listener, address, tls: identity, shared: Arc::new(shared), stall })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it is reached: `http://ADDRESS`, or `https://ADDRESS`.
    pub fn url(&self) -> String {
        format!("http{}://{}", if self.tls.is_some() { "s" } else { "" }, self.address)
    }

    /// Names of its repositories, each once.
    pub fn repositories(&self) -> &[String] {
        self.shared.holdings.catalog()
    }

    /// Answers requests until `stop` is there; then those that are being answered have [`GRACE`] to end.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let tls = self.tls.map(Identity::into_acceptor);
        connection::serve(self.listener, tls, self.shared, self.stall, stop).await;
    }
}
