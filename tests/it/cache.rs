//! A cache that many bakers share, in a directory: each blob leaves its registry once, and nothing of the cache is believed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hyper::Method;
use prebake::bake::notices;
use prebake::cache;
use prebake::fixture::{Content, full};
use prebake::oci::{Descriptor, media_type};
use prebake::registry::{self, Blob, Client};
use serde_json::Value;
use tokio::time::timeout;

use crate::answers::layer_of;
use crate::support::content::build;
use crate::support::prebake::{Run, blobs, command, prebake};
use crate::support::registry::{TestRegistry, respond};
use crate::support::served::write_layout;

/// Bakers that begin at the same moment.
const BAKERS: usize = 20;
/// Of those, so many are killed on the way.
const KILLED: usize = 4;

/// A directory for the cache, and one for roots.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn url(&self) -> String {
        format!("file://{}", self.cache().display())
    }

    fn root(&self, name: &str) -> PathBuf {
        let root = self.dir.path().join(name);
        fs::create_dir_all(&root).unwrap();
        root
    }

    fn bake(&self, root: &str, more: &str, names: &str) -> Run {
        let arguments = format!("bake --json --platform linux/amd64 --cache {} {more} {names}", self.url());
        prebake(&self.root(root), &arguments)
    }

    /// `prebake cache …`.
    fn care(&self, arguments: &str) -> Run {
        let url = self.url();
        command().arg("cache").args(arguments.split_whitespace()).args(["--cache", &url]).output().unwrap().into()
    }

    /// Files of the cache below a directory of it; not those that `object_store` had not given their names when their writer was killed.
    fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.cache().join(below)];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if !path.to_str().unwrap().contains('#') {
                    found.push(path);
                }
            }
        }
        found
    }

    /// What is claimed, when nobody is at it any more: only what was stored, by bakers who were killed before they gave their claim up,
    /// and nobody waits for that.
    fn claimed(&self) -> Vec<String> {
        let digest = |claim: PathBuf| {
            let hex = claim.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
            assert!(self.blob(&hex).exists(), "{}", claim.display());
            format!("sha256:{hex}")
        };
        self.files("claims").into_iter().map(digest).collect()
    }

    fn blob(&self, hex: &str) -> PathBuf {
        self.cache().join("blobs/sha256").join(hex)
    }
}

fn app() -> Content {
    build(
        "[layer.big]\nfiles = [{ path = \"f\", random = 12_000_000 }]\n[layer.small]\nfiles = [{ path = \"g\", random = 1000 }]\n\
         [[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"big\", \"small\"]\n",
    )
}

/// How often each blob and document was got by digest.
fn got(asked: &[String]) -> BTreeMap<String, usize> {
    let mut got = BTreeMap::new();
    for request in asked {
        if let Some((way, digest)) = request.rsplit_once('/')
            && way.starts_with("GET ")
            && digest.starts_with("sha256:")
        {
            *got.entry(digest.to_owned()).or_default() += 1;
        }
    }
    got
}

fn sound(root: &Path, images: usize) {
    prebake(root, "check").expect(0);
    assert_eq!(prebake(root, "images --json").expect(0).stdout.lines().count(), 3 * images);
}

