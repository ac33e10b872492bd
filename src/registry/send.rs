//! One request to one host: its turn, its signature, its redirects, and what the answer means.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use oci_client::errors::OciEnvelope;
use reqwest::header::{ACCEPT, HeaderMap, IF_RANGE, LOCATION, RANGE, TRANSFER_ENCODING};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use tokio::time::{Instant, timeout};

use super::auth::{Auth, Place, Rights, Signature};
use super::blob::Origin;
use super::gate::{Bandwidth, Gate, Limits, Turn};
use super::hosts::{Host, TlsFiles, is_loopback, with_tls};
use super::passing::Passing;
use super::patience::retry_after;
use super::tls::Trust;
use super::upload::Payload;
use super::{Error, Manners, Notice, Notify, Quota, Result, lock};
use crate::cache::BoxError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Without a cache it goes on as well.
const STORE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const USER_AGENT: &str = concat!("prebake/", env!("CARGO_PKG_VERSION"));
/// As many as Go's client, and so containerd, follows.
const MAX_REDIRECTS: usize = 10;
/// How much of an error's body is read, in bytes, and how long it is waited for.
const MAX_ERROR_BODY: u64 = 64 << 10;
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);
/// A connection that gives less, in bytes a second, is as good as silent.
const SLOWEST: u64 = 128;
/// A connection that gives a mebibyte in less is fast. Who answers at once is near, and slow because the machines are busy, not
/// because the way is long.
const FAST: Duration = Duration::from_millis(10);
const FAST_NEARBY: Duration = Duration::from_millis(40);
const NEAR: Duration = Duration::from_millis(5);

/// What all requests share.
pub(super) struct Sender {
    trust: Trust,
    manners: Manners,
    clients: Mutex<HashMap<Transport, reqwest::Client>>,
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    /// Of hosts that are tried by HTTPS first.
    speaks_tls: Mutex<HashMap<String, bool>>,
    quotas: Mutex<HashMap<String, Quota>>,
    bandwidth: Bandwidth,
    /// Of what goes out: it is in nobody's way that comes in.
    pub(super) uploads: Arc<Bandwidth>,
    pub(super) notify: Notify,
}

/// What makes one HTTP client differ from another.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Transport {
    tls: TlsFiles,
    connect: Duration,
    proxied: bool,
}

/// A request that any host of a registry could answer.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// `manifests`, `blobs`, `referrers` or `tags`.
    pub(super) kind: &'static str,
    pub(super) target: &'a str,
    pub(super) query: Vec<(String, String)>,
    pub(super) accept: &'a str,
    /// Bytes to ask for, and the entity tag they must be of.
    pub(super) range: Option<(String, Option<String>)>,
    /// In words.
    pub(super) what: &'a str,
    pub(super) rights: Rights<'a>,
    /// What goes along.
    pub(super) payload: Option<&'a Payload<'a>>,
}

/// Whatever a server replies, with its body still to come.
struct Reply {
    response: Response,
    /// Given back when the body was read.
    turn: Turn,
    /// How long it took to come.
    after: Duration,
}

/// An answer that is a success, with its body still to come.
pub(super) struct Answer {
    pub(super) response: Response,
    _turn: Turn,
    /// How long it took to come.
    after: Duration,
    pub(super) host: Arc<Host>,
    /// It does not say how long its body is.
    pub(super) silent: bool,
    /// It came from an address, not through the host's API.
    elsewhere: bool,
    pace: Pace,
}

/// How a body comes: only the time that it is waited for counts.
#[derive(Default)]
struct Pace {
    waited: Duration,
    came: u64,
    /// Both, as they were when it was last looked at whether it comes at all.
    before: (Duration, u64),
}

impl Pace {
    fn add(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.came += bytes as u64;
    }

    /// Whether next to nothing came in the last so much time.
    fn is_stalled(&mut self, limit: Duration) -> bool {
        let (waited, came) = (self.waited.saturating_sub(self.before.0), self.came - self.before.1);
        if waited < limit {
            return false;
        }
        self.before = (self.waited, self.came);
        came < SLOWEST * waited.as_secs()
    }
}

impl Answer {
    fn new(Reply { response, turn, after }: Reply, host: &Arc<Host>) -> Self {
        // Chunks say when they end.
        let silent = response.content_length().is_none() && !response.headers().contains_key(TRANSFER_ENCODING);
        let elsewhere = !host.is_at(response.url());
        Self { response, _turn: turn, after, host: host.clone(), silent, elsewhere, pace: Pace::default() }
    }

