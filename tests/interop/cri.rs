//! CRI's ImageService over a containerd's socket: unary gRPC, with just the protobuf these messages need.

use std::path::Path;

use bytes::{Buf, Bytes};
use http::Request;

/// An image as `ListImages` gives it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Image {
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    pub size: u64,
    pub pinned: bool,
}

pub fn list_images(socket: &Path) -> Vec<Image> {
    let answer = call(socket, "/runtime.v1.ImageService/ListImages", &[]).unwrap();
    let mut images: Vec<Image> =
        fields(&answer).filter(|(field, _)| *field == 1).map(|(_, value)| image(value.bytes())).collect();
    images.sort();
    images
}

pub fn pull_image(socket: &Path, name: &str) -> Result<(), String> {
    let spec = message(1, name.as_bytes());
    call(socket, "/runtime.v1.ImageService/PullImage", &message(1, &spec)).map(drop)
}

fn image(bytes: &[u8]) -> Image {
    let mut image = Image::default();
    for (field, value) in fields(bytes) {
        match field {
            1 => image.id = value.text(),
            2 => image.tags.push(value.text()),
            3 => image.digests.push(value.text()),
            4 => image.size = value.number(),
            8 => image.pinned = value.number() != 0,
            _ => {}
        }
    }
    image.tags.sort();
    image.digests.sort();
    image
}

/// A field of bytes.
fn message(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap());
    out.extend(bytes);
    out
}

enum Value<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

impl<'b> Value<'b> {
    fn bytes(&self) -> &'b [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => panic!("a number where bytes are expected"),
        }
    }
    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
    fn number(&self) -> u64 {
        match self {
            Self::Number(n) => *n,
            Self::Bytes(_) => panic!("bytes where a number is expected"),
        }
    }
}

fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let key = varint(&mut rest);
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)),
            2 => {
                let len = usize::try_from(varint(&mut rest)).unwrap();
                let (bytes, after) = rest.split_at(len);
                rest = after;
                Value::Bytes(bytes)
            }
            other => panic!("wire type {other}"),
        };
        Some((key >> 3, value))
    })
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut n = 0;
    for shift in (0..).step_by(7) {
        let byte = rest.get_u8();
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    n
}

/// A unary call; the status message when it fails.
fn call(socket: &Path, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut client = client.ready().await.unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        body.send_data(Bytes::from(frame), true).unwrap();
        let mut response = response.await.unwrap();
        let mut answer = Vec::new();
        while let Some(chunk) = response.body_mut().data().await {
            let chunk = chunk.unwrap();
            response.body_mut().flow_control().release_capacity(chunk.len()).unwrap();
            answer.extend(chunk);
        }
        let trailers = response.body_mut().trailers().await.unwrap().unwrap_or_default();
        let header =
            |name: &str| trailers.get(name).or(response.headers().get(name)).map(|v| v.to_str().unwrap().to_owned());
        match header("grpc-status").as_deref() {
            Some("0") => Ok(answer.split_off(5)),
            _ => Err(header("grpc-message").unwrap_or_default()),
        }
    })
}
