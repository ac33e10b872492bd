//! Damaged roots that prebake mended, judged by real containerd: it starts on them, has every image whole, and runs them.

use std::fs;
use std::path::Path;

use crate::cri;
use crate::peers::{Containerd, Registry};
use crate::support::campaign::{Base, run, wanted};
use crate::support::content::demo;
use crate::support::damage::Made;
use crate::support::prebake::{containerd_root, prebake};

/// Damages of a normal run; `PREBAKE_DAMAGES=all` does every kind to every root, twice.
const DAMAGES: usize = 30;
const RELEASE: &str = "2.1.9";
const LINE: &str = "hello from an image that prebake baked";

/// What real containerd says of a root.
fn accepted(base: &Base, root: &Path, image: &str, images: usize) -> Result<(), String> {
    let work = root.with_extension("containerd");
    let _ = fs::remove_dir_all(&work);
    let containerd = Containerd::start(RELEASE, &containerd_root(root), &work);
    let listed = containerd.ctr("images ls -q").lines().count();
    if listed != images {
        return Err(format!("containerd lists {listed} of {images} images"));
    }
    let checked = containerd.ctr("images check");
    for row in checked.lines().skip(1) {
        let unpacked = !base.made.unpacked || row.trim_end().ends_with("true");
        let whole = !base.made.layers || row.contains(" complete (");
        if !unpacked || !whole {
            return Err(format!("containerd says: {row}"));
        }
    }
    // Names of cgroups as well, which other tests have too.
    let name = format!("judge-{}", std::process::id());
    let said = containerd.run(image, &name, &[]);
    if said.trim() != LINE {
        return Err(format!("a container says {said:?}"));
    }
    containerd.collect_garbage();
    let said = containerd.run(image, &format!("{name}-again"), &[]);
    if said.trim() != LINE {
        return Err(format!("a container says {said:?} after a garbage collection"));
    }
    let log = containerd.log();
    let bad = log.lines().find(|line| {
        line.contains("level=fatal") || line.contains("panic") || line.contains("garbage collection failed")
    });
    bad.map_or(Ok(()), |line| Err(line.to_owned()))
}

#[test]
fn containerd_accepts_what_was_mended() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let images: Vec<String> = registry
        .push(&demo())
        .into_iter()
        .filter(|name| name.contains("/hello:") || name.contains("/plain:"))
        .collect();
    let hello = images.iter().find(|name| name.contains("/hello:")).unwrap();
    let mut bases = Vec::new();
    let pulled = dir.path().join("Pulled");
    fs::create_dir(&pulled).unwrap();
    {
        let containerd = Containerd::start(RELEASE, &containerd_root(&pulled), &dir.path().join("work"));
        for image in &images {
            cri::pull_image(&containerd.socket(), image).unwrap();
        }
        containerd.collect_garbage();
    }
    bases.push(Base { root: pulled, made: Made { name: "pulled", baked: false, ..Made::UNPACKED } });
    for (made, flags) in [(Made::UNPACKED, "--unpack"), (Made::DISCARDED, "--unpack --discard-layers")] {
        let root = dir.path().join(made.name);
        fs::create_dir(&root).unwrap();
        prebake(&root, &format!("bake {flags} {}", images.join(" "))).expect(0);
        bases.push(Base { root, made });
    }
    // By name, by digest, by config digest.
    let count = images.len() * 3;
    let tally = run(&bases, dir.path(), 1, wanted(DAMAGES), &|base, root| accepted(base, root, hello, count));
    eprintln!("{} damages mended and accepted, {} not", tally.damages - tally.failures.len(), tally.failures.len());
    assert!(tally.failures.is_empty(), "{} failures:\n{}", tally.failures.len(), tally.failures.join("\n\n"));
}
