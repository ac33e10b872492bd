//! What containerd's collector keeps and what it takes, case by case: each in a namespace of its own.

use ::prebake::oci::Descriptor;

use super::world::{Unpacked, World, hours, labels};

/// Whether something goes, by the release's first two numbers.
pub type Goes = fn((u32, u32)) -> bool;

const ALWAYS: Goes = |_| true;
const NEVER: Goes = |_| false;

/// Makes a case in a namespace; what is in it, and whether it goes.
type Make = fn(&mut World, &str) -> Vec<(String, Goes)>;

fn blob(world: &mut World, namespace: &str, bytes: &str, pairs: &[(&str, &str)]) -> String {
    world.blob(namespace, &format!("{bytes} in {namespace}"), &labels(pairs)).to_string()
}

fn image(world: &mut World, namespace: &str, name: &str, pairs: &[(&str, &str)]) -> String {
    let target = blob(world, namespace, &format!("target of {name}"), &[]);
    let target = Descriptor::new("application/x", target.parse().unwrap(), 10);
    world.name(namespace, name, &target, &labels(pairs));
    target.digest.to_string()
}

fn a(kind: &str, key: &str) -> String {
    format!("{kind} {key}")
}

/// Every case, by its name.
pub const SITUATIONS: [(&str, Make); 20] = [
    ("a blob that nobody names", |w, ns| vec![(a("blob", &blob(w, ns, "lone", &[])), ALWAYS)]),
    ("a blob that says it is a root", |w, ns| {
        let exact = blob(w, ns, "exact", &[("containerd.io/gc.root", "x")]);
        let longer = blob(w, ns, "longer", &[("containerd.io/gc.root.x", "x")]);
        vec![(a("blob", &exact), NEVER), (a("blob", &longer), |release| release < (2, 2))]
    }),
    ("references by names and without", |w, ns| {
        let [plain, dotted, slashed, other] =
            ["plain", "dotted", "slashed", "other"].map(|name| blob(w, ns, name, &[]));
        let own = image(
            w,
            ns,
            "example.org/i:1",
            &[
                ("containerd.io/gc.ref.content", &plain),
                ("containerd.io/gc.ref.content.a", &dotted),
                ("containerd.io/gc.ref.content/b", &slashed),
                ("containerd.io/gc.ref.contents", &other),
            ],
        );
        let kept = [plain, dotted, slashed, own].map(|digest| (a("blob", &digest), NEVER));
        [kept.to_vec(), vec![(a("image", "example.org/i:1"), NEVER), (a("blob", &other), ALWAYS)]].concat()
    }),
    ("a lease holds, and what it holds does", |w, ns| {
        let child = blob(w, ns, "child", &[]);
        let parent = blob(w, ns, "parent", &[("containerd.io/gc.ref.content.0", &child)]);
        w.lease(ns, "l", &labels(&[("containerd.io/gc.expire", &hours(5))]), &[("content", &parent)]);
        [a("lease", "l"), a("blob", &child), a("blob", &parent)].map(|thing| (thing, NEVER)).to_vec()
    }),
    ("a flat lease holds only what it names", |w, ns| {
        let child = blob(w, ns, "child", &[]);
        let parent = blob(w, ns, "parent", &[("containerd.io/gc.ref.content.0", &child)]);
        w.snapshot(ns, "overlayfs", "below", "", &labels(&[("containerd.io/gc.ref.content", &child)]));
        w.snapshot(ns, "overlayfs", "above", "below", &labels(&[("containerd.io/gc.ref.content", &child)]));
        let holds = [("content", parent.as_str()), ("snapshots/overlayfs", "above")];
        w.lease(ns, "l", &labels(&[("containerd.io/gc.flat", "x")]), &holds);
        let kept = [a("blob", &parent), a("snapshot", "overlayfs/above"), a("snapshot", "overlayfs/below")];
        [kept.map(|thing| (thing, NEVER)).to_vec(), vec![(a("blob", &child), ALWAYS)]].concat()
    }),
    ("leases end", |w, ns| {
        let [ended, never, unread] = ["ended", "never", "unread"].map(|name| blob(w, ns, name, &[]));
        w.lease(ns, "ended", &labels(&[("containerd.io/gc.expire", &hours(-1))]), &[("content", &ended)]);
        w.lease(ns, "never", &labels(&[]), &[("content", &never)]);
        w.lease(ns, "unread", &labels(&[("containerd.io/gc.expire", "yesterday")]), &[("content", &unread)]);
        let gone = [a("lease", "ended"), a("blob", &ended)].map(|thing| (thing, ALWAYS));
        let kept = [a("lease", "never"), a("blob", &never), a("lease", "unread"), a("blob", &unread)];
        [gone.to_vec(), kept.map(|thing| (thing, NEVER)).to_vec()].concat()
    }),
    ("images end, from 2.0", |w, ns| {
        let ended = image(w, ns, "example.org/ended:1", &[("containerd.io/gc.expire", &hours(-1))]);
        let unread = image(w, ns, "example.org/unread:1", &[("containerd.io/gc.expire", "soon")]);
        let ends: Goes = |release| release >= (2, 0);
        let kept = [a("image", "example.org/unread:1"), a("blob", &unread)].map(|thing| (thing, NEVER));
        let gone = [a("image", "example.org/ended:1"), a("blob", &ended)].map(|thing| (thing, ends));
        [kept, gone].concat()
    }),
    ("a lease keeps an image that has ended", |w, ns| {
        let target = image(w, ns, "example.org/ended:1", &[("containerd.io/gc.expire", &hours(-1))]);
        w.lease(ns, "l", &labels(&[]), &[("images", "example.org/ended:1")]);
        [a("image", "example.org/ended:1"), a("blob", &target)].map(|thing| (thing, NEVER)).to_vec()
    }),
    ("a label keeps an image that has ended", |w, ns| {
        let target = image(w, ns, "example.org/ended:1", &[("containerd.io/gc.expire", &hours(-1))]);
        let root = [("containerd.io/gc.root", "x"), ("containerd.io/gc.ref.image.a", "example.org/ended:1")];
        let root = blob(w, ns, "root", &root);
        [a("image", "example.org/ended:1"), a("blob", &target), a("blob", &root)].map(|thing| (thing, NEVER)).to_vec()
    }),
    ("a container keeps its snapshot, and what its labels say", |w, ns| {
        let [labelled, not] = ["labelled", "not"].map(|name| blob(w, ns, name, &[]));
        w.snapshot(ns, "overlayfs", "layer", "", &labels(&[]));
        w.active(ns, "overlayfs", "own", "layer");
        w.container(
            ns,
            "c",
            "example.org/i:1",
            Some(("overlayfs", "own")),
            &labels(&[("containerd.io/gc.ref.content.a", &labelled)]),
        );
        let kept = [
            a("container", "c"),
            a("snapshot", "overlayfs/own"),
            a("snapshot", "overlayfs/layer"),
            a("blob", &labelled),
        ];
        [kept.map(|thing| (thing, NEVER)).to_vec(), vec![(a("blob", &not), ALWAYS)]].concat()
    }),
    ("snapshots that nobody names go with those on them", |w, ns| {
        for snapshotter in ["overlayfs", "native"] {
            w.snapshot(ns, snapshotter, "below", "", &labels(&[]));
            w.snapshot(ns, snapshotter, "kept", "below", &labels(&[("containerd.io/gc.root", "x")]));
            w.active(ns, snapshotter, "above", "kept");
            w.snapshot(ns, snapshotter, "lone", "", &labels(&[]));
            w.snapshot(ns, snapshotter, "on-lone", "lone", &labels(&[]));
        }
        let all = |keys: &[&str], goes: Goes| -> Vec<(String, Goes)> {
            let each =
                keys.iter().flat_map(|key| [format!("snapshot overlayfs/{key}"), format!("snapshot native/{key}")]);
            each.map(|thing| (thing, goes)).collect()
        };
        [all(&["below", "kept"], NEVER), all(&["above", "lone", "on-lone"], ALWAYS)].concat()
    }),
    ("writes that are not over", |w, ns| {
        w.ingest(ns, "young", 5, None);
        w.ingest(ns, "old", -5, None);
        w.ingest(ns, "leased", -5, None);
        w.lease(ns, "l", &labels(&[]), &[("ingests", "leased")]);
        [("young", NEVER), ("old", ALWAYS), ("leased", NEVER)].map(|(key, goes)| (a("ingest", key), goes)).to_vec()
    }),
    ("a blob that is being registered", |w, ns| {
        let [young, old] = ["young", "old"].map(|name| blob(w, ns, name, &[]));
        w.ingest(ns, "young", 5, Some(&young.parse().unwrap()));
        w.ingest(ns, "old", -5, Some(&old.parse().unwrap()));
        vec![(a("blob", &young), NEVER), (a("blob", &old), ALWAYS), (a("ingest", "old"), ALWAYS)]
    }),
    ("a sandbox keeps what its labels say, from 1.7", |w, ns| {
        let labelled = blob(w, ns, "labelled", &[]);
        w.sandbox(ns, "s", &labels(&[("containerd.io/gc.ref.content.a", &labelled)]));
        vec![(a("blob", &labelled), |release| release < (1, 7))]
    }),
    ("snapshots and blobs keep each other by labels", |w, ns| {
        let below = blob(w, ns, "below", &[]);
        w.snapshot(ns, "overlayfs", "one", "", &labels(&[("containerd.io/gc.ref.content.a", &below)]));
        w.snapshot(ns, "overlayfs", "two", "", &labels(&[]));
        let above = [
            ("containerd.io/gc.root", "x"),
            ("containerd.io/gc.ref.snapshot.overlayfs", "one"),
            ("containerd.io/gc.ref.snapshot.overlayfs/second", "two"),
            ("containerd.io/gc.ref.snapshot.native", "none"),
        ];
        let above = blob(w, ns, "above", &above);
        let kept =
            [a("blob", &below), a("blob", &above), a("snapshot", "overlayfs/one"), a("snapshot", "overlayfs/two")];
        kept.map(|thing| (thing, NEVER)).to_vec()
    }),
    ("cycles keep nobody", |w, ns| {
        let first = ::prebake::oci::Digest::of(format!("first in {ns}").as_bytes());
        let second = blob(w, ns, "second", &[("containerd.io/gc.ref.content.0", first.as_str())]);
        let first = blob(w, ns, "first", &[("containerd.io/gc.ref.content.0", &second)]);
        [first, second].map(|digest| (a("blob", &digest), ALWAYS)).to_vec()
    }),
    ("back references, from 2.2", |w, ns| {
        let from: Goes = |release| release < (2, 2);
        let root = blob(w, ns, "root", &[("containerd.io/gc.root", "x")]);
        let named = blob(w, ns, "named", &[("containerd.io/gc.bref.content.a", &root)]);
        w.container(ns, "c", "", None, &labels(&[]));
        let contained = blob(w, ns, "contained", &[("containerd.io/gc.bref.container", "c")]);
        image(w, ns, "example.org/i:1", &[]);
        let imaged = blob(w, ns, "imaged", &[("containerd.io/gc.bref.image", "example.org/i:1")]);
        let not = blob(w, ns, "not", &[("containerd.io/gc.bref.image", "example.org/none:1")]);
        let kept = [named, contained, imaged].map(|digest| (a("blob", &digest), from));
        [kept.to_vec(), vec![(a("blob", &not), ALWAYS)]].concat()
    }),
    ("conditions, from 2.3", |w, ns| {
        let used = hours(-2);
        for key in ["lately", "long-ago", "unsaid"] {
            let pairs = [("containerd.io/gc.cond.value-usedat", used.as_str())];
            w.snapshot(ns, "overlayfs", key, "", &labels(if key == "unsaid" { &[] } else { &pairs }));
        }
        image(
            w,
            ns,
            "example.org/i:1",
            &[
                ("containerd.io/gc.cond.snapshot.overlayfs/a", "usedat>100h,usedat<24h|lately"),
                ("containerd.io/gc.cond.snapshot.overlayfs/b", "usedat<1h|long-ago"),
                ("containerd.io/gc.cond.snapshot.overlayfs/c", "usedat<24h|unsaid"),
            ],
        );
        let from: Goes = |release| release < (2, 3);
        vec![
            (a("snapshot", "overlayfs/lately"), from),
            (a("snapshot", "overlayfs/long-ago"), ALWAYS),
            (a("snapshot", "overlayfs/unsaid"), ALWAYS),
        ]
    }),
    ("an image, unpacked", |w, ns| {
        let Unpacked { target, config, chain } = w.image(ns, &format!("whole {ns}"));
        w.name(ns, "example.org/whole:1", &target, &labels(&[]));
        vec![
            (a("image", "example.org/whole:1"), NEVER),
            (a("blob", config.as_str()), NEVER),
            (a("blob", target.digest.as_str()), NEVER),
            (a("snapshot", &format!("overlayfs/{chain}")), NEVER),
        ]
    }),
    ("an image that lost its name", |w, ns| {
        let Unpacked { target, chain, .. } = w.image(ns, &format!("nameless {ns}"));
        vec![(a("blob", target.digest.as_str()), ALWAYS), (a("snapshot", &format!("overlayfs/{chain}")), ALWAYS)]
    }),
];

/// Makes all cases; every thing that was said of, with its namespace, and whether it goes.
pub fn all(world: &mut World) -> Vec<(String, &'static str, Goes)> {
    let mut said = Vec::new();
    for (i, (name, make)) in SITUATIONS.into_iter().enumerate() {
        let namespace = format!("case-{i}");
        let things = make(world, &namespace);
        said.extend(things.into_iter().map(|(thing, goes)| (format!("{namespace} {thing}"), name, goes)));
    }
    said
}