    /// How much of its body came, in bytes.
    pub(super) fn came(&self) -> u64 {
        self.pace.came
    }

    /// Whether the connection is a fast one.
    pub(super) fn is_fast(&self) -> bool {
        let fast = if self.after < NEAR { FAST_NEARBY } else { FAST };
        self.pace.waited <= fast * u32::try_from(self.pace.came >> 20).unwrap_or(u32::MAX)
    }

    /// Who gave it.
    pub(super) fn origin(&self) -> Origin {
        let url = self.response.url();
        let address = self.elsewhere.then(|| url.clone());
        Origin { host: self.host.clone(), address }
    }
}

impl Sender {
    pub(super) fn new(trust: Trust, manners: Manners, notify: Notify) -> Self {
        Self {
            trust,
            bandwidth: Bandwidth::new(manners.bandwidth),
            uploads: Arc::new(Bandwidth::new(manners.bandwidth)),
            manners,
            clients: Mutex::default(),
            gates: Mutex::default(),
            speaks_tls: Mutex::default(),
            quotas: Mutex::default(),
            notify,
        }
    }

    pub(super) fn tries(&self) -> u32 {
        self.manners.tries
    }

    /// The client for a URL that a host is, or leads to. Loopback is never reached through a proxy, as in Go.
    fn http_for(&self, host: &Host, url: &Url) -> Result<reqwest::Client> {
        self.http(Transport {
            tls: host.tls.clone(),
            connect: host.dial_timeout.unwrap_or(CONNECT_TIMEOUT),
            proxied: !is_loopback_url(url),
        })
    }

    /// The client for a URL of an object store.
    pub(super) fn http_for_store(&self, url: &Url, may_be_plain: bool) -> Result<reqwest::Client, BoxError> {
        if url.scheme() == "http" && !may_be_plain && !is_loopback_url(url) {
            return Err("plain HTTP is not allowed to a store; AWS_ALLOW_HTTP=true allows it".into());
        }
        let transport =
            Transport { tls: TlsFiles::default(), connect: STORE_CONNECT_TIMEOUT, proxied: !is_loopback_url(url) };
        Ok(self.http(transport)?)
    }

    fn http(&self, transport: Transport) -> Result<reqwest::Client> {
        let mut clients = lock(&self.clients);
        if let Some(client) = clients.get(&transport) {
            return Ok(client.clone());
        }
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(self.trust.config(&transport.tls)?)
            .user_agent(USER_AGENT)
            .connect_timeout(transport.connect)
            .redirect(Policy::none());
        let builder = if transport.proxied { builder } else { builder.no_proxy() };
        let client = builder.build().map_err(Error::Setup)?;
        clients.insert(transport, client.clone());
        Ok(client)
    }

    /// The budget of whatever answers at a URL.
    pub(super) fn gate(&self, url: &Url) -> Arc<Gate> {
        let limits = Limits { at_once: self.manners.per_host, interval: self.manners.interval() };
        let mut gates = lock(&self.gates);
        gates.entry(site(url).to_owned()).or_insert_with(|| Gate::new(limits)).clone()
    }

    /// The budget for uploads to whatever is at a URL. What is uploaded may come from the same host: each would wait for the
    /// other's turn, were there but one budget.
    fn upload_gate(&self, url: &Url) -> Arc<Gate> {
        let limits = Limits { at_once: self.manners.per_host, interval: self.manners.interval() };
        let mut gates = lock(&self.gates);
        gates.entry(format!("{} uploads", site(url))).or_insert_with(|| Gate::new(limits)).clone()
    }

    /// Whether the host asked for patience, so that another one is to be preferred.
    pub(super) fn is_closed(&self, host: &Host) -> bool {
        self.gate(&host.base).is_closed()
    }

