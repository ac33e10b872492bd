//! Copies between real docker-registries, judged by skopeo and containerd; places as skopeo and prebake make them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ::prebake::oci::{Digest, media_type};
use serde_json::json;

use crate::peers::{Containerd, Registry, run};
use crate::support::content::{build, demo};
use crate::support::prebake::{Run, command, containerd_root, prebake};

/// `user:secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2b$04$V/ooTt0.J3dQYPus7N9kO.RuVX09EF3CZq.1Eu2U.UNG6ZIRllvBC\n";

fn copy(arguments: &str) -> Run {
    command().args(arguments.split_whitespace()).output().unwrap().into()
}

/// What a name leads to, by skopeo.
fn raw(reference: &str) -> String {
    run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false"]).arg(format!("docker://{reference}")))
}

/// Requests of a method that a registry was asked since it had so many lines.
fn requests(registry: &Registry, method: &str, since: usize) -> usize {
    let request = format!("\"{method} /v2/");
    registry.log().lines().skip(since).filter(|line| line.contains(&request)).count()
}

/// Skopeo can take all of it, and everything below it is what it says.
fn is_whole(reference: &str, dir: &Path) {
    let to = dir.join("whole");
    let _ = fs::remove_dir_all(&to);
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--all", "--preserve-digests", "--src-tls-verify=false"])
        .args([format!("docker://{reference}"), format!("dir:{}", to.display())]));
}

#[test]
fn from_one_registry_to_another_and_inside_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (a, b) = (Registry::start(&dir.join("a")), Registry::start(&dir.join("b")));
    a.push(&demo());
    let from = format!("{}/demo/hello:1.0", a.name());
    let to = format!("{}/hub/hello:1.0", b.name());
    copy(&format!("copy {from} {to}")).expect(0);
    assert_eq!(raw(&from), raw(&to));
    is_whole(&to, dir);

    let before = b.log().lines().count();
    let again = copy(&format!("copy {from} {to}")).expect(0);
    assert!(again.stdout.starts_with("up to date: "), "{}", again.stdout);
    assert!(requests(&b, "HEAD", before) > 0);
    for method in ["POST", "PUT", "PATCH", "GET"] {
        assert_eq!(requests(&b, method, before), 0, "{method}: {}", b.log());
    }

    // From one repository of a registry to another no byte moves.
    let before = b.log().lines().count();
    let neighbour = format!("{}/other/hello:2", b.name());
    copy(&format!("copy {to} {neighbour}")).expect(0);
    let log = b.log();
    let puts = log.lines().skip(before).filter(|line| line.contains("\"PUT /v2/other/hello/blobs/")).count();
    let mounts = log.lines().skip(before).filter(|line| line.contains("?mount=") && line.contains("\" 201 ")).count();
    assert!(puts == 0 && mounts > 0, "{puts} {mounts} {log}");
    assert_eq!(raw(&neighbour), raw(&from));

    copy(&format!("copy --platform linux/arm64 {from} {}/arm/hello:1", b.name())).expect(0);
    let manifest = raw(&format!("{}/arm/hello:1", b.name()));
    assert!(raw(&from).contains(Digest::of(manifest.as_bytes()).as_str()));
    copy(&format!("copy --platform linux/arm64,linux/amd64 {from} {}/two/hello:1", b.name())).expect(0);
    is_whole(&format!("{}/two/hello:1", b.name()), dir);

    let containerd = Containerd::start("2.1.9", &containerd_root(&dir.join("peer")), &dir.join("work"));
    containerd.ctr(&format!("images pull --plain-http --platform linux/amd64 {to}"));
    assert!(containerd.ctr("images ls").contains(Digest::of(raw(&to).as_bytes()).as_str()));
}

