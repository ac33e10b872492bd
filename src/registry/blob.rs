//! A blob on its way: it goes on where it broke off, and in several parts at a time where that is faster.
//!
//! The bytes come out in order, each once. A registry that answers a request for a part with anything else than that part
//! is not asked for parts again.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use reqwest::header::{CONTENT_RANGE, ETAG};
use reqwest::{StatusCode, Url};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::hosts::Host;
use super::patience::Patience;
use super::send::{Answer, Ask};
use super::{Client, Error, Result};
use crate::oci::{Descriptor, Reference};

/// A part of a blob, in bytes.
const PART: u64 = 4 << 20;
/// What is longer than this is asked for in parts, in bytes.
const PARTS_FROM: u64 = 4 * PART;
/// Parts of all blobs together that may be in memory before their turn.
pub(super) const PARTS: usize = 12;

/// A blob on its way from its registry.
pub(super) struct Direct {
    wanted: Arc<Wanted>,
    /// The first byte that did not come out yet.
    at: u64,
    patience: Patience,
    source: Source,
    /// Who gave the first of it, or all.
    host: Option<Arc<Host>>,
    /// The entity tag of what came.
    tag: Option<String>,
    /// One connection is enough for it.
    fast: bool,
}

/// What is asked for, of whom.
struct Wanted {
    client: Arc<Client>,
    reference: Reference,
    descriptor: Descriptor,
    /// In words.
    what: String,
}

/// Where the next bytes come from.
enum Source {
    /// Somebody is to be asked.
    Nobody,
    One(Box<Stream>),
    Parts(Parts),
}

/// The body of an answer.
struct Stream {
    answer: Answer,
    /// Bytes at its beginning that came out before.
    skip: u64,
    /// Where in the blob it ends.
    end: u64,
    /// How long it is.
    length: u64,
    /// It is a part, whose length is certain; what is all of a blob by the server's word is for its reader to measure.
    part: bool,
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

/// Takes at most a part's bytes; `None` when they are all.
type PartSender = mpsc::UnboundedSender<Result<Option<Bytes>>>;

/// A part that a task of its own gets; after an error there is nothing more.
struct Part {
    chunks: mpsc::UnboundedReceiver<Result<Option<Bytes>>>,
    task: JoinHandle<()>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Direct {
    pub(super) fn new(
        client: Arc<Client>,
        reference: Reference,
        descriptor: Descriptor,
        from: u64,
        tag: Option<String>,
    ) -> Self {
        Self {
            at: from,
            patience: client.patience(),
            source: Source::Nobody,
            host: None,
            tag,
            fast: false,
            wanted: Arc::new(Wanted { what: format!("blob {}", descriptor.digest), client, reference, descriptor }),
        }
    }

    /// The next bytes, as they come; `None` at the end.
    ///
    /// # Errors
    /// [`Error`], when asking again is of no use.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.next().await {
                Ok(Some(chunk)) => {
                    self.at += chunk.len() as u64;
                    self.patience.progress(chunk.len() as u64);
                    return Ok(Some(chunk));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    // What one host says of a part is not the last word: the next request goes through all of them.
                    let of_part = matches!(self.source, Source::Parts(_)) && !error.is_passing();
                    self.source = Source::Nobody;
                    if of_part || matches!(error, Error::WrongRange { .. }) {
                        self.wanted.gives_no_parts();
                    }
                    if !of_part {
                        self.patience.after(error).await?;
                    }
                }
            }
        }
    }

    /// Lets go of the connection, which others may need; the next call asks for what is missing.
    pub(super) fn pause(&mut self) {
        self.source = Source::Nobody;
    }

    /// Passes over bytes that came another way.
    pub(super) fn skip_to(&mut self, at: u64) {
        (self.at, self.tag, self.source) = (at, None, Source::Nobody);
    }

    /// Host and port of who was asked last with success.
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_ref().map(|host| host.authority())
    }

    /// The entity tag of what comes, for a run that goes on with it.
    pub(super) fn entity_tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let size = self.wanted.descriptor.size;
        loop {
            match &mut self.source {
                Source::Nobody if self.at > 0 && self.at >= size => return Ok(None),
                Source::Nobody => self.source = Source::One(Box::new(self.ask().await?)),
                Source::One(stream) => {
                    if let Some(chunk) = stream.chunk(&self.wanted).await? {
                        return Ok(Some(chunk));
                    }
                    if stream.end == size {
                        return Ok(None);
                    }
                    self.fast = stream.answer.is_fast();
                    let from = stream.answer.origin();
                    self.source = if self.fast {
                        Source::Nobody
                    } else {
                        Source::Parts(Parts { from: Arc::new(from), coming: VecDeque::new(), next: self.at })
                    };
                }
                Source::Parts(parts) => {
                    parts.fill(&self.wanted);
                    let Some(part) = parts.coming.front_mut() else { return Ok(None) };
                    match part.chunks.recv().await {
                        Some(Ok(Some(chunk))) => return Ok(Some(chunk)),
                        Some(Ok(None)) => drop(parts.coming.pop_front()),
                        Some(Err(error)) => return Err(error),
                        None => return Err(self.wanted.cut_off(&parts.from.host, 0)),
                    }
                }
            }
        }
    }

    /// Asks for what is missing, or for the first part of it.
    async fn ask(&mut self) -> Result<Stream> {
        let Wanted { client, reference, descriptor, .. } = &*self.wanted;
        let size = descriptor.size;
        let partless = client.is_partless(reference.registry());
        let parts = !self.fast && !partless && size.saturating_sub(self.at) > PARTS_FROM;
        let end = if parts { self.at + PART } else { size };
        // What was lied about is not believed again: all of it comes, and what is here is passed over.
        let until = (parts || self.at > 0 && !partless).then_some(end);
        let tag = self.tag.clone().filter(|_| self.at > 0);
        let conditional = tag.is_some();
        let answer = client.blob_from(reference, descriptor, &self.wanted.ask(self.at, until, tag)).await;
        let stream = self.wanted.stream(answer, self.at, until)?;
        if until.is_some() && !stream.part && !conditional {
            // A condition that does not hold is no fault; this is.
            self.wanted.gives_no_parts();
        }
        self.host = Some(stream.answer.host.clone());
        // A weak tag promises nothing about bytes.
        let tag = stream.answer.response.headers().get(ETAG).and_then(|value| value.to_str().ok());
        self.tag = tag.filter(|tag| tag.starts_with('"')).map(str::to_owned);
        Ok(stream)
    }
}

