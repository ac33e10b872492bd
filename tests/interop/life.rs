//! A root that already holds a containerd's life: nothing of it is lost, and it goes on.

use std::collections::BTreeSet;

use crate::bake::push_debian;
use crate::bbolt::Oracle;
use crate::cri;
use crate::peers::{Containerd, Registry};
use crate::script::{text, under};
use crate::support::bolt_script::{Op, random};
use crate::support::content::{build, demo};
use crate::support::prebake::{containerd_root, meta_db, prebake};
use crate::support::registry::TestRegistry;
use crate::support::rng::Rng;

/// What a containerd left behind.
pub struct Life {
    pub pods: Vec<(String, u64)>,
    pub containers: Vec<(String, u64)>,
    sandboxes: Vec<String>,
    pub leases: BTreeSet<String>,
    pub snapshots: BTreeSet<String>,
}

pub fn rows(table: &str) -> BTreeSet<String> {
    let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    table.lines().skip(1).map(first).collect()
}

/// What is there now of everything that is not an image.
pub fn look(containerd: &Containerd) -> Life {
    let socket = containerd.socket();
    let all = |command: &str| -> BTreeSet<String> {
        ["k8s.io", "moby", "default"].into_iter().flat_map(|ns| rows(&containerd.ctr_in(ns, command))).collect()
    };
    let sorted = |mut states: Vec<(String, u64)>| {
        states.sort();
        states
    };
    Life {
        pods: sorted(cri::states(&socket, false)),
        containers: sorted(cri::states(&socket, true)),
        sandboxes: if containerd.has_sandbox_store() { cri::sandboxes(&socket, "moby") } else { Vec::new() },
        leases: all("leases ls"),
        snapshots: all("snapshots ls"),
    }
}

/// Fills a root as kubelet, docker and people with `ctr` do.
pub fn live(containerd: &Containerd, registry: &str, demo: &[String], debian: &str) -> String {
    let socket = containerd.socket();
    let pull = |name: &str| cri::pull_image(&socket, name).unwrap_or_else(|e| panic!("{e}\n{}", containerd.log()));
    demo.iter().filter(|name| name.contains("/hello:") || name.contains("/docker:")).for_each(|name| pull(name));
    pull(debian);
    let pod = cri::run_pod(&socket, "pod");
    cri::run_container(&socket, &pod, "pod", debian, &["sleep", "100000"]);
    // Created only; running without a pod; stopped, to be started later.
    containerd.ctr(&format!("containers create {registry}/demo/hello:1.0 created"));
    for name in ["running", "stopped"] {
        containerd.run_detached(debian, name, &["sleep", "100000"]);
    }
    containerd.ctr("tasks kill --signal 9 stopped");
    containerd.ctr("tasks delete --force stopped");
    containerd.ctr("leases create --id kept owner=test");
    containerd.ctr("leases create --id forever --expires 0s");
    containerd.ctr_in("default", &format!("images pull --plain-http {registry}/demo/hello:1.0"));
    // docker: names of its own, a layer of a container kept by a lease, an image nobody names any more.
    let moby = |command: &str| containerd.ctr_in("moby", command);
    moby(&format!("images pull --plain-http {registry}/demo/docker:1.0"));
    moby(&format!("images tag {registry}/demo/docker:1.0 docker.io/library/app:latest"));
    let row = moby("images ls");
    let digest = row.lines().nth(1).unwrap().split_whitespace().nth(2).unwrap().to_owned();
    moby(&format!("images tag docker.io/library/app:latest moby-dangling@{digest}"));
    let top = moby("snapshots ls").lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    moby("leases create --id 0123456789ab --expires 0s");
    moby(&format!("snapshots prepare 0123456789ab-init {top}"));
    moby("snapshots commit 0123456789ab-init-done 0123456789ab-init");
    moby("snapshots prepare 0123456789ab 0123456789ab-init-done");
    cri::add_to_lease(&socket, "moby", "0123456789ab", "snapshots/overlayfs", "0123456789ab");
    moby("namespaces label moby owner=dockerd");
    if containerd.has_sandbox_store() {
        cri::create_sandbox(&socket, "moby", "sandbox-record").unwrap();
    }
    pod
}