#[test]
fn killed_at_any_moment() {
    let layers: String =
        (0..6).map(|i| format!("[layer.l{i}]\nfiles = [{{ path = \"f{i}\", random = 4000000 }}]\n")).collect();
    let content = build(&format!(
        "{layers}[[image]]\nname = \"large:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"l0\", \"l1\", \"l2\", \"l3\", \"l4\", \"l5\"]\n"
    ));
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (a, b) = (Registry::start(&dir.join("a")), Registry::start(&dir.join("b")));
    a.push(&content);
    let from = format!("{}/large:1", a.name());
    let to = format!("{}/large:1", b.name());
    let mut kills = 0;
    for wait in [150, 300, 500, 700] {
        let arguments = format!("copy --bandwidth-limit 12MiB --concurrency 2 {from} {to}");
        let mut child =
            command().args(arguments.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let names = Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{to}"))
            .output()
            .unwrap();
        // The name is there at the end alone.
        if names.status.success() {
            is_whole(&to, dir);
        }
    }
    assert!(kills >= 2, "{kills}");
    let report = copy(&format!("copy --json {from} {to}")).expect(0).last_json();
    assert!(report["present_blobs"].as_u64().unwrap() > 0, "what came through before is not sent again: {report}");
    assert_eq!(raw(&from), raw(&to));
    is_whole(&to, dir);
}

#[test]
fn what_refers_to_an_image_is_found_where_the_registry_has_no_api_for_it() {
    let mut content = demo();
    let subject = content.tags[&("demo/hello".to_owned(), "1.0".to_owned())].clone();
    let config = content.add(media_type::OCI_CONFIG, "{}");
    let sbom = content.add("application/spdx+json", "{\"sbom\": true}");
    let size = content.blobs[&subject].1.len();
    let artifact = content.add_json(
        media_type::OCI_MANIFEST,
        &json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [sbom],
            "subject": {"mediaType": media_type::OCI_INDEX, "digest": subject, "size": size}}),
    );
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [artifact]});
    let list = content.add_json(media_type::OCI_INDEX, &list);
    content.tags.insert(("demo/hello".to_owned(), subject.as_tag()), list.digest);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (a, b) = (Registry::start(&dir.join("a")), Registry::start(&dir.join("b")));
    a.push(&content);
    let to = format!("{}/x/hello:1.0", b.name());
    let go = || copy(&format!("copy --referrers {}/demo/hello:1.0 {to}", a.name())).expect(0);
    go();
    let listed = raw(&format!("{}/x/hello:{}", b.name(), subject.as_tag()));
    assert!(listed.contains(artifact.digest.as_str()), "{listed}");
    is_whole(&format!("{}/x/hello@{}", b.name(), artifact.digest), dir);
    assert!(go().stdout.starts_with("up to date: "));
    // And a bake takes it along from there.
    let root = dir.join("root");
    prebake(&root, &format!("bake --platform linux/amd64 --referrers {to}")).expect(0);
    assert!(crate::support::prebake::blobs(&root).contains_key(sbom.digest.hex()));
}

#[test]
fn with_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let a = Registry::start(&dir.join("a"));
    a.push(&demo());
    fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", dir.join("htpasswd").display());
    let b = Registry::serve(&dir.join("b"), &dir.join("b/data"), "", &auth);
    let from = format!("{}/demo/hello:1.0", a.name());
    let refused = copy(&format!("copy {from} {}/hello:1", b.name())).expect(4);
    assert!(refused.stderr.contains("what helps: log in"), "{}", refused.stderr);
    fs::write(dir.join("creds"), format!("{} user:secret\n", b.name())).unwrap();
    let creds = format!("--creds-file {}", dir.join("creds").display());
    copy(&format!("copy {creds} {from} {}/hello:1", b.name())).expect(0);
    let json = copy(&format!("copy --json {creds} {}/hello:1 {}/other:1", b.name(), b.name())).expect(0).last_json();
    assert!(json["uploaded_blobs"] == 0 && json["mounted_blobs"].as_u64().unwrap() > 0, "{json}");
}

