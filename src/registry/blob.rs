//! A blob on its way: it goes on where it broke off, and in several parts at a time where that is faster.
//!
//! The bytes come out in order, each once. A registry that answers a request for a part with anything else than that part
//! is not asked for parts again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use reqwest::header::{CONTENT_RANGE, ETAG};
use reqwest::{StatusCode, Url};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::hosts::Host;
use super::patience::Patience;
use super::send::{Answer, Ask, transport};
use super::{Client, Error, Result};
use crate::oci::{Descriptor, Reference};

/// A part of a blob, in bytes.
const PART: u64 = 4 << 20;
/// What is longer than this is asked for in parts, in bytes.
const PARTS_FROM: u64 = 4 * PART;
/// Parts of all blobs together that may be in memory before their turn.
pub(super) const PARTS: usize = 12;
/// A connection that gives a mebibyte in less is enough for a blob.
const FAST: Duration = Duration::from_millis(10);

/// A blob on its way.
pub struct Blob {
    client: Arc<Client>,
    reference: Reference,
    descriptor: Descriptor,
    what: Arc<str>,
    /// The first byte that did not come out yet.
    at: u64,
    patience: Patience,
    source: Source,
    /// The entity tag of what came.
    tag: Option<String>,
    /// One connection is enough for it.
    fast: bool,
}

/// Where the next bytes come from.
enum Source {
    /// Somebody is to be asked.
    Nobody,
    One(Stream),
    Parts(Parts),
}

/// The body of an answer.
struct Stream {
    answer: Answer,
    /// Bytes at its beginning that came out before.
    skip: u64,
    /// Where in the blob it should end.
    end: u64,
    /// Its own length, as it should be.
    length: u64,
    /// How long the network was waited for, and for how many bytes.
    waited: Duration,
    came: u64,
}

/// Parts that come at the same time, in their order.
struct Parts {
    from: Arc<Origin>,
    coming: VecDeque<Part>,
    /// The first byte that nobody was asked for yet.
    next: u64,
}

/// Whom to ask for a part.
pub(super) struct Origin {
    pub(super) host: Arc<Host>,
    /// Where the host redirects to, if it does.
    pub(super) address: Option<Url>,
}

