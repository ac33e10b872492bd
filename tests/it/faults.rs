//! A registry that misbehaves in every way we could think of: a clear error, its exit code, and nothing listed.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use prebake::fixture::{Body, Content, full, paced};
use prebake::oci::{Descriptor, Digest, MAX_DOCUMENT, media_type};
use serde_json::{Value, json};

use crate::answers::{broken, endless, layer_of, text};
use crate::support::content::{build, demo};
use crate::support::prebake::{Run, blobs, prebake, records};
use crate::support::registry::{TestRegistry, respond};

const SMALL: &str = r#"
    [layer.one]
    files = [{ path = "one", random = 100000 }]
    [[image]]
    name = "app:1"
    platforms = ["linux/amd64"]
    layers = ["one"]
"#;
const BAKE: &str = "bake --tries 3 --platform linux/amd64";

/// Bakes `app:1` from a registry that answers requests for `path_end` by `answer`.
fn with_fault(
    root: &Path,
    content: Content,
    path_end: String,
    answer: impl Fn() -> Response<Body> + Send + Sync + 'static,
) -> (Run, TestRegistry) {
    let registry =
        TestRegistry::faulty(content, move |request| request.uri().path().ends_with(&path_end).then(&answer));
    let run = prebake(root, &format!("{BAKE} {}", registry.reference("app:1")));
    (run, registry)
}

#[track_caller]
fn nothing_is_listed(root: &Path) {
    assert_eq!(prebake(root, "images --json").expect(0).stdout, "");
    assert_eq!(records(root), Vec::<String>::new());
    let ingest = root.join("var/lib/containerd/io.containerd.content.v1.content/ingest");
    assert_eq!(std::fs::read_dir(ingest).unwrap().count(), 0, "an ingest was left");
}

/// A fault in a layer: asked for again, four times where the bytes are wrong, then refused, and nothing kept.
#[track_caller]
fn bad_layer(code: i32, words: &str, answer: impl Fn(Bytes) -> Response<Body> + Send + Sync + 'static) {
    let content = build(SMALL);
    let (digest, bytes) = layer_of(&content);
    let root = tempfile::tempdir().unwrap();
    let (run, registry) = with_fault(root.path(), content, digest.clone(), move || answer(bytes.clone()));
    let run = run.expect(code);
    let last = run.stderr.lines().last().unwrap();
    assert!(last.starts_with("failed: ") && last.contains("app:1: ") && last.contains(words), "{last}");
    let asked = registry.asked().iter().filter(|path| path.ends_with(&digest)).count();
    assert_eq!(asked, if code == 6 { 4 } else { 3 }, "asked {asked} times");
    assert!(!blobs(root.path()).contains_key(digest.trim_start_matches("sha256:")));
    nothing_is_listed(root.path());
}

#[test]
fn a_layer_with_a_flipped_bit() {
    bad_layer(6, "have the digest sha256:", |bytes| {
        let mut bytes = bytes.to_vec();
        bytes[500] ^= 1;
        respond(200, &[], full(bytes))
    });
}

#[test]
fn a_short_layer() {
    bad_layer(6, "only 99 of ", |bytes| respond(200, &[], full(bytes.slice(..99))));
}

#[test]
fn a_long_layer() {
    bad_layer(6, "more than the promised ", |bytes| respond(200, &[], full([&bytes[..], b"x"].concat())));
}

#[test]
fn an_endless_layer() {
    bad_layer(6, "more than the promised ", |_| respond(200, &[], endless()));
}

#[test]
fn a_layer_whose_connection_breaks() {
    bad_layer(1, "failed: ", |bytes| {
        respond(200, &[("content-length", &bytes.len().to_string())], broken(bytes.slice(..5000)))
    });
}

#[test]
fn a_registry_that_fails() {
    bad_layer(1, "answered 503", |_| text(503, "try later"));
}

#[test]
fn a_layer_that_is_right_the_second_time() {
    let content = build(SMALL);
    let (digest, bytes) = layer_of(&content);
    let times = AtomicUsize::new(0);
    let registry = TestRegistry::faulty(content, move |request| {
        let first = request.uri().path().ends_with(&digest) && times.fetch_add(1, Ordering::Relaxed) == 0;
        first.then(|| respond(200, &[], full(bytes.slice(1..))))
    });
    let root = tempfile::tempdir().unwrap();
    let run = prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(0);
    assert!(run.stderr.contains("again: sha256:"), "{}", run.stderr);
    prebake(root.path(), "check").expect(0);
}