impl Wanted {
    /// A request for the bytes from one to before another; without that other, for all of it.
    fn ask(&self, from: u64, until: Option<u64>, tag: Option<String>) -> Ask<'_> {
        let range = until.map(|until| {
            let last = if until < self.descriptor.size { (until - 1).to_string() } else { String::new() };
            (format!("bytes={from}-{last}"), tag)
        });
        Ask { range, ..Ask::new("blobs", self.descriptor.digest.as_str(), "*/*", &self.what) }
    }

    /// What an answer to such a request holds: these bytes, or all of them, of which the first are passed over.
    fn stream(&self, answer: Result<Answer>, from: u64, until: Option<u64>) -> Result<Stream> {
        let answer = match answer {
            Err(Error::Status { status: 416, host, .. } | Error::Address { status: 416, host, .. }) => {
                return Err(self.wrong_range(host, "416"));
            }
            other => other?,
        };
        let size = self.descriptor.size;
        let part = answer.response.status() == StatusCode::PARTIAL_CONTENT;
        let (skip, end, length) = match until {
            Some(until) if part => {
                let said = answer.response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let said = said.unwrap_or_default();
                let of = said.strip_prefix(&format!("bytes {from}-{}/", until - 1));
                let fits = answer.response.content_length().is_none_or(|length| length == until - from);
                if !fits || !of.is_some_and(|of| of == "*" || of.parse() == Ok(size)) {
                    return Err(self.wrong_range(answer.host.authority().to_owned(), &format!("{said:?}")));
                }
                (0, until, until - from)
            }
            None if part => return Err(self.wrong_range(answer.host.authority().to_owned(), "a part")),
            _ => (from, size, size),
        };
        Ok(Stream { answer, skip, end, length, part })
    }

    fn gives_no_parts(&self) {
        self.client.gives_no_parts(self.reference.registry());
    }

    fn wrong_range(&self, host: String, got: &str) -> Error {
        Error::WrongRange { host, what: self.what.clone(), got: got.to_owned() }
    }

    fn cut_off(&self, host: &Host, got: u64) -> Error {
        Error::CutOff { host: host.authority().to_owned(), what: self.what.clone(), got }
    }

    /// Gets one part, in one try.
    async fn part(&self, origin: &Origin, from: u64, until: u64, chunks: &PartSender) -> Result<()> {
        let answer = self.client.once_more(origin, &self.reference, &self.ask(from, Some(until), None)).await;
        let mut stream = self.stream(answer, from, Some(until))?;
        if !stream.part {
            return Err(self.wrong_range(stream.answer.host.authority().to_owned(), "all of it"));
        }
        while let Some(chunk) = stream.chunk(self).await? {
            if chunks.send(Ok(Some(chunk))).is_err() {
                return Ok(());
            }
        }
        let _ = chunks.send(Ok(None));
        Ok(())
    }
}

impl Stream {
    async fn chunk(&mut self, wanted: &Wanted) -> Result<Option<Bytes>> {
        loop {
            let chunk = wanted.client.sender.chunk(&mut self.answer, &wanted.what).await?;
            let (host, came) = (&self.answer.host, self.answer.came());
            let Some(mut chunk) = chunk else {
                // A server that does not say how much it gives can be cut off without a sign.
                if came < self.length && (self.part || self.answer.silent) {
                    return Err(wanted.cut_off(host, came));
                }
                return Ok(None);
            };
            if self.part && came > self.length {
                return Err(wanted.wrong_range(host.authority().to_owned(), "more than that part"));
            }
            let skipped = chunk.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            chunk.advance(skipped);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

impl Parts {
    /// Asks for as many parts as there is room for, and for the next one in any case.
    fn fill(&mut self, wanted: &Arc<Wanted>) {
        while self.next < wanted.descriptor.size {
            let room = wanted.client.room_for_part(&self.from);
            if room.is_none() && !self.coming.is_empty() {
                return;
            }
            let from = self.next;
            let until = (from + PART).min(wanted.descriptor.size);
            self.next = until;
            let (sender, chunks) = mpsc::unbounded_channel();
            let (wanted, origin) = (wanted.clone(), self.from.clone());
            let task = tokio::spawn(async move {
                if let Err(error) = wanted.part(&origin, from, until, &sender).await {
                    let _ = sender.send(Err(error));
                }
            });
            self.coming.push_back(Part { chunks, task, _room: room });
        }
    }
}
