//! Many images from a registry where one request in five fails in a random way: everything arrives, every byte right, and
//! nothing is asked oftener than the failures call for. `PREBAKE_SOAK` images (40; ten layers each), `PREBAKE_SEED`.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response};
use prebake::fixture::{Body, Content, full};

use crate::answers::{broken, text};
use crate::support::content::build;
use crate::support::prebake::{blobs, prebake, start};
use crate::support::registry::{TestRegistry, respond};
use crate::support::rng::Rng;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn images(count: u64) -> Content {
    let layers = (0..count * 10)
        .map(|n| format!("[layer.l{n}]\nfiles = [{{ path = \"f{n}\", random = {} }}]\n", 2000 + n * 37 % 30_000));
    let images = (0..count).map(|n| {
        let layers: Vec<String> = (0..10).map(|l| format!("\"l{}\"", n * 10 + l)).collect();
        format!("[[image]]\nname = \"app{n}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [{}]\n", layers.join(", "))
    });
    build(&layers.chain(images).collect::<String>())
}

/// Something else than the answer.
fn fault(content: &Content, request: &Request<Incoming>, rng: &mut Rng) -> Response<Body> {
    let kind = rng.below(20);
    let path = request.uri().path();
    let digest = path.rsplit('/').next().unwrap().parse().ok();
    let bytes = digest.and_then(|digest| content.blobs.get(&digest)).map(|(_, bytes)| bytes.clone());
    let cut = |bytes: &Bytes, rng: &mut Rng| {
        let at = rng.below(bytes.len());
        respond(200, &[("content-length", &bytes.len().to_string())], broken(bytes.slice(..at)))
    };
    match (kind, bytes) {
        (0, _) => respond(429, &[("retry-after", "1")], full("")),
        (1, _) => respond(503, &[("retry-after", "0")], full("")),
        (2, _) => text(429, ""),
        (3..6, _) => text(500, r#"{"errors":[{"code":"UNKNOWN","message":"no luck"}]}"#),
        (6..8, _) => text(502, "<html>"),
        (8, _) => text(408, ""),
        // A byte that is another one.
        (9, Some(bytes)) if path.contains("/blobs/") && !bytes.is_empty() => {
            let mut wrong = bytes.to_vec();
            wrong[rng.below(bytes.len())] ^= 4;
            respond(200, &[], full(wrong))
        }
        (_, Some(bytes)) if !bytes.is_empty() => cut(&bytes, rng),
        _ => text(504, ""),
    }
}

struct Soak {
    registry: TestRegistry,
    faults: Arc<AtomicUsize>,
    images: u64,
    content: Content,
}

fn soak(seed: u64) -> Soak {
    let images = number("PREBAKE_SOAK", 40);
    eprintln!("PREBAKE_SOAK={images} PREBAKE_SEED={seed}");
    let content = self::images(images);
    let own = content.clone();
    let faults = Arc::new(AtomicUsize::new(0));
    let (count, rng) = (faults.clone(), Mutex::new(Rng::new(seed)));
    let registry = TestRegistry::faulty(content.clone(), move |request| {
        let mut rng = rng.lock().unwrap();
        if !rng.one_in(5) {
            return None;
        }
        count.fetch_add(1, Ordering::SeqCst);
        Some(fault(&own, request, &mut rng))
    });
    Soak { registry, faults, images, content }
}

impl Soak {
    fn bake(&self) -> String {
        let names: Vec<String> = (0..self.images).map(|n| self.registry.reference(&format!("app{n}:1"))).collect();
        format!("bake --quiet --concurrency 16 --per-host 16 --platform linux/amd64 {}", names.join(" "))
    }

    fn all_is_there(&self, root: &Path) {
        prebake(root, "check").expect(0);
        let here = blobs(root);
        assert_eq!(here.len(), self.content.blobs.len());
        let names = prebake(root, "images").expect(0).stdout;
        assert_eq!(names.lines().filter(|line| line.contains(":1 ")).count() as u64, self.images);
    }
}

#[test]
fn one_request_in_five_fails() {
    for seed in [number("PREBAKE_SEED", 1), number("PREBAKE_SEED", 1) + 1] {
        let soak = soak(seed);
        let root = tempfile::tempdir().unwrap();
        prebake(root.path(), &soak.bake()).expect(0);
        soak.all_is_there(root.path());
        let (asked, faults) = (soak.registry.asked().len(), soak.faults.load(Ordering::SeqCst));
        // A manifest by its tag, a config and ten layers; and once more for each failure.
        let needed = usize::try_from(soak.images).unwrap() * 12;
        assert!(faults >= needed / 6, "{faults}");
        // A wrong byte among those that are here already does no harm.
        assert!((needed + faults - 20..=needed + faults).contains(&asked), "{asked}, {needed} needed, {faults} failed");
    }
}

#[test]
fn and_kills_change_nothing() {
    let soak = soak(number("PREBAKE_SEED", 1) + 100);
    let root = tempfile::tempdir().unwrap();
    let mut kills = 0;
    let mut patience = Duration::from_millis(700);
    loop {
        let mut child = start(root.path(), &soak.bake());
        let began = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if began.elapsed() > patience => break None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        if let Some(status) = status {
            assert!(status.success(), "{}", std::io::read_to_string(child.stderr.unwrap()).unwrap());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // It must come to an end, on a slow machine as well.
        patience += Duration::from_millis(200);
    }
    assert!(kills >= 2, "{kills}");
    soak.all_is_there(root.path());
    // What was under way when a run was killed is asked for again, and what the tags name.
    let (asked, faults) = (soak.registry.asked().len(), soak.faults.load(Ordering::SeqCst));
    let needed = usize::try_from(soak.images).unwrap() * 12;
    let again = kills * (usize::try_from(soak.images).unwrap() + 32);
    assert!(asked <= needed + faults + again, "{asked} requests, {needed} needed, {faults} failed, {kills} kills");
}