/// A fault in what the tag names.
#[track_caller]
fn bad_target(code: i32, words: &str, answer: impl Fn() -> Response<Body> + Send + Sync + 'static) {
    let root = tempfile::tempdir().unwrap();
    let (run, _registry) = with_fault(root.path(), build(SMALL), "/manifests/1".to_owned(), answer);
    let run = run.expect(code);
    let last = run.stderr.lines().last().unwrap();
    assert!(last.starts_with("failed: ") && last.contains(words), "{last}");
    nothing_is_listed(root.path());
}

#[test]
fn no_such_image() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"never\u001b[31m heard of it"}]}"#;
    bad_target(3, "has no app:1: never[31m heard of it", move || text(404, body));
}

#[test]
fn unauthorized() {
    bad_target(4, "docker login", || respond(401, &[("www-authenticate", "Basic realm=\"x\"")], full("")));
    bad_target(4, "anonymous", || text(403, ""));
}

#[test]
fn garbage_instead_of_json() {
    bad_target(6, "not a valid index or manifest", || {
        respond(200, &[("content-type", media_type::OCI_MANIFEST)], full("<html>"))
    });
    bad_target(6, "neither an index nor a manifest", || respond(200, &[("content-type", "text/html")], full("{}")));
}

#[test]
fn an_endless_document() {
    bad_target(6, &format!("more than {MAX_DOCUMENT} bytes"), || respond(200, &[], endless()));
}

#[test]
fn schema_1() {
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    bad_target(2, "schema 1", move || respond(200, &[("content-type", kind)], full(r#"{"schemaVersion":1}"#)));
    bad_target(2, "schema 1", || respond(200, &[], full(r#"{"schemaVersion":1,"fsLayers":[]}"#)));
}

fn documents(make: impl FnOnce(&mut Content) -> Descriptor) -> Content {
    let mut content = build(SMALL);
    let target = make(&mut content);
    content.tags.insert(("app".to_owned(), "1".to_owned()), target.digest);
    content
}

fn manifest_of(content: &Content) -> Descriptor {
    let digest = &content.tags[&("app".to_owned(), "1".to_owned())];
    let (kind, bytes) = &content.blobs[digest];
    Descriptor::new(kind.clone(), digest.clone(), bytes.len() as u64)
}

fn index(content: &mut Content, entries: &[(&Descriptor, &str)]) -> Descriptor {
    let entries: Vec<Value> = entries
        .iter()
        .map(|(descriptor, platform)| {
            let mut entry = json!(descriptor);
            if let Some((os, architecture)) = platform.split_once('/') {
                entry["platform"] = json!({"os": os, "architecture": architecture});
            }
            entry
        })
        .collect();
    content.add_json(
        media_type::OCI_INDEX,
        &json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries}),
    )
}

/// Bakes `app:1` of documents that are what their digests say, and still wrong.
#[track_caller]
fn bad_documents(code: i32, words: &[&str], make: impl FnOnce(&mut Content) -> Descriptor) {
    let root = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(documents(make));
    let run = prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(code);
    let last = run.stderr.lines().last().unwrap();
    assert!(words.iter().all(|word| last.contains(word)), "{last}");
    nothing_is_listed(root.path());
}

#[test]
fn an_index_that_points_to_itself() {
    // A digest cannot contain itself, so the registry has to lie: under the entry's digest lies the index.
    let entry = Descriptor::new(media_type::OCI_INDEX, Digest::of(b"itself"), 400);
    let mut content = build(SMALL);
    let target = index(&mut content, &[(&entry, "linux/amd64")]);
    let (kind, bytes) = content.blobs[&target.digest].clone();
    content.blobs.insert(entry.digest.clone(), (kind, bytes));
    content.tags.insert(("app".to_owned(), "1".to_owned()), target.digest);
    let root = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(content);
    let run = prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(6);
    assert!(run.stderr.contains("failed: "), "{}", run.stderr);
    assert!(registry.asked().len() < 6);
    nothing_is_listed(root.path());
}

#[test]
fn indexes_within_indexes() {
    bad_documents(6, &["nest too deep"], |content| {
        let mut at = manifest_of(content);
        for _ in 0..8 {
            at = index(content, &[(&at, "linux/amd64")]);
        }
        at
    });
}

#[test]
fn a_manifest_of_ten_thousand_layers() {
    bad_documents(6, &["has 10000 entries"], |content| {
        let layer = json!(Descriptor::new(media_type::OCI_LAYER, Digest::of(b"x"), 1));
        let config = content.add(media_type::OCI_CONFIG, r#"{"os":"linux","architecture":"amd64"}"#);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": vec![layer; 10_000]});
        content.add_json(media_type::OCI_MANIFEST, &manifest)
    });
}

#[test]
fn a_document_that_is_promised_to_be_huge() {
    bad_documents(6, &["is a document of 9000000 bytes"], |content| {
        let huge = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b"huge"), 9_000_000);
        index(content, &[(&huge, "linux/amd64")])
    });
}

#[test]
fn a_config_of_another_platform_than_the_index_says() {
    bad_documents(6, &["the index says linux/amd64", "config says linux/arm64"], |content| {
        let config = content.add(media_type::OCI_CONFIG, r#"{"os":"linux","architecture":"arm64"}"#);
        let manifest =
            content.add_json(media_type::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}));
        index(content, &[(&manifest, "linux/amd64")])
    });
}

#[test]
fn no_image_for_the_platform() {
    bad_documents(3, &["no image for linux/amd64", "linux/arm64, linux/s390x"], |content| {
        let manifest = manifest_of(content);
        index(content, &[(&manifest, "linux/s390x"), (&manifest, "linux/arm64"), (&manifest, "unknown/unknown")])
    });
    // A lone manifest of another platform.
    bad_documents(3, &["no image for linux/amd64", "linux/riscv64"], |content| {
        let config = content.add(media_type::OCI_CONFIG, r#"{"os":"linux","architecture":"riscv64"}"#);
        content.add_json(media_type::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}))
    });
}

#[test]
fn entries_without_a_platform_are_chosen_by_their_configs() {
    let content = documents(|content| {
        let fits = manifest_of(content);
        let config = content.add(media_type::OCI_CONFIG, r#"{"os":"linux","architecture":"arm64"}"#);
        let other =
            content.add_json(media_type::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}));
        index(content, &[(&other, ""), (&fits, "")])
    });
    let root = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(content);
    prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(0);
    prebake(root.path(), "check").expect(0);
}

