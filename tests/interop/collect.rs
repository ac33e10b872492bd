//! What is collected offline, against what each release of containerd collects on the same root.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ::prebake::metadata::Labels;

use crate::bake::push_debian;
use crate::bbolt::Oracle;
use crate::cri;
use crate::life::{live, look, rows};
use crate::peers::{Containerd, RELEASES, Registry, run};
use crate::support::content::demo;
use crate::support::prebake::{containerd_root, meta_db, prebake};
use crate::support::rng::Rng;
use crate::support::situations;
use crate::support::world::{World, hours, labels, things};

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// What a real one leaves of a root.
fn left_by(release: &'static str, root: &Path, work: &Path) -> BTreeSet<String> {
    let mut containerd = Containerd::start(release, &containerd_root(root), work);
    containerd.collect_garbage();
    containerd.stop();
    let log = containerd.log();
    assert!(!log.contains("garbage collection failed"), "{log}");
    things(root)
}

/// Collects the same root by prebake and by each release, and holds what is left against each other.
fn same_survivors(made: &Path, dir: &Path) -> Vec<((u32, u32), BTreeSet<String>)> {
    let mut oracle = Oracle::start();
    let mut all = Vec::new();
    for release in RELEASES {
        let [ours, theirs] = ["ours", "theirs"].map(|who| dir.join(format!("{who}-{release}")));
        copy(made, &ours);
        copy(made, &theirs);
        prebake(&ours, &format!("gc --containerd {release}")).expect(0);
        assert_eq!(oracle.check(&meta_db(&ours)), Ok(()));
        let ours = things(&ours);
        let theirs = left_by(release, &theirs, &dir.join(format!("work-{release}")));
        let differ: Vec<_> = ours.symmetric_difference(&theirs).collect();
        assert!(differ.is_empty(), "{release}: {differ:#?}");
        let mut numbers = release.split('.').map(|number| number.parse().unwrap());
        all.push(((numbers.next().unwrap(), numbers.next().unwrap()), ours));
    }
    all
}

#[test]
fn each_case_as_each_release_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let mut world = World::new(&made);
    let said = situations::all(&mut world);
    world.file("nobody's");
    world.ingest_dir("case-0/1/nobody's");
    world.finish();
    std::fs::create_dir_all(containerd_root(&made).join("io.containerd.snapshotter.v1.overlayfs/snapshots/new-77/fs"))
        .unwrap();
    for (release, left) in same_survivors(&made, dir.path()) {
        for (thing, case, goes) in &said {
            assert_eq!(!left.contains(thing), goes(release), "{release:?}, {case}: {thing}");
        }
        assert!(!left.contains("directory of overlayfs new-77"));
    }
}

const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];

fn expires(rng: &mut Rng, found: &mut Labels) {
    let at = [hours(3), hours(-3), "no time".to_owned()][rng.below(3)].clone();
    found.insert("containerd.io/gc.expire".to_owned(), at);
}

/// The name of one of a namespace's images.
fn name(namespace: &str, n: usize) -> String {
    format!("example.org/{namespace}:{n}")
}

/// Leases and writes at random.
fn hold(world: &mut World, rng: &mut Rng, namespace: &str, digests: &[String]) {
    for n in 0..3 {
        let mut own = labels(if rng.one_in(3) { &[("containerd.io/gc.flat", "x")] } else { &[] });
        if rng.one_in(2) {
            expires(rng, &mut own);
        }
        let (content, snapshot, image) =
            (digests[rng.below(24)].clone(), format!("s{}", rng.below(10)), name(namespace, rng.below(6)));
        let ingest = format!("w{}", rng.below(4));
        let snapshots = format!("snapshots/{}", SNAPSHOTTERS[rng.below(2)]);
        let holds = [
            ("content", content.as_str()),
            (snapshots.as_str(), snapshot.as_str()),
            ("images", image.as_str()),
            ("ingests", ingest.as_str()),
        ];
        world.lease(namespace, &format!("l{n}"), &own, &holds[rng.below(4)..]);
    }
    for n in 0..4 {
        let expected = rng.one_in(2).then(|| digests[rng.below(24)].parse().unwrap());
        world.ingest(namespace, &format!("w{n}"), if rng.one_in(2) { 3 } else { -3 }, expected.as_ref());
    }
}

