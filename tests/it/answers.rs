//! What a registry that misbehaves answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::prebake::fixture::{Body, Content, full};
use ::prebake::oci::media_type;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};

use crate::support::registry::respond;

/// A header of a request, if it was sent.
pub fn sent(request: &Request<Incoming>, name: &str) -> Option<String> {
    Some(request.headers().get(name)?.to_str().unwrap().to_owned())
}

/// A header of a request, or nothing.
pub fn header(request: &Request<Incoming>, name: &str) -> String {
    sent(request, name).unwrap_or_default()
}

/// The digest and the bytes of the first layer.
pub fn layer_of(content: &Content) -> (String, Bytes) {
    let (digest, (_, bytes)) = content.blobs.iter().find(|(_, (kind, _))| media_type::is_layer(kind)).unwrap();
    (digest.to_string(), bytes.clone())
}

pub fn text(status: u16, body: &str) -> Response<Body> {
    respond(status, &[], full(body.to_owned()))
}

/// A body without an end.
pub fn endless() -> Body {
    let piece = Bytes::from(vec![b' '; 1 << 16]);
    let stream = futures_util::stream::repeat_with(move || Ok(Frame::data(piece.clone())));
    StreamBody::new(stream).boxed_unsync()
}

/// A body that breaks off with the connection.
pub fn broken(bytes: Bytes) -> Body {
    let parts = [Ok(Frame::data(bytes)), Err(std::io::Error::other("broken off"))];
    let stream = futures_util::stream::iter(parts).then(|part| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        part
    });
    StreamBody::new(stream).boxed_unsync()
}

/// A body whose length nothing tells but the end of the connection.
pub fn silent(bytes: Bytes) -> Response<Body> {
    let mut response = respond(
        200,
        &[("connection", "close")],
        StreamBody::new(futures_util::stream::iter([Ok(Frame::data(bytes))])).boxed_unsync(),
    );
    *response.version_mut() = hyper::Version::HTTP_10;
    response
}

/// A body that is counted as long as it lives.
pub fn counted(body: Body, count: Arc<AtomicUsize>) -> Body {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let counted = Counted(count);
    body.map_frame(move |frame| {
        let _ = &counted;
        frame
    })
    .boxed_unsync()
}
