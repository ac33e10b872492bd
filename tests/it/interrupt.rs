//! Whatever moment the end comes: the old state or the new one, and the next run goes on.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use prebake::fixture::Content;

use crate::support::content::build;
use crate::support::prebake::{Run, blobs, command, containerd_root, prebake, records};
use crate::support::registry::TestRegistry;
use crate::support::rng::Rng;

/// Three images, some layers shared, about 6 MB.
fn images() -> Content {
    let layers: Vec<String> = (0..6)
        .map(|i| format!("[layer.l{i}]\nfiles = [{{ path = \"f\", random = {} }}]\n", 400_000 + i * 250_000))
        .collect();
    let image = |name: &str, layers: &str| {
        format!("[[image]]\nname = \"{name}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [{layers}]\n")
    };
    build(&format!(
        "{}{}{}{}",
        layers.concat(),
        image("a", r#""l0", "l1""#),
        image("b", r#""l0", "l2", "l3""#),
        image("c", r#""l1", "l4", "l5""#)
    ))
}

/// A registry that takes a while for every layer.
fn slow_registry(pause: Duration) -> TestRegistry {
    TestRegistry::slow(images(), 50_000, pause)
}

fn bake(root: &Path, registry: &TestRegistry) -> Child {
    let mut bake = command();
    bake.args(["bake", "--platform", "linux/amd64", "--concurrency", "2", "--root"]).arg(root);
    bake.args(["a:1", "b:1", "c:1"].map(|name| registry.reference(name)));
    bake.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Paths asked of the registry that end in one of these digests.
fn asked_again(registry: &TestRegistry, whole: &HashSet<String>) -> Vec<String> {
    registry
        .asked()
        .into_iter()
        .filter(|path| path.rsplit_once(':').is_some_and(|(_, hex)| whole.contains(hex)))
        .collect()
}

#[test]
fn killed_at_twenty_random_moments() {
    let registry = slow_registry(Duration::from_millis(4));
    let kills: u64 = std::env::var("PREBAKE_KILLS").map_or(20, |n| n.parse().unwrap());
    let mut rng = Rng::new(kills);
    let mut partly: u64 = 0;
    for _ in 0..kills {
        let root = tempfile::tempdir().unwrap();
        let mut child = bake(root.path(), &registry);
        std::thread::sleep(Duration::from_millis(rng.next() % 450));
        child.kill().unwrap();
        child.wait().unwrap();
        registry.asked();
        let whole: HashSet<String> = blobs(root.path()).into_keys().collect();
        partly += u64::from(!whole.is_empty() && records(root.path()).is_empty());
        // A kill may also come in the middle of a commit: what is there must be sound at any moment.
        if containerd_root(root.path()).exists() {
            prebake(root.path(), "check").expect(0);
        }
        Run::from(bake(root.path(), &registry).wait_with_output().unwrap()).expect(0);
        assert_eq!(asked_again(&registry, &whole), Vec::<String>::new(), "fetched twice");
        prebake(root.path(), "check").expect(0);
        assert_eq!(prebake(root.path(), "images --json").expect(0).stdout.lines().count(), 9);
    }
    assert!(partly >= kills / 4, "only {partly} of the kills came in the middle");
}

#[test]
fn whole_but_not_in_place_is_not_fetched_again() {
    let registry = TestRegistry::start(images());
    let root = tempfile::tempdir().unwrap();
    Run::from(bake(root.path(), &registry).wait_with_output().unwrap()).expect(0);
    registry.asked();
    // As if the kill had come between the last byte of a layer and its rename.
    let content = images();
    let (digest, (_, bytes)) = content.blobs.iter().max_by_key(|(_, (_, bytes))| bytes.len()).unwrap();
    std::fs::remove_file(crate::support::prebake::blobs_dir(root.path()).join(digest.hex())).unwrap();
    let reference = format!("k8s.io/1/layer-{digest}");
    let ingest = containerd_root(root.path())
        .join("io.containerd.content.v1.content/ingest")
        .join(prebake::oci::Digest::of(reference.as_bytes()).hex());
    std::fs::create_dir(&ingest).unwrap();
    std::fs::write(ingest.join("ref"), reference).unwrap();
    std::fs::write(ingest.join("data"), bytes).unwrap();
    Run::from(bake(root.path(), &registry).wait_with_output().unwrap()).expect(0);
    assert_eq!(asked_again(&registry, &HashSet::from([digest.hex().to_owned()])), Vec::<String>::new());
    assert!(!ingest.exists());
    prebake(root.path(), "check").expect(0);
}

#[test]
fn ctrl_c_keeps_what_is_finished() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let registry = slow_registry(Duration::from_millis(15));
        let root = tempfile::tempdir().unwrap();
        let child = bake(root.path(), &registry);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let large = |root: &Path| blobs(root).values().filter(|bytes| bytes.len() > 100_000).count();
        while large(root.path()) < 2 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(
            std::process::Command::new("kill")
                .args(["-s", signal, &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        let run = Run::from(child.wait_with_output().unwrap()).expect(code);
        assert!(run.stdout.contains(" failed; "), "{}", run.stdout);
        assert!(run.stderr.contains("stopped before it was complete"), "{}", run.stderr);
        assert_eq!(records(root.path()), Vec::<String>::new());
        let ingest = containerd_root(root.path()).join("io.containerd.content.v1.content/ingest");
        assert_eq!(std::fs::read_dir(ingest).unwrap().count(), 0);
        registry.asked();
        let whole: HashSet<String> = blobs(root.path()).into_keys().collect();
        assert!(large(root.path()) >= 2);
        Run::from(bake(root.path(), &registry).wait_with_output().unwrap()).expect(0);
        assert_eq!(asked_again(&registry, &whole), Vec::<String>::new(), "fetched twice");
    }
}
