//! A real docker-registry as pull-through mirror, beside the shared cache: what each asks of the registry behind it, as
//! docs/mirrors.md has it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ::prebake::fixture::paced;

use crate::peers::{Registry, run};
use crate::support::content::build;
use crate::support::prebake::{Run, blobs, prebake, start};
use crate::support::registry::{TestRegistry, respond};

const SMALL: &str = "[layer.a]\nfiles = [{ path = \"a\", random = 5000 }]\n[layer.b]\nfiles = [{ path = \"b\", random = 5000 }]\n\
    [[image]]\nname = \"one:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"a\"]\n\
    [[image]]\nname = \"other:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"a\", \"b\"]\n";
const LARGE: &str = "[layer.a]\nfiles = [{ path = \"a\", random = 1000000 }]\n\
    [[image]]\nname = \"large:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"a\"]\n";

/// The registry's mirror, and the arguments by which a bake finds it under `registry.invalid`.
fn mirror(dir: &Path, registry: &TestRegistry) -> (Registry, String) {
    let settings = format!("proxy: {{remoteurl: \"http://{}\"}}\n", registry.name());
    let mirror = Registry::serve(&dir.join("mirror"), &dir.join("mirror/data"), "", &settings);
    let hosts = dir.join("certs.d/registry.invalid");
    fs::create_dir_all(&hosts).unwrap();
    let toml = format!("server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n", mirror.name());
    fs::write(hosts.join("hosts.toml"), toml).unwrap();
    (mirror, format!("--hosts-dir {}", dir.join("certs.d").display()))
}

/// Requests by which bytes came, for blobs and for documents.
fn counted(registry: &TestRegistry) -> [usize; 2] {
    let asked = registry.asked();
    ["/blobs/", "/manifests/"]
        .map(|kind| asked.iter().filter(|line| line.starts_with("GET ") && line.contains(kind)).count())
}

/// Waits until a docker-registry has stored so many blobs, manifests among them, and so many of them as blobs of a repository, which comes
/// last: it does so behind the answers it gives.
fn stored(data: &Path, blobs: usize, linked: usize) {
    let deadline = Instant::now() + Duration::from_mins(1);
    let there = |dir: &str, pattern: &str| {
        let found = run(Command::new("find").arg(data.join("docker/registry/v2").join(dir)).args(["-path", pattern]));
        found.lines().count()
    };
    while there("blobs", "*/data") < blobs || there("repositories", "*/_layers/*/link") < linked {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn cold_and_warm() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let registry = TestRegistry::start(build(SMALL));
    let (_mirror, by_mirror) = mirror(dir, &registry);
    let by_cache = format!("--plain-http --cache file://{}/cache", dir.display());
    let name = registry.name();
    registry.asked();
    let mut roots = 0;
    let mut bake = |registry_name: &str, more: &str| {
        roots += 1;
        let root = dir.join(format!("root-{roots}"));
        prebake(&root, &format!("bake {more} {registry_name}/one:1 {registry_name}/other:1")).expect(0);
        prebake(&root, "check").expect(0);
        assert_eq!(blobs(&root).len(), 6);
        counted(&registry)
    };
    let cold = bake("registry.invalid", &by_mirror);
    stored(&dir.join("mirror/data"), 6, 4);
    let rows = [
        ("docker-registry, nothing there", cold),
        ("docker-registry, all there", bake("registry.invalid", &by_mirror)),
        ("the shared cache, nothing there", bake(&name, &by_cache)),
        ("the shared cache, all there", bake(&name, &by_cache)),
        ("neither", bake(&name, "--plain-http")),
    ];
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mirrors.md")).unwrap();
    for (way, [blobs, documents]) in rows {
        let row = format!("| {way} | {blobs} | {documents} |");
        assert!(page.lines().any(|line| line == row), "docs/mirrors.md has not: {row}\n{rows:?}");
    }
}

/// What four bakers that begin at once make a slow registry send.
#[test]
fn at_once() {
    const BAKERS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // The layer takes five seconds.
    let content = build(LARGE);
    let own = content.clone();
    let registry = TestRegistry::faulty(content, move |request| {
        let digest = request.uri().path().rsplit('/').next()?.parse().ok()?;
        let (_, bytes) = own.blobs.get(&digest).filter(|(_, bytes)| bytes.len() > 100_000)?;
        let length = [("content-length", &*bytes.len().to_string())];
        (request.method() == "GET").then(|| respond(200, &length, paced(bytes, 20_000, Duration::from_millis(100))))
    });
    let (_mirror, by_mirror) = mirror(dir, &registry);
    let by_cache = format!("--plain-http --cache file://{}/cache", dir.display());
    let all = |way: &str, registry_name: &str, more: &str| {
        registry.asked();
        let bakers: Vec<Child> = (0..BAKERS)
            .map(|baker| start(&dir.join(format!("{way}-{baker}")), &format!("bake {more} {registry_name}/large:1")))
            .collect();
        for baker in bakers {
            Run::from(baker.wait_with_output().unwrap()).expect(0);
        }
        // The layer's and the config's.
        counted(&registry)[0]
    };
    let (by_mirror, by_cache) =
        (all("mirror", "registry.invalid", &by_mirror), all("cache", registry.name().as_str(), &by_cache));
    eprintln!("{BAKERS} at once: {by_mirror} requests for blobs by docker-registry, {by_cache} by the shared cache");
    assert_eq!(by_cache, 2);
    assert!(by_mirror > 2, "docker-registry asks once now, and docs/mirrors.md says that it does not");
}