#[test]
fn a_mirror_that_rewrites() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (a, b) = (Registry::start(&dir.join("a")), Registry::start(&dir.join("b")));
    a.push(&demo());
    let (source, there) = (a.name(), b.name());
    let file = dir.join("mirror.toml");
    fs::write(
        &file,
        format!(
            "images = [\"{source}/demo/hello:1.0\", {{ repository = \"{source}/demo/zstd\", tags = [\"1.*\"] }}, \"{source}/demo/plain:1.0\", \"{source}/demo/none:1\"]\n[target]\nregistry = \"{there}\"\n[[rewrite]]\nmatch = \"{source}/demo/z*\"\nto = \"{there}/mirror/z-*\"\n"
        ),
    )
    .unwrap();
    let mirror = || copy(&format!("mirror -f {}", file.display()));
    let failed = mirror().expect(1);
    assert!(
        failed.stderr.contains(&format!("failed: {source}/demo/none:1 to {there}/demo/none:1: ")),
        "{}",
        failed.stderr
    );
    for (from, to) in [("demo/hello", "demo/hello"), ("demo/zstd", "mirror/z-std"), ("demo/plain", "demo/plain")] {
        assert_eq!(raw(&format!("{source}/{from}:1.0")), raw(&format!("{there}/{to}:1.0")));
        is_whole(&format!("{there}/{to}:1.0"), dir);
    }
    let before = b.log().lines().count();
    mirror().expect(1);
    assert_eq!(requests(&b, "POST", before) + requests(&b, "PUT", before), 0);
}

#[test]
fn from_places() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (a, b) = (Registry::start(&dir.join("a")), Registry::start(&dir.join("b")));
    a.push(&demo());
    let from = format!("{}/demo/hello:1.0", a.name());
    let path = |name: &str| dir.join(name).display().to_string();
    let skopeo = |more: &[&str], to: &str| {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--quiet", "--src-tls-verify=false"]).args(more);
        run(skopeo.args([&format!("docker://{from}"), to]));
    };
    skopeo(&["--all", "--preserve-digests"], &format!("oci:{}:hello", path("layout")));
    skopeo(&["--all", "--preserve-digests"], &format!("oci-archive:{}:hello", path("a.tar")));
    skopeo(&["--override-arch", "amd64"], &format!("docker-archive:{}:hello:1", path("d.tar")));
    for (number, place) in
        [format!("oci:{}:hello", path("layout")), format!("oci-archive:{}", path("a.tar"))].iter().enumerate()
    {
        let to = format!("{}/of/place{number}:1", b.name());
        copy(&format!("copy {place} {to}")).expect(0);
        assert_eq!(raw(&to), raw(&from), "{place}");
        is_whole(&to, dir);
        assert!(copy(&format!("copy {place} {to}")).expect(0).stdout.starts_with("up to date: "));
    }
    let to = format!("{}/of/docker:1", b.name());
    copy(&format!("copy docker-archive:{} {to}", path("d.tar"))).expect(0);
    is_whole(&to, dir);
    let config = |reference: &str| -> serde_json::Value {
        let text = run(Command::new("skopeo")
            .args(["inspect", "--config", "--raw", "--tls-verify=false", "--override-arch", "amd64"])
            .arg(format!("docker://{reference}")));
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(config(&to)["rootfs"], config(&from)["rootfs"]);

    // A root has what was baked into it, and says so of the rest.
    let root = dir.join("root");
    prebake(&root, &format!("bake --platform linux/amd64 {from}")).expect(0);
    let to = format!("{}/of/root:1", b.name());
    let partial = copy(&format!("copy containerd:{} {to}", root.display())).expect(3);
    assert!(partial.stderr.contains("--platform names the platforms"), "{}", partial.stderr);
    copy(&format!("copy --platform linux/amd64 containerd:{} {to}", root.display())).expect(0);
    assert!(raw(&from).contains(Digest::of(raw(&to).as_bytes()).as_str()));
    let containerd = Containerd::start("1.7.24", &containerd_root(&dir.join("peer")), &dir.join("work"));
    containerd.ctr(&format!("images pull --plain-http --platform linux/amd64 {to}"));
    assert!(containerd.ctr("images ls -q").contains(&to));
}
