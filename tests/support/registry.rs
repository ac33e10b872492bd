//! A registry on loopback that can misbehave, and remembers what it was asked.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::prebake::fixture::{Body, Content, Server, paced};
use hyper::body::Incoming;
use hyper::{Request, Response};

pub struct TestRegistry {
    server: Server,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl TestRegistry {
    pub fn start(content: Content) -> Self {
        Self::faulty(content, |_| None)
    }

    pub fn faulty(
        content: Content,
        fault: impl Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into(), content, fault)
    }

    /// One that gives large blobs in chunks, with a pause before each.
    pub fn slow(content: Content, chunk: usize, pause: Duration) -> Self {
        let own = content.clone();
        Self::faulty(content, move |request| {
            let (_, digest) = request.uri().path().rsplit_once("/blobs/")?;
            let (_, bytes) = own.blobs.get(&digest.parse().ok()?)?;
            (bytes.len() > 100_000).then(|| respond(200, &[], paced(bytes, chunk, pause)))
        })
    }

    /// One at an address of its own.
    pub fn on(
        loopback: IpAddr,
        content: Content,
        fault: impl Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        let handler = move |request: &Request<Incoming>| {
            log.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
            fault(request).unwrap_or_else(|| content.answer(request))
        };
        let server = runtime.block_on(Server::start(loopback, Arc::new(handler))).unwrap();
        Self { server, asked, _runtime: runtime }
    }

    /// A reference into this registry.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.name())
    }

    pub fn name(&self) -> String {
        self.server.name()
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

pub fn respond(status: u16, headers: &[(&str, &str)], body: Body) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).unwrap()
}
