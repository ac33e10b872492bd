//! Images are removed without taking one that somebody needs, under whatever name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prebake::oci::{Descriptor, Digest};
use serde_json::Value;

use crate::support::content::{app, build, demo};
use crate::support::prebake::{blobs, blobs_dir, prebake, records};
use crate::support::registry::TestRegistry;
use crate::support::world::{Unpacked, World, hours, labels, things};

const NS: &str = "k8s.io";

/// What a command decided, by name.
fn fates(run: &Value) -> BTreeMap<String, String> {
    let fate = |image: &Value| (image["name"].as_str().unwrap().to_owned(), image["fate"].as_str().unwrap().to_owned());
    run["images"].as_array().unwrap().iter().map(fate).collect()
}

/// The images of a root.
fn images(root: &Path) -> Vec<String> {
    things(root).into_iter().filter(|thing| thing.contains(" image ")).collect()
}

/// An image with the records that CRI keeps; its target, config's digest and chainID.
fn cri(world: &mut World, name: &str) -> (Descriptor, Digest, Digest) {
    let Unpacked { target, config, chain } = world.image(NS, name);
    let repository = name.rsplit_once(':').unwrap().0;
    for name in [name.to_owned(), format!("{repository}@{}", target.digest), config.to_string()] {
        world.name(NS, &name, &target, &labels(&[("io.cri-containerd.image", "managed")]));
    }
    (target, config, chain)
}

/// Makes a need of the image with this target, config and chainID.
type Need = fn(&mut World, &Descriptor, &Digest, &Digest);

/// Ways in which an image may be needed.
const NEEDS: [(&str, Need); 15] = [
    ("a container by its name", |w, _, _, _| w.container(NS, "c", "example.org/used:1", None, &labels(&[]))),
    ("a container by its short name", |w, _, _, _| w.container(NS, "c", "docker.io/library/used", None, &labels(&[]))),
    ("a container of another namespace", |w, _, _, _| {
        w.container("moby", "c", "example.org/used:1", None, &labels(&[]));
    }),
    ("a container by repository and digest", |w, target, _, _| {
        w.container(NS, "c", &format!("example.org/used@{}", target.digest), None, &labels(&[]));
    }),
    ("a container by tag and digest", |w, target, _, _| {
        w.container("default", "c", &format!("example.org/used:1@{}", target.digest), None, &labels(&[]));
    }),
    ("a container by the target's digest", |w, target, _, _| {
        w.container(NS, "c", target.digest.as_str(), None, &labels(&[]));
    }),
    ("a container by the image's id", |w, _, config, _| {
        w.container("default", "c", config.as_str(), None, &labels(&[]));
    }),
    ("a container by the id's digits", |w, _, config, _| w.container(NS, "c", config.hex(), None, &labels(&[]))),
    ("a container by the id's first digits", |w, _, config, _| {
        w.container("moby", "c", &config.hex()[..12], None, &labels(&[]));
    }),
    ("an active snapshot", |w, _, _, chain| {
        w.active(NS, "overlayfs", "own", chain.as_str());
        w.container(NS, "c", "", Some(("overlayfs", "own")), &labels(&[]));
    }),
    ("an active snapshot on Docker's own layer", |w, _, _, chain| {
        w.snapshot(NS, "overlayfs", "0123-init", chain.as_str(), &labels(&[]));
        w.active(NS, "overlayfs", "0123", "0123-init");
        w.lease(NS, "0123", &labels(&[]), &[("snapshots/overlayfs", "0123")]);
    }),
    ("an unpacking that was not over", |w, _, _, chain| {
        let key = format!("extract-123456789-AbCd {chain}");
        w.active(NS, "overlayfs", &key, "");
        w.lease(NS, "pull", &labels(&[]), &[("snapshots/overlayfs", &key)]);
    }),
    ("a lease on its target", |w, target, _, _| w.lease(NS, "l", &labels(&[]), &[("content", target.digest.as_str())])),
    ("a lease on its record", |w, _, _, _| w.lease(NS, "l", &labels(&[]), &[("images", "example.org/used:1")])),
    ("a lease on its snapshot", |w, _, _, chain| {
        w.lease(
            NS,
            "l",
            &labels(&[("containerd.io/gc.expire", &hours(1))]),
            &[("snapshots/overlayfs", chain.as_str())],
        );
    }),
];

