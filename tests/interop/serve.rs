//! `prebake serve`, pulled from by real clients.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use ::prebake::oci::{Digest, Document, media_type};

use crate::access::Pki;
use crate::peers::{Containerd, RELEASES, run};
use crate::support::content::{build, demo};
use crate::support::prebake::{blobs, containerd_root, prebake};
use crate::support::served::{Served, write_layout};

const LINE: &str = "hello from an image that prebake baked";
const HELLO: &str = "registry.invalid/demo/hello:1.0";

/// A layout of the demo's images as a registry's that is not there, and of another registry's image of the same name.
fn layout(dir: &Path) -> (Digest, Digest) {
    let mut content = demo();
    let top = content.tags[&("demo/hello".to_owned(), "1.0".to_owned())].clone();
    let other = build(
        "[layer.l]\nfiles = [{ path = \"f\", random = 1000 }]\n\
         [[image]]\nname = \"demo/hello:1.0\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"l\"]\n",
    );
    let twin = other.tags[&("demo/hello".to_owned(), "1.0".to_owned())].clone();
    content.blobs.extend(other.blobs);
    write_layout(&content, "registry.invalid/", &[], dir);
    let index = fs::read(dir.join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"].as_array_mut().unwrap().push(serde_json::json!({"mediaType": media_type::OCI_INDEX,
        "digest": twin, "size": content.blobs[&twin].1.len(),
        "annotations": {"io.containerd.image.name": "other.invalid/demo/hello:1.0"}}));
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    (top, twin)
}

/// Says that a registry's images come from a server.
fn mirror(hosts: &Path, registry: &str, url: &str, more: &str) {
    fs::create_dir_all(hosts.join(registry)).unwrap();
    let toml =
        format!("server = \"http://127.0.0.1:1\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{more}");
    fs::write(hosts.join(registry).join("hosts.toml"), toml).unwrap();
}

#[test]
fn three_releases_pull_from_it_as_a_mirror() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (top, twin) = layout(&dir.join("layout"));
    let served = Served::start(&format!("--quiet --layout {}", dir.join("layout").display()));
    let hosts = dir.join("certs.d");
    mirror(&hosts, "registry.invalid", &served.url, "");
    mirror(&hosts, "other.invalid", &served.url, "");
    for release in RELEASES {
        let root = dir.join(format!("root-{release}"));
        let mut containerd = Containerd::start(release, &containerd_root(&root), &dir.join(release));
        let local = if release == "2.1.9" { "--local" } else { "" };
        let pull = |name: &str| containerd.ctr(&format!("images pull {local} --hosts-dir {} {name}", hosts.display()));
        let digest_of = |name: &str| {
            let table = containerd.ctr("images ls");
            let row = table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
            row.split_whitespace().nth(2).unwrap().to_owned()
        };
        pull(HELLO);
        assert_eq!(digest_of(HELLO), top.as_str(), "{release}");
        assert_eq!(containerd.run(HELLO, "hello", &[]).trim(), LINE, "{release}");
        // The same repository and tag of another registry is another image.
        pull("other.invalid/demo/hello:1.0");
        assert_eq!(digest_of("other.invalid/demo/hello:1.0"), twin.as_str(), "{release}");
        // Without a mirror, by its address, with and without the registry in the name.
        for name in ["demo/zstd:1.0", "registry.invalid/demo/plain:1.0"] {
            containerd.ctr(&format!("images pull {local} --plain-http {}/{name}", served.name()));
        }
        let missing = containerd
            .ctr_command()
            .args(["images", "pull", "--plain-http", &format!("{}/demo/none:1.0", served.name())])
            .output()
            .unwrap();
        assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("not found"));
        containerd.stop();

        // What containerd has pulled is served in its turn.
        let again = Served::start(&format!("--quiet --root {}", root.display()));
        let baked = dir.join(format!("baked-{release}"));
        let platform = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
        prebake(&baked, &format!("bake --platform {platform} {}/registry.invalid/demo/hello:1.0", again.name()))
            .expect(0);
        let (ours, theirs) = (blobs(&baked), blobs(&root));
        assert!(!ours.is_empty() && ours.iter().all(|(name, bytes)| theirs.get(name) == Some(bytes)), "{release}");
    }
}