/// A part that a task of its own gets; after an error there is nothing more.
struct Part {
    /// At most a part's bytes; `None` when they are all.
    chunks: mpsc::UnboundedReceiver<Result<Option<Bytes>>>,
    task: JoinHandle<()>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Blob {
    pub(super) fn new(
        client: Arc<Client>,
        reference: Reference,
        descriptor: Descriptor,
        from: u64,
        tag: Option<String>,
    ) -> Self {
        Self {
            what: format!("blob {}", descriptor.digest).into(),
            at: from,
            patience: client.patience(),
            source: Source::Nobody,
            tag,
            fast: false,
            client,
            reference,
            descriptor,
        }
    }

    /// The next bytes, as they come; `None` at the end.
    ///
    /// # Errors
    /// [`Error`], when asking again is of no use.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.next().await {
                Ok(Some(chunk)) => {
                    self.at += chunk.len() as u64;
                    self.patience.progress();
                    return Ok(Some(chunk));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    // What one host says of a part is not the last word: the next request goes through all of them.
                    let of_part = matches!(self.source, Source::Parts(_)) && !error.is_passing();
                    self.source = Source::Nobody;
                    if of_part {
                        self.client.gives_no_parts(self.reference.registry());
                    } else {
                        self.patience.after(error).await?;
                    }
                }
            }
        }
    }

    /// Lets go of the connection, which others may need; the next call asks for what is missing.
    pub fn pause(&mut self) {
        self.source = Source::Nobody;
    }

    /// The entity tag of what comes, for a run that goes on with it.
    pub fn entity_tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let size = self.descriptor.size;
        loop {
            match &mut self.source {
                Source::Nobody if self.at > 0 && self.at >= size => return Ok(None),
                Source::Nobody => self.source = Source::One(self.ask().await?),
                Source::One(stream) => {
                    if let Some(chunk) = stream.chunk(&self.client, &self.what).await? {
                        return Ok(Some(chunk));
                    }
                    if stream.end == size {
                        return Ok(None);
                    }
                    self.fast = stream.is_fast();
                    let from = stream.answer.origin();
                    self.source = if self.fast {
                        Source::Nobody
                    } else {
                        Source::Parts(Parts { from: Arc::new(from), coming: VecDeque::new(), next: self.at })
                    };
                }
                Source::Parts(parts) => {
                    parts.fill(&self.client, &self.reference, &self.descriptor, &self.what);
                    let Some(part) = parts.coming.front_mut() else { return Ok(None) };
                    match part.chunks.recv().await {
                        Some(Ok(Some(chunk))) => return Ok(Some(chunk)),
                        Some(Ok(None)) => drop(parts.coming.pop_front()),
                        Some(Err(error)) => return Err(error),
                        None => return Err(cut_off(&parts.from.host, &self.what, 0)),
                    }
                }
            }
        }
    }

    /// Asks for what is missing, or for the first part of it.
    async fn ask(&mut self) -> Result<Stream> {
        let size = self.descriptor.size;
        let registry = self.reference.registry();
        let partless = self.client.is_partless(registry);
        let parts = !self.fast && !partless && size.saturating_sub(self.at) > PARTS_FROM;
        let end = if parts { self.at + PART } else { size };
        let range = match (parts, self.at) {
            (true, at) => Some((format!("bytes={at}-{}", end - 1), self.tag.clone().filter(|_| at > 0))),
            // What was lied about is not believed again: all of it comes, and what is here is passed over.
            (false, at) if at > 0 && !partless => Some((format!("bytes={at}-"), self.tag.clone())),
            _ => None,
        };
        let conditional = matches!(range, Some((_, Some(_))));
        let asked = range.is_some().then_some((self.at, end));
        let ask = Ask { range, ..Ask::new("blobs", self.descriptor.digest.as_str(), "*/*", &self.what) };
        let answer = match self.client.blob_from(&self.reference, &self.descriptor, &ask).await {
            Err(Error::Status { status: 416, host, what, .. } | Error::Address { status: 416, host, what }) => {
                self.client.gives_no_parts(registry);
                return Err(Error::WrongRange { host, what, got: "416".to_owned() });
            }
            other => other?,
        };
        let stream = match check(&answer, asked, size, &self.what) {
            Ok(true) => Stream { answer, skip: 0, end, length: end - self.at, waited: Duration::ZERO, came: 0 },
            Ok(false) => {
                // A condition that does not hold is no fault.
                if asked.is_some() && !conditional {
                    self.client.gives_no_parts(registry);
                }
                Stream { answer, skip: self.at, end: size, length: size, waited: Duration::ZERO, came: 0 }
            }
            Err(error) => {
                self.client.gives_no_parts(registry);
                return Err(error);
            }
        };
        // A weak tag promises nothing about bytes.
        let tag = stream.answer.response.headers().get(ETAG).and_then(|value| value.to_str().ok());
        self.tag = tag.filter(|tag| tag.starts_with('"')).map(str::to_owned);
        Ok(stream)
    }
}

fn cut_off(host: &Host, what: &str, got: u64) -> Error {
    Error::CutOff { host: host.authority().to_owned(), what: what.to_owned(), got }
}

/// Whether an answer is the part that was asked for; else it is all of it.
fn check(answer: &Answer, asked: Option<(u64, u64)>, size: u64, what: &str) -> Result<bool> {
    let wrong = |got| Error::WrongRange { host: answer.host.authority().to_owned(), what: what.to_owned(), got };
    let partial = answer.response.status() == StatusCode::PARTIAL_CONTENT;
    match asked {
        Some((from, to)) if partial => {
            let range = answer.response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let range = range.unwrap_or_default();
            let right = format!("bytes {from}-{}", to - 1);
            let of = range.strip_prefix(&right).and_then(|rest| rest.strip_prefix('/'));
            let length = answer.response.content_length().is_none_or(|length| length == to - from);
            if length && of.is_some_and(|of| of == "*" || of.parse() == Ok(size)) {
                Ok(true)
            } else {
                Err(wrong(format!("{range:?}")))
            }
        }
        None if partial => Err(wrong("a part".to_owned())),
        _ => Ok(false),
    }
}

