//! Five hundred images with five thousand blobs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use prebake::fixture::Content;

use crate::support::content::build;
use crate::support::prebake::{blobs_dir, command};
use crate::support::registry::TestRegistry;

const IMAGES: usize = 500;
const LAYERS: usize = 9;
/// What prebake may take at its peak, in KiB.
const MEMORY: u64 = 64 << 10;
/// What a locked bake may take of which everything is there; without optimisation, and beside other tests, more.
const AGAIN: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 300 });

/// Each image has eight layers of its own on one that ten of them share, a config and a manifest.
fn images() -> Content {
    let mut spec: Vec<String> = Vec::new();
    for image in 0..IMAGES {
        let layer = |n: usize| if n == 0 { format!("base{}", image / 10) } else { format!("l{image}-{n}") };
        for n in usize::from(image % 10 != 0)..LAYERS {
            let (name, size) = (layer(n), 500 * (n + 1));
            spec.push(format!("[layer.{name}]\nfiles = [{{ path = \"of/{name}\", random = {size} }}]\n"));
        }
        let layers: Vec<String> = (0..LAYERS).map(|n| format!("{:?}", layer(n))).collect();
        spec.push(format!(
            "[[image]]\nname = \"team{}/app{image}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [{}]\n",
            image % 20,
            layers.join(", ")
        ));
    }
    build(&spec.concat())
}

/// How long a command took, and its memory at the peak, in KiB.
fn measured(dir: &Path, arguments: &str) -> (Duration, u64) {
    let mut timed = Command::new("/usr/bin/time");
    timed.args(["-f", "%M"]).arg(command().get_program()).args(arguments.split_whitespace()).current_dir(dir);
    timed.env("DOCKER_CONFIG", "/nonexistent").env("HOME", "/nonexistent");
    let start = Instant::now();
    let output = timed.output().unwrap();
    let took = start.elapsed();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    (took, stderr.lines().last().unwrap().parse().unwrap())
}

#[test]
fn five_hundred_images() {
    let content = images();
    let distinct = content.blobs.len();
    assert_eq!(distinct, 5050);
    let registry = TestRegistry::start(content);
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> =
        (0..IMAGES).map(|n| format!("{:?}", registry.reference(&format!("team{}/app{n}:1", n % 20)))).collect();
    fs::write(dir.path().join("bake.toml"), format!("images = [{}]\n", names.join(", "))).unwrap();
    let common = "-f bake.toml --platform linux/amd64 --root out --quiet";
    let (locked, memory) = measured(dir.path(), &format!("lock {common}"));
    assert!(memory <= MEMORY, "lock: {memory} KiB");
    let (baked, memory) = measured(dir.path(), &format!("bake --locked {common}"));
    assert!(memory <= MEMORY, "bake: {memory} KiB");
    assert_eq!(fs::read_dir(blobs_dir(&dir.path().join("out"))).unwrap().count(), distinct);
    registry.asked();
    // The best of three: other tests run beside this one.
    let again = (0..3).map(|_| measured(dir.path(), &format!("bake --locked {common}"))).min().unwrap();
    assert_eq!(registry.asked(), Vec::<String>::new());
    eprintln!("lock {locked:?}, bake {baked:?} with {memory} KiB, again {again:?}");
    assert!(again.0 <= AGAIN && again.1 <= MEMORY, "{again:?}");
    if rustix::process::geteuid().is_root() {
        let unpack = format!("bake --locked {common} --unpack");
        let (unpacked, memory) = measured(dir.path(), &unpack);
        assert!(memory <= MEMORY, "unpack: {memory} KiB");
        let again = (0..3).map(|_| measured(dir.path(), &unpack)).min().unwrap();
        eprintln!("unpack {unpacked:?} with {memory} KiB, again {again:?}");
        assert!(again.0 <= 2 * AGAIN && again.1 <= MEMORY, "{again:?}");
        assert_eq!(registry.asked(), Vec::<String>::new());
    }
}
