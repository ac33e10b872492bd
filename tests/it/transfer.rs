//! Blobs over bad connections: they go on where they broke off, and nothing wrong is ever kept.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response};
use prebake::fixture::{Body, Content, full, paced};

use crate::answers::{broken, counted, endless, layer_of, sent, silent, text};
use crate::support::content::build;
use crate::support::prebake::{Run, blobs, prebake, start};
use crate::support::registry::{TestRegistry, respond};

const BAKE: &str = "bake --platform linux/amd64";
/// One layer of that many random bytes, `app:1`.
fn image(size: u32) -> Content {
    build(&format!(
        "[layer.l]\nfiles = [{{ path = \"f\", random = {size} }}]\n[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n"
    ))
}

/// A registry with `app:1`, whose answers for the layer `fault` may replace: it is given the request, its number, and the
/// layer. Every request for the layer is kept, as its `Range` and `If-Range`.
struct Odd {
    registry: TestRegistry,
    ranges: Arc<Mutex<Vec<Asked>>>,
}

/// `Range` and `If-Range` of a request.
type Asked = (Option<String>, Option<String>);

fn odd(
    size: u32,
    fault: impl Fn(&Request<Incoming>, usize, &Bytes) -> Option<Response<Body>> + Send + Sync + 'static,
) -> Odd {
    let content = image(size);
    let ranges: Arc<Mutex<Vec<_>>> = Arc::default();
    let (log, (digest, bytes)) = (ranges.clone(), layer_of(&content));
    let registry = TestRegistry::faulty(content, move |request| {
        if !request.uri().path().ends_with(&digest) {
            return None;
        }
        let number = {
            let mut log = log.lock().unwrap();
            log.push((sent(request, "range"), sent(request, "if-range")));
            log.len()
        };
        fault(request, number, &bytes)
    });
    Odd { registry, ranges }
}

impl Odd {
    fn bake(&self, root: &Path, more: &str) -> Run {
        prebake(root, &format!("{BAKE} {more} {}", self.registry.reference("app:1")))
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.ranges.lock().unwrap())
    }

    #[track_caller]
    fn arrives(&self, root: &Path, more: &str) -> Run {
        let run = self.bake(root, more).expect(0);
        prebake(root, "check").expect(0);
        run
    }
}

/// The layer, breaking off behind so many bytes.
fn cut(bytes: &Bytes, tag: &str, at: usize) -> Response<Body> {
    respond(200, &[("content-length", &bytes.len().to_string()), ("etag", tag)], broken(bytes.slice(..at)))
}

#[test]
fn a_broken_transfer_goes_on() {
    for how in ["", "--unpack --discard-layers"] {
        let odd = odd(2_000_000, |_, number, bytes| (number == 1).then(|| cut(bytes, "\"t\"", 700_000)));
        let root = tempfile::tempdir().unwrap();
        if how.is_empty() || rustix::process::geteuid().is_root() {
            let run = odd.arrives(root.path(), how);
            assert!(run.stderr.contains("again after try 1 of 10: "), "{}", run.stderr);
            let asked = odd.asked();
            assert_eq!(asked[0], (None, None));
            assert_eq!(asked[1..], [(Some("bytes=700000-".to_owned()), Some("\"t\"".to_owned()))]);
        }
    }
}

#[test]
fn wrong_bytes_are_not_the_image_s_fault() {
    // Early in the gzip, where unpacking fails at once, and in the sum at its end; the third try is right.
    for at in [5_000, 1_999_990] {
        for how in ["", "--unpack", "--unpack --discard-layers"] {
            if how.is_empty() || rustix::process::geteuid().is_root() {
                let odd = odd(2_000_000, move |_, number, bytes| {
                    let mut wrong = bytes.to_vec();
                    wrong[at] ^= 0xff;
                    (number < 3).then(|| respond(200, &[], full(wrong)))
                });
                let root = tempfile::tempdir().unwrap();
                let run = odd.arrives(root.path(), how);
                assert_eq!(run.stderr.matches("again: sha256:").count(), 2, "{how}: {}", run.stderr);
                assert_eq!(odd.asked(), vec![(None, None); 3], "{how}");
            }
        }
    }
}

#[test]
fn an_end_without_a_sign_is_noticed() {
    // No length, no chunks: only the end of the connection.
    let odd = odd(2_000_000, |_, number, bytes| (number == 1).then(|| silent(bytes.slice(..1_500_000))));
    let root = tempfile::tempdir().unwrap();
    odd.arrives(root.path(), "");
    assert_eq!(odd.asked()[1].0.as_deref(), Some("bytes=1500000-"));
}