    /// Asks a host for something of a repository.
    pub(super) async fn ask(&self, auth: &Auth, place: Place<'_>, registry: &str, ask: &Ask<'_>) -> Result<Answer> {
        let host = place.host;
        let mut url = host.base.clone();
        url.set_path(&format!("{}{}/{}/{}", url.path(), place.repository, ask.kind, ask.target));
        if host.is_mirror_of(registry) {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url.query_pairs_mut().extend_pairs(&ask.query);
        if url.query() == Some("") {
            url.set_query(None);
        }
        self.ask_url(auth, place, &url, ask).await
    }

    /// Asks a host at a URL that it gave, or that is made of its own.
    pub(super) async fn ask_url(&self, auth: &Auth, place: Place<'_>, url: &Url, ask: &Ask<'_>) -> Result<Answer> {
        let host = place.host;
        let mut signature = auth.signature(self, place).await?;
        let mut answered = false;
        let reply = loop {
            let reply = self.follow(host, url, ask, &signature).await?;
            // A 401 of whoever a redirect led to is nothing that we can answer.
            if reply.response.status() == StatusCode::UNAUTHORIZED && !answered && host.is_at(reply.response.url()) {
                answered = true;
                // The token server may be the same host, with room for one.
                let Reply { response, turn, .. } = reply;
                drop(turn);
                if let Some(better) = auth.answer(self, place, &signature, response.headers()).await? {
                    signature = better;
                    let _ = body(response).await;
                    continue;
                }
                return Err(self.refusal(auth, place, response).await);
            }
            break reply;
        };
        let response = &reply.response;
        if !host.is_at(response.url()) && response.status().is_client_error() {
            return Err(led_to(response, ask.what));
        }
        if response.status().is_success() {
            return Ok(Answer::new(reply, host));
        }
        Err(self.refusal(auth, place, reply.response).await)
    }

    /// Asks again at an address that a redirect led to before; nobody there is told who we are.
    pub(super) async fn ask_at(&self, host: &Arc<Host>, url: &Url, ask: &Ask<'_>) -> Result<Answer> {
        let reply = self.follow(host, url, ask, &Signature::Nobody).await?;
        if reply.response.status().is_success() {
            return Ok(Answer { elsewhere: true, ..Answer::new(reply, host) });
        }
        Err(led_to(&reply.response, ask.what))
    }

    /// Sends a request, and follows redirects. Away from the host, no credentials and none of its headers go along.
    async fn follow(&self, host: &Arc<Host>, url: &Url, ask: &Ask<'_>, signature: &Signature) -> Result<Reply> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let own = host.is_at(&at);
            let send = |http: reqwest::Client, url: Url| {
                let request = ask.headers(http.request(ask.method.clone(), url));
                if !own {
                    return Ok(request);
                }
                self.check_quota(host, ask)?;
                Ok(signature.sign(request.headers(host.headers.clone())))
            };
            let passing = ask.payload.and_then(|payload| payload.passing.as_deref());
            let reply = self.send(host, &at, ask.what, passing, send).await?;
            let response = &reply.response;
            if own {
                self.take_quota(&at, response.headers());
            }
            let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let target = response.headers().get(LOCATION).filter(|_| redirects).and_then(|value| value.to_str().ok());
            let Some(target) = target else { return Ok(reply) };
            let error = |why| Error::Redirect { host: site(&at).to_owned(), what: ask.what.to_owned(), why };
            let next = response.url().join(target).map_err(|_| error("to something that is no URL"))?;
            if !matches!(next.scheme(), "http" | "https") {
                return Err(error("to something that is not HTTP"));
            }
            // Whoever can change plain HTTP can say what a tag names; a digest he cannot fake.
            if response.url().scheme() == "https" && next.scheme() == "http" && !ask.target.contains(':') {
                return Err(error("away from TLS"));
            }
            // Read to its end, the connection can be used again.
            let _ = body(reply.response).await;
            at = next;
        }
        Err(Error::Redirect { host: host.authority().to_owned(), what: ask.what.to_owned(), why: "in circles" })
    }

    /// Sends one request when it is its turn.
    async fn send(
        &self,
        host: &Host,
        url: &Url,
        what: &str,
        passing: Option<&Passing>,
        request: impl Fn(reqwest::Client, Url) -> Result<RequestBuilder>,
    ) -> Result<Reply> {
        let gate = if passing.is_some() { self.upload_gate(url) } else { self.gate(url) };
        let turn = gate.turn().await;
        let http = self.http_for(host, url)?;
        let failed = |source| transport(url, what, source);
        let tls = with_tls(url);
        let stall = self.manners.stall_timeout;
        let sent = async |request: RequestBuilder| {
            moving(stall, passing, request.send()).await.map_err(|_| stalled(url, what, stall))
        };
        let before = Instant::now();
        let speaks_tls = if host.https_first && host.is_at(url) { self.speaks_tls(host) } else { Some(false) };
        let response = match speaks_tls {
            Some(true) => sent(request(http, tls)?).await?.map_err(failed)?,
            Some(false) => sent(request(http, url.clone())?).await?.map_err(failed)?,
            None => {
                let tried = sent(request(http.clone(), tls.clone())?).await?;
                let speaks = !tried.as_ref().is_err_and(|error| error.is_connect() && is_not_tls(error, &tls, url));
                // Where nobody answered, nothing is known.
                if tried.is_ok() || !speaks {
                    lock(&self.speaks_tls).insert(site(&host.base).to_owned(), speaks);
                }
                let tried = if speaks { tried } else { sent(request(http, url.clone())?).await? };
                tried.map_err(failed)?
            }
        };
        let after = before.elapsed();
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        // A server that is down does not say when it will be back; one that limits need not.
        if status == 429 || (status == 503 && retry_after.is_some()) {
            let waits = [self.gate(url), self.upload_gate(url)].map(|gate| gate.refused(retry_after));
            if let Some(wait) = waits.into_iter().flatten().max() {
                (self.notify)(&Notice::Limited { host: site(url), status, wait });
            }
            return Err(Error::Limited {
                host: site(url).to_owned(),
                status,
                what: what.to_owned(),
                retry_after,
                detail: words(&body(response).await),
            });
        }
        if status < 500 {
            gate.went_well();
        }
        Ok(Reply { response, turn, after })
    }

