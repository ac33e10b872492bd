//! What is sent, as it is read: one buffer of it at a time for each connection, and the next one when it is gone.

use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use super::answer::Record;
use super::buffers::Buffers;

/// Who takes a buffer in less than this is fast: 16 KiB in it are less than 1 MB/s.
const FAST: Duration = Duration::from_millis(20);

type Reader = Box<dyn Read + Send>;

/// Where a body comes from.
pub(super) enum Source {
    Bytes(Bytes),
    Blob(Blob),
}

impl Source {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob(blob) => blob.left,
        }
    }
}

/// Bytes of a blob that are still to be read.
pub(super) struct Blob {
    buffers: Arc<Buffers>,
    state: State,
    left: u64,
    /// When the last bytes were given away.
    given: Option<Instant>,
}

enum State {
    Ready(Reader),
    Reading(JoinHandle<io::Result<(Reader, Bytes)>>),
    Failed,
}

impl Blob {
    pub(super) fn new(buffers: Arc<Buffers>, reader: Reader, left: u64) -> Self {
        Self { buffers, state: State::Ready(reader), left, given: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match std::mem::replace(&mut self.state, State::Failed) {
                State::Failed => return Poll::Ready(None),
                State::Ready(_) if self.left == 0 => return Poll::Ready(None),
                State::Ready(mut reader) => {
                    let fast = self.given.is_some_and(|given| given.elapsed() < FAST);
                    let (buffer, most) = (self.buffers.take(self.left, fast), self.left);
                    self.state = State::Reading(spawn_blocking(move || {
                        let bytes = buffer.read(&mut reader, most)?;
                        Ok((reader, bytes))
                    }));
                }
                State::Reading(mut read) => {
                    let Poll::Ready(done) = Pin::new(&mut read).poll(context) else {
                        self.state = State::Reading(read);
                        return Poll::Pending;
                    };
                    let (reader, bytes) = match done.unwrap_or_else(|lost| Err(io::Error::other(lost))) {
                        Ok(done) => done,
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    };
                    if bytes.is_empty() {
                        return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                    }
                    self.left -= bytes.len() as u64;
                    self.given = Some(Instant::now());
                    self.state = State::Ready(reader);
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
        }
    }
}

/// The body of a response, and the record of it.
pub(super) struct Body {
    source: Source,
    record: Record,
}

impl Body {
    pub(super) fn new(source: Source, record: Record) -> Self {
        Self { source, record }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = match &mut self.source {
            Source::Bytes(bytes) if bytes.is_empty() => None,
            Source::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
            Source::Blob(blob) => ready!(blob.poll(context)),
        };
        match &next {
            Some(Ok(bytes)) => self.record.sent(bytes.len() as u64),
            Some(Err(error)) => self.record.failed(error.to_string()),
            None => {}
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.source.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.source.len())
    }
}
