//! Sixty terabytes in shares: 10,000 images with 120,000 blobs, mirrored by 1 to 64 machines. `cargo bench --bench fleet` prints a table.
//!
//! Times are simulated, from rates that were measured on one machine; how the work is split is not: a real lock of that size is
//! written, read and split by a process of its own, whose time and memory are measured and held to limits.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are made up"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prebake::oci::{Algorithm, Descriptor, Digest, media_type};
use prebake::spec::{Lock, LockedImage, LockedPlatform, Split};

const IMAGES: usize = 10_000;
const BLOBS: usize = 120_000;
const BYTES: f64 = 60e12;
/// The largest layer.
const MOST: f64 = 20e9;
/// Layers that images share, and how many of them an image has.
const SHARED: usize = 10_000;
const SHARED_EACH: usize = 3;

/// Bytes a second that one prebake moves from registry to disk: 900 MiB in 1.31 s (README.md here, "Fetching").
const MACHINE: f64 = 900.0 * 1024.0 * 1024.0 / 1.31;
/// Bytes a second that one core of docker-registry 2.8.2 gives out: 900 MiB in 0.5 s of its CPU time (the same place).
const REGISTRY_CORE: f64 = 900.0 * 1024.0 * 1024.0 / 0.5;
/// Cores that the registry has.
const REGISTRY_CORES: f64 = 16.0;

/// What a shared cache in S3 is asked for a blob that it does not have, and then has (docs/cache.md; `it::cache` counts them):
/// is it there, twice; whose is the claim; a claim, which is removed, and the blob; of more than a part, one request more and one a part.
const READS_A_MISS: u64 = 3;
const WRITES_A_MISS: u64 = 2;
const PART: u64 = 5 << 20;
const MOST_PARTS: u64 = 9_000;
/// And for one that it has; of a document one, and one more for one that it does not have.
const READS_A_HIT: u64 = 2;
const READS_A_DOCUMENT: u64 = 1;
/// What a run asks besides: a write that says that there is a cache and one that notes what was used, and what is there.
const WRITES_A_RUN: u64 = 2;
const READS_A_RUN: u64 = 1;
/// Dollars for a request that writes, for one that reads, and for a gigabyte a month, of S3 Standard in us-east-1 in 2026; removals are free.
const WRITE: f64 = 0.005 / 1000.0;
const READ: f64 = 0.0004 / 1000.0;
const GIGABYTE_MONTH: f64 = 0.023;
/// A night: so many bakers bake the same so many images.
const BAKERS: u64 = 20;
const BAKED: usize = 70;

const MAX_LONGEST: f64 = 1.1;
/// The exit code of what needs more room than there is.
const NO_SPACE: i32 = 7;
const MAX_TIME: Duration = Duration::from_secs(2);
const MAX_MEMORY_KIB: u64 = 300 << 10;