#[test]
fn over_tls_with_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    layout(&dir.join("layout"));
    let pki = Pki::new(&dir.join("pki"));
    fs::write(dir.join("users"), "user:secret\n").unwrap();
    let served = Served::start(&format!(
        "--quiet --layout {} --tls-cert {} --tls-key {} --auth-file {}",
        dir.join("layout").display(),
        pki.path("server.cert"),
        pki.path("server.key"),
        dir.join("users").display()
    ));
    let name = format!("{}/demo/hello:1.0", served.name());
    let hosts = dir.join("certs.d");
    fs::create_dir_all(hosts.join(served.name())).unwrap();
    let toml = format!("server = \"{}\"\nca = \"{}\"\n", served.url, pki.path("ca.crt"));
    fs::write(hosts.join(served.name()).join("hosts.toml"), toml).unwrap();
    let containerd = Containerd::start("2.1.9", &containerd_root(&dir.join("root")), &dir.join("work"));
    let pull = |user: &str| {
        let arguments = format!("images pull --local --hosts-dir {} {user} {name}", hosts.display());
        containerd.ctr_command().args(arguments.split_whitespace()).output().unwrap()
    };
    assert!(!pull("").status.success());
    assert!(!pull("--user user:wrong").status.success());
    let pulled = pull("--user user:secret");
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));

    let certs = dir.join("skopeo");
    fs::create_dir_all(&certs).unwrap();
    fs::copy(pki.path("ca.crt"), certs.join("ca.crt")).unwrap();
    let skopeo = |user: &str| {
        let (certs, to) =
            (format!("--src-cert-dir={}", certs.display()), format!("dir:{}", dir.join("copy").display()));
        Command::new("skopeo")
            .args(["copy", "--quiet", "--all", "--preserve-digests", &certs, "--src-creds", user])
            .args([format!("docker://{name}"), to])
            .output()
            .unwrap()
    };
    assert!(!skopeo("user:wrong").status.success());
    let copied = skopeo("user:secret");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let curl = run(Command::new("curl").args(["-fsS", "--cacert", &pki.path("ca.crt"), "-u", "user:secret"]).args([
        "-H",
        "Range: bytes=0-1",
        &format!("{}/v2/demo/hello/manifests/1.0", served.url),
    ]));
    assert_eq!(curl.len(), 2);
}

/// Digests of all that a document leads to.
fn below(content: &::prebake::fixture::Content, digest: &Digest, found: &mut BTreeSet<String>) {
    found.insert(digest.hex().to_owned());
    let (kind, bytes) = &content.blobs[digest];
    match Document::parse(bytes, kind) {
        Ok((Document::Index(index), _)) => index.manifests.iter().for_each(|one| below(content, &one.digest, found)),
        Ok((Document::Manifest(manifest), _)) => {
            let all = manifest.layers.iter().chain([&manifest.config]);
            found.extend(all.map(|one| one.digest.hex().to_owned()));
        }
        Err(_) => {}
    }
}

#[test]
fn skopeo_copies_and_what_it_writes_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = demo();
    layout(&dir.join("layout"));
    let served = Served::start(&format!("--quiet --layout {}", dir.join("layout").display()));
    let copy = |from: &str, to: &str| {
        run(Command::new("skopeo").args([
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
            from,
            to,
        ]))
    };
    let tags = run(Command::new("skopeo")
        .args(["list-tags", "--tls-verify=false"])
        .arg(format!("docker://{}/demo/docker", served.name())));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&tags).unwrap()["Tags"], serde_json::json!(["1.0"]));
    for name in ["demo/docker", "registry.invalid/demo/hello", "demo/zstd", "demo/chart"] {
        let to = dir.join("oci").join(name.replace('/', "-"));
        fs::create_dir_all(&to).unwrap();
        // An OCI layout takes no Docker images as they are.
        let scheme = if name == "demo/docker" { "dir" } else { "oci" };
        let from = format!("docker://{}/{name}:1.0", served.name());
        copy(&from, &format!("{scheme}:{}{}", to.display(), if scheme == "oci" { ":1.0" } else { "" }));
        let mut expected = BTreeSet::new();
        let repository = name.trim_start_matches("registry.invalid/");
        below(&content, &content.tags[&(repository.to_owned(), "1.0".to_owned())], &mut expected);
        if scheme == "dir" {
            for hex in expected {
                let names = [hex.clone(), format!("{hex}.manifest.json")];
                let is_top = Digest::of(&fs::read(to.join("manifest.json")).unwrap()).hex() == hex;
                assert!(is_top || names.iter().any(|name| to.join(name).exists()), "{hex}");
            }
            continue;
        }
        let got = fs::read_dir(to.join("blobs/sha256")).unwrap();
        let got: BTreeSet<String> = got.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(got, expected, "{name}");
    }
    // Its own layout and archive have only a tag.
    let archive = dir.join("hello.tar");
    let from = format!("oci:{}:1.0", dir.join("oci/registry.invalid-demo-hello").display());
    copy(&from, &format!("oci-archive:{}:1.0", archive.display()));
    let baked = |place: &str, name: &str| {
        let served = Served::start(&format!("--quiet {place}"));
        let root = dir.join("root");
        prebake(&root, &format!("bake {}/{name}", served.name())).expect(0);
        let found = blobs(&root);
        fs::remove_dir_all(root).unwrap();
        found
    };
    let expected = baked(&format!("--layout {}", dir.join("layout").display()), "registry.invalid/demo/hello:1.0");
    for place in [from.clone(), from.trim_end_matches(":1.0").to_owned(), format!("oci-archive:{}", archive.display())]
    {
        assert!(baked(&place, "local:1.0") == expected, "{place}");
    }
}
