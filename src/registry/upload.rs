//! A blob on its way to a registry: in one request, or in chunks where that is refused or broke off.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Body, Method, Url};

use super::auth::{Place, Rights};
use super::client::said_digest;
use super::hosts::{Host, with_tls};
use super::passing::{BlobBytes, Passing, Verified, passing_through, pieces};
use super::send::{Answer, Ask};
use super::{Client, Error, Result};
use crate::oci::{Descriptor, Reference};

/// Bytes of a chunk, unless the registry wants more (`OCI-Chunk-Min-Length`); at most so many.
const CHUNK: u64 = 8 << 20;
const MAX_CHUNK: u64 = 64 << 20;
/// Uploads in one request that may break off before the blob is sent in chunks.
const WHOLE_TRIES: u32 = 2;

/// An upload that a registry has begun.
#[derive(Debug)]
pub struct Upload {
    host: Arc<Host>,
    location: Url,
    min_chunk: u64,
}

/// The body of a request; made anew for each try.
pub(super) struct Payload<'p> {
    pub(super) headers: HeaderMap,
    pub(super) body: &'p (dyn Fn() -> Body + Send + Sync),
    /// Of an upload, which takes long.
    pub(super) passing: Option<Arc<Passing>>,
}

impl Upload {
    /// Where an answer says that the upload goes on.
    pub(super) fn of(answer: &Answer, what: &str) -> Result<Self> {
        let at = answer.response.url();
        let header = |name: &str| answer.response.headers().get(name).and_then(|value| value.to_str().ok());
        let host = answer.host.clone();
        let location = header(LOCATION.as_str()).and_then(|location| at.join(location).ok());
        let location = location.filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(mut location) = location else {
            let (host, what) = (host.authority().to_owned(), what.to_owned());
            return Err(Error::Upload { host, what, why: "it does not say where the upload goes on".to_owned() });
        };
        // A registry behind a proxy may not know that it is asked over TLS.
        if at.scheme() == "https" && location.scheme() == "http" && location.host_str() == at.host_str() {
            location = with_tls(&location);
            if location.port() == Some(80) {
                let _ = location.set_port(at.port());
            }
        }
        let min_chunk = header("oci-chunk-min-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        Ok(Self { host, location, min_chunk })
    }
}

/// One blob's push.
struct Push<'p> {
    client: &'p Client,
    to: &'p Reference,
    descriptor: &'p Descriptor,
    bytes: &'p (dyn Fn() -> BlobBytes + Send + Sync),
    what: String,
}

impl Client {
    /// Uploads a blob, from `bytes`, which is called for each try; `begun` is an upload to begin with. An upload that breaks
    /// off goes on where the registry says how far it got, and begins anew otherwise.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Read`] and [`Error::WrongBytes`] when what is to be pushed is not to be had.
    pub async fn push_blob(
        &self,
        to: &Reference,
        descriptor: &Descriptor,
        begun: Option<Upload>,
        bytes: &(dyn Fn() -> BlobBytes + Send + Sync),
    ) -> Result<()> {
        let what = format!("an upload of blob {}", descriptor.digest);
        let push = Push { client: self, to, descriptor, bytes, what };
        let mut patience = self.patience();
        let (mut upload, mut at, mut whole, mut broken) = (begun, 0, true, 0);
        loop {
            let error = match push.attempt(&mut upload, at, whole).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if whole && refuses_whole(&error) {
                (upload, whole) = (None, false);
                continue;
            }
            broken += 1;
            whole &= broken < WHOLE_TRIES;
            patience.after(error).await?;
            let before = std::mem::take(&mut at);
            if let Some(mut begun) = upload.take()
                && let Some(got) = push.how_far(&mut begun).await
            {
                patience.progress(got.saturating_sub(before));
                (upload, at, whole) = (Some(begun), got, false);
            }
        }
    }
}

/// Whether a registry does not take a blob in one request.
fn refuses_whole(error: &Error) -> bool {
    let refuses = |status| matches!(status, 400 | 404 | 405 | 411 | 413 | 415 | 416 | 501);
    match error {
        Error::NotFound { .. } => true,
        Error::Status { status, .. } | Error::Address { status, .. } => refuses(*status),
        _ => false,
    }
}

