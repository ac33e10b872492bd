//! Answers to requests (distribution specification 1.1, "Pull" and "Content Discovery").

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    IF_NONE_MATCH, IF_RANGE, LINK, RANGE, WWW_AUTHENTICATE,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::body::{Blob, Body, Source};
use super::buffers::Buffers;
use super::holdings::{self, Holdings, Part, Repository};
use super::metrics::Metrics;
use super::range::{Asked, asked};
use super::route::{self, Refusal, Route, Target, query, route};
use super::{Access, Log, Users};
use crate::oci::{Digest, media_type};
use crate::source::{self, Local};

const JSON: &str = "application/json";
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// What all connections share.
pub(super) struct Shared {
    pub(super) local: Arc<Local>,
    pub(super) holdings: Holdings,
    pub(super) users: Option<Users>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) buffers: Arc<Buffers>,
    pub(super) log: Log,
}

/// A request that is told of when its answer is over.
pub(super) struct Record {
    shared: Arc<Shared>,
    peer: SocketAddr,
    method: Method,
    path: String,
    status: u16,
    begun: Instant,
    bytes: u64,
    /// Bytes that are still to be sent.
    left: u64,
    problem: Option<String>,
}

impl Record {
    pub(super) fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.left = self.left.saturating_sub(bytes);
        self.shared.metrics.sent(bytes);
    }

    pub(super) fn failed(&mut self, problem: String) {
        self.problem = Some(problem);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        (self.shared.log)(&Access {
            peer: self.peer,
            method: self.method.as_str(),
            path: &self.path,
            status: self.status,
            bytes: self.bytes,
            whole: self.left == 0,
            elapsed: self.begun.elapsed(),
            problem: self.problem.as_deref(),
        });
    }
}

/// What a request comes to: an answer, or why there is none; with what its user is not told.
enum Failed {
    Refusal(Refusal),
    Source(source::Error),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

type Reply = Response<Source>;

/// Answers a request.
pub(super) async fn answer<B>(shared: &Arc<Shared>, peer: SocketAddr, request: Request<B>) -> Response<Body> {
    let begun = Instant::now();
    let (head, _) = request.into_parts();
    let (reply, problem) = match respond(shared, &head).await {
        Ok(reply) => (reply, None),
        Err(Failed::Refusal(refusal)) => (refuse(&refusal), None),
        Err(Failed::Source(error)) => {
            let refusal = Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "UNKNOWN",
                "it cannot be read; whoever runs this registry finds out why in its log",
            );
            (refuse(&refusal), Some(error.to_string()))
        }
    };
    let status = reply.status().as_u16();
    shared.metrics.request(status);
    let (mut parts, mut source) = reply.into_parts();
    insert(&mut parts.headers, API_VERSION, "registry/2.0");
    if head.method == Method::HEAD {
        source = Source::Bytes(Bytes::new());
    }
    let record = Record {
        shared: shared.clone(),
        peer,
        method: head.method,
        path: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        status,
        begun,
        bytes: 0,
        left: source.len(),
        problem,
    };
    Response::from_parts(parts, Body::new(source, record))
}

