//! The shared cache in servers that others wrote: what many bakers come to, and what goes wrong on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::prebake::fixture::Content;
use serde_json::Value;

use crate::peers::{Containerd, free_address};
use crate::relay::{Asked, Deed, Relay};
use crate::stores::{Kind, Store, reaches};
use crate::support::content::{build, demo};
use crate::support::prebake::{Run, blobs, command, containerd_root, prebake, records};
use crate::support::registry::TestRegistry;

const LINE: &str = "hello from an image that prebake baked";
/// One layer that is stored in parts, and some that are not.
const LARGE: &str = "[layer.a]\nfiles = [{ path = \"a\", random = 22000000 }]\n[layer.b]\nfiles = [{ path = \"b\", random = 300000 }]\n\
    [layer.c]\nfiles = [{ path = \"c\", random = 30000 }]\n[[image]]\nname = \"large:1\"\n\
    platforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"a\", \"b\", \"c\"]\n";

/// A registry with the demo's hello and a large image, and a root to which they were baked without a cache.
struct Site {
    work: tempfile::TempDir,
    registry: Counting,
    images: String,
    plain: PathBuf,
}

impl Site {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let mut content: Content = demo();
        let Content { blobs, tags } = build(LARGE);
        content.blobs.extend(blobs);
        content.tags.extend(tags);
        let registry = Counting::start(content);
        let name = registry.registry.name();
        let images = format!("{name}/demo/hello:1.0 {name}/large:1");
        let plain = work.path().join("plain");
        prebake(&plain, &format!("bake {images}")).expect(0);
        registry.fetched();
        Self { work, registry, images, plain }
    }

    fn dir(&self) -> &Path {
        self.work.path()
    }

    /// Bakes by way of a cache into an empty root, which is right in the end.
    fn bake(&self, address: &str, cache: &str) -> Baked {
        let root = self.dir().join("root");
        let _ = fs::remove_dir_all(&root);
        let run = ours(address, &format!("bake --json --root {} --cache {cache} {}", root.display(), self.images));
        let run = run.expect(0);
        prebake(&root, "check").expect(0);
        assert!(blobs(&root) == blobs(&self.plain), "other blobs than without a cache");
        assert_eq!(records(&root), records(&self.plain));
        let usage = run.last_json()["cache"].clone();
        Baked { run, root, usage, fetched: self.registry.fetched() }
    }
}

/// What a bake came to.
struct Baked {
    run: Run,
    root: PathBuf,
    usage: Value,
    /// What its registry was asked for.
    fetched: Fetched,
}

