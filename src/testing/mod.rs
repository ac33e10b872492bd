//! A registry for tests: on a free port of 127.0.0.1, with images made from a spec, which can ask for credentials, misbehave on
//! request, and remembers what it was asked. It needs no runtime of the test's, and is gone when it is dropped.
//!
//! A whole test:
//!
//! ```no_run
#![doc = include_str!("../../docs/snippets/fixture_test.rs")]
//! ```

mod answer;
mod fault;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use answer::Answers;
pub use answer::Auth;
pub use fault::{Fault, FaultError};

use crate::fixture::{Content, Server};

/// How a registry behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; at port 0, at a free one.
    pub address: SocketAddr,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Whom it answers.
    pub auth: Auth,
}

impl Default for Options {
    /// Everybody, on a free port of 127.0.0.1, without faults.
    fn default() -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, 0).into(), faults: Vec::new(), auth: Auth::None }
    }
}

/// A registry that runs until it is dropped.
pub struct Registry {
    server: Server,
    asked: Arc<Mutex<Vec<String>>>,
    // Behind the server, which ends inside it.
    _runtime: tokio::runtime::Runtime,
}

impl Registry {
    /// Starts to serve.
    ///
    /// # Errors
    /// No free port, no thread.
    pub fn start(content: Content, options: Options) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        let answers = Answers::new(content, options.faults, options.auth);
        let handler = Arc::new(move |request: &hyper::Request<hyper::body::Incoming>| {
            let line = format!("{} {}", request.method(), request.uri());
            log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            answers.answer(request)
        });
        let server = runtime.block_on(Server::bind(options.address, handler))?;
        Ok(Self { server, asked, _runtime: runtime })
    }

    /// `127.0.0.1:PORT`.
    pub fn name(&self) -> String {
        self.server.name()
    }

    /// How an image of it is named, given its name in the spec.
    pub fn reference(&self, image: &str) -> String {
        format!("{}/{image}", self.name())
    }

    /// The requests since the last call, in their order: `GET /v2/app/manifests/1`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
