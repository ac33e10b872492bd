//! `prebake serve`: a registry that only gives.

mod ask;
mod clients;
mod conformance;
mod names;
mod security;

use std::path::{Path, PathBuf};

use crate::support::content::demo;
use crate::support::prebake::{blobs, blobs_dir, command, prebake};
use crate::support::registry::TestRegistry;
use crate::support::served::{Served, write_layout};
use prebake::oci::Digest;

/// A registry's name in front of the fixtures'.
const REGISTRY: &str = "registry.example/";

/// The demo's images as a layout, served.
fn demo_layout(dir: &Path) -> (Served, PathBuf) {
    let layout = dir.join("layout");
    write_layout(&demo(), REGISTRY, &[], &layout);
    (Served::start(&format!("--quiet --layout {}", layout.display())), layout)
}

/// An archive of a directory.
fn archive(dir: &Path, file: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(file).unwrap());
    tar.append_dir_all(".", dir).unwrap();
    tar.finish().unwrap();
}

#[test]
fn a_bake_from_what_was_baked_has_the_same_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(demo());
    let origin = dir.path().join("origin");
    let names = ["demo/hello:1.0", "demo/docker:1.0", "demo/zstd:1.0"];
    let all = |registry: &str| names.map(|name| format!("{registry}/{name}")).join(" ");
    prebake(&origin, &format!("bake {}", all(&registry.name()))).expect(0);
    let layout = dir.path().join("layout");
    write_layout(&demo(), REGISTRY, &[], &layout);
    let file = dir.path().join("images.tar");
    archive(&layout, &file);
    for (n, place) in [
        format!("--root {}", origin.display()),
        format!("containerd:{}", origin.display()),
        format!("--layout {}", layout.display()),
        format!("oci-archive:{}", file.display()),
    ]
    .iter()
    .enumerate()
    {
        let served = Served::start(place);
        let root = dir.path().join(format!("baked-{n}"));
        prebake(&root, &format!("bake {}", all(served.name()))).expect(0);
        assert!(blobs(&root) == blobs(&origin), "{place}");
        let log = served.stop();
        assert!(log.contains(" \"GET /v2/demo/hello/blobs/sha256:") && log.contains("\" 200 "), "{log}");
    }
}

#[test]
fn what_is_not_here_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(demo());
    let root = dir.path().join("root");
    let reference = registry.reference("demo/docker:1.0");
    prebake(&root, &format!("bake --platform linux/amd64 {reference}")).expect(0);
    let served = Served::start(&format!("--root {}", root.display()));
    let index = served.get("/v2/demo/docker/manifests/1.0").json();
    let find = |arch: &str| {
        let all = index["manifests"].as_array().unwrap();
        let one = all.iter().find(|one| one["platform"]["architecture"] == arch).unwrap();
        one["digest"].as_str().unwrap().to_owned()
    };
    // Of a platform that was not asked for.
    let other = served.get(&format!("/v2/demo/docker/manifests/{}", find("arm64")));
    assert_eq!((other.status, other.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert!(other.json().to_string().contains("was not fetched, as those of other platforms are not"));
    // A layer as a discard leaves it.
    let manifest = served.get(&format!("/v2/demo/docker/manifests/{}", find("amd64"))).json();
    let layer: Digest = manifest["layers"][2]["digest"].as_str().unwrap().parse().unwrap();
    let path = format!("/v2/demo/docker/blobs/{layer}");
    assert_eq!(served.get(&path).status, 200);
    std::fs::remove_file(blobs_dir(&root).join(layer.hex())).unwrap();
    for method in ["GET", "HEAD"] {
        assert_eq!(served.ask(method, &path, "").status, 404);
    }
    let gone = served.get(&path);
    assert_eq!(gone.code(), "BLOB_UNKNOWN");
    let message = gone.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    assert_eq!(
        message,
        format!("layer {layer} is not here: it was discarded after unpacking (unpack-discard), or never fetched")
    );
    // What no image leads to is nobody's.
    let stray = Digest::of(b"stray");
    std::fs::write(blobs_dir(&root).join(stray.hex()), "stray").unwrap();
    for kind in ["blobs", "manifests"] {
        assert_eq!(served.get(&format!("/v2/demo/docker/{kind}/{stray}")).status, 404);
    }
}

#[test]
fn a_document_that_is_damaged_is_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let content = demo();
    write_layout(&content, REGISTRY, &[], &layout);
    let top = &content.tags[&("demo/hello".to_owned(), "1.0".to_owned())];
    std::fs::write(layout.join("blobs/sha256").join(top.hex()), "{}").unwrap();
    let served = Served::start(&format!("--layout {}", layout.display()));
    let answer = served.get("/v2/demo/hello/manifests/1.0");
    assert_eq!((answer.status, answer.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert_eq!(served.get("/v2/demo/zstd/manifests/1.0").status, 200);
}

#[test]
fn places_that_cannot_be_served() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    for (arguments, code, says) in [
        (format!("--layout {at}"), 2, "has no oci-layout"),
        (format!("--root {at}"), 2, "has no containerd's meta.db"),
        (format!("--bundle {at}/none"), 1, "none failed"),
        ("nginx:1".to_owned(), 2, "is no place"),
        (String::new(), 2, "required"),
        (format!("--layout {at} --root {at}"), 2, "cannot be used with"),
        (format!("--bundle {at} --namespace x"), 2, "cannot be used with"),
    ] {
        let output = command().arg("serve").args(arguments.split_whitespace()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(code) && stderr.contains(says),
            "{arguments}: {:?} {stderr}",
            output.status
        );
    }
}

#[test]
fn figures_and_events() {
    let dir = tempfile::tempdir().unwrap();
    let (served, layout) = demo_layout(dir.path());
    let size = served.get("/v2/demo/zstd/manifests/1.0").body.len();
    assert_eq!(served.get("/v2/none/manifests/1").status, 404);
    let metrics = served.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4"));
    let text = String::from_utf8(metrics.body).unwrap();
    let value = |name: &str| -> usize {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("prebake_serve_{name} ")));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    };
    assert_eq!(value("requests_total{class=\"2xx\"}"), 1);
    assert_eq!(value("requests_total{class=\"4xx\"}"), 1);
    assert_eq!(value("requests_total{class=\"5xx\"}"), 0);
    assert!(value("sent_bytes_total") > size && value("sent_bytes_total") < size + 500);
    assert_eq!(value("connections_total"), 3);
    assert!((1..=3).contains(&value("connections")));

    let mut command = command();
    command.args(["serve", "--listen", "127.0.0.1:0", "--json", "--layout"]).arg(&layout);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!((first["event"].as_str(), first["repositories"].as_u64()), (Some("listening"), Some(5)), "{first}");
    let served = Served { url: first["url"].as_str().unwrap().to_owned(), child };
    served.get("/v2/demo/zstd/tags/list?n=1");
    let event = next();
    assert_eq!(event["event"], "request");
    assert_eq!(event["path"], "/v2/demo/zstd/tags/list?n=1");
    assert_eq!((event["method"].as_str(), event["status"].as_u64()), (Some("GET"), Some(200)));
    assert_eq!((event["whole"].as_bool(), event["problem"].is_null()), (Some(true), true));
    assert!(event["peer"].as_str().unwrap().starts_with("127.0.0.1:") && event["bytes"].as_u64().unwrap() > 20);
}
