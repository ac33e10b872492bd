//! Bundles: made, split, signed, carried, applied; and what is only what somebody lacks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::content::build;
use crate::support::prebake::{Run, blobs, blobs_dir, command, prebake, records};
use crate::support::registry::TestRegistry;
use crate::support::served::Served;

/// Images `app0:1`…, of which the nth has a layer of `random` bytes that `seeds[n]` makes.
fn images(seeds: &[u32]) -> String {
    let mut spec = "[layer.base]\nfiles = [{ path = \"base\", random = 200000 }]\n".to_owned();
    for (n, seed) in seeds.iter().enumerate() {
        let own = format!(
            "[layer.own{n}]\nfiles = [{{ path = \"own/{n}/{seed}\", random = {} }}]\n\
             [[image]]\nname = \"app{n}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"base\", \"own{n}\"]\n",
            100_000 + seed
        );
        spec.push_str(&own);
    }
    spec
}

fn run(dir: &Path, arguments: &str) -> Run {
    command().current_dir(dir).args(arguments.split_whitespace()).output().unwrap().into()
}

fn names(registry: &TestRegistry, count: usize) -> String {
    let names: Vec<String> = (0..count).map(|n| registry.reference(&format!("app{n}:1"))).collect();
    format!("--platform linux/amd64 {}", names.join(" "))
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn carried_and_applied_it_is_what_a_bake_makes() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(build(&images(&[1, 2, 3])));
    let names = names(&registry, 3);
    run(dir.path(), &format!("bake --root baked --pin {names}")).expect(0);
    let told = run(dir.path(), &format!("bundle create -o a.bundle --pin --json {names}")).expect(0).last_json();
    let whole = blobs(&dir.path().join("baked"));
    let bytes: usize = whole.values().map(Vec::len).sum();
    assert_eq!((told["blobs"].as_u64(), told["bytes"].as_u64()), (Some(whole.len() as u64), Some(bytes as u64)));
    assert_eq!(files(dir.path()), ["a.bundle", "a.bundle.sha256", "baked"], "nothing else is left");
    // Headers, padding and what it says of itself is all that is on top.
    let size = fs::metadata(dir.path().join("a.bundle")).unwrap().len();
    assert!(size < bytes as u64 + 1024 * (whole.len() as u64 + 12), "{size} {bytes}");

    // The same every time, whatever the form.
    run(dir.path(), &format!("bundle create -o again.bundle --pin --concurrency 1 {names}")).expect(0);
    run(dir.path(), &format!("bundle create -o split.bundle --pin --split 70kB {names}")).expect(0);
    run(dir.path(), &format!("bundle create -o zstd.bundle --pin --compress zstd --split 1MB {names}")).expect(0);
    let one = fs::read(dir.path().join("a.bundle")).unwrap();
    assert!(one == fs::read(dir.path().join("again.bundle")).unwrap());
    let parts: Vec<String> = files(dir.path()).into_iter().filter(|name| name.starts_with("split.bundle.0")).collect();
    assert_eq!(parts.len() as u64, size.div_ceil(70_000));
    assert!(one == parts.iter().flat_map(|part| fs::read(dir.path().join(part)).unwrap()).collect::<Vec<u8>>());
    registry.asked();
    // Where they come from is not said of blobs that came from no registry.
    let said = |root: &Path| -> Vec<String> {
        let source = |line: &String| line.contains("distribution.source") || line.ends_with("> labels [0]");
        records(root).into_iter().filter(|line| !source(line)).collect()
    };
    let baked = said(&dir.path().join("baked"));
    for (n, file) in ["a.bundle", "split.bundle", "split.bundle.003", "zstd.bundle"].into_iter().enumerate() {
        run(dir.path(), &format!("bundle verify {file}")).expect(0);
        let root = dir.path().join(format!("root{n}"));
        assert!(
            run(dir.path(), &format!("bundle apply --dry-run --root root{n} {file}")).expect(0).stdout.contains("app2")
        );
        assert!(!root.exists() || blobs(&root).is_empty());
        run(dir.path(), &format!("bundle apply --root root{n} {file}")).expect(0);
        assert_eq!(blobs(&root), whole, "{file}");
        assert!(said(&root) == baked, "{file}: {:#?}", said(&root));
        run(dir.path(), &format!("check --root root{n}")).expect(0);
        let again = run(dir.path(), &format!("bundle apply --json --root root{n} {file}")).expect(0).last_json();
        assert_eq!(again["fetched_blobs"], 0, "{again}");
    }
    assert_eq!(registry.asked(), Vec::<String>::new());
}

