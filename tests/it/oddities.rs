//! What registries may hold besides the usual, and what they may say that is not so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prebake::fixture::full;
use prebake::oci::{Descriptor, Digest, media_type};
use serde_json::json;

use crate::support::content::{build, demo};
use crate::support::prebake::{containerd_root, prebake};
use crate::support::registry::{TestRegistry, respond};

const BAKE: &str = "bake --tries 2 --platform linux/amd64";
const SMALL: &str = "[layer.l]\nfiles = [{ path = \"f\", random = 1000 }]\n[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n";

#[test]
fn what_is_known_costs_one_request_by_tag_and_none_by_digest() {
    let images = |n| {
        format!(
            "[[image]]\nname = \"app{n}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\ncommand = [\"/{n}\"]\n"
        )
    };
    let layer = "[layer.l]\nfiles = [{ path = \"f\", random = 1000 }]\n";
    let registry = TestRegistry::start(build(&format!("{layer}{}", (0..100).map(images).collect::<String>())));
    let root = tempfile::tempdir().unwrap();
    let tags: Vec<String> = (0..100).map(|n| registry.reference(&format!("app{n}:1"))).collect();
    prebake(root.path(), &format!("{BAKE} {}", tags.join(" "))).expect(0);
    registry.asked();
    prebake(root.path(), &format!("{BAKE} {}", tags.join(" "))).expect(0);
    let asked = registry.asked();
    assert_eq!(asked.len(), 100, "{asked:?}");
    assert!(asked.iter().all(|request| request.starts_with("HEAD /v2/app")), "{asked:?}");
    let names = prebake(root.path(), "images --json").expect(0).stdout;
    let digest = names.lines().filter_map(|line| {
        let image: serde_json::Value = serde_json::from_str(line).ok()?;
        image["name"].as_str().filter(|name| name.contains('@')).map(str::to_owned)
    });
    let digests: Vec<String> = digest.collect();
    assert_eq!(digests.len(), 100);
    prebake(root.path(), &format!("{BAKE} {}", digests.join(" "))).expect(0);
    assert!(registry.asked().is_empty());
}

#[test]
fn a_tag_that_moved_is_seen() {
    let moved = Arc::new(AtomicUsize::new(0));
    let state = moved.clone();
    let (old, new) = (build(SMALL), build(&SMALL.replace("1000", "2000")));
    let mut both = old.clone();
    both.blobs.extend(new.blobs.clone());
    let registry = TestRegistry::faulty(both, move |request| {
        let content = if state.load(Ordering::SeqCst) == 0 { &old } else { &new };
        request.uri().path().ends_with("/manifests/1").then(|| content.answer(request))
    });
    let root = tempfile::tempdir().unwrap();
    let bake = format!("{BAKE} {}", registry.reference("app:1"));
    let target = || prebake(root.path(), "images --json").expect(0).stdout.lines().next().unwrap().to_owned();
    prebake(root.path(), &bake).expect(0);
    let before = target();
    moved.store(1, Ordering::SeqCst);
    prebake(root.path(), &bake).expect(0);
    assert_ne!(target(), before);
    prebake(root.path(), "check").expect(0);
}

#[test]
fn a_registry_that_lies_about_a_digest() {
    for lie in ["sha256:0000000000000000000000000000000000000000000000000000000000000000", "nonsense"] {
        let content = build(SMALL);
        let own = content.clone();
        let registry = TestRegistry::faulty(content, move |request| {
            let mut response = own.answer(request);
            response.headers_mut().insert("docker-content-digest", lie.parse().unwrap());
            Some(response)
        });
        let root = tempfile::tempdir().unwrap();
        let run = prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(6);
        assert!(run.stderr.contains(&format!("says that app:1 is {lie}; what it sent is sha256:")), "{}", run.stderr);
        assert_eq!(prebake(root.path(), "images --json").expect(0).stdout, "");
    }
}