impl Push<'_> {
    /// One try, from this byte on.
    async fn attempt(&self, upload: &mut Option<Upload>, at: u64, whole: bool) -> Result<()> {
        let upload = match upload {
            Some(upload) => upload,
            None => upload.insert(self.begin().await?),
        };
        if whole && upload.min_chunk == 0 { self.whole(upload).await } else { self.chunks(upload, at).await }
    }

    async fn begin(&self) -> Result<Upload> {
        let ask = Ask { method: Method::POST, ..self.ask() };
        Upload::of(&self.client.once(self.to, &ask).await?, &self.what)
    }

    fn ask(&self) -> Ask<'_> {
        Ask { rights: Rights::Push, ..Ask::new("blobs", "uploads/", "*/*", &self.what) }
    }

    /// Sends something to where the upload goes on.
    async fn send(&self, upload: &Upload, url: &Url, ask: &Ask<'_>) -> Result<Answer> {
        let (what, rights) = (ask.what, ask.rights);
        let place = Place { host: &upload.host, repository: self.to.repository(), what, rights };
        self.client.sender.ask_url(&self.client.auth, place, url, ask).await
    }

    async fn whole(&self, upload: &Upload) -> Result<()> {
        let size = self.descriptor.size;
        if size == 0 {
            self.verified().next().await?;
            return self.finish(upload).await;
        }
        let passing = Arc::new(Passing::default());
        let body = || Body::wrap_stream(passing_through(self.verified(), passing.clone()));
        let headers = headers(&[(CONTENT_LENGTH, size.to_string())]);
        let payload = Payload { headers, body: &body, passing: Some(passing.clone()) };
        let ask = Ask { method: Method::PUT, payload: Some(&payload), ..self.ask() };
        let answer = self.send(upload, &self.end(upload), &ask).await;
        // That a body ended early says less than why it did.
        let failure = passing.failure();
        self.completed(&failure.map_or(answer, Err)?)
    }

    async fn chunks(&self, upload: &mut Upload, at: u64) -> Result<()> {
        self.all_chunks(upload, at).await.map_err(|error| self.lost(error))?;
        self.finish(upload).await
    }

    /// Sends what comes in chunks, but for what is there already.
    async fn all_chunks(&self, upload: &mut Upload, mut at: u64) -> Result<()> {
        let mut bytes = self.verified();
        let length = usize::try_from(upload.min_chunk.clamp(CHUNK, MAX_CHUNK)).unwrap_or(usize::MAX);
        let (mut skip, mut buffer) = (at, BytesMut::new());
        loop {
            let next = bytes.next().await?;
            let is_last = next.is_none();
            if let Some(mut chunk) = next {
                let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
                skip -= skipped as u64;
                chunk.advance(skipped);
                buffer.extend_from_slice(&chunk);
            }
            while buffer.len() >= length || is_last && !buffer.is_empty() {
                let chunk = buffer.split_to(buffer.len().min(length)).freeze();
                let sent = chunk.len() as u64;
                self.chunk(upload, at, chunk).await?;
                at += sent;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    async fn chunk(&self, upload: &mut Upload, at: u64, chunk: Bytes) -> Result<()> {
        let last = at + chunk.len() as u64 - 1;
        let passing = Arc::new(Passing::default());
        let body = || Body::wrap_stream(pieces(chunk.clone(), passing.clone()));
        let range = (CONTENT_RANGE, format!("{at}-{last}"));
        let headers = headers(&[(CONTENT_LENGTH, chunk.len().to_string()), range]);
        let payload = Payload { headers, body: &body, passing: Some(passing.clone()) };
        let ask = Ask { method: Method::PATCH, payload: Some(&payload), ..self.ask() };
        let answer = self.send(upload, &upload.location, &ask).await?;
        let got = end_of_range(&answer);
        let min_chunk = upload.min_chunk;
        *upload = Upload { min_chunk, ..Upload::of(&answer, &self.what)? };
        match got {
            Some(got) if got != last => Err(self.broke_off(&answer, format!("it has the bytes up to {got}"))),
            _ => Ok(()),
        }
    }

    async fn finish(&self, upload: &Upload) -> Result<()> {
        let ask = Ask { method: Method::PUT, ..self.ask() };
        self.completed(&self.send(upload, &self.end(upload), &ask).await?)
    }

    /// Where an upload is completed.
    fn end(&self, upload: &Upload) -> Url {
        let mut url = upload.location.clone();
        url.query_pairs_mut().append_pair("digest", self.descriptor.digest.as_str());
        url
    }

    fn completed(&self, answer: &Answer) -> Result<()> {
        match said_digest(answer) {
            Some(said) if said != self.descriptor.digest.as_str() => Err(Error::WrongClaim {
                host: answer.host.authority().to_owned(),
                what: self.what.clone(),
                claimed: said.to_owned(),
                got: self.descriptor.digest.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// How many bytes of a broken upload the registry has, by its own word; where it does not say, none.
    async fn how_far(&self, upload: &mut Upload) -> Option<u64> {
        let answer = self.send(upload, &upload.location, &self.ask()).await.ok()?;
        // `0-0` is what some say of nothing.
        let got = end_of_range(&answer).filter(|last| *last > 0)? + 1;
        let min_chunk = upload.min_chunk;
        *upload = Upload { min_chunk, ..Upload::of(&answer, &self.what).ok()? };
        (got <= self.descriptor.size).then_some(got)
    }

    /// An upload that is not there any more, or elsewhere than we think, is worth another one.
    fn lost(&self, error: Error) -> Error {
        match error {
            Error::NotFound { host, detail, .. } | Error::Status { status: 416, host, detail, .. } => {
                Error::Upload { host, what: self.what.clone(), why: format!("the registry lost it{detail}") }
            }
            error => error,
        }
    }

    fn broke_off(&self, answer: &Answer, why: String) -> Error {
        Error::Upload { host: answer.host.authority().to_owned(), what: self.what.clone(), why }
    }

    fn verified(&self) -> Verified {
        let bandwidth = self.client.sender.uploads.clone();
        Verified::new((self.bytes)(), self.descriptor.clone(), self.what.clone(), bandwidth)
    }
}

/// The last byte of what a registry has of an upload.
fn end_of_range(answer: &Answer) -> Option<u64> {
    let range = answer.response.headers().get(RANGE)?.to_str().ok()?;
    range.trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()
}

fn headers(own: &[(HeaderName, String)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.extend(own.iter().filter_map(|(name, value)| Some((name.clone(), value.parse().ok()?))));
    headers
}