#[test]
fn parts_are_checked_each_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(build(&images(&[1])));
    run(dir.path(), &format!("bundle create -o a.bundle --split 100kB {}", names(&registry, 1))).expect(0);
    let part = dir.path().join("a.bundle.002");
    let good = fs::read(&part).unwrap();
    let mut bad = good.clone();
    bad[50_000] ^= 1;
    fs::write(&part, &bad).unwrap();
    assert!(run(dir.path(), "bundle verify a.bundle.002").expect(6).stderr.contains("a.bundle.002"));
    run(dir.path(), "bundle verify a.bundle.001").expect(0);
    // Nobody is to think that its signature was looked at.
    run(dir.path(), "bundle verify --verify-key any.pub a.bundle.001").expect(2);
    run(dir.path(), "bundle verify a.bundle").expect(6);
    let told = run(dir.path(), "bundle apply --root r a.bundle").expect(6);
    assert!(told.stderr.contains("sha256:"), "{}", told.stderr);
    assert!(!run(dir.path(), "images --root r").stdout.contains("app0"), "no record of what is not whole");
    fs::remove_file(&part).unwrap();
    let told = run(dir.path(), "bundle apply --root s a.bundle").expect(3);
    assert!(told.stderr.contains("a.bundle.002 is missing"), "{}", told.stderr);
    fs::write(&part, &good).unwrap();
    run(dir.path(), "bundle apply --root r a.bundle").expect(0);
    run(dir.path(), "check --root r").expect(0);
}

#[test]
fn only_what_is_signed_is_admitted() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(build(&images(&[1])));
    let names = names(&registry, 1);
    run(dir.path(), "bundle keygen ours").expect(0);
    run(dir.path(), "bundle keygen ours").expect(1);
    run(dir.path(), "bundle keygen others").expect(0);
    run(dir.path(), &format!("bundle create -o plain.bundle {names}")).expect(0);
    run(dir.path(), &format!("bundle create -o signed.bundle --sign-key ours.key {names}")).expect(0);
    run(dir.path(), &format!("bundle create -o theirs.bundle --sign-key others.key {names}")).expect(0);
    // A signature over other contents: a policy is another one.
    let mut changed = fs::read(dir.path().join("signed.bundle")).unwrap();
    let at = changed.windows(17).position(|bytes| bytes == b"\"policy\":\"fetch\",").unwrap();
    changed[at..at + 17].copy_from_slice(b"\"policy\":\"fetcH\",");
    fs::write(dir.path().join("changed.bundle"), changed).unwrap();
    for (bundle, words) in
        [("plain", "is not signed"), ("theirs", "is not by one of the keys"), ("changed", "is not by one of the keys")]
    {
        let told = run(dir.path(), &format!("bundle apply --root r --verify-key ours.pub {bundle}.bundle")).expect(6);
        assert!(told.stderr.contains(words), "{bundle}: {}", told.stderr);
        run(dir.path(), &format!("bundle verify --verify-key ours.pub {bundle}.bundle")).expect(6);
        assert!(!dir.path().join("r").exists(), "{bundle}: something was written");
    }
    run(dir.path(), "bundle apply --root r --verify-key others.pub --verify-key ours.pub signed.bundle").expect(0);
    // openssl agrees on what is signed, and its keys do as well.
    let script = "tar xf signed.bundle prebake && base64 -d <prebake/bundle.sig >sig && \
        openssl pkeyutl -verify -pubin -inkey ours.pub -rawin -in prebake/bundle.json -sigfile sig && \
        openssl genpkey -algorithm ed25519 -out o.key && openssl pkey -in o.key -pubout -out o.pub";
    let output = std::process::Command::new("sh").args(["-c", script]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    run(dir.path(), &format!("bundle create -o o.bundle --sign-key o.key {names}")).expect(0);
    run(dir.path(), "bundle apply --root o --verify-key o.pub o.bundle").expect(0);
    run(dir.path(), &format!("bundle create -o x.bundle --sign-key ours.pub {names}")).expect(2);
}