impl Stream {
    async fn chunk(&mut self, client: &Client, what: &str) -> Result<Option<Bytes>> {
        loop {
            let before = Instant::now();
            let chunk = self.answer.response.chunk().await;
            self.waited += before.elapsed();
            let host = self.answer.host.authority();
            let Some(mut chunk) = chunk.map_err(|source| transport(host, what, source))? else {
                // A server that does not say how much it gives can be cut off without a sign.
                if self.answer.silent && self.came < self.length {
                    return Err(cut_off(&self.answer.host, what, self.came));
                }
                return Ok(None);
            };
            client.sender.bandwidth.pay(chunk.len()).await;
            self.came += chunk.len() as u64;
            let skipped = chunk.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            chunk.advance(skipped);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    fn is_fast(&self) -> bool {
        let mebibytes = u32::try_from(self.came >> 20).unwrap_or(u32::MAX);
        self.waited <= FAST * mebibytes
    }
}

impl Parts {
    /// Asks for as many parts as there is room for, and for the next one in any case.
    fn fill(&mut self, client: &Arc<Client>, reference: &Reference, descriptor: &Descriptor, what: &Arc<str>) {
        while self.next < descriptor.size {
            let room = client.room_for_part(&self.from);
            // The next one is needed in any case.
            if room.is_none() && !self.coming.is_empty() {
                return;
            }
            let range = (self.next, (self.next + PART).min(descriptor.size));
            self.next = range.1;
            let (sender, chunks) = mpsc::unbounded_channel();
            let (client, from, reference) = (client.clone(), self.from.clone(), reference.clone());
            let (descriptor, what) = (descriptor.clone(), what.clone());
            let task = tokio::spawn(async move {
                if let Err(error) = part(&client, &from, &reference, &descriptor, &what, range, &sender).await {
                    let _ = sender.send(Err(error));
                }
            });
            self.coming.push_back(Part { chunks, task, _room: room });
        }
    }
}

/// Gets one part, in one try.
async fn part(
    client: &Client,
    from: &Origin,
    reference: &Reference,
    descriptor: &Descriptor,
    what: &str,
    (at, end): (u64, u64),
    chunks: &mpsc::UnboundedSender<Result<Option<Bytes>>>,
) -> Result<()> {
    let range = Some((format!("bytes={at}-{}", end - 1), None));
    let ask = Ask { range, ..Ask::new("blobs", descriptor.digest.as_str(), "*/*", what) };
    let answer = client.once_more(from, reference, &ask).await?;
    let right = check(&answer, Some((at, end)), descriptor.size, what);
    if !matches!(right, Ok(true)) {
        client.gives_no_parts(reference.registry());
        let whole = |_| Error::WrongRange {
            host: answer.host.authority().to_owned(),
            what: what.to_owned(),
            got: "all of it".to_owned(),
        };
        return Err(right.map_or_else(|error| error, whole));
    }
    let host = answer.host.clone();
    let mut stream = Stream { answer, skip: 0, end, length: end - at, waited: Duration::ZERO, came: 0 };
    while let Some(chunk) = stream.chunk(client, what).await? {
        if stream.came > stream.length {
            client.gives_no_parts(reference.registry());
            let host = host.authority().to_owned();
            return Err(Error::WrongRange { host, what: what.to_owned(), got: "more than the part".to_owned() });
        }
        if chunks.send(Ok(Some(chunk))).is_err() {
            return Ok(());
        }
    }
    if stream.came < stream.length {
        return Err(cut_off(&host, what, stream.came));
    }
    let _ = chunks.send(Ok(None));
    Ok(())
}
