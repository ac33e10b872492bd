//! Work in shares: whoever does which of them, in whatever order, it comes to what one run would have made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use prebake::fixture::Content;
use prebake::oci::media_type;
use serde_json::Value;

use crate::receiver::{Manner, Receiver};
use crate::support::content::build;
use crate::support::prebake::{Run, blobs, blobs_dir, command, prebake, records};
use crate::support::registry::TestRegistry;

const IMAGES: usize = 12;

/// Images `app0:1`… of three layers: one that all share, one that three do, and one of its own, of different sizes.
fn content() -> Content {
    let mut spec = "[layer.base]\nfiles = [{ path = \"base\", random = 90000 }]\n".to_owned();
    for n in 0..IMAGES.div_ceil(3) {
        let _ = write!(spec, "[layer.shared{n}]\nfiles = [{{ path = \"s{n}\", random = {} }}]\n", 20_000 + 9_000 * n);
    }
    for n in 0..IMAGES {
        let _ = write!(
            spec,
            "[layer.own{n}]\nfiles = [{{ path = \"own{n}\", random = {} }}]\n[[image]]\nname = \"app{n}:1\"\n\
             platforms = [\"linux/amd64\"]\nlayers = [\"base\", \"shared{}\", \"own{n}\"]\n",
            5_000 + 7_000 * n,
            n / 3
        );
    }
    build(&spec)
}

/// A folder with a `bake.toml` of all images, and its lock.
fn locked(registry: &TestRegistry) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..IMAGES).map(|n| format!("{:?}", registry.reference(&format!("app{n}:1")))).collect();
    let text = format!("images = [{}]\n[target]\nplatform = \"linux/amd64\"\n", names.join(", "));
    fs::write(dir.path().join("bake.toml"), text).unwrap();
    run(dir.path(), "lock -f bake.toml").expect(0);
    registry.asked();
    dir
}

fn run(dir: &Path, arguments: &str) -> Run {
    command().current_dir(dir).args(arguments.split_whitespace()).output().unwrap().into()
}

/// Which blobs a registry was asked for, and how often.
fn asked(registry: &TestRegistry) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for line in registry.asked() {
        if let Some((_, digest)) = line.strip_prefix("GET ").and_then(|path| path.rsplit_once("/blobs/")) {
            *count.entry(digest.to_owned()).or_default() += 1;
        }
    }
    count
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Layers and configs of the content.
fn of_kind(content: &Content, is: fn(&str) -> bool) -> BTreeSet<String> {
    content.blobs.iter().filter(|(_, (kind, _))| is(kind)).map(|(digest, _)| digest.to_string()).collect()
}

fn number(summary: &Value, field: &str) -> u64 {
    summary[field].as_u64().unwrap_or_else(|| panic!("{field} of {summary}"))
}

#[test]
fn shares_of_a_fetch_come_to_what_one_run_makes() {
    let content = content();
    let registry = TestRegistry::start(content.clone());
    let dir = locked(&registry);
    run(dir.path(), "fetch --root whole -f bake.toml --locked").expect(0);
    run(dir.path(), "bootstrap --root whole").expect(0);
    let (whole, all) = (dir.path().join("whole"), asked(&registry));
    let layers = of_kind(&content, media_type::is_layer);
    for order in [[1, 2, 3, 4], [4, 2, 1, 3]] {
        let root = dir.path().join(format!("root{}", order[0]));
        let (mut owned, mut left) = (0, Vec::new());
        for shard in order {
            let arguments = format!("fetch -f {0}/bake.toml --locked --shard {shard}/4 --json", dir.path().display());
            let told = prebake(&root, &arguments).expect(0).last_json();
            assert_eq!((number(&told, "shard"), number(&told, "of")), (shard, 4));
            owned += number(&told, "owned_bytes");
            left.push(number(&told, "left"));
            assert_eq!(number(&told, "done") + number(&told, "left"), IMAGES as u64);
        }
        assert!(left[0] > 0 && left[3] == 0 && left.is_sorted_by(|a, b| a >= b), "{left:?}");
        let is_owned = |kind: &str| media_type::is_layer(kind) || media_type::is_image_config(kind);
        let bytes = content.blobs.values().filter(|(kind, _)| is_owned(kind)).map(|(_, bytes)| bytes.len() as u64);
        assert_eq!(owned, bytes.sum::<u64>());
        let again = asked(&registry);
        assert_eq!(again, all, "each blob once, over all shards");
        assert!(layers.iter().all(|layer| again[layer] == 1));
        prebake(&root, "bootstrap").expect(0);
        assert_eq!(blobs(&root), blobs(&whole));
        assert_eq!(records(&root), records(&whole));
        // Once more: nobody is asked.
        prebake(&root, &format!("fetch -f {}/bake.toml --locked --shard 3/4", dir.path().display())).expect(0);
        assert_eq!(registry.asked(), Vec::<String>::new());
    }
}

