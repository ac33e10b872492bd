//! What is asked of a registry that is busy, slow, or wants to be left alone; and what never is asked again.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Incoming;
use hyper::{Request, Response};
use prebake::fixture::{Body, Content, full, paced};

use crate::answers::{counted, text};
use crate::support::content::build;
use crate::support::prebake::{Run, prebake};
use crate::support::registry::{TestRegistry, respond};

const BAKE: &str = "bake --platform linux/amd64";

/// An image `app:1` with so many small layers.
fn image(layers: usize) -> Content {
    image_of(layers, 20_000)
}

/// Layers of so many random bytes.
fn image_of(layers: usize, size: usize) -> Content {
    let layer = |n| format!("[layer.l{n}]\nfiles = [{{ path = \"f{n}\", random = {size} }}]\n");
    let names: Vec<String> = (0..layers).map(|n| format!("\"l{n}\"")).collect();
    build(&format!(
        "{}[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [{}]\n",
        (0..layers).map(layer).collect::<String>(),
        names.join(", ")
    ))
}

fn bake(root: &Path, registry: &TestRegistry, more: &str) -> Run {
    prebake(root, &format!("{BAKE} {more} {}", registry.reference("app:1")))
}

fn is_blob(request: &Request<Incoming>) -> bool {
    request.uri().path().contains("/blobs/")
}

/// The registry, and when it was asked for blobs.
fn timed(
    content: Content,
    fault: impl Fn(&Request<Incoming>, usize) -> Option<Response<Body>> + Send + Sync + 'static,
) -> (TestRegistry, Arc<Mutex<Vec<Instant>>>) {
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let log = times.clone();
    let registry = TestRegistry::faulty(content, move |request| {
        if !is_blob(request) {
            return None;
        }
        let number = {
            let mut log = log.lock().unwrap();
            log.push(Instant::now());
            log.len()
        };
        fault(request, number)
    });
    (registry, times)
}

/// Pauses between requests that are longer than so much.
fn pauses(times: &Mutex<Vec<Instant>>, longer: Duration) -> Vec<Duration> {
    let times = times.lock().unwrap();
    times.windows(2).map(|pair| pair[1] - pair[0]).filter(|pause| *pause >= longer).collect()
}

#[test]
fn a_host_that_limits_is_left_alone_by_all() {
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    for (status, date) in [(429, None), (503, None), (429, Some(date))] {
        let (registry, times) = timed(image(12), move |_, number| {
            let after = date.map_or("2".to_owned(), |date| date());
            (number == 3).then(|| respond(status, &[("retry-after", &after)], full("")))
        });
        let root = tempfile::tempdir().unwrap();
        let run = bake(root.path(), &registry, "").expect(0);
        let name = registry.name();
        assert!(
            run.stderr.contains(&format!("{name} answered {status}; nothing is asked of it for ")),
            "{}",
            run.stderr
        );
        // Those that were under way may have come meanwhile; then nobody asked for two seconds.
        let pauses = pauses(&times, Duration::from_millis(1500));
        assert_eq!(pauses.len(), 1, "{pauses:?}");
        let range = if date.is_some() { 1500..3200 } else { 1900..2600 };
        assert!(range.contains(&pauses[0].as_millis()), "{pauses:?}");
        assert_eq!(times.lock().unwrap().len(), 14, "a config and twelve layers, one of them twice");
    }
}

#[test]
fn without_a_time_the_waits_grow() {
    let (registry, times) = timed(image(1), |_, number| (2..6).contains(&number).then(|| text(429, "")));
    let root = tempfile::tempdir().unwrap();
    bake(root.path(), &registry, "").expect(0);
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 6);
    let waits: Vec<u128> = times.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    for (wait, least) in waits.iter().zip([125, 250, 500, 1000]) {
        assert!((least..=least * 2 + 250).contains(wait), "{waits:?}");
    }
}

#[test]
fn a_host_that_wants_too_much_patience_fails() {
    let (registry, times) = timed(image(1), |_, _| {
        Some(respond(
            429,
            &[("retry-after", "7200")],
            full(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"you had your share"}]}"#),
        ))
    });
    let root = tempfile::tempdir().unwrap();
    let run = bake(root.path(), &registry, "").expect(1);
    let last = run.stderr.lines().last().unwrap();
    assert!(
        last.contains("answered 429 for blob sha256:") && last.ends_with("asked again in 7200 s: you had your share"),
        "{last}"
    );
    assert_eq!(times.lock().unwrap().len(), 1);
    // Nor does anybody else wait for it.
    let other = registry.reference("app:2");
    let root = tempfile::tempdir().unwrap();
    bake(root.path(), &registry, &other).expect(1);
}

#[test]
fn what_passes_is_asked_again_and_nothing_else() {
    for (status, code, tries) in [
        (408, 0, 2),
        (500, 0, 2),
        (502, 0, 2),
        (503, 0, 2),
        (504, 0, 2),
        (401, 4, 1),
        (403, 4, 1),
        (404, 3, 1),
        (418, 1, 1),
    ] {
        let (registry, times) = timed(image(0), move |_, number| (number == 1).then(|| text(status, "")));
        let root = tempfile::tempdir().unwrap();
        bake(root.path(), &registry, "").expect(code);
        assert_eq!(times.lock().unwrap().len(), tries, "{status}");
    }
}