/// Records and references at random.
fn draw(world: &mut World, rng: &mut Rng, namespace: &str) {
    const KEYS: [&str; 14] = [
        "gc.ref.content",
        "gc.ref.content.l.0",
        "gc.ref.content/a",
        "gc.ref.contents",
        "gc.ref.snapshot.overlayfs",
        "gc.ref.snapshot.overlayfs/a",
        "gc.ref.snapshot.native",
        "gc.ref.image",
        "gc.ref.image.a",
        "gc.ref.images",
        "gc.root",
        "gc.root.a",
        "gc.bref.content",
        "gc.bref.image.a",
    ];
    let texts: Vec<String> = (0..24).map(|n| format!("{n} in {namespace}")).collect();
    let digests: Vec<String> =
        texts.iter().map(|text| ::prebake::oci::Digest::of(text.as_bytes()).to_string()).collect();
    let any = |rng: &mut Rng, most: usize| {
        let mut found = Labels::new();
        for _ in 0..rng.below(most + 1) {
            let key = KEYS[rng.below(KEYS.len())];
            // What says it is a root by itself is rare, or everything stays.
            if key.starts_with("gc.root") && !rng.one_in(4) {
                continue;
            }
            let value = match key {
                key if key.contains("snapshot") => format!("s{}", rng.below(10)),
                key if key.contains("image") => name(namespace, rng.below(6)),
                _ => digests[rng.below(digests.len())].clone(),
            };
            found.insert(format!("containerd.io/{key}"), value);
        }
        found
    };
    for text in &texts {
        if !rng.one_in(8) {
            let own = any(rng, 2);
            world.blob(namespace, text, &own);
        }
    }
    for n in 0..6 {
        let digest = digests[rng.below(digests.len())].parse().unwrap();
        let target = ::prebake::oci::Descriptor::new("application/x", digest, 10);
        let mut own = any(rng, 1);
        if rng.one_in(2) {
            expires(rng, &mut own);
        }
        world.name(namespace, &name(namespace, n), &target, &own);
    }
    for snapshotter in SNAPSHOTTERS {
        for n in 0..10 {
            let parent = if n > 0 && !rng.one_in(3) { format!("s{}", rng.below(n)) } else { String::new() };
            let own = any(rng, 1);
            world.snapshot(namespace, snapshotter, &format!("s{n}"), &parent, &own);
        }
    }
    hold(world, rng, namespace, &digests);
    let own = any(rng, 2);
    let snapshot = format!("s{}", rng.below(10));
    world.container(namespace, "c", "example.org/i:1", Some((SNAPSHOTTERS[rng.below(2)], &snapshot)), &own);
    let own = any(rng, 2);
    world.sandbox(namespace, "s", &own);
}

#[test]
fn anything_at_random() {
    let worlds = std::env::var("PREBAKE_WORLDS").map_or(60, |worlds| worlds.parse().unwrap());
    let seed: u64 = std::env::var("PREBAKE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let mut world = World::new(&made);
    let mut rng = Rng::new(seed);
    for n in 0..worlds {
        draw(&mut world, &mut rng, &format!("world-{n}"));
    }
    world.finish();
    let before = things(&made);
    for (release, left) in same_survivors(&made, dir.path()) {
        for kind in ["blob", "snapshot", "ingest", "lease", "image"] {
            let of_kind =
                |things: &BTreeSet<String>| things.iter().filter(|thing| thing.split(' ').nth(1) == Some(kind)).count();
            let (had, has) = (of_kind(&before), of_kind(&left));
            let may_stay = kind == "image" && release < (2, 0);
            assert!(has > 0 && (has < had || may_stay), "{release:?}: of {had} {kind}s, {has} are left");
        }
    }
}

/// Prunes a root in which pods, containers, Docker and people live: nothing of theirs is missing then.
fn the_living_go_on(release: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let images = registry.push(&demo());
    let debian = push_debian(&registry, dir.path(), "real/debian:12", &["sleep", "100000"]);
    let root = dir.path().join("root");
    let mut containerd = Containerd::new(release, &containerd_root(&root), &dir.path().join("c"), &debian);
    containerd.launch();
    live(&containerd, registry.name(), &images, &debian);
    let idle: Vec<&String> = images.iter().filter(|name| name.contains("/zstd:") || name.contains("/plain:")).collect();
    for name in &idle {
        cri::pull_image(&containerd.socket(), name).unwrap();
    }
    let before = look(&containerd);
    containerd.stop();

    let size = |root: &Path| prebake(root, "du --json").expect(0).last_json()["containerd"].as_u64().unwrap();
    let full = size(&root);
    let mut freed = 0;
    for namespace in ["k8s.io", "moby", "default"] {
        let told =
            prebake(&root, &format!("prune --all --namespace {namespace} --dry-run --json")).expect(0).last_json();
        let done = prebake(&root, &format!("prune --all --namespace {namespace} --json")).expect(0).last_json();
        assert_eq!(told["images"], done["images"]);
        freed += done["bytes"].as_u64().unwrap();
    }
    let truly = full - size(&root);
    assert!(freed > 1 << 20 && freed.abs_diff(truly) <= 64 << 10, "{freed} counted, {truly} freed");
    assert_eq!(Oracle::start().check(&meta_db(&root)), Ok(()));
    prebake(&root, "check").expect(0);

    containerd.launch();
    let now = look(&containerd);
    assert_eq!((&now.pods, &now.containers), (&before.pods, &before.containers), "{}", containerd.log());
    assert!(now.leases.is_superset(&["kept", "forever", "0123456789ab"].map(str::to_owned).into_iter().collect()));
    containerd.collect_garbage();
    let gone: Vec<_> = before.snapshots.difference(&look(&containerd).snapshots).cloned().collect();
    assert!(!gone.is_empty() && gone.iter().all(|key| key.starts_with("sha256:")), "{gone:?}");
    let names = rows(&containerd.ctr("images ls"));
    for name in &idle {
        assert!(!names.contains(*name), "{name} is still there");
    }
    assert!(names.contains(&debian) && names.iter().any(|name| name.ends_with("/demo/hello:1.0")), "{names:?}");
    let exec = containerd.ctr("tasks exec --exec-id e running cat /etc/debian_version");
    assert!(exec.starts_with("12."), "{exec}");
    containerd.ctr("tasks start --detach stopped");
    // What is still named still starts.
    let output = containerd.run(&format!("{}/demo/hello:1.0", registry.name()), "again", &[]);
    assert_eq!(output.trim(), "hello from an image that prebake baked");
    let log = containerd.log();
    assert!(!log.contains("panic") && !log.contains("level=fatal"), "{log}");
}

#[test]
fn the_living_go_on_in_1_6() {
    the_living_go_on("1.6.20");
}

#[test]
fn the_living_go_on_in_1_7() {
    the_living_go_on("1.7.24");
}

#[test]
fn the_living_go_on_in_2_1() {
    the_living_go_on("2.1.9");
}