/// Shards on machines of their own bring what is theirs alone, and a last run that is no shard finds what they left on its root.
#[test]
fn a_share_is_brought_again_where_it_was_lost_and_no_more() {
    let content = content();
    let registry = TestRegistry::start(content.clone());
    let dir = locked(&registry);
    let fetch = |root: &str, more: &str| run(dir.path(), &format!("fetch --root {root} -f bake.toml --locked {more}"));
    let layers = of_kind(&content, media_type::is_layer);
    let mut all: Vec<String> = Vec::new();
    for shard in 1..=3 {
        let told = fetch(&format!("r{shard}"), &format!("--shard {shard}/3")).expect(0);
        assert!(told.stdout.contains(&format!("shard {shard}/3: ")) && told.stdout.contains("left to other shards"));
        assert!(told.stderr.contains("left to other shards: "), "{}", told.stderr);
        let images = run(dir.path(), &format!("bootstrap --root r{shard}")).expect(0);
        assert!(images.stderr.is_empty(), "{images:?}");
        all.extend(asked(&registry).into_keys().filter(|digest| layers.contains(digest)));
    }
    all.sort();
    assert_eq!(all, layers.iter().cloned().collect::<Vec<_>>(), "each layer in exactly one share");

    // A layer of the first share is lost, and one that is not of it never was there.
    let mine = asked_of(&registry, || drop(fetch("fresh", "--shard 1/3").expect(0)), &layers);
    let lost = mine.iter().next().unwrap();
    fs::remove_file(blobs_dir(&dir.path().join("fresh")).join(lost.strip_prefix("sha256:").unwrap())).unwrap();
    let again = asked_of(&registry, || drop(fetch("fresh", "--shard 1/3").expect(0)), &layers);
    assert_eq!(again.iter().collect::<Vec<_>>(), [lost]);
    let rest = asked_of(&registry, || drop(fetch("fresh", "").expect(0)), &layers);
    assert!(rest.is_disjoint(&mine) && rest.len() + mine.len() == layers.len());
    run(dir.path(), "bootstrap --root fresh").expect(0);
    run(dir.path(), "check --root fresh").expect(0);
    let images = run(dir.path(), "images --root fresh --json").expect(0).stdout;
    assert_eq!(images.lines().filter(|line| line.contains(":1\"")).count(), IMAGES, "{images}");
}

/// Of these blobs, those that something asks for.
fn asked_of(registry: &TestRegistry, work: impl FnOnce(), of: &BTreeSet<String>) -> BTreeSet<String> {
    registry.asked();
    work();
    asked(registry).into_keys().filter(|digest| of.contains(digest)).collect()
}