#[test]
fn a_delta_has_what_the_receiver_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestRegistry::start(build(&images(&[1, 2, 3])));
    let spec = |registry: &TestRegistry| names(registry, 3).replace(&registry.name(), "app.example");
    // The same names, from one registry and then from another.
    let from = |registry: &TestRegistry| {
        let host = dir.path().join("certs.d/app.example");
        fs::create_dir_all(&host).unwrap();
        fs::write(host.join("hosts.toml"), format!("server = \"http://{}\"\n", registry.name())).unwrap();
    };
    from(&first);
    let create = "bundle create --hosts-dir certs.d";
    run(dir.path(), &format!("{create} -o full.bundle {}", spec(&first))).expect(0);
    run(dir.path(), "bundle apply --root site full.bundle").expect(0);
    run(dir.path(), "inventory --root site -o site.inv").expect(0);
    let had = blobs(&dir.path().join("site"));

    let second = TestRegistry::start(build(&images(&[1, 20, 3])));
    from(&second);
    let told = run(dir.path(), &format!("{create} --json -o week.bundle --since site.inv {}", spec(&second))).expect(0);
    let told = told.last_json();
    let asked = second.asked();
    assert!(asked.iter().filter(|line| line.contains("/blobs/")).count() <= 5, "{asked:?}");
    run(dir.path(), &format!("bake --hosts-dir certs.d --root whole {}", spec(&second))).expect(0);
    let whole = blobs(&dir.path().join("whole"));
    let new: BTreeMap<_, _> = whole.iter().filter(|(name, _)| !had.contains_key(*name)).collect();
    let bytes: usize = new.values().map(|blob| blob.len()).sum();
    assert_eq!((told["blobs"].as_u64(), told["bytes"].as_u64()), (Some(new.len() as u64), Some(bytes as u64)));
    assert!(bytes > 100_000 && fs::metadata(dir.path().join("week.bundle")).unwrap().len() < bytes as u64 + 12_000);

    // A receiver that lacks something is told what, and by which inventory.
    let before = records(&dir.path().join("site"));
    let lost = had.keys().find(|name| whole.contains_key(*name) && had[*name].len() > 10_000).unwrap();
    let path = blobs_dir(&dir.path().join("site")).join(lost);
    let aside = dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    let id = told["since"].as_str().unwrap();
    for root in ["site", "empty"] {
        let refused = run(dir.path(), &format!("bundle apply --root {root} week.bundle")).expect(3);
        let named = refused.stderr.contains(lost) || root == "empty" && refused.stderr.contains(" more");
        assert!(named && refused.stderr.contains(id), "{}", refused.stderr);
    }
    assert_eq!(records(&dir.path().join("site")), before);
    assert!(!dir.path().join("empty").exists());
    // What is damaged is not counted as there.
    fs::write(&path, b"damaged").unwrap();
    let told = run(dir.path(), "inventory --root site -o damaged.inv").expect(0);
    assert!(told.stderr.contains(lost) && told.stderr.contains("left out"), "{}", told.stderr);
    let told =
        run(dir.path(), &format!("{create} --json -o mended.bundle --since damaged.inv {}", spec(&second))).expect(0);
    assert!(told.last_json()["bytes"].as_u64().unwrap() > bytes as u64);
    run(dir.path(), "bundle apply --root site mended.bundle").expect(0);
    fs::remove_file(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    run(dir.path(), "bundle apply --root site week.bundle").expect(0);
    run(dir.path(), "check --root site").expect(0);
    assert!(whole.keys().all(|name| blobs(&dir.path().join("site")).contains_key(name)));
    // Nothing new is nothing to carry.
    run(dir.path(), "inventory --root site -o now.inv").expect(0);
    let told =
        run(dir.path(), &format!("{create} --json --dry-run -o no.bundle --since now.inv {}", spec(&second))).expect(0);
    assert!(told.last_json()["blobs"] == 0 && !dir.path().join("no.bundle").exists());
    // Not an inventory at all.
    fs::write(dir.path().join("x.inv"), b"x").unwrap();
    run(dir.path(), &format!("{create} -o no.bundle --since x.inv {}", spec(&second))).expect(2);
    let diff = run(dir.path(), "diff --json bundle:full.bundle bundle:mended.bundle").stdout;
    assert!(serde_json::from_str::<Value>(&diff).is_ok(), "{diff}");
}