#[test]
fn whatever_needs_an_image_keeps_it() {
    for (need, make) in NEEDS {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(dir.path());
        let name = if need.contains("short name") { "docker.io/library/used:latest" } else { "example.org/used:1" };
        let (target, config, chain) = cri(&mut world, name);
        cri(&mut world, "example.org/idle:1");
        make(&mut world, &target, &config, &chain);
        world.finish();
        let before = things(dir.path());
        let told = fates(&prebake(dir.path(), "prune --all --dry-run --json").expect(0).last_json());
        assert_eq!(things(dir.path()), before);
        let run = prebake(dir.path(), "prune --all --json").expect(0).last_json();
        assert_eq!(fates(&run), told, "{need}");
        let gone: Vec<_> = told.iter().filter(|(_, fate)| *fate == "removed").map(|(name, _)| name.clone()).collect();
        assert_eq!(gone.len(), 3, "{need}: {gone:?}");
        let left = things(dir.path());
        for thing in [
            format!("image {name}"),
            format!("image {config}"),
            format!("blob {}", target.digest),
            format!("snapshot overlayfs/{chain}"),
        ] {
            assert!(left.contains(&format!("{NS} {thing}")), "{need}: {thing} is gone");
        }
        assert!(!left.contains(&format!("{NS} image example.org/idle:1")), "{need}");
        // Asked for by name, it goes from there, and stays all the same.
        let run = prebake(dir.path(), &format!("rm {name} --json"));
        let left = things(dir.path());
        assert!(left.contains(&format!("{NS} blob {}", target.digest)), "{need}: {run:?}");
        assert!(left.contains(&format!("{NS} image {config}")), "{need}: {run:?}");
        let fate = fates(&run.last_json())[name].clone();
        assert_eq!(left.contains(&format!("{NS} image {name}")), fate == "kept", "{need}: {fate}");
        assert_eq!(run.code == 1, fate == "kept", "{need}: {run:?}");
        // And by force: its content stays for whoever uses it.
        prebake(dir.path(), &format!("rm --force {name}"));
        let left = things(dir.path());
        assert!(!left.contains(&format!("{NS} image {name}")), "{need}");
        assert!(left.contains(&format!("{NS} image {config}")), "{need}");
    }
}

#[test]
fn leases_that_ended_and_others_names_keep_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path());
    let (target, ..) = cri(&mut world, "example.org/idle:1");
    world.lease(NS, "l", &labels(&[("containerd.io/gc.expire", &hours(-1))]), &[("content", target.digest.as_str())]);
    world.lease("default", "l", &labels(&[]), &[("content", target.digest.as_str())]);
    world.container(NS, "c", "example.org/idle:2", None, &labels(&[]));
    world.container(NS, "d", "feed", None, &labels(&[]));
    world.finish();
    prebake(dir.path(), "prune --all").expect(0);
    assert_eq!(images(dir.path()), [""; 0]);
}

#[test]
fn pinned_images_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path());
    let (target, ..) = cri(&mut world, "example.org/pause:1");
    world.name(NS, "example.org/pause:1", &target, &labels(&[("io.cri-containerd.pinned", "pinned")]));
    world.finish();
    let run = prebake(dir.path(), "prune --all").expect(0);
    assert!(run.stdout.contains("it is pinned"), "{run:?}");
    let run = prebake(dir.path(), "rm example.org/pause:1").expect(1);
    assert!(run.stderr.contains("it is pinned"), "{run:?}");
    assert_eq!(images(dir.path()).len(), 3);
    prebake(dir.path(), "rm --force example.org/pause:1").expect(0);
    assert_eq!(images(dir.path()), [""; 0]);
}