#[test]
fn shards_at_the_same_time_on_one_root() {
    let registry = TestRegistry::start(content());
    let dir = locked(&registry);
    let start = |shard| {
        let arguments = format!("fetch --root root -f bake.toml --locked --lock-timeout 300 --shard {shard}/5");
        let mut command = command();
        command.current_dir(dir.path()).args(arguments.split_whitespace());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let all: Vec<_> = (1..=5).map(start).collect();
    let ended: Vec<Run> = all.into_iter().map(|child| child.wait_with_output().unwrap().into()).collect();
    for run in ended {
        run.expect(0);
    }
    assert!(asked(&registry).values().all(|times| *times == 1));
    run(dir.path(), "bootstrap --root root").expect(0);
    run(dir.path(), "bake --root whole -f bake.toml --locked").expect(0);
    assert_eq!(records(&dir.path().join("root")), records(&dir.path().join("whole")));
}

#[test]
fn the_lock_decides_and_the_environment_alone_does_not() {
    let registry = TestRegistry::start(content());
    let dir = locked(&registry);
    let refused = run(dir.path(), "fetch --root r -f bake.toml --shard 1/2").expect(2);
    assert!(refused.stderr.contains("--shard needs --locked"), "{}", refused.stderr);
    let refused = run(dir.path(), "bundle create -o b -f bake.toml --shard 1/2").expect(2);
    assert!(refused.stderr.contains("--shard needs --locked"), "{}", refused.stderr);
    for (shard, word) in [("0/2", "counted from 1"), ("3/2", "counted from 1"), ("x", "write it like 2/8")] {
        let refused = run(dir.path(), &format!("fetch --root r -f bake.toml --locked --shard {shard}")).expect(2);
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    let job = |index: Option<&str>, completions: Option<&str>, shard: &[&str]| -> Run {
        let mut command = command();
        command.current_dir(dir.path()).args(["fetch", "--root", "job", "-f", "bake.toml", "--locked", "--json"]);
        command.args(shard).env_remove("JOB_COMPLETION_INDEX").env_remove("JOB_COMPLETIONS");
        command.envs(index.map(|index| ("JOB_COMPLETION_INDEX", index)));
        command.envs(completions.map(|completions| ("JOB_COMPLETIONS", completions)));
        command.output().unwrap().into()
    };
    let shard = ["--shard", "job"];
    assert!(job(Some("0"), None, &shard).expect(2).stderr.contains("put it under env in the Job's template"));
    assert!(job(None, Some("2"), &shard).expect(2).stderr.contains("JOB_COMPLETION_INDEX is not set"));
    let told = job(Some("1"), Some("2"), &shard).expect(0).last_json();
    assert_eq!((number(&told, "shard"), number(&told, "of")), (2, 2));
    let told = job(Some("0"), Some("2"), &[]).expect(0).last_json();
    assert_eq!((told.get("shard"), number(&told, "done")), (None, IMAGES as u64));
}

#[test]
fn shares_of_a_mirror() {
    let content = content();
    let from = TestRegistry::start(content.clone());
    let one = Receiver::start(Manner { mounts: true, ..Manner::default() }, |_| None);
    let many = Receiver::start(Manner { mounts: true, ..Manner::default() }, |_| None);
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..IMAGES).map(|n| format!("{:?}", from.reference(&format!("app{n}:1")))).collect();
    for (file, to) in [("one.toml", &one), ("many.toml", &many)] {
        let text = format!("images = [{}]\n[target]\nregistry = \"{}/hub\"\n", names.join(", "), to.name());
        fs::write(dir.path().join(file), text).unwrap();
    }
    run(dir.path(), "mirror -f one.toml").expect(0);
    let refused = run(dir.path(), "mirror -f many.toml --shard 1/3").expect(2);
    assert!(refused.stderr.contains("`prebake mirror --lock` makes one"), "{refused:?}");
    run(dir.path(), "mirror -f many.toml --lock").expect(0);
    asked(&from);
    let (mut done, mut owned) = (0, 0);
    for shard in [3, 1, 2] {
        let told =
            run(dir.path(), &format!("mirror -f many.toml --locked --json --shard {shard}/3")).expect(0).last_json();
        assert_eq!((number(&told, "shard"), number(&told, "of")), (shard, 3));
        done += number(&told, "done");
        owned += number(&told, "owned_blobs");
        assert_eq!(number(&told, "done") + number(&told, "left"), IMAGES as u64);
        // What has a name is whole: the receiver refuses manifests whose blobs it lacks.
        let named = (0..IMAGES).filter(|n| many.document(&format!("hub/app{n}"), "1").is_some()).count();
        assert!(named < IMAGES || shard == 2, "{named}");
    }
    assert!(done >= IMAGES as u64);
    let kinds = |kind: &str| media_type::is_layer(kind) || media_type::is_image_config(kind);
    assert_eq!(owned, of_kind(&content, kinds).len() as u64);
    {
        let (one, many) = (one.state.lock().unwrap(), many.state.lock().unwrap());
        assert!(one.blobs == many.blobs && one.documents == many.documents);
    }
    let came = asked(&from);
    let layers = of_kind(&content, media_type::is_layer);
    assert!(layers.iter().all(|layer| came[layer] == 1), "{came:?}");
    // Again: everything is found.
    many.asked();
    let told = run(dir.path(), "mirror -f many.toml --locked --shard 1/3").expect(0);
    assert!(many.asked().iter().all(|line| line.starts_with("HEAD ")), "{told:?}");
}

#[test]
fn shares_of_a_mirror_at_the_same_time() {
    let from = TestRegistry::start(content());
    let to = Receiver::start(Manner { mounts: true, ..Manner::default() }, |_| None);
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..IMAGES).map(|n| format!("{:?}", from.reference(&format!("app{n}:1")))).collect();
    let text = format!("images = [{}]\n[target]\nregistry = \"{}\"\n", names.join(", "), to.name());
    fs::write(dir.path().join("mirror.toml"), text).unwrap();
    run(dir.path(), "mirror -f mirror.toml --lock").expect(0);
    let start = |shard| {
        let mut command = command();
        command.current_dir(dir.path()).args([
            "mirror",
            "-f",
            "mirror.toml",
            "--locked",
            "--shard",
            &format!("{shard}/4"),
        ]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let all: Vec<_> = (1..=4).map(start).collect();
    for child in all {
        Run::from(child.wait_with_output().unwrap()).expect(0);
    }
    for n in 0..IMAGES {
        assert!(to.document(&format!("app{n}"), "1").is_some(), "app{n}");
    }
}

#[test]
fn shares_of_a_lock() {
    let registry = TestRegistry::start(content());
    let dir = locked(&registry);
    let whole = fs::read_to_string(dir.path().join("bake.lock")).unwrap();
    fs::remove_file(dir.path().join("bake.lock")).unwrap();
    let mut counts = Vec::new();
    for shard in 1..=3 {
        let told = run(dir.path(), &format!("lock -f bake.toml --shard {shard}/3 --json")).expect(0).last_json();
        counts.push(number(&told, "images"));
    }
    assert_eq!(counts, [4, 4, 4]);
    assert_eq!(files(dir.path()), ["bake.lock.1-of-3", "bake.lock.2-of-3", "bake.lock.3-of-3", "bake.toml"]);
    let merge = |shards: &[u32]| {
        let files: Vec<String> = shards.iter().map(|shard| format!("bake.lock.{shard}-of-3")).collect();
        run(dir.path(), &format!("lock -f bake.toml --merge {}", files.join(" ")))
    };
    let refused = merge(&[1, 2]).expect(2);
    assert!(refused.stderr.contains("is in none of them") && !dir.path().join("bake.lock").exists(), "{refused:?}");
    registry.asked();
    merge(&[3, 1, 2]).expect(0);
    assert_eq!(registry.asked(), Vec::<String>::new());
    assert_eq!(fs::read_to_string(dir.path().join("bake.lock")).unwrap(), whole);
    let second = fs::read_to_string(dir.path().join("bake.lock.2-of-3")).unwrap();
    let other = format!("sha256:{}", "0".repeat(64));
    let target = second.lines().find_map(|line| line.strip_prefix("target = \"")).unwrap().split(' ').next().unwrap();
    fs::write(dir.path().join("bake.lock.9-of-3"), second.replace(target, &other)).unwrap();
    let refused = merge(&[1, 2, 3, 9]).expect(2);
    assert!(refused.stderr.contains(&other) && refused.stderr.contains("bake.lock.9-of-3"), "{refused:?}");
}

#[test]
fn shares_of_a_bundle() {
    let content = content();
    let registry = TestRegistry::start(content.clone());
    let dir = locked(&registry);
    run(dir.path(), "bundle create -o whole.bundle -f bake.toml --locked").expect(0);
    run(dir.path(), "bundle apply --root whole whole.bundle").expect(0);
    asked(&registry);
    for shard in 1..=3 {
        let arguments = format!("bundle create -o part{shard}.bundle -f bake.toml --locked --shard {shard}/3 --json");
        let told = run(dir.path(), &arguments).expect(0).last_json();
        assert_eq!((number(&told, "shard"), number(&told, "of")), (shard, 3));
        assert!(number(&told, "left") > 0);
        run(dir.path(), &format!("bundle verify part{shard}.bundle")).expect(0);
    }
    let came = asked(&registry);
    let layers = of_kind(&content, media_type::is_layer);
    assert!(layers.iter().all(|layer| came[layer] == 1), "{came:?}");
    let is_whole = |root: &str| {
        let root = dir.path().join(root);
        assert_eq!(blobs(&root), blobs(&dir.path().join("whole")));
        assert_eq!(records(&root), records(&dir.path().join("whole")));
        prebake(&root, "check").expect(0);
    };
    run(dir.path(), "bundle apply --root together part1.bundle part2.bundle part3.bundle").expect(0);
    is_whole("together");
    for (n, part) in [2, 3, 1].into_iter().enumerate() {
        let told = run(dir.path(), &format!("bundle apply --root apart part{part}.bundle")).expect(0);
        let waits = format!("{told:?}").contains("wait for the bundles of other shards");
        assert_eq!(waits, n < 2, "{told:?}");
    }
    is_whole("apart");
    let refused = run(dir.path(), "bundle apply --to-registry localhost:1 part1.bundle").expect(2);
    assert!(refused.stderr.contains("has a share"), "{refused:?}");
}