#[test]
fn the_last_error_tells_all() {
    let (registry, times) =
        timed(image(0), |_, _| Some(text(500, r#"{"errors":[{"code":"UNKNOWN","message":"the disk is on fire"}]}"#)));
    let root = tempfile::tempdir().unwrap();
    let run = bake(root.path(), &registry, "--tries 4").expect(1);
    let last = run.stderr.lines().last().unwrap();
    assert!(last.contains("gave up after 4 tries in "), "{last}");
    assert!(last.contains(" answered 500 for blob sha256:") && last.ends_with(": the disk is on fire"), "{last}");
    assert_eq!(times.lock().unwrap().len(), 4);
}

#[test]
fn a_silent_connection_is_given_up() {
    // Nothing comes; or a byte now and then, of a document, of a layer, and of an error's body.
    let odd = [(0, 200, 100_000), (0, 200, 300), (1, 200, 300), (0, 403, 300)];
    for (layers, status, pause) in odd {
        let bytes = bytes::Bytes::from(vec![b' '; 100]);
        let (registry, times) = timed(image(layers), move |_, number| {
            let body = || paced(&bytes, 1, Duration::from_millis(pause));
            (number < 3).then(|| respond(status, &[("content-length", "100")], body()))
        });
        let root = tempfile::tempdir().unwrap();
        let before = Instant::now();
        let run = bake(root.path(), &registry, "--stall-timeout 1");
        let took = before.elapsed().as_secs();
        if status == 403 {
            run.expect(4);
            assert!((5..8).contains(&took), "{took}");
            continue;
        }
        run.expect(0);
        assert!((2..7).contains(&took), "{took}");
        assert_eq!(times.lock().unwrap().len(), 3 + layers);
    }
}

#[test]
fn so_many_at_once() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, peak) = (now, most.clone());
    let content = image(12);
    let own = content.clone();
    let registry = TestRegistry::faulty(content, move |request| {
        if !is_blob(request) {
            return None;
        }
        peak.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let (parts, body) = own.answer(request).into_parts();
        std::thread::sleep(Duration::from_millis(2));
        Some(Response::from_parts(parts, counted(body, count.clone())))
    });
    for limit in [1, 3] {
        most.store(0, Ordering::SeqCst);
        let root = tempfile::tempdir().unwrap();
        bake(root.path(), &registry, &format!("--per-host {limit} --concurrency 8")).expect(0);
        assert!(most.load(Ordering::SeqCst) <= limit, "{most:?}");
    }
}

#[test]
fn so_many_a_second() {
    let (registry, times) = timed(image(9), |_, _| None);
    let root = tempfile::tempdir().unwrap();
    bake(root.path(), &registry, "--max-requests-per-second 10").expect(0);
    let times = times.lock().unwrap();
    // Nine intervals between ten blobs.
    let took = (*times.last().unwrap() - times[0]).as_millis();
    assert!((850..1600).contains(&took), "{took}");
}

#[test]
fn so_many_bytes_a_second() {
    let (registry, times) = timed(image_of(1, 250_000), |_, _| None);
    let root = tempfile::tempdir().unwrap();
    let before = Instant::now();
    // Time that is waited for the limit's sake is not the connection's.
    bake(root.path(), &registry, "--bandwidth-limit 100kB --stall-timeout 1").expect(0);
    let took = before.elapsed().as_millis();
    assert!((2200..4000).contains(&took), "{took}");
    assert_eq!(times.lock().unwrap().len(), 2, "a config and a layer, each once");
}

#[test]
fn docker_hubs_quota_is_shown_and_respected() {
    let left = Arc::new(AtomicUsize::new(2));
    let count = left.clone();
    let content = image(1);
    let own = content.clone();
    let registry = TestRegistry::faulty(content, move |request| {
        if !request.uri().path().contains("/manifests/") {
            return None;
        }
        let left = count.fetch_sub(1, Ordering::SeqCst) - 1;
        let mut response = own.answer(request);
        response.headers_mut().insert("ratelimit-limit", "100;w=21600".parse().unwrap());
        response.headers_mut().insert("ratelimit-remaining", format!("{left};w=21600").parse().unwrap());
        Some(response)
    });
    let root = tempfile::tempdir().unwrap();
    let name = registry.reference("app:1");
    let run = prebake(root.path(), &format!("{BAKE} {name}")).expect(0);
    assert!(run.stderr.contains("says that 1 of 100 pulls in 6 hours are left"), "{}", run.stderr);
    assert_eq!(left.load(Ordering::SeqCst), 1, "a manifest alone, no index");
    // The next one is the last; what comes after it is not asked for.
    let root = tempfile::tempdir().unwrap();
    let other = registry.reference("app:no");
    let run = prebake(root.path(), &format!("{BAKE} --json --per-host 1 {name} {other}"));
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stdout.contains("was not asked for app:") && run.stdout.contains("0 of 100 pulls"), "{}", run.stdout);
    assert!(run.stdout.contains(r#""event":"quota""#), "{}", run.stdout);
    assert_eq!(left.load(Ordering::SeqCst), 0);
}
