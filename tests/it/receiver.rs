//! A registry on loopback that takes what is pushed, as far as a test lets it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use ::prebake::fixture::{Body, full};
use ::prebake::oci::{Digest, media_type};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::support::registry::respond;

/// What it has.
#[derive(Default)]
pub struct State {
    /// By repository and digest.
    pub blobs: BTreeMap<(String, String), Bytes>,
    /// Media type and bytes, by repository and tag or digest.
    pub documents: BTreeMap<(String, String), (String, Bytes)>,
    uploads: BTreeMap<String, Vec<u8>>,
    /// Uploads that ever began.
    begun: usize,
    /// `METHOD path?query content-range`, as they came.
    pub asked: Vec<String>,
}

/// A request, before it is answered.
pub struct Asked<'a> {
    pub request: &'a Request<Incoming>,
    pub path: &'a str,
    /// How many of its method came, with it.
    pub number: usize,
}

impl Asked<'_> {
    pub fn is(&self, method: &str, part: &str) -> bool {
        self.request.method() == method && self.path.contains(part)
    }
}

/// What goes wrong.
pub enum Fault {
    Answer(Response<Body>),
    /// So many bytes of the body are kept, and the connection is dropped.
    Cut(usize),
    /// It is taken, and said to be something else.
    Claim(String),
}

/// How it is.
#[derive(Clone, Default)]
pub struct Manner {
    /// Locations are whole URLs.
    pub absolute: bool,
    pub min_chunk: Option<u64>,
    /// It knows of mounts.
    pub mounts: bool,
    /// It lists referrers by itself.
    pub referrers: bool,
}

type Faults = dyn Fn(&Asked<'_>) -> Option<Fault> + Send + Sync;

pub struct Receiver {
    pub state: Arc<Mutex<State>>,
    name: String,
    _runtime: tokio::runtime::Runtime,
}

impl Receiver {
    pub fn start(manner: Manner, faults: impl Fn(&Asked<'_>) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let state: Arc<Mutex<State>> = Arc::default();
        let (faults, shared, own) = (Arc::new(faults) as Arc<Faults>, state.clone(), name.clone());
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (faults, state, manner, name) = (faults.clone(), shared.clone(), manner.clone(), own.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(request, &state, &manner, &name, &*faults));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { state, name, _runtime: runtime }
    }

    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// What a tag leads to.
    pub fn document(&self, repository: &str, target: &str) -> Option<Bytes> {
        let state = self.state.lock().unwrap();
        state.documents.get(&(repository.to_owned(), target.to_owned())).map(|(_, bytes)| bytes.clone())
    }
}

async fn answer(
    request: Request<Incoming>,
    state: &Mutex<State>,
    manner: &Manner,
    name: &str,
    faults: &Faults,
) -> io::Result<Response<Body>> {
    let (method, uri) = (request.method().to_string(), request.uri().clone());
    let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default().to_owned());
    let range = request.headers().get("content-range").map(|value| value.to_str().unwrap().to_owned());
    let number = {
        let mut state = state.lock().unwrap();
        let line = format!("{method} {path}?{query} {}", range.clone().unwrap_or_default());
        state.asked.push(line);
        state.asked.iter().filter(|line| line.starts_with(&format!("{method} "))).count()
    };
    let kind = request.headers().get("content-type").map_or("", |value| value.to_str().unwrap()).to_owned();
    let fault = faults(&Asked { request: &request, path: &path, number });
    let cut = match fault {
        Some(Fault::Answer(response)) => return Ok(response),
        Some(Fault::Cut(at)) => Some(at),
        _ => None,
    };
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        bytes.extend_from_slice(frame.data_ref().unwrap());
        if let Some(at) = cut.filter(|at| bytes.len() >= *at) {
            let id = path.rsplit('/').next().unwrap();
            state.lock().unwrap().uploads.get_mut(id).unwrap().extend_from_slice(&bytes[..at]);
            return Err(io::Error::other("cut"));
        }
    }
    let mut state = state.lock().unwrap();
    let claim = if let Some(Fault::Claim(claim)) = fault { Some(claim) } else { None };
    Ok(state.take(&method, &path, &query, &kind, range, bytes, (manner, name, claim)))
}

fn param<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn plain(status: u16, headers: &[(&str, &str)]) -> Response<Body> {
    respond(status, headers, full(""))
}