#[test]
fn all_of_them_or_no_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(build(&images(&[1])));
    let told =
        run(dir.path(), &format!("bundle create -o a.bundle {} {}", names(&registry, 1), registry.reference("no:1")));
    assert!(told.expect(3).stderr.contains("no:1"));
    assert_eq!(files(dir.path()), Vec::<String>::new());
    // Bytes that are not what they should be, in the middle of it.
    let content = build(&images(&[1]));
    let own = content.clone();
    let registry = TestRegistry::faulty(content, move |request| {
        let (_, digest) = request.uri().path().rsplit_once("/blobs/")?;
        let (_, bytes) = own.blobs.get(&digest.parse().ok()?)?;
        let wrong = vec![1; bytes.len()];
        (bytes.len() > 150_000).then(|| crate::support::registry::respond(200, &[], ::prebake::fixture::full(wrong)))
    });
    run(dir.path(), &format!("bundle create -o a.bundle {}", names(&registry, 1))).expect(6);
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn a_killed_apply_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(build(&images(&[1, 2, 3, 4, 5, 6])));
    run(dir.path(), &format!("bundle create -o a.bundle --compress zstd {}", names(&registry, 6))).expect(0);
    let root = dir.path().join("site");
    let mut whole = 0;
    for n in 0..12 {
        let mut child = command();
        child.current_dir(dir.path()).args(["bundle", "apply", "--quiet", "--root", "site", "a.bundle"]);
        let mut child = child.spawn().unwrap();
        let until = Instant::now() + Duration::from_millis(2 + n * 4);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        child.wait().unwrap();
        if root.exists() {
            // Whatever it lists is whole.
            let told = prebake(&root, "check --quick");
            assert!(told.code == 0 || told.code == 3, "{n}: {}{}", told.stdout, told.stderr);
            assert!(blobs(&root).len() >= whole, "{n}");
            whole = blobs(&root).len();
        }
    }
    run(dir.path(), "bundle apply --root site a.bundle").expect(0);
    run(dir.path(), "check --root site").expect(0);
    let listed = prebake(&root, "images --json").expect(0).stdout;
    assert_eq!(listed.matches(":1\",").count(), 6, "{listed}");
}

#[test]
fn a_bundle_is_served_and_copied() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(build(&images(&[1, 2])));
    let names = names(&registry, 2);
    run(dir.path(), &format!("bake --root baked {names}")).expect(0);
    run(dir.path(), &format!("bundle create -o a.bundle --compress zstd --split 100kB {names}")).expect(0);
    let served = Served::start(&format!("--quiet --bundle {}", dir.path().join("a.bundle").display()));
    let from = (0..2).map(|n| format!("{}/app{n}:1", served.name())).collect::<Vec<_>>().join(" ");
    run(dir.path(), &format!("bake --root again --platform linux/amd64 {from}")).expect(0);
    assert_eq!(blobs(&dir.path().join("again")), blobs(&dir.path().join("baked")));
    let told = run(dir.path(), &format!("bundle create -o b.bundle --referrers {names}")).expect(2);
    assert!(told.stderr.contains("prebake copy --referrers"), "{}", told.stderr);
}

#[test]
fn a_tag_that_moves_meanwhile_is_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let content = build(&images(&[1, 20]));
    let digests: Vec<_> = (0..2).map(|n| content.tags[&(format!("app{n}"), "1".to_owned())].clone()).collect();
    let (own, to) = (content.clone(), digests.clone());
    let reads = AtomicUsize::new(0);
    // Each time it is asked for, the tag leads to the other image.
    let registry = TestRegistry::faulty(content, move |request| {
        if request.uri().path() != "/v2/app0/manifests/1" {
            return None;
        }
        let digest = &to[reads.fetch_add(1, Ordering::Relaxed) % 2];
        let (kind, bytes) = &own.blobs[digest];
        let headers = [("content-type", kind.as_str()), ("docker-content-digest", digest.as_str())];
        Some(crate::support::registry::respond(200, &headers, ::prebake::fixture::full(bytes.clone())))
    });
    for (n, digest) in digests.iter().enumerate() {
        let file = format!("{n}.bundle");
        run(dir.path(), &format!("bundle create -o {file} {}", names(&registry, 1))).expect(0);
        run(dir.path(), &format!("bundle verify {file}")).expect(0);
        run(dir.path(), &format!("bundle apply --root r{n} {file}")).expect(0);
        run(dir.path(), &format!("check --root r{n}")).expect(0);
        assert!(run(dir.path(), &format!("images --root r{n}")).stdout.contains(digest.as_str()), "{n}");
    }
}
