//! A root for arm64 baked on this machine, and what containerds of this machine read there. None of it is run or emulated; on
//! an arm64 machine, it is a root like others.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use ::prebake::fixture::{Content, DEMO, program};
use ::prebake::oci::{Descriptor, Digest, Document, Manifest, chain_ids};

use crate::peers::{self, Containerd, RELEASES, Registry, run};
use crate::support::content::build;
use crate::support::prebake::{containerd_root, prebake};

const LINE: &str = "hello from an image that prebake baked";
/// The first stage of a debootstrap for arm64 (`tests/setup`).
const ROOT: &str = "debootstrap/--variant=minbase --foreign --arch=arm64 trixie chroot-arm64.tar";
/// Beside the demo's: one for this platform alone, and one that shares nothing.
const MORE: &str = "\n[layer.own]\nfiles = [{ path = \"own\", random = 100_000 }]\n\
    [[image]]\nname = \"only/arm:1.0\"\nplatforms = [\"linux/arm64\"]\nlayers = [\"base\", \"hello\"]\n\
    [[image]]\nname = \"only/own:1.0\"\nplatforms = [\"linux/arm64\"]\nlayers = [\"own\"]\n";

/// What an image consists of on arm64, by its manifest.
struct Parts {
    target: Digest,
    documents: BTreeSet<Digest>,
    layers: BTreeSet<Digest>,
    chains: Vec<Digest>,
}

impl Parts {
    fn of(content: &Content, repository: &str) -> Self {
        let target = content.tags[&(repository.to_owned(), "1.0".to_owned())].clone();
        let read = |digest: &Digest| {
            let (kind, bytes) = &content.blobs[digest];
            Document::parse(bytes, kind).unwrap().0
        };
        let mut documents = BTreeSet::from([target.clone()]);
        let manifest: Manifest = match read(&target) {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let arm64 = |entry: &Descriptor| entry.platform().is_some_and(|p| p.to_string() == "linux/arm64");
                let entry = index.manifests.into_iter().find(arm64).unwrap();
                documents.insert(entry.digest.clone());
                let Document::Manifest(manifest) = read(&entry.digest) else { panic!("{repository}") };
                manifest
            }
        };
        let config: serde_json::Value = serde_json::from_slice(&content.blobs[&manifest.config.digest].1).unwrap();
        assert_eq!(config["architecture"], "arm64", "{repository}");
        let diff_ids: Vec<Digest> = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap();
        documents.insert(manifest.config.digest);
        let layers = manifest.layers.into_iter().map(|layer| layer.digest).collect();
        Self { target, documents, layers, chains: chain_ids(&diff_ids) }
    }
}

/// Key, parent and kind of each snapshot.
fn snapshots(containerd: &Containerd) -> BTreeSet<Vec<String>> {
    let table = containerd.ctr("snapshots ls");
    table.lines().skip(1).map(|row| row.split_whitespace().map(str::to_owned).collect()).collect()
}

fn is_read(containerd: &Containerd, registry: &Registry, content: &Content, dir: &Path) {
    let image = |repository: &str| (format!("{}/{repository}:1.0", registry.name()), Parts::of(content, repository));
    let all = ["demo/hello", "demo/docker", "demo/zstd", "demo/plain", "only/arm", "only/own"].map(image);
    let [hello, .., plain, arm, own] = &all;

    let listed = containerd.ctr("images ls");
    for (name, parts) in &all {
        let row = listed.lines().find(|row| row.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{listed}"));
        assert!(row.contains(parts.target.as_str()) && row.contains("linux/arm64"), "{row}");
    }
    let digests = |text: String| text.lines().map(|line| line.parse().unwrap()).collect::<BTreeSet<Digest>>();
    let mut blobs: BTreeSet<Digest> = all.iter().flat_map(|(_, parts)| parts.documents.clone()).collect();
    blobs.extend(all[..5].iter().flat_map(|(_, parts)| parts.layers.clone()));
    assert_eq!(digests(containerd.ctr("content ls -q")), blobs, "the layer of only/own alone is discarded");
    // demo/plain is only fetched; what its layers have in common with others is there.
    let mut rows = BTreeSet::new();
    for (_, parts) in all.iter().filter(|(name, _)| *name != plain.0) {
        let parents = std::iter::once(None).chain(parts.chains.iter().map(Some));
        for (chain, parent) in parts.chains.iter().zip(parents) {
            let row = [Some(chain.as_str()), parent.map(Digest::as_str), Some("Committed")];
            rows.insert(row.into_iter().flatten().map(str::to_owned).collect::<Vec<_>>());
        }
    }
    assert_eq!(snapshots(containerd), rows);

    // It judges an index by this machine's platform, but there is no choice in a manifest.
    for (name, wanted) in [(&arm.0, "complete (3/3)"), (&own.0, "incomplete (1/2)")] {
        let checked = containerd.ctr(&format!("images check name=={name}"));
        let row = checked.lines().last().unwrap().trim_end();
        assert!(row.contains(&format!(" {wanted} ")) && row.ends_with("true"), "{checked}");
    }
    // Every blob is read.
    for (name, parts) in &all[..5] {
        let archive = dir.join("export.tar");
        containerd.export("k8s.io", "linux/arm64", &archive, name);
        let members = run(Command::new("tar").arg("-tf").arg(&archive));
        for blob in parts.documents.iter().chain(&parts.layers) {
            assert!(
                members.lines().any(|member| member == format!("blobs/sha256/{}", blob.hex())),
                "{name}: {members}"
            );
        }
    }
    let mounted = dir.join("mounted");
    fs::create_dir(&mounted).unwrap();
    containerd.ctr(&format!("images mount --platform linux/arm64 {} {}", hello.0, mounted.display()));
    let bytes = fs::read(mounted.join("bin/hello"));
    containerd.ctr(&format!("images unmount --rm {}", mounted.display()));
    assert_eq!(bytes.unwrap(), program("arm64", LINE).unwrap());
    containerd.collect_garbage();
    assert_eq!(snapshots(containerd), rows);
}

#[test]
fn three_releases_read_a_root_for_arm64() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = build(&(DEMO.to_owned() + MORE));
    let registry = Registry::start(dir);
    registry.push(&content);
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    run(Command::new("tar").arg("-C").arg(&root).arg("-xf").arg(peers::dir().join(ROOT)));
    let names = |repositories: &[&str]| -> String {
        repositories.iter().map(|repository| format!(" {}/{repository}:1.0", registry.name())).collect()
    };
    let bake = |flags: &str, repositories: &[&str]| {
        prebake(&root, &format!("bake --platform linux/arm64 {flags} {}", names(repositories))).expect(0)
    };
    bake("--unpack", &["demo/hello", "demo/docker", "demo/zstd", "only/arm"]);
    bake("--unpack --discard-layers", &["only/own"]);
    bake("", &["demo/plain"]);
    for release in RELEASES {
        let work = dir.join(release);
        let copy = work.join("root");
        fs::create_dir_all(containerd_root(&copy).parent().unwrap()).unwrap();
        run(Command::new("cp").arg("-a").args([containerd_root(&root), containerd_root(&copy)]));
        let mut containerd = Containerd::start(release, &containerd_root(&copy), &work.join("c"));
        is_read(&containerd, &registry, &content, &work);
        containerd.stop();
        let check = prebake(&copy, "check --snapshots").expect(0);
        assert!(check.stdout.contains(" snapshots compared"), "{}", check.stdout);
        prebake(&copy, &format!("check --would-start {} --platform linux/arm64", &release[..3])).expect(0);
    }
    prebake(&root, "check --snapshots").expect(0);
}