impl State {
    #[expect(clippy::too_many_arguments, reason = "a request in its parts")]
    fn take(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        kind: &str,
        range: Option<String>,
        body: Vec<u8>,
        (manner, name, claim): (&Manner, &str, Option<String>),
    ) -> Response<Body> {
        let rest = path.strip_prefix("/v2/").unwrap();
        if let Some((repository, id)) = rest.split_once("/blobs/uploads/") {
            return self.upload(method, (repository, id), query, range, body, manner, name);
        }
        if let Some((repository, digest)) = rest.split_once("/blobs/") {
            return match self.blobs.get(&(repository.to_owned(), digest.to_owned())) {
                Some(bytes) => respond(200, &[], full(bytes.clone())),
                None => plain(404, &[]),
            };
        }
        if let Some((repository, subject)) = rest.split_once("/referrers/") {
            return if manner.referrers { self.referrers(repository, subject) } else { plain(404, &[]) };
        }
        if let Some((repository, _)) = rest.split_once("/tags/") {
            return self.tags(repository, query);
        }
        let (repository, target) = rest.split_once("/manifests/").unwrap();
        let key = (repository.to_owned(), target.to_owned());
        if method == "PUT" {
            let digest = Digest::of(&body).to_string();
            let value: Value = serde_json::from_slice(&body).unwrap();
            let parts = ["manifests", "layers"].into_iter().filter_map(|key| value[key].as_array()).flatten();
            let has = |part: &Value| {
                let key = (repository.to_owned(), part["digest"].as_str().unwrap().to_owned());
                self.blobs.contains_key(&key) || self.documents.contains_key(&key)
            };
            // A registry takes what is whole.
            if !parts.into_iter().all(has) {
                return plain(400, &[]);
            }
            let document = (kind.to_owned(), Bytes::from(body));
            self.documents.insert((repository.to_owned(), digest.clone()), document.clone());
            self.documents.insert(key, document);
            let said = claim.unwrap_or(digest);
            let subject = value["subject"]["digest"].as_str().unwrap_or_default();
            let mut headers = vec![("docker-content-digest", said.as_str())];
            if manner.referrers && !subject.is_empty() {
                headers.push(("oci-subject", subject));
            }
            return plain(201, &headers);
        }
        match self.documents.get(&key) {
            Some((kind, bytes)) => respond(
                200,
                &[("content-type", kind), ("docker-content-digest", Digest::of(bytes).as_str())],
                full(if method == "HEAD" { Bytes::new() } else { bytes.clone() }),
            ),
            None => plain(404, &[]),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a request in its parts")]
    fn upload(
        &mut self,
        method: &str,
        (repository, id): (&str, &str),
        query: &str,
        range: Option<String>,
        body: Vec<u8>,
        manner: &Manner,
        name: &str,
    ) -> Response<Body> {
        self.begun += usize::from(id.is_empty());
        let id = if id.is_empty() { format!("u{}", self.begun) } else { id.to_owned() };
        let host = if manner.absolute { format!("http://{name}") } else { String::new() };
        let location = format!("{host}/v2/{repository}/blobs/uploads/{id}?_state=a%2Fb&x=1");
        let min_chunk = manner.min_chunk.unwrap_or_default().to_string();
        let mut headers = vec![("location", location.as_str())];
        if manner.min_chunk.is_some() {
            headers.push(("oci-chunk-min-length", &min_chunk));
        }
        if method == "POST" {
            if let (Some(digest), Some(from), true) = (param(query, "mount"), param(query, "from"), manner.mounts) {
                let digest = digest.replace("%3A", ":");
                if let Some(bytes) = self.blobs.get(&(from.replace("%2F", "/"), digest.clone())).cloned() {
                    self.blobs.insert((repository.to_owned(), digest), bytes);
                    return plain(201, &[]);
                }
            }
            self.uploads.insert(id, Vec::new());
            return plain(202, &headers);
        }
        // What the location said has to come back.
        if !query.starts_with("_state=a%2Fb&x=1") || !self.uploads.contains_key(&id) {
            return plain(404, &[]);
        }
        let upload = self.uploads.get_mut(&id).unwrap();
        if let Some(range) = range
            && range.split('-').next().unwrap() != upload.len().to_string()
        {
            return plain(416, &[]);
        }
        upload.extend_from_slice(&body);
        let had = format!("0-{}", upload.len().saturating_sub(1));
        headers.push(("range", &had));
        match method {
            "PATCH" => plain(202, &headers),
            "GET" => plain(204, &headers),
            _ => {
                let bytes = Bytes::from(self.uploads.remove(&id).unwrap());
                let digest = Digest::of(&bytes).to_string();
                if param(query, "digest").unwrap().replace("%3A", ":") != digest {
                    return plain(400, &[]);
                }
                self.blobs.insert((repository.to_owned(), digest.clone()), bytes);
                plain(201, &[("docker-content-digest", &digest)])
            }
        }
    }

    fn referrers(&self, repository: &str, subject: &str) -> Response<Body> {
        let all = self.documents.iter().filter(|((own, target), _)| own == repository && target.contains(':'));
        let entries: Vec<Value> = all
            .filter_map(|((_, digest), (kind, bytes))| {
                let value: Value = serde_json::from_slice(bytes).unwrap();
                (value["subject"]["digest"] == subject).then(|| {
                    json!({"mediaType": kind, "digest": digest, "size": bytes.len(),
                        "artifactType": value["artifactType"]})
                })
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
        respond(200, &[("content-type", media_type::OCI_INDEX)], full(index.to_string()))
    }

    /// Two a page.
    fn tags(&self, repository: &str, query: &str) -> Response<Body> {
        let last = param(query, "last").unwrap_or_default();
        let all = self.documents.keys().filter(|(own, target)| own == repository && !target.contains(':'));
        let tags: Vec<&str> = all.map(|(_, tag)| tag.as_str()).filter(|tag| *tag > last).collect();
        let page = &tags[..tags.len().min(2)];
        let link = format!("</v2/{repository}/tags/list?last={}>; rel=\"next\"", page.last().unwrap_or(&""));
        let more = [("link", link.as_str())];
        let headers = if tags.len() > 2 { &more[..] } else { &[] };
        respond(200, headers, full(json!({"name": repository, "tags": page}).to_string()))
    }
}