#[test]
fn twenty_bakers_get_each_blob_once() {
    let images: usize = 40;
    let mut spec = String::new();
    for image in 0..images {
        for layer in 0..7 {
            let name = format!("l{image}-{layer}");
            let _ = write!(spec, "[layer.{name}]\nfiles = [{{ path = \"of/{name}\", random = 3000 }}]\n");
        }
        let layers: Vec<String> = (0..7).map(|layer| format!("\"l{image}-{layer}\"")).collect();
        let _ = write!(
            spec,
            "[[image]]\nname = \"i{image}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [{}]\n",
            layers.join(", ")
        );
    }
    let content = build(&spec);
    let all = content.blobs.len();
    let registry = TestRegistry::start(content);
    let place = Place::new();
    let list = place.dir.path().join("images.txt");
    let names: Vec<String> = (0..images).map(|image| registry.reference(&format!("i{image}:1"))).collect();
    fs::write(&list, names.join("\n")).unwrap();
    let start = |baker: usize| -> Child {
        let mut bake = command();
        bake.args(["bake", "--quiet", "--platform", "linux/amd64", "--concurrency", "2", "--cache-claim-expiry", "2s"]);
        bake.arg("--cache")
            .arg(place.url())
            .arg("--root")
            .arg(place.root(&format!("root{baker}")))
            .arg("--file")
            .arg(&list);
        bake.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut bakers: Vec<Option<Child>> = (0..BAKERS).map(|baker| Some(start(baker))).collect();
    let mut asked = Vec::new();
    for killed in 0..KILLED {
        // In the middle of it, by what is done and not by the clock.
        let until = all * (killed + 1) / (KILLED + 2);
        let deadline = Instant::now() + Duration::from_mins(2);
        while got(&asked).len() < until {
            assert!(Instant::now() < deadline, "{} of {until}", got(&asked).len());
            std::thread::sleep(Duration::from_millis(5));
            asked.extend(registry.asked());
        }
        let mut baker = bakers[killed * 5].take().unwrap();
        baker.kill().unwrap();
        baker.wait().unwrap();
    }
    for killed in 0..KILLED {
        bakers[killed * 5] = Some(start(killed * 5));
    }
    for (baker, child) in bakers.into_iter().enumerate() {
        Run::from(child.unwrap().wait_with_output().unwrap()).expect(0);
        sound(&place.root(&format!("root{baker}")), images);
    }
    asked.extend(registry.asked());
    let got = got(&asked);
    let times: usize = got.values().sum();
    assert_eq!(got.len(), all, "each was asked for");
    eprintln!("{all} blobs, {times} requests");
    assert!(times * 100 <= all * 105, "{times} requests for {all} blobs");
    place.care("check").expect(0);
    let stats = place.care("stats --json").expect(0).last_json();
    assert_eq!(stats["blobs"], all);
    place.claimed();
}

#[test]
fn what_one_stored_another_has_without_the_registry() {
    let content = app();
    let target = content.tags[&("app".to_owned(), "1".to_owned())].clone();
    let registry = TestRegistry::start(content);
    let place = Place::new();
    let by_tag = registry.reference("app:1");
    let first = place.bake("one", "", &by_tag).expect(0).last_json();
    assert_eq!(first["cache"]["stored"], 4);
    assert_eq!(first["cache"]["hits"], 0);
    // What docs/cache.md says that it costs: two layers, one of them in three parts, and two documents.
    let requests = |summary: &Value| ["reads", "writes"].map(|what| summary["cache"][what].as_u64());
    assert_eq!(requests(&first), [Some(2 * 3 + 2 * 4 + 1), Some(4 * 3 + (1 + 3) + 3)]);
    assert_eq!(got(&registry.asked()).len(), 4);
    let second = place.bake("two", "", &by_tag).expect(0).last_json();
    assert_eq!(second["cache"]["hits"], 4);
    assert_eq!(second["cache"]["stored"], 0);
    assert_eq!(requests(&second), [Some(2 * 2 + 2 + 1), Some(2)]);
    let asked = registry.asked();
    assert!(asked.iter().all(|request| request.starts_with(Method::HEAD.as_str())), "{asked:?}");
    assert_eq!(blobs(&place.root("one")), blobs(&place.root("two")));
    // With a digest, nobody need be there at all.
    let by_digest = registry.reference(&format!("app@{target}"));
    drop(registry);
    place.bake("three", "", &by_digest).expect(0);
    prebake(&place.root("three"), "check").expect(0);
}

#[test]
fn what_is_wrong_is_replaced_and_told_and_never_used() {
    let content = app();
    let (layer, right) = layer_of(&content);
    let registry = TestRegistry::start(content.clone());
    let place = Place::new();
    let name = registry.reference("app:1");
    place.bake("fill", "", &name).expect(0);
    let hex = layer.rsplit_once(':').unwrap().1.to_owned();
    let manifest = content.tags[&("app".to_owned(), "1".to_owned())].hex().to_owned();
    let of_manifest: Value =
        serde_json::from_slice(&content.blobs[&format!("sha256:{manifest}").parse().unwrap()].1).unwrap();
    let config = of_manifest["config"]["digest"].as_str().unwrap();
    let longer = [&content.blobs[&config.parse().unwrap()].1[..], b" "].concat();
    let config = config.rsplit_once(':').unwrap().1.to_owned();
    let mut changed = right.to_vec();
    changed[100_000] ^= 1;
    let wrong: [(&str, &str, Vec<u8>); 5] = [
        ("changed", &hex, changed),
        ("cut", &hex, right[..5_000_000].to_vec()),
        ("empty", &hex, Vec::new()),
        ("document", &manifest, b"{}".to_vec()),
        ("longer", &config, longer),
    ];
    for (root, hex, bytes) in wrong {
        registry.asked();
        fs::write(place.blob(hex), &bytes).unwrap();
        let run = place.bake(root, "", &name).expect(0);
        assert!(
            run.stdout.lines().any(|line| line.contains("\"trouble\":\"wrong\"") && line.contains(hex)),
            "{}",
            run.stdout
        );
        assert_eq!(run.last_json()["cache"]["wrong"], 1, "{root}");
        assert_eq!(got(&registry.asked()), BTreeMap::from([(format!("sha256:{hex}"), 1)]), "{root}");
        prebake(&place.root(root), "check").expect(0);
        assert_eq!(fs::read(place.blob(hex)).unwrap(), *content.blobs[&format!("sha256:{hex}").parse().unwrap()].1);
    }
    // Who looks for it finds it as well.
    fs::write(place.blob(&hex), "nothing").unwrap();
    assert!(place.care("check").expect(6).stdout.contains(&hex));
    assert!(place.care("check --remove").expect(6).stdout.contains("it is removed"));
    assert!(!place.blob(&hex).exists());
    place.care("check").expect(0);
}

#[test]
fn a_cache_that_fails_slows_a_bake_and_no_more() {
    let registry = TestRegistry::start(app());
    let dir = tempfile::tempdir().unwrap();
    let nobody = "/dev/null/cache";
    let bake = |root: &str, more: &str| {
        let root = dir.path().join(root);
        fs::create_dir(&root).unwrap();
        let name = registry.reference("app:1");
        let run = prebake(&root, &format!("bake --platform linux/amd64 --cache {more} {name}"));
        (root, run)
    };
    let (root, run) = bake("a", &format!("file://{nobody}"));
    assert!(run.expect(0).stderr.contains("going on without the cache"));
    sound(&root, 1);
    let (_, run) = bake("b", &format!("file://{nobody} --cache-required"));
    assert!(run.expect(1).stderr.contains("the cache file:///dev/null/cache failed"));
    // Nobody listens there.
    let mut command = command();
    command.env("AWS_ENDPOINT", "http://127.0.0.1:1").env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "y");
    command.args([
        "bake",
        "--platform",
        "linux/amd64",
        "--cache",
        "s3://bucket/x",
        &registry.reference("app:1"),
        "--root",
    ]);
    let root = dir.path().join("c");
    fs::create_dir(&root).unwrap();
    let run = Run::from(command.arg(&root).output().unwrap()).expect(0);
    assert!(run.stderr.contains("going on without the cache"), "{}", run.stderr);
    sound(&root, 1);
    for (url, why) in [
        ("ftp://x/y", "is no kind of store"),
        ("s3://", "names no bucket"),
        ("cache", "this is no URL"),
        ("s3://me:secret@bucket/x", "in the environment"),
    ] {
        let (_, run) = bake(&format!("wrong-{}", why.len()), url);
        let run = run.expect(2);
        assert!(run.stderr.contains(why) && !run.stderr.contains("secret"), "{}", run.stderr);
    }
    // An empty variable is none.
    let mut command = crate::support::prebake::command();
    command.env("PREBAKE_CACHE", "").args([
        "bake",
        "--platform",
        "linux/amd64",
        &registry.reference("app:1"),
        "--root",
    ]);
    Run::from(command.arg(dir.path().join("d")).output().unwrap()).expect(0);
}