    fn speaks_tls(&self, host: &Host) -> Option<bool> {
        lock(&self.speaks_tls).get(site(&host.base)).copied()
    }

    /// Sends a request that is answered in few bytes; status and body.
    pub(super) async fn small(
        &self,
        host: &Host,
        url: &Url,
        what: &str,
        limit: u64,
        request: impl Fn(reqwest::Client, Url) -> RequestBuilder,
    ) -> Result<(u16, Bytes)> {
        let Reply { response, turn: _turn, .. } =
            self.send(host, url, what, None, |http, url| Ok(request(http, url))).await?;
        let status = response.status().as_u16();
        let stall = self.manners.stall_timeout;
        let body = timeout(stall, at_most(response, limit)).await.map_err(|_| stalled(url, what, stall))?;
        Ok((status, body.map_err(|source| transport(url, what, source))?))
    }

    /// The next bytes of an answer, when they came and are paid for; `None` at its end.
    pub(super) async fn chunk(&self, answer: &mut Answer, what: &str) -> Result<Option<Bytes>> {
        let stall = self.manners.stall_timeout;
        let before = Instant::now();
        let chunk = timeout(stall, answer.response.chunk()).await;
        let came = chunk.as_ref().map_or(0, |chunk| chunk.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len));
        answer.pace.add(before.elapsed(), came);
        let url = answer.response.url();
        let Ok(chunk) = chunk else { return Err(stalled(url, what, stall)) };
        let chunk = chunk.map_err(|source| transport(url, what, source))?;
        if chunk.is_some() && answer.pace.is_stalled(stall) {
            return Err(stalled(url, what, stall));
        }
        self.bandwidth.pay(came).await;
        Ok(chunk)
    }

    async fn refusal(&self, auth: &Auth, place: Place<'_>, response: Response) -> Error {
        let status = response.status();
        // Where a redirect led counts: that is who refused.
        let (host, what) = (site(response.url()).to_owned(), place.what.to_owned());
        let detail = words(&body(response).await);
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { host, what, detail },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Unauthorized { host, what, who: auth.who(place).await, detail }
            }
            status => Error::Status { host, status: status.as_u16(), what, detail },
        }
    }

    /// Remembers how many pulls a host says are left.
    fn take_quota(&self, url: &Url, headers: &HeaderMap) {
        let Some(quota) = Quota::of(headers) else { return };
        let mut quotas = lock(&self.quotas);
        let before = quotas.insert(site(url).to_owned(), quota);
        drop(quotas);
        if before.is_none() || quota.is_low() && before != Some(quota) {
            (self.notify)(&Notice::Quota { host: site(url), quota });
        }
    }

    /// A request that counts is not made when the host said that none is left.
    fn check_quota(&self, host: &Host, ask: &Ask<'_>) -> Result<()> {
        let counts = ask.kind == "manifests" && ask.method == Method::GET;
        let quotas = lock(&self.quotas);
        match quotas.get(site(&host.base)) {
            Some(quota) if counts && quota.remaining == 0 => {
                Err(Error::Quota { host: host.authority().to_owned(), what: ask.what.to_owned(), quota: *quota })
            }
            _ => Ok(()),
        }
    }
}

impl<'a> Ask<'a> {
    /// A GET.
    pub(super) fn new(kind: &'static str, target: &'a str, accept: &'a str, what: &'a str) -> Self {
        Self {
            method: Method::GET,
            kind,
            target,
            query: Vec::new(),
            accept,
            range: None,
            what,
            rights: Rights::Pull,
            payload: None,
        }
    }