#[test]
fn the_records_beside_a_name_go_with_it_and_with_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path());
    let (target, config, _) = cri(&mut world, "example.org/app:1");
    world.name(NS, "example.org/app:2", &target, &labels(&[]));
    world.name(NS, "example.com/other:1", &target, &labels(&[]));
    world.name(NS, &format!("example.com/other@{}", target.digest), &target, &labels(&[]));
    world.finish();
    let name = |name: &str| format!("{NS} image {name}");
    let left = |arguments: &str| {
        prebake(dir.path(), arguments).expect(0);
        images(dir.path())
    };
    let by_digest = |repository: &str| name(&format!("{repository}@{}", target.digest));
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    // The repository has another tag.
    let now = left("rm example.org/app:1");
    let other = [name("example.com/other:1"), by_digest("example.com/other")];
    let expected =
        [other.to_vec(), vec![name("example.org/app:2"), by_digest("example.org/app"), name(config.as_str())]];
    assert_eq!(now, sorted(expected.concat()));
    // The image has another name.
    let now = left("rm example.org/app:2");
    assert_eq!(now, sorted([other.to_vec(), vec![name(config.as_str())]].concat()));
    assert_eq!(left("rm example.com/other:1"), [""; 0]);
    assert!(blobs(dir.path()).is_empty());
}

#[test]
fn names_digests_and_digits() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path());
    let (one, config, _) = cri(&mut world, "docker.io/library/one:latest");
    let (two, ..) = cri(&mut world, "example.org/two:1");
    world.finish();
    prebake(dir.path(), "rm nothing").expect(3);
    prebake(dir.path(), "rm 0123456789abcdef").expect(3);
    prebake(dir.path(), "rm --namespace default one").expect(3);
    assert_eq!(images(dir.path()).len(), 6);
    let told = prebake(dir.path(), "rm --dry-run --json one").expect(0).last_json();
    assert_eq!(fates(&told).len(), 3);
    let told = prebake(dir.path(), &format!("rm --dry-run --json {}", &config.hex()[..12])).expect(0).last_json();
    assert_eq!(fates(&told).len(), 3);
    let told = prebake(dir.path(), &format!("rm --dry-run --json {}", one.digest)).expect(0).last_json();
    assert_eq!(fates(&told).len(), 3);
    prebake(dir.path(), &format!("rm one {}", &two.digest.hex()[..10])).expect(0);
    assert_eq!(images(dir.path()), [""; 0]);
}

#[test]
fn which_of_those_that_nobody_needs() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path());
    for name in ["registry.k8s.io/pause:3", "example.org/app:1", "example.org/app:2"] {
        cri(&mut world, name);
    }
    // Nothing but an id is left of this one.
    let Unpacked { target, config: id, .. } = world.image(NS, "nameless");
    world.name(NS, id.as_str(), &target, &labels(&[]));
    world.finish();
    let gone = |arguments: &str| -> Vec<String> {
        let run = prebake(dir.path(), &format!("prune --dry-run --json {arguments}")).expect(0).last_json();
        let tagged = |(name, fate): (String, String)| (fate == "removed" && !name.contains('@')).then_some(name);
        fates(&run)
            .into_iter()
            .filter_map(tagged)
            .filter(|name| !name.starts_with("sha256:") || *name == id.as_str())
            .collect()
    };
    assert_eq!(gone(""), [id.as_str()]);
    assert_eq!(gone("--all").len(), 4);
    assert_eq!(gone("--all --keep registry.k8s.io/*").len(), 3);
    assert_eq!(
        gone("--all --keep example.org/app --keep *pause*"),
        ["example.org/app:1", "example.org/app:2", id.as_str()]
    );
    // Records are two days old.
    assert_eq!(gone("--all --until 24h").len(), 4);
    assert_eq!(gone("--all --until 720h"), [""; 0]);
    assert_eq!(gone("--all --filter label=seed=example.org/app:2"), ["example.org/app:2"]);
    assert_eq!(gone("--all --filter label=seed").len(), 4);
    assert_eq!(gone("--all --filter label=other"), [""; 0]);
    assert_eq!(gone("--all --filter label=io.cri-containerd.image=managed").len(), 3);
    for bad in ["--until soon", "--filter dangling=true"] {
        prebake(dir.path(), &format!("prune {bad}")).expect(2);
    }
}

