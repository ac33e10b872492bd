//! Connections: how many there are, how long each may take for what, and how they end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::answer::{Shared, answer};

/// Connections at the same time, at most; others wait in the kernel until one ends.
pub const MAX_CONNECTIONS: u32 = 1000;
/// How long a client may take for the head of a request, and be idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take for TLS's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take no byte of what is sent to it.
pub const STALL_TIMEOUT: Duration = Duration::from_mins(1);
/// How long answers may go on when the server is to stop.
pub const GRACE: Duration = Duration::from_secs(10);
/// Bytes of a request's head. As many are held back of an answer before more of it is read.
const MAX_HEAD: usize = 64 << 10;
/// How long nothing is accepted after the system refused to, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until `stop` is there, then lets answers end.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    stall: Duration,
    stop: impl Future<Output = ()>,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let (stopping, stopped) = watch::channel(());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        // What a connection gets is written in large pieces: waiting for more would only delay their ends.
        let _ = stream.set_nodelay(true);
        let (tls, shared, stopped) = (tls.clone(), shared.clone(), stopped.clone());
        tokio::spawn(async move {
            let _open = shared.metrics.connection();
            let stream = Stalling::new(stream, stall);
            match tls {
                None => connection(stream, peer, &shared, stopped).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                        connection(stream, peer, &shared, stopped).await;
                    }
                }
            }
            drop(permit);
        });
    }
    drop(listener);
    let _ = stopping.send(());
    // All permits are there again when no connection is left.
    let _ = timeout(GRACE, room.acquire_many(MAX_CONNECTIONS)).await;
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(shared, peer, request).await) });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // What went wrong is the client's: it left, or does not speak HTTP.
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A stream that fails when the other side takes nothing for a time.
struct Stalling {
    stream: TcpStream,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether a write waits.
    waits: bool,
}

impl Stalling {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, timer: Box::pin(sleep(limit)), waits: false }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        if !self.waits {
            self.waits = true;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Stalling {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
