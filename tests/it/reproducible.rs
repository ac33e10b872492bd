//! The same lock makes the same root, byte for byte, whatever the clock, the concurrency and the order of arrival.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use prebake::fixture::{Content, paced};
use prebake::oci::Digest;

use crate::support::content::build;
use crate::support::prebake::{Run, blobs_dir, command, containerd_root, prebake};
use crate::support::registry::{TestRegistry, respond};
use crate::support::rng::Rng;

const IMAGES: usize = 12;

/// Images that share layers, with everything in them that has no time of its own.
fn images() -> Content {
    let layer = |layer: usize| {
        // Directories that no entry makes, some of which the layer below has, whiteouts, and an opaque directory.
        format!(
            "[layer.l{layer}]\nfiles = [{{ path = \"implied/of{layer}/file\", random = {} }}, \
             {{ path = \"etc/.wh.gone\", text = \"\" }}, {{ path = \"opaque/{layer}/.wh..wh..opq\", text = \"\" }}, \
             {{ path = \"etc\" }}, {{ path = \"bin/sh\", symlink = \"program\" }}]\n",
            20_000 * (layer % 7 + 1)
        )
    };
    let image = |image: usize| {
        let own = image + IMAGES;
        format!(
            "[[image]]\nname = \"team/app{image}:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\n\
             created = \"2024-02-{:02}T03:04:05.678Z\"\nlayers = [\"l0\", \"l{}\", \"l{own}\"]\n",
            28 - image,
            image / 3 + 1,
        )
    };
    build(&(0..2 * IMAGES).map(layer).chain((0..IMAGES).map(image)).collect::<String>())
}

/// A registry whose blobs come late, some later than others.
fn registry(content: Content) -> TestRegistry {
    let (own, rng) = (content.clone(), Mutex::new(Rng::new(7)));
    TestRegistry::faulty(content, move |request| {
        let (_, digest) = request.uri().path().rsplit_once("/blobs/")?;
        let (_, bytes) = own.blobs.get(&digest.parse().ok()?)?;
        let pause = Duration::from_millis(rng.lock().unwrap().below(40) as u64);
        Some(respond(200, &[], paced(bytes, 50_000, pause)))
    })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A bake of the lock in `dir` into a root of its own, under a umask of its own.
fn bake(dir: &Path, root: &str, concurrency: u8, umask: &str, epoch: Option<u32>) -> Run {
    let unpack = if is_root() { "--unpack-under 600KB --discard-layers --pin" } else { "" };
    let line = format!(
        "umask {umask} && exec \"$0\" bake -f bake.toml --locked --platform linux/amd64 --root {root} {unpack} \
         --concurrency {concurrency}"
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).arg(command().get_program()).current_dir(dir);
    shell.env_remove("SOURCE_DATE_EPOCH").envs(epoch.map(|epoch| ("SOURCE_DATE_EPOCH", epoch.to_string())));
    Run::from(shell.output().unwrap()).expect(0)
}

/// What `tar` makes of a root.
fn digest(root: &Path) -> Digest {
    let mut tar = Command::new("tar");
    // All that `tar` can tell of a file, but when it was read, and when its inode changed, which nobody can set.
    let pax = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime";
    tar.args(["--sort=name", "--xattrs", "--format=posix", pax, "-cf", "-", "-C"]).arg(root).arg(".");
    let output = tar.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Digest::of(&output.stdout)
}

/// The files of two roots that are not the same, for whoever has to find out why.
fn differences(one: &Path, other: &Path) -> String {
    let list = |root: &Path| {
        let line = "find . -printf '%P %y %m %U:%G %s %T@\\n' | sort; find . -type f -exec sha256sum {} + | sort -k2";
        String::from_utf8(Command::new("sh").args(["-c", line]).current_dir(root).output().unwrap().stdout).unwrap()
    };
    let (one, other) = (list(one), list(other));
    let differ: Vec<_> = one.lines().zip(other.lines()).filter(|(a, b)| a != b).take(20).collect();
    format!("{differ:#?}")
}

fn lock(dir: &Path, registry: &TestRegistry) {
    let names: Vec<_> = (0..IMAGES).map(|n| format!("{:?}", registry.reference(&format!("team/app{n}:1")))).collect();
    fs::write(dir.join("bake.toml"), format!("images = [{}]\n", names.join(", "))).unwrap();
    let run = command()
        .current_dir(dir)
        .args(["lock", "-f", "bake.toml", "--root", "x", "--platform", "linux/amd64"])
        .output()
        .unwrap();
    Run::from(run).expect(0);
}

#[test]
fn the_same_lock_makes_the_same_root() {
    let registry = registry(images());
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    lock(here.path(), &registry);
    for name in ["bake.toml", "bake.lock"] {
        fs::copy(here.path().join(name), there.path().join(name)).unwrap();
    }
    for epoch in [Some(1_700_000_000), None] {
        let roots = [(&here, "a", 1, "022"), (&there, "elsewhere/b", 16, "077"), (&here, "c", 16, "000")];
        let mut first = None;
        for (dir, root, concurrency, umask) in roots {
            let root = format!("{root}{epoch:?}").replace(['(', ')'], "");
            bake(dir.path(), &root, concurrency, umask, epoch);
            let root = dir.path().join(root);
            let digest = digest(&root);
            let (first, expected) = first.get_or_insert_with(|| (root.clone(), digest.clone()));
            assert_eq!(digest, *expected, "{}", differences(first, &root));
            prebake(&root, "check").expect(0);
        }
    }
}

#[test]
fn times_are_those_of_the_images() {
    let registry = registry(images());
    let dir = tempfile::tempdir().unwrap();
    lock(dir.path(), &registry);
    bake(dir.path(), "said", 6, "022", None);
    bake(dir.path(), "one", 6, "022", Some(1_000_000_007));
    let times = |root: &str| {
        let root = dir.path().join(root);
        let entries = fs::read_dir(blobs_dir(&root)).unwrap().map(|entry| entry.unwrap().path());
        let all = entries.chain([root.clone(), root.join("var/lib"), containerd_root(&root)]);
        all.map(|path| path.metadata().unwrap().mtime()).collect::<Vec<_>>()
    };
    assert!(times("one").iter().all(|time| *time == 1_000_000_007));
    let said = times("said");
    // From the 17th to the 28th of February 2024.
    assert!(said.iter().all(|time| (1_708_139_045..=1_709_089_445).contains(time)), "{said:?}");
    assert_eq!(said.last(), Some(&1_709_089_445));
    let bad = command().args(["bake", "--root", "x", "busybox", "--source-date-epoch", "yesterday"]).output().unwrap();
    assert!(Run::from(bad).expect(2).stderr.contains("--source-date-epoch"));
}

#[test]
fn what_a_bake_did_not_change_keeps_its_time() {
    let registry = registry(images());
    let dir = tempfile::tempdir().unwrap();
    lock(dir.path(), &registry);
    let root = dir.path().join("chroot");
    fs::create_dir_all(root.join("var/lib")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    let before = root.join("etc").metadata().unwrap().mtime();
    bake(dir.path(), "chroot", 6, "022", None);
    assert_eq!(root.join("etc").metadata().unwrap().mtime(), before);
    assert_eq!(root.metadata().unwrap().mtime(), before);
    assert_eq!(root.join("var").metadata().unwrap().mtime(), before);
    assert_eq!(root.join("var/lib").metadata().unwrap().mtime(), 1_709_089_445);
    // And once more: nothing changes, and nothing is dated anew.
    let again = digest(&root);
    bake(dir.path(), "chroot", 1, "077", None);
    assert_eq!(digest(&root), again);
}