#[test]
fn servers_that_do_not_give_what_was_asked_for() {
    type Fault = fn(&Bytes) -> Response<Body>;
    let wrong: [(&str, Fault); 7] = [
        ("all of it", |bytes| respond(200, &[], full(bytes.clone()))),
        ("416", |_| text(416, "")),
        ("another part", |bytes| part(bytes, 0, 500_000, 2_000_000)),
        ("a part of something else", |bytes| part(bytes, 700_000, 1_999_999, 3_000_000)),
        ("no Content-Range", |bytes| respond(206, &[], full(bytes.slice(700_000..)))),
        ("two parts", |_| respond(206, &[("content-type", "multipart/byteranges; boundary=x")], full("--x"))),
        ("other bytes", |bytes| part_of(bytes, &Bytes::from(vec![7; bytes.len() - 700_000]), 700_000)),
    ];
    for (what, fault) in wrong {
        // Once broken off; whatever asks for a part gets something else.
        let odd = odd(2_000_000, move |request, number, bytes| match number {
            1 => Some(cut(bytes, "\"t\"", 700_000)),
            _ => request.headers().contains_key("range").then(|| fault(bytes)),
        });
        let root = tempfile::tempdir().unwrap();
        odd.arrives(root.path(), "");
        let asked = odd.asked();
        assert!(asked.len() <= 3, "{what}: {asked:?}");
        assert!(asked[2..].iter().all(|(range, _)| range.is_none()), "{what}: not trusted again: {asked:?}");
    }
}

fn part(bytes: &Bytes, from: usize, to: usize, of: usize) -> Response<Body> {
    let range = format!("bytes {from}-{}/{of}", to - 1);
    respond(206, &[("content-range", &range)], full(bytes.slice(from..to.min(bytes.len()))))
}

fn part_of(bytes: &Bytes, other: &Bytes, from: usize) -> Response<Body> {
    let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    respond(206, &[("content-range", &range)], full(other.clone()))
}

#[test]
fn killed_and_gone_on_with() {
    let content = image(8_000_000);
    let (digest, bytes) = layer_of(&content);
    let ranges: Arc<Mutex<Vec<_>>> = Arc::default();
    let log = ranges.clone();
    let registry = TestRegistry::faulty(content, move |request| {
        if !request.uri().path().ends_with(&digest) {
            return None;
        }
        let (range, condition) = (sent(request, "range"), sent(request, "if-range"));
        let first = range.is_none();
        log.lock().unwrap().push((range, condition));
        let headers = [("content-length", &*bytes.len().to_string()), ("etag", "\"kept\"")];
        first.then(|| respond(200, &headers, paced(&bytes, 100_000, Duration::from_millis(10))))
    });
    let root = tempfile::tempdir().unwrap();
    let ingest = root.path().join("var/lib/containerd/io.containerd.content.v1.content/ingest");
    let data = || {
        let dir =
            std::fs::read_dir(&ingest).ok()?.filter_map(Result::ok).find(|dir| dir.path().join("etag").exists())?;
        Some(std::fs::metadata(dir.path().join("data")).ok()?.len())
    };
    let bake = format!("{BAKE} {}", registry.reference("app:1"));
    let mut child = start(root.path(), &bake);
    let deadline = Instant::now() + Duration::from_secs(30);
    while data().is_none_or(|len| len < 2_500_000) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let came = data().unwrap();
    prebake(root.path(), &bake).expect(0);
    prebake(root.path(), "check").expect(0);
    let asked = ranges.lock().unwrap();
    assert_eq!(asked[1..], [(Some(format!("bytes={came}-")), Some("\"kept\"".to_owned()))]);
    assert_eq!(std::fs::read_dir(&ingest).unwrap().count(), 0);
}

#[test]
fn what_an_earlier_run_left_may_be_wrong() {
    let odd = odd(3_000_000, |_, _, _| None);
    let root = tempfile::tempdir().unwrap();
    // A run that is ended at its first chunk past 2 MB leaves a prefix: here one that power took back as zeros.
    let cut_off = self::odd(3_000_000, |_, _, bytes| Some(cut(bytes, "\"t\"", 2_000_000)));
    cut_off.bake(root.path(), "--tries 1").expect(1);
    let ingest = root.path().join("var/lib/containerd/io.containerd.content.v1.content/ingest");
    let dir = std::fs::read_dir(&ingest).unwrap().next().unwrap().unwrap().path();
    std::fs::write(dir.join("data"), vec![0; 2_000_000]).unwrap();
    odd.arrives(root.path(), "");
    let asked = odd.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!((asked[0].0.as_deref(), asked[1].0.as_deref()), (Some("bytes=2000000-"), None));
}

#[test]
fn large_blobs_come_in_parts_where_that_helps() {
    // 300 ms for each 4 MiB: a connection of 14 MB/s.
    let under_way = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (under_way, most.clone());
    let odd = odd(40_000_000, move |request, _, bytes| {
        let range = sent(request, "range")?;
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let (from, to) = (from.parse::<usize>().ok()?, to.parse::<usize>().ok()? + 1);
        let count = now.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(count, Ordering::SeqCst);
        let own = now.clone();
        let body = paced(&bytes.slice(from..to), 140_000, Duration::from_millis(10));
        let content_range = format!("bytes {from}-{}/{}", to - 1, bytes.len());
        let length = (to - from).to_string();
        Some(respond(206, &[("content-range", &content_range), ("content-length", &length)], counted(body, own)))
    });
    let root = tempfile::tempdir().unwrap();
    let before = Instant::now();
    odd.arrives(root.path(), "");
    let took = before.elapsed();
    let asked = odd.asked();
    assert_eq!(asked.len(), 10, "{asked:?}");
    assert!(asked.iter().all(|(range, condition)| range.is_some() && condition.is_none()));
    let most = most.load(Ordering::SeqCst);
    assert!((4..=10).contains(&most), "{most}");
    // One after another they would take three seconds.
    assert!(took < Duration::from_millis(2500), "{took:?}");
}