#[test]
fn digests_of_sha512_and_in_upper_case() {
    let mut content = build(SMALL);
    let (name, old) = content.tags.iter().next().map(|(name, digest)| (name.clone(), digest.clone())).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&content.blobs[&old].1).unwrap();
    let long = |digest: &str| {
        let digest: Digest = digest.parse().unwrap();
        let (kind, bytes) = content.blobs[&digest].clone();
        let wanted: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        (Digest::of_as(&bytes, Some(&wanted)), kind, bytes)
    };
    let mut manifest512 = manifest.clone();
    let mut added = Vec::new();
    for pointer in ["/config/digest", "/layers/0/digest"] {
        let (digest, kind, bytes) = long(manifest.pointer(pointer).unwrap().as_str().unwrap());
        *manifest512.pointer_mut(pointer).unwrap() = json!(digest.to_string());
        added.push((digest, (kind, bytes)));
    }
    content.blobs.extend(added);
    let target = content.add_json(media_type::OCI_MANIFEST, &manifest512);
    content.tags.insert(name, target.digest);
    // The same manifest, with a digest that is not one.
    let mut loud = manifest.clone();
    let text = loud["layers"][0]["digest"].as_str().unwrap().to_uppercase().replace("SHA256", "sha256");
    loud["layers"][0]["digest"] = json!(text);
    let loud = content.add_json(media_type::OCI_MANIFEST, &loud);
    content.tags.insert(("app".to_owned(), "loud".to_owned()), loud.digest);

    let registry = TestRegistry::start(content);
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:1"))).expect(0);
    prebake(root.path(), "check").expect(0);
    let dir = containerd_root(root.path()).join("io.containerd.content.v1.content/blobs/sha512");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
    let root = tempfile::tempdir().unwrap();
    let run = prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:loud"))).expect(6);
    assert!(run.stderr.contains("not a valid index or manifest"), "{}", run.stderr);
}

#[test]
fn foreign_layers_come_from_where_the_manifest_says() {
    const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mut content = build(SMALL);
    let (name, old) = content.tags.iter().next().map(|(name, digest)| (name.clone(), digest.clone())).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&content.blobs[&old].1).unwrap();
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let (_, bytes) = content.blobs.remove(&layer).unwrap();
    let elsewhere = TestRegistry::faulty(demo(), move |request| {
        assert!(request.headers().get("authorization").is_none());
        (request.uri().path() == "/layers/1").then(|| respond(200, &[], full(bytes.clone())))
    });
    manifest["layers"][0]["urls"] = json!([
        "ftp://nowhere.invalid/",
        format!("http://{}/no", elsewhere.name()),
        format!("http://{}/layers/1", elsewhere.name())
    ]);
    let mut tag = |kind: &str, tag: &str| {
        manifest["layers"][0]["mediaType"] = json!(kind);
        let target: Descriptor = content.add_json(media_type::OCI_MANIFEST, &manifest);
        content.tags.insert((name.0.clone(), tag.to_owned()), target.digest);
    };
    tag(FOREIGN, "foreign");
    tag("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "oci");
    tag(media_type::DOCKER_LAYER, "other");
    let registry = TestRegistry::start(content);
    for foreign in ["foreign", "oci"] {
        let root = tempfile::tempdir().unwrap();
        prebake(root.path(), &format!("{BAKE} {}", registry.reference(&format!("app:{foreign}")))).expect(0);
        prebake(root.path(), "check").expect(0);
    }
    // Nobody is sent elsewhere for what registries may give.
    elsewhere.asked();
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("{BAKE} {}", registry.reference("app:other"))).expect(3);
    assert!(elsewhere.asked().is_empty());
}

#[test]
fn connections_are_used_again() {
    let registry = TestRegistry::start(demo());
    let target = registry.name();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let connections = count.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            connections.fetch_add(1, Ordering::SeqCst);
            let (mut client, mut server) = (client.unwrap(), std::net::TcpStream::connect(&target).unwrap());
            let (mut back, mut from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut client, &mut server));
            std::thread::spawn(move || std::io::copy(&mut from, &mut back));
        }
    });
    let root = tempfile::tempdir().unwrap();
    let all: Vec<String> = ["hello", "zstd", "plain", "docker"].map(|image| format!("{name}/demo/{image}:1.0")).into();
    prebake(root.path(), &format!("{BAKE} --plain-http --per-host 2 {}", all.join(" "))).expect(0);
    assert!(registry.asked().len() > 15);
    assert!(count.load(Ordering::SeqCst) <= 2, "{count:?}");
}