#[test]
fn the_others_complete_when_one_image_fails() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let names = [
        registry.reference("demo/hello:1.0"),
        registry.reference("demo/nothing:1"),
        registry.reference("demo/zstd:1.0"),
    ];
    let run = prebake(root.path(), &format!("{BAKE} {}", names.join(" "))).expect(1);
    let last = run.stderr.lines().last().unwrap();
    assert!(last.starts_with(&format!("failed: {}: ", names[1])), "{last}");
    assert!(run.stdout.starts_with("2 images, 1 failed; "), "{}", run.stdout);
    let listed = prebake(root.path(), "images --json").expect(0).stdout;
    assert!(listed.contains(&names[0]) && listed.contains(&names[2]) && !listed.contains("nothing"));
    prebake(root.path(), "check").expect(0);
}

#[test]
fn an_image_that_fails_does_no_harm_to_one_that_shares_its_layers() {
    let content = build(
        r#"
        [layer.shared]
        files = [{ path = "shared", random = 3000000 }]
        [layer.missing]
        files = [{ path = "missing", random = 1000 }]
        [[image]]
        name = "bad:1"
        platforms = ["linux/amd64"]
        layers = ["shared", "missing"]
        [[image]]
        name = "good:1"
        platforms = ["linux/amd64"]
        layers = ["shared"]
        "#,
    );
    let layers: Vec<(Digest, Bytes)> = content
        .blobs
        .iter()
        .filter(|(_, (kind, _))| media_type::is_layer(kind))
        .map(|(d, (_, b))| (d.clone(), b.clone()))
        .collect();
    let (small, large) = (
        layers.iter().min_by_key(|l| l.1.len()).unwrap().clone(),
        layers.iter().max_by_key(|l| l.1.len()).unwrap().clone(),
    );
    let registry = TestRegistry::faulty(content, move |request| {
        let path = request.uri().path();
        if path.ends_with(small.0.as_str()) {
            // Long enough for the shared layer to be under way.
            std::thread::sleep(Duration::from_millis(30));
            return Some(text(404, ""));
        }
        path.ends_with(large.0.as_str()).then(|| respond(200, &[], paced(&large.1, 100_000, Duration::from_millis(5))))
    });
    for _ in 0..10 {
        let root = tempfile::tempdir().unwrap();
        prebake(root.path(), &format!("{BAKE} {} {}", registry.reference("bad:1"), registry.reference("good:1")))
            .expect(1);
        let listed = prebake(root.path(), "images --json").expect(0).stdout;
        assert!(listed.contains("/good:1") && !listed.contains("/bad:1"), "{listed}");
        prebake(root.path(), "check").expect(0);
    }
}