/// Numbers of splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn digest(&mut self) -> Digest {
        let raw: Vec<u8> = (0..4).flat_map(|_| self.next().to_be_bytes()).collect();
        Digest::from_raw(Algorithm::Sha256, &raw).unwrap()
    }

    /// Of a heavy tail (Pareto's).
    fn heavy(&mut self) -> f64 {
        (((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64).powf(-1.0 / 1.2)
    }
}

/// Layers of [`BYTES`] together.
fn layers(rng: &mut Rng, count: usize) -> Vec<Descriptor> {
    let raw: Vec<f64> = (0..count).map(|_| rng.heavy()).collect();
    let mut scale = BYTES / raw.iter().sum::<f64>();
    for _ in 0..20 {
        scale *= BYTES / raw.iter().map(|size| (size * scale).min(MOST)).sum::<f64>();
    }
    let kind = format!("{}+gzip", media_type::OCI_LAYER);
    raw.iter().map(|size| Descriptor::new(&*kind, rng.digest(), (size * scale).min(MOST) as u64 + 1)).collect()
}

fn lock() -> Lock {
    let mut rng = Rng(1);
    let layers = layers(&mut rng, BLOBS - IMAGES);
    let (shared, own) = layers.split_at(SHARED);
    let image = |n: usize| {
        let mut of_it: Vec<&Descriptor> = (0..SHARED_EACH).map(|_| &shared[rng.next() as usize % SHARED]).collect();
        of_it.extend(own.iter().skip(n).step_by(IMAGES));
        let platform = LockedPlatform {
            documents: vec![Descriptor::new(media_type::OCI_MANIFEST, rng.digest(), 2500)],
            config: Descriptor::new(media_type::OCI_CONFIG, rng.digest(), 6000),
            layers: of_it.into_iter().map(|layer| (layer.clone(), Some(rng.digest()))).collect(),
        };
        let target = Descriptor::new(media_type::OCI_INDEX, rng.digest(), 900);
        let platforms = BTreeMap::from([("linux/amd64".to_owned(), platform)]);
        (
            format!("registry.example/team{}/app{n}:1.0", n % 50),
            Arc::new(LockedImage { target, platforms, documents: Vec::new(), blobs: Vec::new() }),
        )
    };
    Lock { images: (0..IMAGES).map(image).collect() }
}

/// What a shared cache is asked, and what that costs.
fn cache(lock: &Lock) {
    let writes = |size: u64| match size {
        0..=PART => WRITES_A_MISS,
        size => WRITES_A_MISS + 1 + size.div_ceil((size / MOST_PARTS + 1).max(PART)),
    };
    let of = |images: usize| -> (BTreeMap<&Digest, u64>, BTreeMap<&Digest, u64>) {
        let platforms =
            lock.images.values().take(images).flat_map(|image| image.platforms.values().map(move |p| (image, p)));
        let (mut documents, mut layers) = (BTreeMap::new(), BTreeMap::new());
        for (image, platform) in platforms {
            let read = platform.documents.iter().chain([&image.target, &platform.config]);
            documents.extend(read.map(|document| (&document.digest, document.size)));
            layers.extend(platform.layers.iter().map(|(layer, _)| (&layer.digest, layer.size)));
        }
        (documents, layers)
    };
    let dollars = |writes: u64, reads: u64| writes as f64 * WRITE + reads as f64 * READ;
    // Of so many runs, one misses; each reads all documents, and its share of the layers, or all of them.
    let asked = |images: usize, runs: u64, layers_each: bool| {
        let (documents, layers) = of(images);
        let (few, many) = (documents.len() as u64, layers.len() as u64);
        let written: u64 = documents.values().chain(layers.values()).map(|size| writes(*size)).sum();
        let missed = few * (READS_A_MISS + READS_A_DOCUMENT) + many * READS_A_MISS;
        let hit = few * READS_A_DOCUMENT + if layers_each { many * READS_A_HIT } else { 0 };
        let bytes: u64 = documents.values().chain(layers.values()).sum();
        (written + runs * WRITES_A_RUN, missed + (runs - 1) * hit + runs * READS_A_RUN, bytes)
    };
    for shards in [1, 64] {
        let (writes, reads, bytes) = asked(IMAGES, shards, false);
        let (once, month) = (dollars(writes, reads), bytes as f64 / 1e9 * GIGABYTE_MONTH);
        println!(
            "filling a cache, {shards} shards: {writes} writes, {reads} reads, {once:.2} dollars; {month:.0} a month to keep it"
        );
    }
    let (writes, reads, bytes) = asked(BAKED, BAKERS, true);
    println!(
        "{BAKERS} bakers, {BAKED} images: {:.2} TB out of the registry without a cache, {:.2} with one, which is asked for {writes} writes, {reads} reads, {:.2} dollars",
        (bytes * BAKERS) as f64 / 1e12,
        bytes as f64 / 1e12,
        dollars(writes, reads),
    );
}

/// The most memory that a process had so far, in KiB.
fn peak(process: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().trim_end_matches(" kB").parse().ok()
}

/// What `prebake plan --locked` of all of it takes.
fn plan(dir: &Path, lock: &Lock) {
    let names: Vec<String> = lock.images.keys().map(|name| format!("{name:?}")).collect();
    fs::write(
        dir.join("bake.toml"),
        format!("images = [{}]\n[target]\nplatform = \"linux/amd64\"\n", names.join(", ")),
    )
    .unwrap();
    let started = Instant::now();
    let mut plan = Command::new(env!("CARGO_BIN_EXE_prebake"))
        .current_dir(dir)
        .args(["plan", "--root", "root", "-f", "bake.toml", "--locked", "--json"])
        .stdout(fs::File::create(dir.join("plan")).unwrap())
        .spawn()
        .unwrap();
    let mut most = 0;
    let status = loop {
        most = most.max(peak(&plan.id().to_string()).unwrap_or_default());
        if let Some(status) = plan.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let took = started.elapsed();
    println!("plan {} ms, peak {} MiB", took.as_millis(), most >> 10);
    // It says so, and that they do not fit.
    assert_eq!(status.code(), Some(NO_SPACE));
    assert_eq!(fs::read_to_string(dir.join("plan")).unwrap().lines().count(), IMAGES + 1);
    assert!(took <= MAX_TIME, "{took:?}");
    assert!(most <= MAX_MEMORY_KIB, "{most} KiB");
}

/// Reads a lock and splits it; in a process of its own.
fn split_file(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let started = Instant::now();
    let lock = Lock::parse(&text, "bake.lock").unwrap();
    let parsed = started.elapsed();
    drop(text);
    let started = Instant::now();
    let split = Split::of_lock(64, &lock);
    let took = started.elapsed();
    let peak = peak("self").unwrap();
    let first = lock.images.values().next().unwrap().platforms.values().next().unwrap().config.digest.clone();
    println!("parse {} ms, split {} ms, peak {} MiB", parsed.as_millis(), took.as_millis(), peak >> 10);
    assert!(split.shard_of(&first) <= 64);
    assert!(parsed + took <= MAX_TIME, "{parsed:?} and {took:?}");
    assert!(peak <= MAX_MEMORY_KIB, "{peak} KiB");
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "split") {
        return split_file(Path::new(&arguments[at + 1]));
    }
    let lock = lock();
    let mut sizes: BTreeMap<&Digest, u64> = BTreeMap::new();
    for locked in lock.images.values().flat_map(|image| image.platforms.values()) {
        sizes.insert(&locked.config.digest, locked.config.size);
        sizes.extend(locked.layers.iter().map(|(layer, _)| (&layer.digest, layer.size)));
    }
    let total: u64 = sizes.values().sum();
    println!("{} images, {} blobs in use, {:.1} TB", lock.images.len(), sizes.len(), total as f64 / 1e12);
    println!(
        "| shards | longest / mean | hours | TB out of the registry | blobs that one more moves |\n|---|---|---|---|---|"
    );
    for of in [1, 2, 4, 8, 16, 32, 64] {
        let (split, more) = (Split::of_lock(of, &lock), Split::of_lock(of + 1, &lock));
        let mut loads = vec![0_u64; of.into()];
        for (digest, size) in &sizes {
            loads[usize::from(split.shard_of(digest)) - 1] += size;
        }
        let longest = *loads.iter().max().unwrap() as f64;
        let ratio = longest * f64::from(of) / total as f64;
        let out: u64 = loads.iter().sum();
        let seconds = (longest / MACHINE).max(out as f64 / (REGISTRY_CORE * REGISTRY_CORES));
        let moved = sizes.keys().filter(|digest| split.shard_of(digest) != more.shard_of(digest)).count();
        let share = 100.0 * moved as f64 / sizes.len() as f64;
        println!("| {of} | {ratio:.3} | {:.2} | {:.1} | {share:.1} % |", seconds / 3600.0, out as f64 / 1e12);
        assert!(ratio <= MAX_LONGEST && out == total);
    }
    cache(&lock);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bake.lock");
    fs::write(&path, lock.to_string()).unwrap();
    println!("a lock of {} MiB:", fs::metadata(&path).unwrap().len() >> 20);
    let status = Command::new(std::env::current_exe().unwrap()).arg("split").arg(&path).status().unwrap();
    assert!(status.success());
    plan(dir.path(), &lock);
}