#[test]
fn docker_s_names_and_leases() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path());
    let Unpacked { target: used, chain, .. } = world.image("moby", "used");
    world.name("moby", "docker.io/library/used:latest", &used, &labels(&[]));
    world.snapshot("moby", "overlayfs", "c1-init", chain.as_str(), &labels(&[]));
    world.active("moby", "overlayfs", "c1", "c1-init");
    world.lease("moby", "c1", &labels(&[]), &[("snapshots/overlayfs", "c1")]);
    let Unpacked { target: pulled, .. } = world.image("moby", "pulled");
    world.name("moby", &format!("moby-dangling@{}", pulled.digest), &pulled, &labels(&[]));
    let temporary = labels(&[("moby/prune.images", "x"), ("containerd.io/gc.expire", &hours(7))]);
    world.lease("moby", "pull", &temporary, &[("content", pulled.digest.as_str())]);
    world.finish();
    prebake(dir.path(), "prune --namespace moby").expect(0);
    assert_eq!(images(dir.path()), ["moby image docker.io/library/used:latest"]);
    let left = things(dir.path());
    assert!(left.contains("moby lease c1") && !left.contains("moby lease pull"), "{left:?}");
    // The last name of an image that is used leaves one that only says the digest.
    let run = prebake(dir.path(), "rm --namespace moby used").expect(0);
    assert!(run.stdout.contains("untagged: docker.io/library/used:latest"), "{run:?}");
    assert_eq!(images(dir.path()), [format!("moby image moby-dangling@{}", used.digest)]);
    prebake(dir.path(), "prune --namespace moby --all").expect(0);
    assert_eq!(images(dir.path()).len(), 1);
}

#[test]
fn layers_are_let_go_of_where_nobody_needs_them() {
    let registry = TestRegistry::start(demo());
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let [hello, plain, zstd] = ["hello", "plain", "zstd"].map(|name| registry.reference(&format!("demo/{name}:1.0")));
    prebake(root, &format!("bake --unpack {hello} {plain}")).expect(0);
    prebake(root, &format!("bake {zstd}")).expect(0);
    let before = blobs(root).len();
    let why = |arguments: &str, name: &str| -> (bool, String) {
        let run = prebake(root, &format!("discard-layers --dry-run --json {arguments}")).last_json();
        let images = run["images"].as_array().unwrap().clone();
        let image = images.iter().find(|image| image["names"].to_string().contains(name)).unwrap();
        (image["discarded"].as_bool().unwrap(), image["why"].as_str().unwrap().to_owned())
    };
    assert!(why("", &hello).0 && why("", &plain).0);
    assert!(why("", &zstd).1.contains("it is not unpacked"));
    assert!(why("--snapshotters overlayfs,overlaybd", &hello).1.contains("overlaybd"));
    let rules = root.join("bake.toml");
    fs::write(&rules, "[[rules]]\nname = \"*hello*\"\npolicy = \"unpack\"\n\n[target]\nfurther-snapshotters = []\n")
        .unwrap();
    let with_rules = format!("--rules {}", rules.display());
    assert_eq!(why(&with_rules, &hello), (false, "by rule 1, its policy is unpack".to_owned()));
    assert!(why(&with_rules, &plain).0);
    fs::write(&rules, "[target]\nfurther-snapshotters = [\"overlaybd\"]\n").unwrap();
    assert!(why(&with_rules, &plain).1.contains("overlaybd"));
    assert_eq!(blobs(root).len(), before);
    // The base is also zstd's, which keeps it.
    let run = prebake(root, &format!("discard-layers --json --image {plain}")).expect(0).last_json();
    assert!(run["bytes"].as_u64().unwrap() < 1 << 20);
    let now = prebake(root, "images --json").expect(0).stdout;
    let policy = |name: &str| {
        let row = now.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|row| row["name"] == name);
        row.unwrap()["policy"].as_str().unwrap().to_owned()
    };
    assert_eq!([policy(&hello), policy(&plain), policy(&zstd)], ["unpack", "unpack-discard", "fetch"]);
    prebake(root, "check").expect(0);
    // Named, and not to be had: 1.
    let run = prebake(root, &format!("discard-layers --image {zstd}")).expect(1);
    assert!(run.stderr.contains("it is not unpacked"), "{run:?}");
    prebake(root, "discard-layers --image example.org/none:1").expect(3);
    // Another namespace has the same layers.
    prebake(root, &format!("bake --namespace moby {hello}")).expect(0);
    assert!(why("", &hello).1.contains("namespace moby keeps"));
    prebake(root, "bootstrap").expect(0);
    prebake(root, "check").expect(0);
}