impl Baked {
    /// What it said of its cache, by names.
    fn troubles(&self) -> Vec<String> {
        let events = self.run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events
            .filter(|event| event["event"] == "cache")
            .map(|event| event["trouble"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Runs `prebake`, which reaches a store at an address.
fn ours(address: &str, arguments: &str) -> Run {
    reaches(&mut command(), address).args(arguments.split_whitespace()).output().unwrap().into()
}

/// Digests that a registry was asked for, and how often.
type Fetched = BTreeMap<String, usize>;

/// A registry that counts by what digest it was asked for something's first bytes: the others' requests are parts of one.
struct Counting {
    registry: TestRegistry,
    fetched: Arc<Mutex<Fetched>>,
}

impl Counting {
    fn start(content: Content) -> Self {
        let fetched: Arc<Mutex<Fetched>> = Arc::default();
        let counted = fetched.clone();
        let registry = TestRegistry::faulty(content, move |request| {
            let digest = request.uri().path().rsplit('/').next().filter(|last| last.starts_with("sha256:"));
            let range = request.headers().get("range").map(|range| range.to_str().unwrap());
            if let Some(digest) = digest
                && request.method() == "GET"
                && range.is_none_or(|range| range.starts_with("bytes=0-"))
            {
                *counted.lock().unwrap().entry(digest.to_owned()).or_default() += 1;
            }
            None
        });
        Self { registry, fetched }
    }

    /// Since the last call.
    fn fetched(&self) -> Fetched {
        std::mem::take(&mut *self.fetched.lock().unwrap())
    }
}

fn stats(address: &str, cache: &str) -> Value {
    ours(address, &format!("cache stats --json --cache {cache}")).expect(0).last_json()
}

/// Nothing wrong is stored, and nobody is at it.
#[track_caller]
fn sound(address: &str, cache: &str) -> u64 {
    ours(address, &format!("cache check --cache {cache}")).expect(0);
    let stats = stats(address, cache);
    assert_eq!((stats["claims"].as_u64(), stats["unknown"].as_u64()), (Some(0), Some(0)), "{stats}");
    stats["blobs"].as_u64().unwrap()
}

fn filled_read_and_mended(kind: Kind) {
    let site = Site::new();
    let store = Store::start(kind, site.dir());
    let (at, cache) = (store.address(), &*store.cache("team/blobs"));
    let all = blobs(&site.plain);
    let warmed = ours(at, &format!("cache warm --json --cache {cache} {}", site.images)).expect(0).last_json();
    assert_eq!(warmed["cache"]["stored"].as_u64(), Some(all.len() as u64), "{warmed}");
    let once = site.registry.fetched();
    assert!(once.len() >= all.len() && once.values().all(|times| *times == 1), "{once:?}");
    let there = stats(at, cache);
    assert_eq!((there["blobs"].as_u64(), there["runs"].as_u64()), (Some(all.len() as u64), Some(1)), "{there}");
    assert!(there["largest"].as_u64().unwrap() > 20 << 20, "{there}");
    sound(at, cache);

    let baked = site.bake(at, cache);
    assert_eq!(baked.troubles(), [""; 0]);
    assert_eq!((baked.fetched, baked.usage["hits"].as_u64()), (BTreeMap::new(), Some(all.len() as u64)));
    let mut containerd = Containerd::start("2.1.9", &containerd_root(&baked.root), &site.dir().join("work"));
    let named: Vec<String> = containerd.ctr("images ls -q").lines().map(str::to_owned).collect();
    assert!(site.images.split(' ').all(|image| named.iter().any(|name| name == image)), "{named:?}");
    let hello = site.registry.registry.reference("demo/hello:1.0");
    assert_eq!(containerd.run(&hello, "hello", &[]).trim(), LINE);
    containerd.stop();
    drop(containerd);

    // Another size is seen at once, other bytes when they were read.
    for wrong in [b"something else".to_vec(), vec![7; 30_000_000]] {
        let (digest, bytes) = all.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
        let wrong = &wrong[..wrong.len().min(bytes.len())];
        store.overwrite(&format!("team/blobs/blobs/sha256/{digest}"), wrong);
        let checked = ours(at, &format!("cache check --cache {cache}")).expect(6);
        assert!(checked.stdout.contains(&format!("sha256:{digest} is not what is stored under it")), "{checked:?}");
        let baked = site.bake(at, cache);
        assert_eq!(baked.troubles(), ["wrong"]);
        assert_eq!(baked.fetched, BTreeMap::from([(format!("sha256:{digest}"), 1)]));
        assert_eq!(sound(at, cache), all.len() as u64);
    }

    let pruned = ours(at, &format!("cache prune --json --unused 1d --cache {cache}")).expect(0).last_json();
    assert_eq!((pruned["blobs"].as_u64(), pruned["kept"].as_u64()), (Some(0), Some(all.len() as u64)), "{pruned}");
    if kind == Kind::S3sFs {
        store.age(3);
        let pruned = ours(at, &format!("cache prune --json --unused 2d --cache {cache}")).expect(0).last_json();
        assert_eq!((pruned["blobs"].as_u64(), pruned["kept"].as_u64()), (Some(all.len() as u64), Some(0)), "{pruned}");
        let baked = site.bake(at, cache);
        assert_eq!(baked.usage["stored"].as_u64(), Some(all.len() as u64));
    }
    sound(at, cache);
}

#[test]
fn filled_read_and_mended_in_moto() {
    filled_read_and_mended(Kind::Moto);
}

#[test]
fn filled_read_and_mended_in_s3s_fs() {
    filled_read_and_mended(Kind::S3sFs);
}

#[test]
fn filled_read_and_mended_in_azurite() {
    filled_read_and_mended(Kind::Azurite);
}

#[test]
fn filled_read_and_mended_in_moto_for_google() {
    filled_read_and_mended(Kind::MotoForGoogle);
}

#[test]
fn a_store_that_is_no_use_is_left_unless_it_is_required() {
    let site = Site::new();
    let start = |kind: Kind| Store::start(kind, &site.dir().join(format!("{kind:?}")));
    let (moto, s3s_fs, azurite, nobody) = (start(Kind::Moto), start(Kind::S3sFs), start(Kind::Azurite), free_address());
    let other_key = "YW5vdGhlcg==";
    for (at, cache, (name, value), code, word) in [
        (moto.address(), "s3://nothing", ("", ""), 1, "NoSuchBucket"),
        (s3s_fs.address(), "s3://bakes", ("AWS_ACCESS_KEY_ID", "another"), 4, "NotSignedUp"),
        (s3s_fs.address(), "s3://bakes", ("AWS_SECRET_ACCESS_KEY", "another"), 4, "SignatureDoesNotMatch"),
        (moto.address(), "gs://nothing", ("", ""), 1, "NoSuchBucket"),
        (azurite.address(), "az://nothing", ("", ""), 1, "ContainerNotFound"),
        (azurite.address(), "az://bakes", ("AZURE_STORAGE_ACCOUNT_KEY", other_key), 4, "AuthorizationFailure"),
        (&*nobody, "s3://bakes", ("", ""), 1, "Connection refused"),
        (&*nobody, "az://bakes", ("", ""), 1, "Connection refused"),
        (&*nobody, "gs://bakes", ("", ""), 1, "Connection refused"),
    ] {
        let with = |more: &str| {
            let root = site.dir().join("root");
            let _ = fs::remove_dir_all(&root);
            let arguments = format!("bake --root {} --cache {cache} {more} {}", root.display(), site.images);
            let mut command = command();
            let command = reaches(&mut command, at).args(arguments.split_whitespace());
            command.envs((!name.is_empty()).then_some((name, value)));
            (Run::from(command.output().unwrap()), root)
        };
        let (free, root) = with("");
        let free = free.expect(0);
        assert_eq!(free.stderr.matches("going on without the cache: ").count(), 1, "{}", free.stderr);
        assert!(free.stderr.contains(word), "{word}: {}", free.stderr);
        assert!(blobs(&root) == blobs(&site.plain));
        site.registry.fetched();
        let required = with("--cache-required").0.expect(code);
        assert!(required.stderr.contains(word), "{word}: {}", required.stderr);
        assert_eq!(site.registry.fetched(), BTreeMap::new());
    }
}

#[test]
fn a_store_that_knows_no_conditional_writes() {
    let site = Site::new();
    let store = Store::start(Kind::Moto, site.dir());
    let relay = Relay::start(store.address(), |_| Deed::Header("if-none-match", ""));
    let (at, cache, all) = (relay.address(), &*store.cache("unconditional"), blobs(&site.plain).len() as u64);
    let first = site.bake(at, cache);
    assert_eq!((first.troubles(), first.usage["stored"].as_u64()), (vec!["unconditional".to_owned()], Some(all)));
    assert!(first.fetched.values().all(|times| *times == 1), "{:?}", first.fetched);
    let second = site.bake(at, cache);
    assert_eq!((second.troubles(), second.fetched), (vec!["unconditional".to_owned()], BTreeMap::new()));
    drop(relay);
    assert_eq!(sound(store.address(), cache), all);
}

/// Whether something happens for the first time.
fn is_first(seen: &Mutex<BTreeSet<String>>, asked: &Asked) -> bool {
    seen.lock().unwrap().insert(format!("{} {}", asked.method, asked.target))
}

type Does = Box<dyn Fn(&Asked) -> Deed + Send + Sync>;

const SLOW: &str = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
const QUOTA: &str = "<Error><Code>QuotaExceeded</Code><Message>The quota set has been exceeded.</Message></Error>";

#[test]
fn answers_that_are_cut_refused_or_lost() {
    let site = Site::new();
    let store = Store::start(Kind::Moto, site.dir());
    let all = blobs(&site.plain).len() as u64;
    let seen: Mutex<BTreeSet<String>> = Mutex::default();
    let slow_until: Mutex<Option<Instant>> = Mutex::default();
    // Three tries in a row take longer.
    let slow = move |_: &Asked| {
        let mut until = slow_until.lock().unwrap();
        let until = until.get_or_insert_with(|| Instant::now() + Duration::from_millis(200));
        if Instant::now() < *until { Deed::Answer(503, SLOW) } else { Deed::Pass }
    };
    let lost =
        move |asked: &Asked| if asked.method != "GET" && is_first(&seen, asked) { Deed::Lose } else { Deed::Pass };
    let of_blobs = |asked: &Asked| asked.method == "GET" && asked.target.contains("/blobs/");
    let cut_once =
        move |asked: &Asked| if of_blobs(asked) && asked.header("range").is_none() { Deed::Cut } else { Deed::Pass };
    let cut = move |asked: &Asked| if of_blobs(asked) { Deed::Cut } else { Deed::Pass };
    let cases: [(&str, Does); 4] =
        [("slow", Box::new(slow)), ("lost", Box::new(lost)), ("cut-once", Box::new(cut_once)), ("cut", Box::new(cut))];
    for (name, deed) in cases {
        let cache = &format!("s3://bakes/{name}");
        let relay = Relay::start(store.address(), deed);
        let first = site.bake(relay.address(), cache);
        assert!(first.fetched.values().all(|times| *times == 1), "{name}: {:?}", first.fetched);
        assert_eq!(
            (first.usage["waited"].as_u64(), first.troubles().len()),
            (Some(0), 0),
            "{name}: {first_usage}",
            first_usage = first.usage
        );
        let second = site.bake(relay.address(), cache);
        assert!(second.troubles().is_empty() || name == "cut", "{name}: {:?}", second.troubles());
        assert!(second.fetched.is_empty() || name == "cut", "{name}: {:?}", second.fetched);
        let root = site.dir().join("required");
        let required = format!("bake --root {} --cache {cache} --cache-required {}", root.display(), site.images);
        let required = ours(relay.address(), &required).expect(i32::from(name == "cut"));
        assert_eq!(
            required.stderr.contains("of the cache s3://bakes/cut failed"),
            name == "cut",
            "{}",
            required.stderr
        );
        let _ = fs::remove_dir_all(root);
        drop(relay);
        assert_eq!(sound(store.address(), cache), all, "{name}");
    }
}

#[test]
fn a_store_without_room_is_read() {
    let site = Site::new();
    let store = Store::start(Kind::Moto, site.dir());
    for (status, text) in [(507, ""), (403, QUOTA)] {
        let cache = &format!("s3://bakes/full-{status}");
        let refuse = move |asked: &Asked| {
            let writes = asked.method != "GET" && asked.method != "HEAD" && asked.target.contains("/blobs/");
            if writes { Deed::Answer(status, text) } else { Deed::Pass }
        };
        let relay = Relay::start(store.address(), refuse);
        let baked = site.bake(relay.address(), cache);
        assert_eq!(baked.troubles(), ["read-only"], "{status}");
        assert!(baked.fetched.values().all(|times| *times == 1), "{:?}", baked.fetched);
        assert_eq!(baked.usage["stored"], 0);
        let root = site.dir().join("required");
        let required = format!("bake --root {} --cache {cache} --cache-required {}", root.display(), site.images);
        ours(relay.address(), &required).expect(7);
        site.registry.fetched();
        let _ = fs::remove_dir_all(root);
        drop(relay);
        assert_eq!(sound(store.address(), cache), 0);
    }
}

#[test]
fn a_store_that_takes_nothing_large_or_too_slowly() {
    let site = Site::new();
    let store = Store::start(Kind::Moto, site.dir());
    let is_blob = |asked: &Asked| matches!(&*asked.method, "PUT" | "POST") && asked.target.contains("/blobs/");
    // As a proxy that limits the length of bodies.
    let relay =
        Relay::start(store.address(), move |asked| if is_blob(asked) { Deed::Answer(413, "") } else { Deed::Pass });
    let cache = "s3://bakes/small";
    assert_eq!(site.bake(relay.address(), cache).troubles(), ["not-stored", "read-only"]);
    let root = site.dir().join("required");
    let required = format!("bake --root {} --cache {cache} --cache-required {}", root.display(), site.images);
    let required = ours(relay.address(), &required).expect(1);
    assert!(required.stderr.contains("writing blobs/sha256/"), "{}", required.stderr);
    drop(relay);
    let is_part = |asked: &Asked| asked.method == "PUT" && asked.target.contains("partNumber=");
    let relay = Relay::start(store.address(), move |asked| if is_part(asked) { Deed::Hold } else { Deed::Pass });
    let warm = format!("cache warm --cache s3://bakes/slow {}", site.images);
    let warm = ours(relay.address(), &warm).expect(1);
    assert!(warm.stderr.contains("was not stored in the cache"), "{}", warm.stderr);
}

#[test]
fn bytes_that_change_on_the_way_are_nobodys() {
    let site = Site::new();
    let store = Store::start(Kind::Moto, site.dir());
    let cache = "s3://bakes/changed";
    site.bake(store.address(), cache);
    let change = |asked: &Asked| {
        if asked.method == "GET" && asked.target.contains("/blobs/") { Deed::Change } else { Deed::Pass }
    };
    let relay = Relay::start(store.address(), change);
    let baked = site.bake(relay.address(), cache);
    assert!(
        !baked.troubles().is_empty() && baked.troubles().iter().all(|trouble| trouble == "wrong"),
        "{:?}",
        baked.troubles()
    );
    drop(relay);
    assert_eq!(sound(store.address(), cache), blobs(&site.plain).len() as u64);
    assert_eq!(site.bake(store.address(), cache).fetched, BTreeMap::new());
}

/// Images that have many small layers.
fn many(images: usize, layers: usize) -> Content {
    let spec: String = (0..images)
        .map(|image| {
            let name = |layer| format!("l{image}-{layer}");
            let of = |layer| format!("[layer.{0}]\nfiles = [{{ path = \"{0}\", random = 2000 }}]\n", name(layer));
            let names: Vec<String> = (0..layers).map(|layer| format!("\"{}\"", name(layer))).collect();
            let made: String = (0..layers).map(of).collect();
            format!(
                "{made}[[image]]\nname = \"i{image}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [{}]\n",
                names.join(", ")
            )
        })
        .collect();
    build(&spec)
}

/// Bakers that begin at once ask the registry for everything once, but for what those who are killed had begun.
fn bakers_at_once(kind: Kind, bakers: usize, killed: usize) {
    let work = tempfile::tempdir().unwrap();
    let store = Store::start(kind, work.path());
    let cache = &*store.cache("many");
    let content = many(20, 10);
    let registry = Counting::start(content.clone());
    let images: Vec<String> = (0..20).map(|image| registry.registry.reference(&format!("i{image}:1"))).collect();
    let start = |baker: usize| {
        let mut command = command();
        reaches(&mut command, store.address()).args(["bake", "--platform", "linux/amd64", "--json", "--root"]);
        command.arg(work.path().join(format!("root-{baker}")));
        command.args(["--cache", cache, "--cache-claim-expiry", "2s"]).args(&images);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let started = Instant::now();
    let mut running: Vec<_> = (0..bakers).map(start).collect();
    // In the middle of it.
    while registry.fetched.lock().unwrap().len() < 60 {
        assert!(started.elapsed() < Duration::from_mins(2));
        std::thread::sleep(Duration::from_millis(20));
    }
    for (baker, child) in running.iter_mut().enumerate().take(killed) {
        child.kill().unwrap();
        child.wait().unwrap();
        *child = start(baker);
    }
    let usages: Vec<Value> =
        running.into_iter().map(|child| Run::from(child.wait_with_output().unwrap()).expect(0).last_json()).collect();
    let times = registry.fetched();
    let (unique, asked) = (times.len(), times.values().sum::<usize>());
    let sum = |what: &str| usages.iter().map(|summary| summary["cache"][what].as_u64().unwrap()).sum::<u64>();
    eprintln!(
        "{bakers} bakers, {unique} blobs and documents, {asked} requests, {:?}; {} reads, {} writes, {} waited, {} failures",
        started.elapsed(),
        sum("reads"),
        sum("writes"),
        sum("waited"),
        sum("failures")
    );
    assert_eq!(unique, content.blobs.len());
    assert!(asked * 100 <= unique * 105, "{asked} requests for {unique}");
    assert_eq!(sum("failures"), 0);
    for baker in 0..bakers {
        let root = work.path().join(format!("root-{baker}"));
        prebake(&root, "check").expect(0);
        assert_eq!(blobs(&root).len(), content.blobs.len());
    }
    ours(store.address(), &format!("cache check --cache {cache}")).expect(0);
    // What those who were killed had claimed is there, so that nobody waits for them.
    for claim in store.keys("many/claims/") {
        let digest = claim.split('/').nth(3).unwrap();
        assert_eq!(store.keys(&format!("many/blobs/sha256/{digest}")).len(), 1, "{claim}");
    }
}

#[test]
fn many_bakers_ask_the_registry_once() {
    bakers_at_once(Kind::S3sFs, 20, 4);
}

#[test]
fn bakers_ask_the_registry_once_by_way_of_azurite() {
    bakers_at_once(Kind::Azurite, 4, 1);
}

#[test]
fn bakers_ask_the_registry_once_by_way_of_moto_for_google() {
    bakers_at_once(Kind::MotoForGoogle, 2, 0);
}