    fn headers(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.header(ACCEPT, self.accept);
        let request = match self.payload {
            Some(payload) => request.headers(payload.headers.clone()).body((payload.body)()),
            None => request,
        };
        match &self.range {
            None => request,
            Some((range, None)) => request.header(RANGE, range),
            Some((range, Some(tag))) => request.header(RANGE, range).header(IF_RANGE, tag),
        }
    }
}

/// Waits for what is sent as long as something moves: an answer is late when neither side does anything for so long.
async fn moving<T>(
    stall: Duration,
    passing: Option<&Passing>,
    sending: impl Future<Output = T>,
) -> Result<T, tokio::time::error::Elapsed> {
    let mut sending = std::pin::pin!(sending);
    let mut before = 0;
    loop {
        match timeout(stall, sending.as_mut()).await {
            Err(_) if passing.is_some_and(|passing| passing.is_moving(&mut before)) => {}
            done => return done,
        }
    }
}

/// The error of an address that a redirect led to.
fn led_to(response: &Response, what: &str) -> Error {
    let host = site(response.url()).to_owned();
    Error::Address { host, what: what.to_owned(), status: response.status().as_u16() }
}

/// Whether a server answered TLS with something else, or hung up on it; or is not at HTTPS's own port, where none is written
/// (`docker.NewHTTPFallback`).
fn is_not_tls(error: &(dyn std::error::Error + 'static), tls: &Url, url: &Url) -> bool {
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    let elsewhere = tls.port_or_known_default() != url.port_or_known_default();
    if elsewhere && !has_cause(error, &|cause| cause.is::<rustls::Error>()) {
        return true;
    }
    has_cause(error, &|cause| {
        matches!(cause.downcast_ref(), Some(rustls::Error::InvalidMessage(_)))
            || cause
                .downcast_ref()
                .is_some_and(|io: &std::io::Error| matches!(io.kind(), UnexpectedEof | ConnectionReset))
    })
}

/// Whether the two do not trust each other.
pub(super) fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::Error::{AlertReceived, InvalidCertificate, NoCertificatesPresented};
    has_cause(error, &|cause| {
        matches!(cause.downcast_ref(), Some(AlertReceived(_) | InvalidCertificate(_) | NoCertificatesPresented))
    })
}

fn has_cause(
    error: &(dyn std::error::Error + 'static),
    is: &dyn Fn(&(dyn std::error::Error + 'static)) -> bool,
) -> bool {
    let cause = match error.downcast_ref::<std::io::Error>() {
        // Its source would be the cause of what it wraps.
        Some(io) => io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
        None => error.source(),
    };
    is(error) || cause.is_some_and(|cause| has_cause(cause, is))
}

pub(super) fn is_loopback_url(url: &Url) -> bool {
    url.host_str().is_some_and(|host| is_loopback(host.trim_start_matches('[').trim_end_matches(']')))
}

/// Host and port of a URL, which may also have a password.
pub(super) fn site(url: &Url) -> &str {
    url.authority().rsplit('@').next().unwrap_or_default()
}

fn transport(url: &Url, what: &str, source: reqwest::Error) -> Error {
    // A URL may be signed.
    Error::Transport { host: site(url).to_owned(), what: what.to_owned(), source: source.without_url() }
}

fn stalled(url: &Url, what: &str, limit: Duration) -> Error {
    Error::Stalled { host: site(url).to_owned(), what: what.to_owned(), limit }
}

async fn at_most(mut response: Response, limit: u64) -> reqwest::Result<Bytes> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > limit {
            break;
        }
    }
    Ok(body.into())
}

/// The body of an error, as far as it comes.
async fn body(response: Response) -> Bytes {
    let body = timeout(ERROR_BODY_TIME, at_most(response, MAX_ERROR_BODY)).await;
    body.ok().and_then(Result::ok).unwrap_or_default()
}

/// What the server says about an error, with a colon before it; nothing when it does not say it in the API's form.
pub(super) fn words(body: &[u8]) -> String {
    let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body) else { return String::new() };
    let first = envelope.errors.into_iter().next();
    let text = first.map(|error| if error.message.is_empty() { format!("{:?}", error.code) } else { error.message });
    // Somebody else's words go to a terminal.
    text.map_or(String::new(), |text| {
        format!(": {}", text.chars().filter(|c| !c.is_control()).take(300).collect::<String>())
    })
}
