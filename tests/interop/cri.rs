//! CRI and containerd's own services over a containerd's socket: unary gRPC, with just the protobuf these messages need.

use std::path::Path;

use ::prebake::oci::Digest;
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

/// Removes an image with all its names.
pub fn remove_image(socket: &Path, id: &str) {
    let spec = message(1, id.as_bytes());
    call(socket, "/runtime.v1.ImageService/RemoveImage", &message(1, &spec)).unwrap();
}

/// Whether CRI serves already, which it does a little after the rest.
pub fn is_ready(socket: &Path) -> bool {
    call(socket, "/runtime.v1.RuntimeService/ListPodSandbox", &[]).is_ok()
}

/// A pod on the host's network, which needs no CNI; its sandbox runs the image the configuration names.
fn pod(name: &str) -> Vec<u8> {
    const CONTAINER: u8 = 1;
    const NODE: u8 = 2;
    let metadata = [message(1, name.as_bytes()), message(2, name.as_bytes()), message(3, b"default")].concat();
    let namespaces = [number(1, NODE), number(2, CONTAINER), number(3, NODE)].concat();
    let linux = message(2, &message(1, &namespaces));
    [message(1, &metadata), message(8, &linux)].concat()
}

/// Starts a pod's sandbox; its id.
pub fn run_pod(socket: &Path, name: &str) -> String {
    let answer = call(socket, "/runtime.v1.RuntimeService/RunPodSandbox", &message(1, &pod(name))).unwrap();
    fields(&answer).find(|(field, _)| *field == 1).unwrap().1.text()
}

/// Creates and starts a container in a pod; its id.
pub fn run_container(socket: &Path, pod_id: &str, pod_name: &str, image: &str, command: &[&str]) -> String {
    let config = [message(1, &message(1, b"main")), message(2, &message(1, image.as_bytes()))].concat();
    let command: Vec<u8> = command.iter().flat_map(|word| message(3, word.as_bytes())).collect();
    let request = [message(1, pod_id.as_bytes()), message(2, &[config, command].concat()), message(3, &pod(pod_name))];
    let answer = call(socket, "/runtime.v1.RuntimeService/CreateContainer", &request.concat()).unwrap();
    let id = fields(&answer).find(|(field, _)| *field == 1).unwrap().1.text();
    call(socket, "/runtime.v1.RuntimeService/StartContainer", &message(1, id.as_bytes())).unwrap();
    id
}

/// Ids and states of the pods' sandboxes (0: ready), or of their containers (1: running).
pub fn states(socket: &Path, containers: bool) -> Vec<(String, u64)> {
    let (method, field) = if containers { ("ListContainers", 6) } else { ("ListPodSandbox", 3) };
    let answer = call(socket, &format!("/runtime.v1.RuntimeService/{method}"), &[]).unwrap();
    let state = |item: &[u8]| {
        let find = |wanted| fields(item).find(|(field, _)| *field == wanted).map(|(_, value)| value);
        (find(1).unwrap().text(), find(field).map_or(0, |state| state.number()))
    };
    fields(&answer).filter(|(field, _)| *field == 1).map(|(_, item)| state(item.bytes())).collect()
}

/// Stops and removes a pod with its containers.
pub fn remove_pod(socket: &Path, id: &str) {
    for method in ["StopPodSandbox", "RemovePodSandbox"] {
        call(socket, &format!("/runtime.v1.RuntimeService/{method}"), &message(1, id.as_bytes())).unwrap();
    }
}

/// Adds a resource to a lease, as moby does with a container's layer.
pub fn add_to_lease(socket: &Path, namespace: &str, lease: &str, kind: &str, id: &str) {
    let resource = [message(1, id.as_bytes()), message(2, kind.as_bytes())].concat();
    let request = [message(1, lease.as_bytes()), message(2, &resource)].concat();
    call_in(socket, namespace, "/containerd.services.leases.v1.Leases/AddResource", &request).unwrap();
}

/// A garbage collection that removes a blob, and so sweeps those from the disk that containerd does not know.
pub fn collect(socket: &Path, n: usize) {
    let name = format!("garbage-{n}");
    let (data, digest) = (name.as_bytes(), Digest::of(name.as_bytes()).to_string());
    let write = [number(1, 2), message(2, data), message(4, digest.as_bytes()), message(6, data)].concat();
    call(socket, "/containerd.services.content.v1.Content/Write", &write).unwrap();
    // Another collection may have been faster, and has removed something then.
    let _ = call(socket, "/containerd.services.content.v1.Content/Delete", &message(1, digest.as_bytes()));
    let lease = message(1, data);
    call(socket, "/containerd.services.leases.v1.Leases/Create", &lease).unwrap();
    call(socket, "/containerd.services.leases.v1.Leases/Delete", &[lease, number(2, 1)].concat()).unwrap();
}

/// Makes a record in the sandbox store (containerd 1.7 and later).
pub fn create_sandbox(socket: &Path, namespace: &str, id: &str) -> Result<(), String> {
    let label = [message(1, b"test"), message(2, b"sandbox")].concat();
    let sandbox =
        [message(1, id.as_bytes()), message(2, &message(1, b"io.containerd.runc.v2")), message(4, &label)].concat();
    let request = message(1, &sandbox);
    call_in(socket, namespace, "/containerd.services.sandbox.v1.Store/Create", &request).map(drop)
}

/// The ids in the sandbox store.
pub fn sandboxes(socket: &Path, namespace: &str) -> Vec<String> {
    let answer = call_in(socket, namespace, "/containerd.services.sandbox.v1.Store/List", &[]).unwrap();
    fields(&answer).map(|(_, sandbox)| fields(sandbox.bytes()).next().unwrap().1.text()).collect()
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

/// A field of a small number.
fn number(field: u8, n: u8) -> Vec<u8> {
    vec![field << 3, n]
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

fn call(socket: &Path, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    call_in(socket, "k8s.io", method, message)
}

/// A unary call in a namespace; the status message when it fails.
fn call_in(socket: &Path, namespace: &str, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", namespace)
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