/// The lines of `before` that are gone and the new ones, of which only those may be that were asked for: records of
/// images and blobs in the baked namespaces.
fn only_what_was_asked(before: &str, after: &str, namespaces: &[&str], names: &[&str]) {
    let set = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    let (before, after) = (set(before), set(after));
    let path = |keys: &[&str]| keys.iter().map(hex::encode).collect::<Vec<_>>().join("/");
    let allowed = |line: &str| {
        let place = line.split(' ').nth(1).unwrap();
        namespaces.iter().any(|namespace| {
            let images = path(&["v1", namespace, "images"]) + "/";
            let blobs = path(&["v1", namespace, "content", "blob"]);
            let image = place.strip_prefix(&images).is_some_and(|rest| {
                let name = rest.split('/').next().unwrap();
                // By digest and by config digest as well.
                let repository = |name: &&str| hex::encode(name.rsplit_once(':').unwrap().0);
                names.iter().any(|n| name.starts_with(&repository(n))) || name.starts_with(&hex::encode("sha256:"))
            });
            let above = [path(&["v1", namespace]), path(&["v1", namespace, "content"])];
            image
                || place.starts_with(&blobs)
                || place == images.trim_end_matches('/')
                || above.contains(&place.to_owned())
        })
    };
    let times = [hex::encode("updatedat"), hex::encode("containerd.io/distribution.source")];
    for line in before.difference(&after) {
        let (place, key) = (line.split(' ').nth(1).unwrap(), line.split(' ').nth(2).unwrap());
        // A tag that was baked names what it names now.
        let target = |name: &&str| {
            namespaces.iter().any(|namespace| place == path(&["v1", namespace, "images", name, "target"]))
        };
        let replaced = times.iter().any(|time| key.starts_with(time.as_str())) || names.iter().any(target);
        assert!(allowed(line) && replaced, "lost: {line}");
    }
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.len() > 10);
    for line in new {
        assert!(allowed(line), "not asked for: {line}");
    }
}

/// A new version of an image, of which everything but the name is new.
fn version(n: usize) -> String {
    format!(
        "[layer.l]\nfiles = [{{ path = \"n\", text = \"{n}\" }}]\n[[image]]\nname = \"own/app:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"l\"]\n"
    )
}

fn goes_on(release: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let demo = registry.push(&demo());
    let debian = push_debian(&registry, dir.path(), "real/debian:12", &["sleep", "100000"]);
    let root = dir.path().join("root");
    let db = meta_db(&root);
    let mut oracle = Oracle::start();
    let mut containerd = Containerd::new(release, &containerd_root(&root), &dir.path().join("c"), &debian);
    containerd.launch();
    let pod = live(&containerd, registry.name(), &demo, &debian);
    let life = look(&containerd);
    containerd.stop();

    // Some of what is baked is there already, in this namespace or in another, and some is not there at all.
    let before = oracle.dump(&db);
    let names: Vec<&str> = demo.iter().map(String::as_str).chain([debian.as_str()]).collect();
    prebake(&root, &format!("bake {}", names.join(" "))).expect(0);
    for namespace in ["moby", "new-one"] {
        prebake(&root, &format!("bake --namespace {namespace} {}", demo.join(" "))).expect(0);
    }
    assert_eq!(oracle.check(&db), Ok(()));
    only_what_was_asked(&before, &oracle.dump(&db), &["k8s.io", "moby", "new-one"], &names);
    prebake(&root, "check").expect(0);

    containerd.launch();
    let now = look(&containerd);
    assert_eq!((&now.pods, &now.containers), (&life.pods, &life.containers), "{}", containerd.log());
    assert!(now.pods.iter().all(|(_, state)| *state == 0) && now.containers.iter().all(|(_, state)| *state == 1));
    assert_eq!((&now.sandboxes, &now.leases), (&life.sandboxes, &life.leases));
    assert_eq!(now.snapshots, life.snapshots);
    containerd.collect_garbage();
    assert_eq!(look(&containerd).snapshots, life.snapshots);
    let exec = containerd.ctr("tasks exec --exec-id e running cat /etc/debian_version");
    assert!(exec.starts_with("12."), "{exec}");
    containerd.ctr("tasks start --detach stopped");
    for name in ["zstd", "plain"] {
        let output = containerd.run(&format!("{}/demo/{name}:1.0", registry.name()), name, &[]);
        assert_eq!(output.trim(), "hello from an image that prebake baked", "{release} {name}");
    }

    // It deletes, adds and collects; prebake bakes into that; and again.
    for round in 0..ROUNDS {
        for turn in 0..TURNS {
            let n = round * TURNS + turn;
            let tag = format!("{}/demo/hello:1.0", registry.name());
            containerd.ctr(&format!("images tag --force {tag} example.org/own:{turn}"));
            containerd.ctr(&format!("leases create --id lease-{n}"));
            containerd.ctr(&format!("containers create {tag} container-{n}"));
            if n > 0 {
                containerd.ctr(&format!("containers delete container-{}", n - 1));
                containerd.ctr(&format!("leases delete --sync lease-{}", n - 1));
            }
            if turn % 2 == 1 {
                containerd.ctr(&format!("images rm --sync example.org/own:{turn}"));
                containerd.ctr(&format!("images rm --sync {}/demo/zstd:1.0", registry.name()));
                cri::pull_image(&containerd.socket(), &format!("{}/demo/zstd:1.0", registry.name())).unwrap();
            }
            containerd.collect_garbage();
        }
        let app = registry.push(&build(&version(round)));
        containerd.stop();
        let log = containerd.log();
        assert!(!log.contains("panic") && !log.contains("level=fatal"), "{log}");
        assert_eq!(oracle.check(&db), Ok(()), "round {round}");
        let before = oracle.dump(&db);
        prebake(&root, &format!("bake {}", app.join(" "))).expect(0);
        assert_eq!(oracle.check(&db), Ok(()), "round {round}");
        let names: Vec<&str> = app.iter().map(String::as_str).collect();
        only_what_was_asked(&before, &oracle.dump(&db), &["k8s.io"], &names);
        prebake(&root, "check").expect(0);
        containerd.launch();
        assert!(containerd.ctr("images ls -q").lines().any(|line| line == app[0]));
    }
    let now = look(&containerd);
    assert_eq!((&now.pods, &now.sandboxes), (&life.pods, &life.sandboxes));
    assert!(now.snapshots.is_superset(&life.snapshots));
    cri::remove_pod(&containerd.socket(), &pod);
    containerd.collect_garbage();
    containerd.stop();
    assert_eq!(oracle.check(&db), Ok(()));
    prebake(&root, "check").expect(0);
}