#[test]
fn a_claimant_that_dies_is_replaced() {
    let (layer, _) = layer_of(&app());
    let registry = TestRegistry::slow(app(), 100_000, Duration::from_millis(20));
    let place = Place::new();
    let arguments = format!(
        "bake --platform linux/amd64 --cache-claim-expiry 1s --cache {} {}",
        place.url(),
        registry.reference("app:1")
    );
    let mut first = crate::support::prebake::start(&place.root("first"), &arguments);
    let deadline = Instant::now() + Duration::from_secs(20);
    while got(&registry.asked()).is_empty() || place.files("claims").is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(!place.files("claims").is_empty(), "it left its claims");
    place.bake("second", "--cache-claim-expiry 1s", &registry.reference("app:1")).expect(0);
    sound(&place.root("second"), 1);
    // The dead one's claims are gone with those of who took its place, but for those of what it had stored when it was killed, which
    // nobody waits for. What it has of the layer, it goes on with.
    assert!(!place.claimed().contains(&layer));
    registry.asked();
    prebake(&place.root("first"), &arguments).expect(0);
    assert_eq!(got(&registry.asked()).len(), 0);
    sound(&place.root("first"), 1);
}

#[test]
fn what_is_gone_on_with_is_stored_whole() {
    let content = app();
    let (layer, right) = layer_of(&content);
    let registry = TestRegistry::slow(content, 200_000, Duration::from_millis(20));
    let place = Place::new();
    let root = place.root("root");
    let name = registry.reference("app:1");
    let mut first = crate::support::prebake::start(&root, &format!("bake --platform linux/amd64 {name}"));
    let ingests = root.join("var/lib/containerd/io.containerd.content.v1.content/ingest");
    let came = || {
        let dirs = fs::read_dir(&ingests).into_iter().flatten().flatten();
        dirs.filter_map(|dir| dir.path().join("data").metadata().ok()).map(|data| data.len()).max().unwrap_or(0)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while came() < 3_000_000 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    place.bake("root", "", &name).expect(0);
    let hex = layer.rsplit_once(':').unwrap().1;
    assert!(fs::read(place.blob(hex)).unwrap() == *right, "its first bytes were here, the others came");
}

/// The bytes of a blob from where it is on.
async fn rest(blob: &mut Blob) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

#[test]
fn who_pauses_stores_what_comes_later_and_is_not_waited_for_without_end() {
    let content = app();
    let (layer, right) = layer_of(&content);
    let registry = TestRegistry::start(content);
    let reference = registry.reference("app:1").parse().unwrap();
    let descriptor = Descriptor::new(media_type::OCI_LAYER, layer.parse().unwrap(), right.len() as u64);
    let file = |place: &Place| fs::read(place.blob(layer.rsplit_once(':').unwrap().1));
    prebake::install_tls();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for is_long in [false, true] {
        let place = Place::new();
        let client = || {
            let claim_expiry = Duration::from_secs(1);
            let url = place.url().parse().unwrap();
            let cache = Some(cache::Options { url, required: true, claim_expiry, make: true });
            let options = registry::Options { cache, ..registry::Options::default() };
            Arc::new(Client::new(options, notices(Arc::new(()))).unwrap())
        };
        runtime.block_on(async {
            let (one, two) = (client(), client());
            let mut first = one.blob(&reference, &descriptor, 0, None);
            let mut got = first.chunk().await.unwrap().unwrap().to_vec();
            first.pause();
            if is_long {
                // As though the first one waited for what the second one has.
                let mut second = two.blob(&reference, &descriptor, 0, None);
                assert!(timeout(Duration::from_secs(30), rest(&mut second)).await.unwrap() == *right);
                two.settle().await.unwrap();
            }
            got.extend(rest(&mut first).await);
            assert!(got == *right);
            one.settle().await.unwrap();
            registry.asked();
            assert!(file(&place).unwrap() == *right);
            // Whoever names it with another size does not take it from the others.
            let larger = Descriptor::new(media_type::OCI_LAYER, descriptor.digest.clone(), descriptor.size + 1);
            let _ = two.blob(&reference, &larger, 0, None).chunk().await;
            assert!(file(&place).unwrap() == *right);
        });
        assert_eq!(place.files("claims").len(), 0);
    }
}

#[test]
fn a_registry_that_refuses_head_is_asked_as_without_a_cache() {
    let registry =
        TestRegistry::faulty(app(), |request| (request.method() == Method::HEAD).then(|| respond(405, &[], full(""))));
    let place = Place::new();
    let name = registry.reference("app:1");
    for (root, blobs) in [("one", 2), ("two", 0)] {
        registry.asked();
        place.bake(root, "", &name).expect(0);
        sound(&place.root(root), 1);
        let asked = registry.asked();
        assert!(asked.iter().any(|line| line == "GET /v2/app/manifests/1"), "{asked:?}");
        assert_eq!(asked.iter().filter(|line| line.contains("/blobs/")).count(), blobs + usize::from(blobs > 0));
    }
}

#[test]
fn a_blob_that_comes_wrong_is_asked_for_again_by_who_warms() {
    let content = app();
    let (layer, right) = layer_of(&content);
    for (wrong, code) in [(2, 0), (usize::MAX, 6)] {
        let (layer, len, came) = (layer.clone(), right.len(), AtomicUsize::new(0));
        let registry = TestRegistry::faulty(content.clone(), move |request| {
            let is_wrong = request.uri().path().ends_with(&layer) && came.fetch_add(1, Ordering::Relaxed) < wrong;
            is_wrong.then(|| respond(200, &[], full(vec![7; len])))
        });
        let place = Place::new();
        let warmed = place.care(&format!("warm --platform linux/amd64 {}", registry.reference("app:1"))).expect(code);
        assert_eq!(warmed.stderr.contains("came wrong 3 times"), code != 0, "{warmed:?}");
        assert_eq!(place.files("blobs").len(), if code == 0 { 4 } else { 3 });
        place.care("check").expect(0);
    }
}

/// Makes files of the cache as old as that.
fn age(files: &[PathBuf], days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    for file in files {
        File::options().write(true).open(file).unwrap().set_times(FileTimes::new().set_modified(then)).unwrap();
    }
}

#[test]
fn what_nobody_needs_goes() {
    let content = build(
        "[layer.a]\nfiles = [{ path = \"f\", random = 300_000 }]\n[layer.b]\nfiles = [{ path = \"g\", random = 200_000 }]\n\
         [[image]]\nname = \"a:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"a\"]\n\
         [[image]]\nname = \"b:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"b\"]\n",
    );
    let registry = TestRegistry::start(content);
    let place = Place::new();
    let (a, b) = (registry.reference("a:1"), registry.reference("b:1"));
    place.bake("one", "", &a).expect(0);
    place.bake("two", "", &b).expect(0);
    assert!(!place.cache().join("claims").exists(), "no claim leaves its directory behind");
    let pruned = |arguments: &str| -> Value { place.care(&format!("prune --json {arguments}")).expect(0).last_json() };
    assert_eq!(pruned("--max-size 0B")["blobs"], 0, "what was just used stays");
    age(&place.files("blobs"), 40);
    age(&place.files("used"), 40);
    // Used again, by a run that only read.
    place.bake("three", "", &a).expect(0);
    assert_eq!(pruned("--unused 30d --dry-run")["blobs"], 3);
    assert_eq!(place.files("blobs").len(), 6);
    assert_eq!(pruned("--unused 30d")["blobs"], 3);
    assert_eq!(place.files("blobs").len(), 3);
    registry.asked();
    place.bake("four", "", &a).expect(0);
    assert_eq!(got(&registry.asked()).len(), 0, "it was used");
    // What a writer left that was killed, a long time ago and just now.
    let unnamed = ["blobs/sha256/0f#1", "claims/sha256/0f/0#12", "used/x#3"].map(|key| place.cache().join(key));
    for file in &unnamed {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "part").unwrap();
    }
    let theirs = place.cache().join("notes#1");
    fs::write(&theirs, "somebody else's").unwrap();
    age(&unnamed[..2], 1);
    age(std::slice::from_ref(&theirs), 1);
    assert_eq!(pruned("--unused 30d --dry-run")["unnamed"], 2);
    assert_eq!(pruned("--unused 30d")["unnamed"], 2);
    assert_eq!(unnamed.map(|file| file.exists()), [false, false, true]);
    assert!(theirs.exists());
    // By size: what was used longest ago goes first, and a claim keeps what it is about.
    place.bake("five", "", &b).expect(0);
    age(&place.files("blobs"), 2);
    age(&place.files("used"), 2);
    let largest = place.files("blobs").into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let claim = place.cache().join("claims/sha256").join(largest.file_name().unwrap());
    fs::create_dir_all(&claim).unwrap();
    fs::write(claim.join("0"), "somebody's").unwrap();
    let left = pruned("--max-size 400KiB");
    assert!(left["kept_bytes"].as_u64().unwrap() <= 400 << 10, "{left}");
    assert!(largest.exists());
    // While another one bakes.
    fs::remove_dir_all(claim).unwrap();
    for round in 0..5 {
        let root = format!("round{round}");
        let arguments = format!("bake --platform linux/amd64 --cache {} {a} {b}", place.url());
        let baking = crate::support::prebake::start(&place.root(&root), &arguments);
        age(&place.files("blobs"), 2);
        age(&place.files("used"), 2);
        pruned("--max-size 0B");
        Run::from(baking.wait_with_output().unwrap()).expect(0);
        sound(&place.root(&root), 2);
    }
}