#[test]
fn a_fast_connection_is_enough() {
    let odd = odd(40_000_000, |_, _, _| None);
    let root = tempfile::tempdir().unwrap();
    odd.arrives(root.path(), "");
    let asked = odd.asked();
    assert_eq!(asked[0].0.as_deref(), Some("bytes=0-4194303"));
    assert_eq!(asked[1].0.as_deref(), Some("bytes=4194304-"), "{asked:?}");
    assert_eq!(asked.len(), 2);
}

#[test]
fn parts_that_break_and_parts_that_lie() {
    type Fault = fn(usize, usize, &Bytes) -> Response<Body>;
    let faults: [Fault; 5] = [
        |from, to, bytes| {
            respond(
                206,
                &[
                    ("content-range", &format!("bytes {from}-{}/{}", to - 1, bytes.len())),
                    ("content-length", &(to - from).to_string()),
                ],
                broken(bytes.slice(from..from + 1000)),
            )
        },
        |_, _, bytes| respond(200, &[], full(bytes.clone())),
        |from, to, bytes| part(&Bytes::from(vec![1; bytes.len()]), from, to, bytes.len()),
        // In chunks, which say no length: too few, and too many.
        |from, to, bytes| {
            let range = format!("bytes {from}-{}/{}", to - 1, bytes.len());
            respond(206, &[("content-range", &range)], paced(&bytes.slice(from..to - 9), 1 << 20, Duration::ZERO))
        },
        |from, to, bytes| {
            let range = format!("bytes {from}-{}/{}", to - 1, bytes.len());
            respond(206, &[("content-range", &range)], endless())
        },
    ];
    for fault in faults {
        let odd = odd(40_000_000, move |request, number, bytes| {
            let range = sent(request, "range")?;
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            let from = from.parse::<usize>().ok()?;
            let to = to.parse::<usize>().map_or(bytes.len(), |to| to + 1);
            if number == 4 {
                return Some(fault(from, to, bytes));
            }
            let body = paced(&bytes.slice(from..to), 500_000, Duration::from_millis(10));
            Some(respond(206, &[("content-range", &format!("bytes {from}-{}/{}", to - 1, bytes.len()))], body))
        });
        let root = tempfile::tempdir().unwrap();
        odd.arrives(root.path(), "");
    }
}

#[test]
fn an_address_that_expired_is_asked_for_again() {
    let content = image(30_000_000);
    let (digest, bytes) = layer_of(&content);
    let good = Arc::new(AtomicUsize::new(0));
    let current = good.clone();
    let cdn = TestRegistry::faulty(image(30_000_000), move |request| {
        assert!(request.headers().get("authorization").is_none());
        // Each address is good for three requests.
        let n: usize = request.uri().query()?.strip_prefix("s=")?.parse().ok()?;
        if n / 3 != current.fetch_add(1, Ordering::SeqCst) / 3 {
            return Some(text(403, "expired"));
        }
        let range = sent(request, "range")?;
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let from = from.parse::<usize>().ok()?;
        let to = to.parse::<usize>().map_or(bytes.len(), |to| to + 1);
        let body = paced(&bytes.slice(from..to), 500_000, Duration::from_millis(10));
        Some(respond(206, &[("content-range", &format!("bytes {from}-{}/{}", to - 1, bytes.len()))], body))
    });
    let to = cdn.name();
    let registry = TestRegistry::faulty(content, move |request| {
        let path = request.uri().path();
        let n = good.load(Ordering::SeqCst);
        path.ends_with(&digest).then(|| respond(307, &[("location", &format!("http://{to}{path}?s={n}"))], full("")))
    });
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(0);
    prebake(root.path(), "check").expect(0);
    assert_eq!(blobs(root.path()).len(), 3);
    // One that refuses always is no reason to go on for ever.
    let refusing = TestRegistry::faulty(image(1000), |_| Some(text(403, "")));
    let to = refusing.name();
    let registry = TestRegistry::faulty(image(1000), move |request| {
        let path = request.uri().path();
        path.contains("/blobs/").then(|| respond(302, &[("location", &format!("http://{to}{path}"))], full("")))
    });
    let root = tempfile::tempdir().unwrap();
    let run = prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(1);
    assert!(run.stderr.contains("to which the registry redirects, answered 403"), "{}", run.stderr);
    assert_eq!(refusing.asked().len(), 3);
}

#[test]
fn redirects_in_circles_end() {
    let registry = TestRegistry::faulty(image(1000), |request| {
        let path = request.uri().path();
        path.contains("/blobs/").then(|| respond(307, &[("location", path)], full("")))
    });
    let root = tempfile::tempdir().unwrap();
    let run = prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(1);
    assert!(run.stderr.contains("in circles"), "{}", run.stderr);
    assert!(registry.asked().len() < 20);
}