#[test]
fn a_sealed_root_has_no_trace() {
    let registry = TestRegistry::start(demo());
    let digest = |seal: bool| {
        let root = tempfile::tempdir().unwrap();
        prebake(root.path(), &format!("bake --unpack {}", registry.reference("demo/zstd:1.0"))).expect(0);
        if seal {
            let leftover = root.path().join("var/lib/containerd/io.containerd.content.v1.content/ingest/abc");
            fs::create_dir_all(&leftover).unwrap();
            fs::write(leftover.join("ref"), "k8s.io/1/x").unwrap();
            let staged =
                root.path().join("var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/new-prebake-x");
            fs::create_dir_all(staged).unwrap();
            let run = prebake(root.path(), "seal").expect(0);
            assert!(run.stdout.starts_with("sound"), "{run:?}");
            assert!(!root.path().join("var/lib/prebake").exists());
        }
        let found = std::process::Command::new("find").arg(root.path()).args(["-name", "*prebake*"]).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        assert_eq!(found.is_empty(), seal, "{found}");
        let out = std::process::Command::new("sh")
            .args([
                "-c",
                "tar -C \"$0\" --sort=name --exclude=*/ingest --exclude=*/snapshots -cf - var/lib | sha256sum",
            ])
            .arg(root.path())
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(digest(true), digest(true), "sealed roots are the same, byte for byte");
    digest(false);
}

#[test]
fn what_keeps_a_thing() {
    let registry = TestRegistry::start(demo());
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let names = ["demo/hello:1.0", "demo/plain:1.0"].map(|name| registry.reference(name));
    prebake(root, &format!("bake --unpack {}", names.join(" "))).expect(0);
    let smallest = blobs(root).into_iter().min_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    for text in [smallest.clone(), format!("sha256:{smallest}"), smallest[..12].to_owned()] {
        let run = prebake(root, &format!("why {text} --json")).expect(0).last_json();
        assert_eq!(run["name"].as_str().unwrap(), format!("sha256:{smallest}"));
        assert!(!run["kept"].as_array().unwrap().is_empty());
    }
    // The lowest snapshot is both images'.
    let run = prebake(root, "why --json 1").expect(0);
    let all: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    let said = run.stdout.clone();
    for name in &names {
        let run = prebake(root, &format!("why {name}")).expect(0);
        assert!(run.stdout.contains("kept for its own sake: images are kept"), "{run:?}");
    }
    assert!(said.contains("containerd.io/gc.ref.snapshot.overlayfs"), "{said}");
    let orphan = World::new(root).file("nobody's");
    let run = prebake(root, &format!("why {orphan}")).expect(0);
    assert!(run.stdout.contains("nothing keeps it"), "{run:?}");
    prebake(root, "why example.org/none:1").expect(3);
}

#[test]
fn a_root_is_made_equal_to_a_spec() {
    let mut content = app();
    let other = build(
        "[layer.l]\nfiles = [{ path = \"f\", text = \"new\" }]\n[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n[[image]]\nname = \"gone:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n",
    );
    content.tags.insert(("gone".into(), "1".into()), other.tags[&("gone".into(), "1".into())].clone());
    content.tags.insert(("app".into(), "old".into()), content.tags[&("app".to_owned(), "1".to_owned())].clone());
    content.blobs.extend(other.blobs.clone());
    let registry = TestRegistry::start(content.clone());
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let names = ["app:1", "app:old", "gone:1"].map(|name| registry.reference(name));
    prebake(&root, &format!("bake --platform linux/amd64 {}", names.join(" "))).expect(0);
    prebake(&root, &format!("bake --platform linux/amd64 --namespace default {}", names[2])).expect(0);
    let spec = dir.path().join("bake.toml");
    fs::write(&spec, format!("[target]\nplatform = \"linux/amd64\"\n[[images]]\nref = \"{}\"\n", names[0])).unwrap();
    let before = things(&root);
    let plan = prebake(&root, &format!("plan --sync -f {}", spec.display())).expect(0);
    assert!(plan.stdout.contains(&format!("removed: {}: it is not named", names[2])), "{plan:?}");
    assert!(plan.stdout.contains(&format!("removed: {}: it is not named", names[1])), "{plan:?}");
    assert!(plan.stdout.contains("; then up to "), "{plan:?}");
    assert_eq!(things(&root), before, "a plan changes nothing");
    let run = prebake(&root, &format!("bake --sync --json -f {}", spec.display())).expect(0);
    assert_eq!(run.last_json()["event"], "summary");
    assert!(run.stdout.contains("\"event\":\"synced\""), "{run:?}");
    let of_k8s = |root: &Path| -> Vec<String> {
        images(root).into_iter().filter(|name| name.starts_with("k8s.io") && !name.contains("sha256:")).collect()
    };
    assert_eq!(of_k8s(&root), [format!("k8s.io image {}", names[0])]);
    // A namespace that the spec does not speak of is left alone.
    assert!(images(&root).contains(&format!("default image {}", names[2])));
    // A fresh bake of the same has as much.
    let fresh = dir.path().join("fresh");
    prebake(&fresh, &format!("bake -f {}", spec.display())).expect(0);
    let of =
        |root: &Path| -> Vec<String> { things(root).into_iter().filter(|thing| thing.starts_with("k8s.io")).collect() };
    assert_eq!(of(&root), of(&fresh));
    prebake(&root, "check").expect(0);

    // The tag moves: what it led to before is named no more.
    content.tags.insert(("app".into(), "1".into()), other.tags[&("app".into(), "1".into())].clone());
    let moved = TestRegistry::start(content);
    let name = moved.reference("app:1");
    let old = names[0].clone();
    let renamed = |text: String| text.replace(&registry.name(), &moved.name());
    let third = dir.path().join("third");
    let list = renamed(fs::read_to_string(&spec).unwrap());
    prebake(&third, &format!("bake --platform linux/amd64 {old}")).expect(0);
    fs::write(&spec, list).unwrap();
    prebake(&third, &format!("bake --sync -f {}", spec.display())).expect(0);
    assert_eq!(of_k8s(&third), [format!("k8s.io image {name}")]);
    assert_eq!(blobs(&third).len(), 3);
    assert!(blobs_dir(&third).exists());
}

#[test]
fn what_is_in_use_outlives_a_sync() {
    let registry = TestRegistry::start(demo());
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let [hello, plain] = ["demo/hello:1.0", "demo/plain:1.0"].map(|name| registry.reference(name));
    prebake(root, &format!("bake {hello} {plain}")).expect(0);
    let mut world = World::new(root);
    world.container("default", "c", &plain, None, &labels(&[]));
    world.finish();
    let run = prebake(root, &format!("bake --sync {hello}")).expect(0);
    assert!(run.stdout.contains(&format!("kept: {plain}: container c in namespace default")), "{run:?}");
    let records = records(root);
    assert!(records.iter().any(|line| line.contains(&plain)));
    // Nothing failed, nothing asked for: an image that could not be had keeps its old record.
    let run = prebake(root, &format!("bake --sync {hello} {}", registry.reference("demo/none:1"))).expect(1);
    assert!(run.stderr.contains("demo/none:1"), "{run:?}");
    assert!(images(root).iter().any(|name| name.ends_with("demo/hello:1.0")));
}