async fn respond(shared: &Arc<Shared>, head: &Parts) -> Result<Reply, Failed> {
    if shared.users.as_ref().is_some_and(|users| !users.admit(header(&head.headers, &AUTHORIZATION))) {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            "this registry wants a user and a password",
        )
        .into());
    }
    let route = route(head.uri.path());
    if head.method != Method::GET && head.method != Method::HEAD {
        return Err(match route {
            Err(refusal) if refusal.code == "DIGEST_INVALID" => refusal,
            _ => Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only"),
        }
        .into());
    }
    let asked = head.uri.query();
    let ns = query(asked, "ns").filter(|ns| !ns.is_empty());
    let ns = ns.as_deref();
    match route? {
        Route::Base => Ok(reply(StatusCode::OK, JSON, "{}")),
        Route::Metrics => Ok(reply(StatusCode::OK, "text/plain; version=0.0.4", shared.metrics.text())),
        Route::Catalog => {
            let all = shared.holdings.catalog().iter().map(String::as_str);
            let page = route::page(asked)?;
            let (repositories, more) = holdings::page(all, &page);
            Ok(list("/v2/_catalog", None, &page, more, &json!({"repositories": repositories})))
        }
        Route::Tags(name) => {
            let repositories = repositories(shared, &name, ns)?;
            let mut all: Vec<&str> = repositories.iter().flat_map(|repository| repository.tags()).collect();
            all.sort_by_cached_key(|tag| holdings::listed(tag));
            all.dedup();
            let page = route::page(asked)?;
            let (tags, more) = holdings::page(all.into_iter(), &page);
            let ns = ns.filter(|ns| shared.holdings.knows_registry(ns));
            Ok(list(&format!("/v2/{name}/tags/list"), ns, &page, more, &json!({"name": name, "tags": tags})))
        }
        Route::Manifest(name, target) => manifest(shared, head, &name, ns, target).await,
        Route::Blob(name, digest) => {
            let repositories = repositories(shared, &name, ns)?;
            let Some(part) = repositories.iter().find_map(|repository| repository.part(&digest)) else {
                let message = format!("no image of {name} here has blob {digest}");
                return Err(Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message).into());
            };
            content(shared, head, digest, "application/octet-stream", part, "BLOB_UNKNOWN").await
        }
        Route::Referrers(name, digest) => {
            let kind = query(asked, "artifactType").filter(|kind| !kind.is_empty());
            Ok(referrers(&shared.holdings.named(&name, ns), &digest, kind.as_deref()))
        }
    }
}

/// Repositories of a name, at least one.
fn repositories<'s>(shared: &'s Shared, name: &str, ns: Option<&str>) -> Result<Vec<&'s Repository>, Refusal> {
    let found = shared.holdings.named(name, ns);
    if found.is_empty() {
        let of = ns.map_or_else(String::new, |ns| format!(" of {ns}"));
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "NAME_UNKNOWN",
            format!("there is no repository {name}{of} here"),
        ));
    }
    Ok(found)
}

async fn manifest(
    shared: &Arc<Shared>,
    head: &Parts,
    name: &str,
    ns: Option<&str>,
    target: Target,
) -> Result<Reply, Failed> {
    let repositories = repositories(shared, name, ns)?;
    let unknown = |message: String| Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message);
    let digest = match target {
        Target::Digest(digest) => digest,
        Target::Tag(tag) => {
            let found = repositories.iter().find_map(|repository| repository.tag(&tag));
            found.ok_or_else(|| unknown(format!("there is no {name}:{tag} here")))?.clone()
        }
    };
    match repositories.iter().find_map(|repository| repository.part(&digest)) {
        Some(part @ Part::Document(kind)) => content(shared, head, digest, kind, part, "MANIFEST_UNKNOWN").await,
        Some(Part::Damaged) => {
            Err(unknown(format!("what is here as {digest} are other bytes; `prebake repair` mends it")).into())
        }
        _ => Err(unknown(format!("no image of {name} here has manifest {digest}")).into()),
    }
}

/// A document or a blob, or a part of it.
async fn content(
    shared: &Arc<Shared>,
    head: &Parts,
    digest: Digest,
    kind: &str,
    part: &Part,
    code: &'static str,
) -> Result<Reply, Failed> {
    let tag = format!("\"{digest}\"");
    let is_same = |known: &str| {
        known.split(',').any(|one| matches!(one.trim(), "*") || one.trim().trim_start_matches("W/") == tag)
    };
    if header(&head.headers, &IF_NONE_MATCH).is_some_and(is_same) {
        let mut reply = Response::new(Source::Bytes(Bytes::new()));
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        insert(reply.headers_mut(), ETAG, &tag);
        return Ok(reply);
    }
    let get = head.method == Method::GET;
    let range = header(&head.headers, &RANGE).filter(|_| get).map(str::to_owned);
    let if_range = header(&head.headers, &IF_RANGE).map(str::to_owned);
    let (local, wanted, own) = (shared.local.clone(), digest.clone(), tag.clone());
    let open = move || -> Result<_, source::Error> {
        let Some(size) = local.size(&wanted)? else { return Ok(None) };
        let asked = asked(range.as_deref(), if_range.as_deref(), &own, size);
        let from = match &asked {
            Asked::Part(part) => part.start,
            _ => 0,
        };
        let reader = if get && asked != Asked::Beyond { Some(local.read(&wanted, from)?) } else { None };
        Ok(Some((size, asked, reader)))
    };
    let opened = tokio::task::spawn_blocking(open).await.unwrap_or(Err(source::Error::Task));
    let Some((size, asked, reader)) = opened.map_err(Failed::Source)? else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, code, absent(&digest, part)).into());
    };
    let (status, Range { start, end }) = match &asked {
        Asked::Whole => (StatusCode::OK, 0..size),
        Asked::Part(part) => (StatusCode::PARTIAL_CONTENT, part.clone()),
        Asked::Beyond => {
            let message = format!("{digest} has {size} bytes");
            let mut reply = refuse(&Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "UNSUPPORTED", message));
            insert(reply.headers_mut(), CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(reply);
        }
    };
    let source = reader.map_or_else(
        || Source::Bytes(Bytes::new()),
        |reader| Source::Blob(Blob::new(shared.buffers.clone(), reader, end - start)),
    );
    let mut reply = Response::new(source);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    insert(headers, CONTENT_TYPE, kind);
    insert(headers, CONTENT_LENGTH, &(end - start).to_string());
    insert(headers, ACCEPT_RANGES, "bytes");
    insert(headers, DIGEST, digest.as_str());
    insert(headers, ETAG, &tag);
    if status == StatusCode::PARTIAL_CONTENT {
        insert(headers, CONTENT_RANGE, &format!("bytes {start}-{}/{size}", end - 1));
    }
    Ok(reply)
}

