//! Requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oci_client::errors::OciEnvelope;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::auth::{Auth, Place};
use super::{Credentials, Error, Result};
use crate::oci::{Digest, Reference, media_type};

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may be silent.
pub(super) const READ_TIMEOUT: Duration = Duration::from_mins(1);
/// How much of an error's body is read, in bytes.
const MAX_ERROR_BODY: u64 = 64 << 10;
const USER_AGENT: &str = concat!("prebake/", env!("CARGO_PKG_VERSION"));

/// How to talk to registries.
#[derive(Clone, Default)]
pub struct Options {
    /// Plain HTTP to every registry; loopback ones get it anyway, as in containerd.
    pub plain_http: bool,
    /// Who we are.
    pub credentials: Credentials,
}

/// A client for any number of registries.
pub struct Client {
    http: reqwest::Client,
    /// Loopback is never reached through a proxy, as in Go.
    loopback: reqwest::Client,
    room: Arc<Semaphore>,
    auth: Auth,
    plain_http: bool,
}

/// An index, manifest or config as received. While one lives, it takes room that others wait for.
#[derive(Debug)]
pub struct RawDocument {
    /// Exactly the bytes of the body.
    pub bytes: Bytes,
    /// The registry's `Content-Type`, without parameters; empty when it gave none.
    pub media_type: String,
    _room: Room,
}

/// Room for a document in memory, given back when its last clone is dropped. To be taken before any lock, or two could wait
/// for each other.
#[derive(Debug, Clone)]
pub struct Room(#[expect(dead_code, reason = "held for its drop")] Arc<OwnedSemaphorePermit>);

/// What all documents under way may take together, in KiB: two of the largest.
const ROOM: u32 = 16 << 10;

impl Client {
    /// Makes a client. Needs a process-wide rustls provider, see [`crate::install_tls`].
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub fn new(options: Options) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let has_certificates = !roots.is_empty();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .user_agent(USER_AGENT)
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
        };
        Ok(Self {
            http: builder().build().map_err(Error::Setup)?,
            loopback: builder().no_proxy().build().map_err(Error::Setup)?,
            room: Arc::new(Semaphore::new(ROOM as usize)),
            auth: Auth::new(options.credentials, has_certificates),
            plain_http: options.plain_http,
        })
    }

    /// Waits until there is room for a document of that many bytes.
    pub async fn room(&self, bytes: u64) -> Room {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(ROOM).min(ROOM);
        match self.room.clone().acquire_many_owned(kib).await {
            Ok(permit) => Room(Arc::new(permit)),
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Gets an index or manifest by tag or digest; at most `limit` bytes. Without `room` it takes some, once it is known how
    /// much.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn document(
        &self,
        reference: &Reference,
        target: &str,
        limit: u64,
        room: Option<Room>,
    ) -> Result<RawDocument> {
        let what = format!("{}{}{target}", reference.repository(), if target.contains(':') { "@" } else { ":" });
        let response = self.get(reference, "manifests", target, &media_type::DOCUMENTS.join(", "), &what).await?;
        let declared = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = declared.split(';').next().unwrap_or_default().trim().to_owned();
        self.collect(response, reference, &what, limit, media_type, room).await
    }

    /// Gets a config: a blob that is small, at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn small_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        limit: u64,
        room: Option<Room>,
    ) -> Result<RawDocument> {
        let what = format!("blob {digest}");
        let response = self.get(reference, "blobs", digest.as_str(), "*/*", &what).await?;
        self.collect(response, reference, &what, limit, String::new(), room).await
    }

    /// Starts to get a blob.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn blob(&self, reference: &Reference, digest: &Digest) -> Result<Blob> {
        let what = format!("blob {digest}");
        let response = self.get(reference, "blobs", digest.as_str(), "*/*", &what).await?;
        Ok(Blob { response, registry: reference.registry().to_owned(), what })
    }

    async fn get(&self, reference: &Reference, kind: &str, target: &str, accept: &str, what: &str) -> Result<Response> {
        let registry = reference.registry();
        let loopback = is_loopback(reference.registry_host());
        let plain_http = self.plain_http || loopback;
        let http = if loopback { &self.loopback } else { &self.http };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if plain_http { "http" } else { "https" };
        let repository = reference.repository();
        let url = format!("{scheme}://{host}/v2/{repository}/{kind}/{target}");
        let place = Place { registry, repository, plain_http, what };
        let mut signature = self.auth.slot(place).lock().await.clone();
        let mut first = true;
        loop {
            let request = signature.sign(http.get(&url).header(ACCEPT, accept));
            let response = request.send().await.map_err(|source| transport(registry, what, source))?;
            if response.status().is_success() {
                return Ok(response);
            }
            if response.status() == StatusCode::UNAUTHORIZED
                && first
                && let Some(better) = self.auth.answer(place, &signature, response.headers()).await?
            {
                signature = better;
                first = false;
                continue;
            }
            return Err(self.refusal(response, registry, what).await);
        }
    }

    async fn refusal(&self, response: Response, registry: &str, what: &str) -> Error {
        let status = response.status();
        let (registry, what) = (registry.to_owned(), what.to_owned());
        let detail = words(response).await;
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { registry, what, detail },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let who = self.auth.who(&registry);
                Error::Unauthorized { registry, what, who, detail }
            }
            status => Error::Status { registry, status: status.as_u16(), what, detail },
        }
    }

    async fn collect(
        &self,
        mut response: Response,
        reference: &Reference,
        what: &str,
        limit: u64,
        media_type: String,
        room: Option<Room>,
    ) -> Result<RawDocument> {
        let registry = reference.registry();
        let too_large = || Error::TooLarge { registry: registry.to_owned(), what: what.to_owned(), limit };
        let promised = response.content_length().unwrap_or(limit);
        if promised > limit {
            return Err(too_large());
        }
        let room = match room {
            Some(room) => room,
            None => self.room(promised).await,
        };
        let mut all = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| transport(registry, what, source))? {
            if all.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large());
            }
            // Grown to what came, and never to twice of it.
            all.reserve_exact(chunk.len().max(usize::try_from(promised).unwrap_or(0).saturating_sub(all.len())));
            all.extend_from_slice(&chunk);
        }
        Ok(RawDocument { bytes: all.into(), media_type, _room: room })
    }
}

impl RawDocument {
    /// A document that was got elsewhere.
    pub fn new(bytes: Bytes, room: Room) -> Self {
        Self { bytes, media_type: String::new(), _room: room }
    }
}

/// A blob on its way.
pub struct Blob {
    response: Response,
    registry: String,
    what: String,
}

impl Blob {
    /// The next bytes, as they come; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        self.response.chunk().await.map_err(|source| transport(&self.registry, &self.what, source))
    }
}

fn transport(registry: &str, what: &str, source: reqwest::Error) -> Error {
    Error::Transport { registry: registry.to_owned(), what: what.to_owned(), source: source.without_url() }
}

/// containerd's rule for registries that speak plain HTTP by default (`docker.MatchLocalhost`).
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What the registry says about an error, with a colon before it; nothing when it does not say it in the API's form.
async fn words(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > MAX_ERROR_BODY {
            break;
        }
    }
    let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(&body) else { return String::new() };
    let first = envelope.errors.into_iter().next();
    let text = first.map(|error| if error.message.is_empty() { format!("{:?}", error.code) } else { error.message });
    // Somebody else's words go to a terminal.
    text.map_or(String::new(), |text| {
        format!(": {}", text.chars().filter(|c| !c.is_control()).take(300).collect::<String>())
    })
}