#[test]
fn what_is_no_cache_is_left_alone() {
    let place = Place::new();
    for arguments in ["stats", "check --remove", "prune --unused 30d"] {
        assert!(place.care(arguments).expect(3).stderr.contains("there is no cache at file:///"), "{arguments}");
        assert!(!place.cache().exists());
    }
    // An OCI layout, in which blobs are found by their digests too.
    write_layout(&app(), "registry.invalid/", &[], &place.cache());
    let there = place.files("blobs");
    age(&there, 40);
    for arguments in ["stats", "check --remove", "prune --unused 30d", "prune --max-size 0B"] {
        assert!(place.care(arguments).expect(3).stderr.contains("there is no cache at file:///"), "{arguments}");
    }
    fs::write(place.cache().join("prebake-cache"), "9\n").unwrap();
    assert!(place.care("prune --unused 30d").expect(2).stderr.contains("of version \"9\""));
    assert_eq!(place.files("blobs").len(), there.len());
}

#[test]
fn a_cache_is_warmed_without_a_root() {
    let registry = TestRegistry::start(app());
    let place = Place::new();
    let name = registry.reference("app:1");
    let warm = |more: &str| place.care(&format!("warm --json --platform linux/amd64 {more} {name}"));
    let first = warm("").expect(0).last_json();
    assert_eq!(
        (&first["fetched_blobs"], &first["present_blobs"]),
        (&2.into(), &0.into()),
        "documents go by themselves"
    );
    assert_eq!(first["cache"]["stored"], 4);
    let second = warm("").expect(0).last_json();
    assert_eq!((&second["fetched_blobs"], &second["present_blobs"]), (&0.into(), &2.into()));
    let largest = place.files("blobs").into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    fs::write(&largest, "").unwrap();
    let third = warm("").expect(0).last_json();
    assert_eq!((&third["fetched_blobs"], &third["cache"]["wrong"]), (&1.into(), &1.into()));
    registry.asked();
    place.bake("root", "", &name).expect(0);
    assert_eq!(got(&registry.asked()).len(), 0);
    sound(&place.root("root"), 1);
    // By a bake.toml.
    fs::write(
        place.dir.path().join("bake.toml"),
        format!("images = [\"{name}\"]\n[cache]\nurl = \"{}\"\nrequired = true\nclaim-expiry = \"30s\"\n", place.url()),
    )
    .unwrap();
    let root = place.root("toml");
    let file = place.dir.path().join("bake.toml");
    let run = prebake(&root, &format!("bake --json --platform linux/amd64 -f {}", file.display())).expect(0);
    assert_eq!(run.last_json()["cache"]["hits"], 4);
    // In shares, by the lock.
    fs::remove_dir_all(place.cache()).unwrap();
    let text = format!("images = [\"{name}\"]\n[target]\nplatform = \"linux/amd64\"\n");
    fs::write(&file, text).unwrap();
    let lock = command().args(["lock", "--quiet", "-f"]).arg(&file).output().unwrap();
    assert!(lock.status.success());
    registry.asked();
    let mut fetched = 0;
    for shard in 1..=2 {
        let run = place.care(&format!("warm --json -f {} --locked --shard {shard}/2", file.display())).expect(0);
        let summary = run.last_json();
        assert_eq!((&summary["shard"], &summary["of"]), (&shard.into(), &2.into()));
        fetched += summary["fetched_blobs"].as_u64().unwrap();
    }
    assert_eq!(fetched, 2);
    assert!(got(&registry.asked()).values().all(|times| *times == 1));
    assert_eq!(place.files("blobs").len(), 4);
}