/// Why what an image leads to is not here.
fn absent(digest: &Digest, part: &Part) -> String {
    match part {
        Part::Layer => {
            format!("layer {digest} is not here: it was discarded after unpacking (unpack-discard), or never fetched")
        }
        Part::Document(_) | Part::Damaged => {
            format!("manifest {digest} is not here: it was not fetched, as those of other platforms are not")
        }
        Part::Blob => format!("blob {digest} is not here: it was not fetched"),
    }
}

fn referrers(repositories: &[&Repository], subject: &Digest, kind: Option<&str>) -> Reply {
    let mut manifests: Vec<_> = repositories.iter().flat_map(|repository| repository.referrers(subject)).collect();
    manifests.dedup_by_key(|referrer| Arc::as_ptr(referrer));
    manifests.retain(|referrer| kind.is_none_or(|kind| referrer.artifact_type.as_deref() == Some(kind)));
    let manifests: Vec<_> = manifests.into_iter().map(AsRef::as_ref).collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
    let mut reply = reply(StatusCode::OK, media_type::OCI_INDEX, index.to_string());
    if kind.is_some() {
        insert(reply.headers_mut(), FILTERS, "artifactType");
    }
    reply
}

/// A page of a list; the header `Link` says where it goes on (RFC 5988).
fn list(path: &str, ns: Option<&str>, page: &route::Page, more: Option<&str>, value: &impl Serialize) -> Reply {
    let mut reply = reply(StatusCode::OK, JSON, serde_json::to_vec(value).unwrap_or_default());
    if let Some(last) = more {
        let ns = ns.map_or_else(String::new, |ns| format!("&ns={ns}"));
        let link = format!("<{path}?n={}&last={last}{ns}>; rel=\"next\"", page.n);
        insert(reply.headers_mut(), LINK, &link);
    }
    reply
}

fn refuse(refusal: &Refusal) -> Reply {
    let error = json!({"errors": [{"code": refusal.code, "message": refusal.message}]});
    let mut reply = reply(refusal.status, JSON, error.to_string());
    match refusal.status {
        StatusCode::UNAUTHORIZED => insert(reply.headers_mut(), WWW_AUTHENTICATE, "Basic realm=\"prebake\""),
        StatusCode::METHOD_NOT_ALLOWED => insert(reply.headers_mut(), ALLOW, "GET, HEAD"),
        _ => {}
    }
    reply
}

fn reply(status: StatusCode, kind: &str, bytes: impl Into<Bytes>) -> Reply {
    let bytes = bytes.into();
    let len = bytes.len().to_string();
    let mut reply = Response::new(Source::Bytes(bytes));
    *reply.status_mut() = status;
    insert(reply.headers_mut(), CONTENT_TYPE, kind);
    insert(reply.headers_mut(), CONTENT_LENGTH, &len);
    reply
}

/// What no header can have, such as a line feed in a media type, is left out.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    headers.extend(value.parse().ok().map(|value| (name, value)));
}

fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