#[test]
fn an_image_that_lies_about_a_shared_layer_fails_alone() {
    let mut content = build(SMALL);
    let (digest, bytes) = layer_of(&content);
    let config = content.add(media_type::OCI_CONFIG, r#"{"os":"linux","architecture":"amd64"}"#);
    let layer = json!({"mediaType": media_type::OCI_LAYER, "digest": digest, "size": bytes.len() + 9});
    let liar =
        content.add_json(media_type::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}));
    content.tags.insert(("liar".to_owned(), "1".to_owned()), liar.digest);
    let registry = TestRegistry::start(content);
    for names in [["app:1", "liar:1"], ["liar:1", "app:1"]] {
        let root = tempfile::tempdir().unwrap();
        let references = names.map(|name| registry.reference(name)).join(" ");
        let run = prebake(root.path(), &format!("{BAKE} {references}")).expect(1);
        let last = run.stderr.lines().last().unwrap();
        assert!(last.starts_with("failed: ") && last.contains("/liar:1: only "), "{last}");
        let listed = prebake(root.path(), "images --json").expect(0).stdout;
        assert!(listed.contains("/app:1") && !listed.contains("/liar:1"), "{listed}");
        prebake(root.path(), "check").expect(0);
    }
}

#[test]
fn a_digest_for_which_another_document_comes() {
    let content = build(SMALL);
    let target = manifest_of(&content);
    // As long, and as valid, as the one that was asked for.
    let other = String::from_utf8(content.blobs[&target.digest].1.to_vec()).unwrap().replace("+gzip", "+zstd");
    assert_eq!(other.len() as u64, target.size);
    let path = format!("/manifests/{}", target.digest);
    let registry = TestRegistry::faulty(content, move |request| {
        request
            .uri()
            .path()
            .ends_with(&path)
            .then(|| respond(200, &[("content-type", media_type::OCI_MANIFEST)], full(other.clone())))
    });
    let root = tempfile::tempdir().unwrap();
    let both = format!("{} {}", registry.reference("app:1"), registry.reference(&format!("app@{}", target.digest)));
    let run = prebake(root.path(), &format!("{BAKE} --concurrency 1 {both}"));
    assert!(matches!(run.code, 0 | 1), "{run:?}");
    prebake(root.path(), "check").expect(0);
    let root = tempfile::tempdir().unwrap();
    registry.asked();
    let run =
        prebake(root.path(), &format!("{BAKE} {}", registry.reference(&format!("app@{}", target.digest)))).expect(6);
    assert!(run.stderr.contains("have the digest sha256:"), "{}", run.stderr);
    assert_eq!(registry.asked().len(), 4, "not again and again");
    nothing_is_listed(root.path());
}

#[test]
fn a_few_documents_that_lead_to_each_other_a_thousand_times() {
    bad_documents(3, &["no image for linux/amd64", "linux/arm64"], |content| {
        let config = content.add(media_type::OCI_CONFIG, r#"{"os":"linux","architecture":"arm64"}"#);
        let mut at =
            content.add_json(media_type::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}));
        for _ in 0..4 {
            at = index(content, &vec![(&at, ""); 1000]);
        }
        at
    });
}

#[test]
fn an_index_with_too_many_candidates() {
    bad_documents(6, &["too many documents"], |content| {
        let manifests: Vec<Descriptor> = (0..200)
            .map(|n| {
                let config = content.add(media_type::OCI_CONFIG, format!(r#"{{"os":"linux","architecture":"a{n}"}}"#));
                content.add_json(media_type::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}))
            })
            .collect();
        index(content, &manifests.iter().map(|manifest| (manifest, "")).collect::<Vec<_>>())
    });
}
