//! Calls to a containerd over its socket.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::api::{Write, Written};
use super::{Error, Refusal, Result};

/// How long a containerd that was just started may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The headers by which containerd knows what a call is about (containerd `namespaces.GRPCHeader`, `leases.GRPCHeader`).
const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";
const WRITE: &str = "/containerd.services.content.v1.Content/Write";

/// A connection to a containerd.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to the socket of a containerd.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn connect(address: &Path) -> Result<Self> {
        let error = |source: tonic::transport::Error| Error::Connect { address: address.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{}", address.display())).map_err(error)?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(error)?;
        Ok(Self { channel })
    }

    pub(super) fn session(&self, namespace: &str) -> Result<Session> {
        let namespace = header(namespace)?;
        Ok(Session { channel: self.channel.clone(), namespace, lease: None, changed: Arc::default() })
    }
}

fn header(value: &str) -> Result<MetadataValue<Ascii>> {
    let refusal = |_| Refusal { code: Code::InvalidArgument, message: "it is no text of ASCII".to_owned() };
    value.parse().map_err(|e| Error::Call { action: "naming", what: format!("{value:?}"), source: refusal(e) })
}

/// Calls in a namespace, and under a lease once there is one.
#[derive(Debug, Clone)]
pub(super) struct Session {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
    changed: Arc<AtomicBool>,
}

impl Session {
    /// The same under a lease: what is made belongs to it.
    pub(super) fn under(&self, lease: &str) -> Result<Self> {
        Ok(Self { lease: Some(header(lease)?), ..self.clone() })
    }

    /// Remembers that something was not as it had to be.
    pub(super) fn change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    pub(super) fn changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(NAMESPACE, self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(LEASE, lease.clone());
        }
        request
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    /// A call of one message for another; `service` is relative to `containerd.services`.
    pub(super) async fn call<Q, A>(&self, service: &str, message: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = format!("/containerd.services.{service}").parse::<PathAndQuery>();
        let path = path.map_err(|error| Status::internal(error.to_string()))?;
        let answer = self.ready().await?.unary(self.request(message), path, ProstCodec::<Q, A>::new()).await?;
        Ok(answer.into_inner())
    }

    /// Begins to write content; what the answer to the first message is.
    pub(super) async fn write(&self, first: Write) -> Result<(Writing, Written), Status> {
        let (requests, received) = mpsc::channel::<Write>(1);
        // The answer's headers come with the answer to the first message, which has to be on its way before.
        requests.try_send(first).map_err(|error| Status::internal(error.to_string()))?;
        let next = |mut received: mpsc::Receiver<Write>| async { received.recv().await.map(|next| (next, received)) };
        let stream = self.request(stream::unfold(received, next));
        let codec = ProstCodec::<Write, Written>::new();
        let answers = self.ready().await?.streaming(stream, PathAndQuery::from_static(WRITE), codec).await?;
        let mut writing = Writing { requests, answers: answers.into_inner() };
        let answer = writing.answer().await?;
        Ok((writing, answer))
    }
}

/// A write under way. Dropped, it leaves its ingest to the lease.
pub(super) struct Writing {
    requests: mpsc::Sender<Write>,
    answers: Streaming<Written>,
}

impl Writing {
    /// The next message, and the answer to it.
    pub(super) async fn ask(&mut self, message: Write) -> Result<Written, Status> {
        // Where nobody takes it any more, the answer says why.
        let _ = self.requests.send(message).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<Written, Status> {
        self.answers.message().await?.ok_or_else(|| Status::unavailable("the answers ended"))
    }
}

/// What containerd answered, when it was doing something to something.
pub(super) fn refused(action: &'static str, what: impl ToString) -> impl FnOnce(Status) -> Error {
    move |status| {
        let mut message = status.message().to_owned();
        let mut cause = std::error::Error::source(&status);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Error::Call { action, what: what.to_string(), source: Refusal { code: status.code(), message } }
    }
}

/// Whether a call was refused for this.
pub(super) fn is<T>(answer: &Result<T, Status>, code: Code) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == code)
}
