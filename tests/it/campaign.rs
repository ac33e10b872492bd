//! Hundreds of damages to roots: each is found, each is mended, and nothing is said of what is sound.

use crate::support::campaign::{Base, run, wanted};
use crate::support::content::build;
use crate::support::damage::Made;
use crate::support::prebake::prebake;
use crate::support::registry::TestRegistry;

/// Damages of a normal run; `PREBAKE_DAMAGES=all` does every kind to every root, twice.
const DAMAGES: usize = 200;

/// Small images with one of everything that a layer may have.
const IMAGES: &str = r#"
[layer.base]
files = [
  { path = "etc" },
  { path = "etc/os-release", text = "NAME=demo\n" },
  { path = "etc/passwd", text = "root:x:0:0:root:/root:/bin/sh\n" },
  { path = "tmp", mode = 0o1777 },
  { path = "srv/data", random = 100_000 },
]
[layer.top]
compression = "zstd"
files = [
  { path = "bin/hello", text = "hello\n", mode = 0o755 },
  { path = "bin/sh", symlink = "hello" },
  { path = "etc/.wh.passwd", text = "" },
]
[layer.more]
compression = "none"
files = [{ path = "srv" }, { path = "srv/more", random = 50_000 }]

[layer.last]
files = [{ path = "srv" }, { path = "srv/last", random = 5_000 }]

[[image]]
name = "own/one:1"
created = "2026-01-01T12:00:00Z"
platforms = ["linux/amd64", "linux/arm64"]
layers = ["base", "top"]
[[image]]
name = "own/two:1"
created = "2026-02-02T12:00:00Z"
platforms = ["linux/amd64"]
layers = ["base", "top", "more"]
[[image]]
name = "own/three:1"
platforms = ["linux/amd64"]
layers = ["last"]
format = "docker"
"#;

#[test]
fn every_damage_is_found_and_mended() {
    let registry = TestRegistry::start(build(IMAGES));
    let dir = tempfile::tempdir().unwrap();
    let images = ["one", "two", "three"].map(|name| registry.reference(&format!("own/{name}:1"))).join(" ");
    let mut bases = Vec::new();
    // Whether snapshots can be made depends on who runs the tests.
    let is_root = rustix::process::geteuid().is_root();
    let kinds = [(Made::FETCHED, ""), (Made::UNPACKED, "--unpack"), (Made::DISCARDED, "--unpack --discard-layers")];
    for (made, flags) in kinds.into_iter().filter(|(made, _)| is_root || !made.unpacked) {
        let root = dir.path().join(made.name);
        std::fs::create_dir(&root).unwrap();
        prebake(&root, &format!("bake --platform linux/amd64 {flags} {images}")).expect(0);
        bases.push(Base { root, made });
    }
    let tally = run(&bases, dir.path(), 2, wanted(DAMAGES), &|_, _| Ok(()));
    eprintln!("{} damages found and mended, {} not", tally.damages - tally.failures.len(), tally.failures.len());
    assert!(tally.failures.is_empty(), "{} failures:\n{}", tally.failures.len(), tally.failures.join("\n\n"));
}