/// Bakes between which containerd works, and what it does in each.
const ROUNDS: usize = 4;
const TURNS: usize = 6;

#[test]
fn the_life_of_1_6_goes_on() {
    goes_on("1.6.20");
}

#[test]
fn the_life_of_1_7_goes_on() {
    goes_on("1.7.24");
}

#[test]
fn the_life_of_2_1_goes_on() {
    goes_on("2.1.9");
}

/// Databases of every form bbolt writes, with buckets and keys among containerd's that nobody knows: big values, long keys,
/// deep trees, sequences.
#[test]
fn what_nobody_knows_comes_through() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(demo());
    let own = registry.reference("demo/hello:1.0");
    let other = registry.reference("demo/docker:1.0");
    let root = dir.path().join("root");
    prebake(&root, &format!("bake {own}")).expect(0);
    let db = meta_db(&root);
    let mut oracle = Oracle::start();
    let records = oracle.dump(&db);
    let script = dir.path().join("script");
    for (seed, form) in
        ["", "nofreelist"].iter().flat_map(|form| [4096, 16_384, 65_536].map(|size| (size, form))).enumerate()
    {
        let ((size, form), mut rng) = (form, Rng::new(seed as u64));
        let mut strange = Vec::new();
        for prefix in
            [&[][..], &["v1"], &["v1", "k8s.io"], &["v1", "k8s.io", "content", "strange"], &["v1", "moby", "images"]]
        {
            let (mut ops, _) = random(&mut rng, 300);
            ops.retain(|op| !matches!(op, Op::Commit));
            strange.extend(under(prefix, &ops));
        }
        let path = |keys: &[&str]| keys.iter().map(|key| key.as_bytes().to_vec()).collect::<Vec<_>>();
        let deep = path(&["v1", "k8s.io", "deep"]);
        strange.push(Op::Put(path(&["v1", "k8s.io"]), b"megabytes".to_vec(), rng.bytes(5_000_000)));
        strange.extend((0..4000).map(|i| Op::Put(deep.clone(), format!("{i:0>400}").into_bytes(), rng.bytes(20))));
        std::fs::write(&script, records.clone() + &text(&strange)).unwrap();
        std::fs::remove_file(&db).unwrap();
        oracle.ask(&format!("build {} {} {size} {form}", db.display(), script.display())).unwrap();
        let before = oracle.dump(&db);
        prebake(&root, &format!("bake {other}")).expect(0);
        assert_eq!(oracle.check(&db), Ok(()), "{size} {form}");
        only_what_was_asked(&before, &oracle.dump(&db), &["k8s.io"], &[&other]);
        oracle
            .ask(&format!("form {} {size} {}", db.display(), if form.is_empty() { "freelist" } else { *form }))
            .unwrap();
    }
}
