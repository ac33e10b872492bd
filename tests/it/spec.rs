//! A bake as a file: `bake.toml`, its lock, its plan, and other people's lists.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use prebake::fixture::Content;
use serde_json::Value;

use crate::support::content::build;
use crate::support::prebake::{Run, blobs, command, prebake, records};
use crate::support::registry::TestRegistry;

/// Three images on one base.
fn images() -> Content {
    let layer = |n: u32, size: u32| format!("[layer.l{n}]\nfiles = [{{ path = \"f{n}\", random = {size} }}]\n");
    let image = |name: &str, layers: &str| {
        format!("[[image]]\nname = \"{name}:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [{layers}]\n")
    };
    build(&format!(
        "{}{}{}{}{}{}",
        layer(0, 100_000),
        layer(1, 400_000),
        layer(2, 20_000),
        image("base", r#""l0""#),
        image("large", r#""l0", "l1""#),
        image("small", r#""l0", "l2""#)
    ))
}

fn run(dir: &Path, arguments: &str) -> Run {
    command().current_dir(dir).args(arguments.split_whitespace()).output().unwrap().into()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Objects of the lines of stdout.
fn lines(run: &Run) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn toml(registry: &TestRegistry, policy: &str) -> String {
    let name = registry.name();
    format!(
        r#"
images = ["{name}/base:1"]
[target]
root = "out"
platform = "linux/arm64"
[defaults]
policy = "fetch"
labels = {{ everywhere = "yes" }}
[registries]
concurrency = 3
[[rules]]
name = "*/large:*"
pin = true
"#
    )
    .replace(
        "images = [",
        &format!(
            "images = [{{ ref = \"{name}/large:1\" }}, {{ ref = \"{name}/small:1\", {policy}, names = [\"local.example/small:stable\"], \
             labels = {{ team = \"web\" }}, namespace = \"ci\", platforms = [\"linux/amd64\", \"linux/arm64\"] }}, "
        ),
    )
}

#[test]
fn what_a_bake_toml_says_holds() {
    let registry = TestRegistry::start(images());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bake.toml"), toml(&registry, "pin = false")).unwrap();
    run(dir.path(), "bake -f bake.toml").expect(0);
    let root = dir.path().join("out");
    prebake(&root, "check").expect(0);
    let listed = lines(&prebake(&root, "images --json").expect(0));
    let of = |name: &str, namespace: &str| -> Value {
        let found = listed.iter().filter(|image| image["name"] == name && image["namespace"] == namespace);
        found.cloned().collect::<Vec<_>>().pop().unwrap_or_else(|| panic!("{name} in {namespace}: {listed:#?}"))
    };
    let name = registry.name();
    assert_eq!(of(&format!("{name}/base:1"), "k8s.io")["pinned"], false);
    assert_eq!(of(&format!("{name}/large:1"), "k8s.io")["pinned"], true);
    assert_eq!(of("local.example/small:stable", "ci")["digest"], of(&format!("{name}/small:1"), "ci")["digest"]);
    let said = records(&root).join("\n");
    for part in
        ["ci > images > local.example/small:stable > labels > team = web", "large:1 > labels > everywhere = yes"]
    {
        assert!(said.contains(part), "{part}\n{said}");
    }
    // Both machines' manifests and configs of the one, and only one machine's of the others: an index, two manifests, two
    // configs; twice an index, a manifest, a config; three layers.
    assert_eq!(blobs(&root).len(), 5 + 2 * 3 + 3);
    // The command line counts more than the file, and says what the file does not.
    run(dir.path(), "bake -f bake.toml --root other --platform linux/amd64 --namespace moby --pin").expect(0);
    let listed = lines(&prebake(&dir.path().join("other"), "images --json").expect(0));
    assert!(listed.iter().all(|image| image["namespace"] != "k8s.io"), "{listed:#?}");
    assert!(listed.iter().any(|image| image["pinned"] == true && image["name"] == format!("{name}/base:1")));
}

#[test]
fn what_is_wrong_is_named_by_its_place() {
    let dir = tempfile::tempdir().unwrap();
    for (text, word) in [
        ("images = ['a']\n[target]\nrot = 'x'\n", "bake.toml:3:1: unknown field `rot`"),
        ("images = ['a']\n", "no root"),
        ("images = ['a']\n[target]\nroot = 'x'\nsnapshotter = 'native'\n", "prebake unpacks for overlayfs"),
        ("images = [{ref = 'a', verify-keys = ['no.pub']}]\n[target]\nroot = 'x'\n", "reading no.pub failed"),
        ("images = [{ref = 'a', namespace = 'a/b'}]\n[target]\nroot = 'x'\n", "namespace"),
        ("[target]\nroot = 'x'\n", "no images"),
    ] {
        fs::write(dir.path().join("bake.toml"), text).unwrap();
        let run = run(dir.path(), "bake -f bake.toml").expect(2);
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    fs::write(dir.path().join("bake.toml"), "images = ['a']\n[target]\nroot = 'x'\n").unwrap();
    fs::write(dir.path().join("two.toml"), "images = ['a']\n[target]\nroot = 'y'\n").unwrap();
    let run = run(dir.path(), "bake -f bake.toml -f two.toml").expect(2);
    assert!(run.stderr.contains("bake.toml and two.toml both say more than names"), "{}", run.stderr);
}

#[test]
fn a_plan_tells_what_a_bake_does() {
    let registry = TestRegistry::start(images());
    let dir = tempfile::tempdir().unwrap();
    let spec = toml(&registry, "policy = \"unpack-discard\"")
        .replace("[\"linux/amd64\", \"linux/arm64\"]", "[\"linux/arm64\"]");
    fs::write(dir.path().join("bake.toml"), spec).unwrap();
    let planned = run(dir.path(), "plan -f bake.toml --json").expect(1);
    assert!(!dir.path().join("out").exists(), "nothing is written");
    assert!(
        registry.asked().iter().filter(|request| request.contains("/blobs/")).count() <= 3,
        "three configs, no layer"
    );
    let planned = lines(&planned);
    let [large, small, base, totals] = &planned[..] else { panic!("{planned:#?}") };
    assert_eq!(
        (&large["policy"], &large["because_of"], &large["pinned"]),
        (&"fetch".into(), &"default".into(), &true.into())
    );
    // The base's layer is kept by others, and this one wants to discard it.
    assert!(small["refused"].as_str().unwrap().contains("its layers cannot be discarded"), "{small:#?}");
    assert_eq!((&small["policy"], &small["because_of"]), (&"unpack-discard".into(), &"its entry".into()));
    assert!(base["shared"].as_u64().unwrap() > 100_000 && base["present"] == 0);
    assert!(base["unpacked_is_estimated"] == true && large["compressed"].as_u64() > base["compressed"].as_u64());

    // Where nothing is unpacked, what it would come to is told all the same.
    let fetched = lines(&run(dir.path(), &format!("plan --json --root x {}", registry.reference("base:1"))).expect(0));
    assert!(fetched[0]["because_of"] == "default" && fetched[0]["unpacked"].as_u64() > Some(100_000), "{fetched:#?}");

    let spec =
        toml(&registry, "policy = \"unpack\"").replace("[\"linux/amd64\", \"linux/arm64\"]", "[\"linux/arm64\"]");
    fs::write(dir.path().join("bake.toml"), spec).unwrap();
    let planned = run(dir.path(), "plan -f bake.toml --json").expect(0).last_json();
    let text = run(dir.path(), "plan -f bake.toml").expect(0).stdout;
    assert!(text.contains("because of") && text.contains("its entry") && text.contains("at peak"), "{text}");
    if is_root() {
        let baked = run(dir.path(), "bake -f bake.toml --json").expect(0).last_json();
        assert_eq!(planned["fetch"], baked["fetched_bytes"]);
        let grown = baked["unpacked_bytes"].as_u64().unwrap();
        let expected = planned["snapshots"].as_u64().unwrap();
        assert!((grown / 2..grown * 4).contains(&expected), "{expected} {grown}");
        // Now it is known, and nothing is left to do.
        let again = lines(&run(dir.path(), "plan -f bake.toml --json").expect(0));
        assert!(again[1]["unpacked_is_estimated"] == false && again[1]["present"] == again[1]["compressed"]);
        let totals = again.last().unwrap();
        assert!(totals["fetch"] == 0 && totals["store"] == 0 && totals["snapshots"] == 0, "{totals}");
    }
    assert_eq!(totals["event"], "plan");
}

#[test]
fn too_much_is_refused_before_anything_is_fetched() {
    let registry = TestRegistry::start(images());
    let dir = tempfile::tempdir().unwrap();
    for what in ["bake", "plan", "fetch"] {
        let run = prebake(dir.path(), &format!("{what} --max-store 100kB {}", registry.reference("large:1"))).expect(7);
        assert!(run.stderr.contains("--max-store allows"), "{}", run.stderr);
        assert!(!registry.asked().iter().any(|request| request.contains("/blobs/") && request.contains("layer")));
        assert!(blobs(dir.path()).values().all(|blob| blob.len() < 10_000), "documents alone");
    }
    prebake(dir.path(), &format!("bake --max-store 1MB {}", registry.reference("large:1"))).expect(0);
}

#[test]
fn a_lock_is_kept_to() {
    let content = Arc::new(Mutex::new(images()));
    let now = content.clone();
    let registry = TestRegistry::faulty(images(), move |request| Some(now.lock().unwrap().answer(request)));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bake.toml"), toml(&registry, "pin = true")).unwrap();
    let missing = run(dir.path(), "bake -f bake.toml --locked").expect(2);
    assert!(missing.stderr.contains("bake.lock"), "{}", missing.stderr);
    let locked = run(dir.path(), "lock -f bake.toml").expect(0);
    assert!(locked.stdout.contains("3 images; 3 added, 0 moved, 0 removed"), "{}", locked.stdout);
    assert!(!dir.path().join("out").exists());
    let text = fs::read_to_string(dir.path().join("bake.lock")).unwrap();
    assert_eq!(text.matches("[[images.platforms]]").count(), 4, "{text}");
    run(dir.path(), "lock -f bake.toml --check").expect(0);
    registry.asked();

    // The plan needs nobody.
    let planned = run(dir.path(), "plan -f bake.toml --locked --json").expect(0).last_json();
    assert!(registry.asked().is_empty());
    // Tags move; the lock does not.
    let other = images().tags[&("small".to_owned(), "1".to_owned())].clone();
    content.lock().unwrap().tags.insert(("base".to_owned(), "1".to_owned()), other.clone());
    let baked = run(dir.path(), "bake -f bake.toml --locked --json").expect(0).last_json();
    assert_eq!(planned["fetch"], baked["fetched_bytes"]);
    assert!(registry.asked().iter().all(|request| request.contains("sha256:")), "no tag is asked for");
    let listed = prebake(&dir.path().join("out"), "images --json").expect(0).stdout;
    assert!(
        listed.contains("/base:1\"")
            && !listed.lines().any(|line| line.contains("/base:1\"") && line.contains(other.hex()))
    );
    run(dir.path(), "bake -f bake.toml --locked").expect(0);
    assert!(registry.asked().is_empty(), "all is there");

    let moved = run(dir.path(), "lock -f bake.toml --check").expect(1);
    assert!(moved.stdout.contains("moved: ") && moved.stdout.contains(other.hex()), "{}", moved.stdout);
    assert_eq!(fs::read_to_string(dir.path().join("bake.lock")).unwrap(), text);
    let name = registry.reference("large:1");
    run(dir.path(), &format!("lock -f bake.toml --update {name}")).expect(0);
    assert_eq!(fs::read_to_string(dir.path().join("bake.lock")).unwrap(), text, "that one has not moved");
    let name = registry.reference("base:1");
    let updated = run(dir.path(), &format!("lock -f bake.toml --update {name}")).expect(0);
    assert!(updated.stdout.contains("0 added, 1 moved, 0 removed"), "{}", updated.stdout);
    run(dir.path(), "lock -f bake.toml --check").expect(0);
    run(dir.path(), "lock -f bake.toml --update nobody.example/a:1").expect(2);

    // What cannot be resolved leaves the lock as it was.
    let text = fs::read_to_string(dir.path().join("bake.lock")).unwrap();
    content.lock().unwrap().tags.remove(&("small".to_owned(), "1".to_owned()));
    run(dir.path(), "lock -f bake.toml").expect(3);
    assert_eq!(fs::read_to_string(dir.path().join("bake.lock")).unwrap(), text);
    // More machines than were locked.
    let missing = run(dir.path(), "plan -f bake.toml --locked --platform linux/s390x").expect(2);
    assert!(missing.stderr.contains("base:1 for linux/s390x is not in bake.lock"), "{}", missing.stderr);
}

#[test]
fn lists_of_others() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("pod.yaml"), "kind: Pod\nspec: {containers: [{image: nginx}, {image: r.example/a:1}]}\n")
        .unwrap();
    let json = r#"{"ContainerImages": [{"downloadURL": "r.example/a:*", "multiArchVersionsV2": [{"latestVersion": "1"}],
        "amd64OnlyVersions": ["2"]}]}"#;
    fs::write(dir.path().join("components.json"), json).unwrap();
    let both = "list --from-k8s pod.yaml --from-components components.json";
    assert_eq!(
        run(dir.path(), both).expect(0).stdout,
        "docker.io/library/nginx:latest\nr.example/a:1\nr.example/a:2\n"
    );
    let toml = run(dir.path(), &format!("{both} --toml")).expect(0).stdout;
    assert!(toml.contains("{ ref = \"r.example/a:2\", platforms = [\"linux/amd64\"] }"), "{toml}");
    let json = lines(&run(dir.path(), &format!("{both} --json")).expect(0));
    assert_eq!(json[2]["platforms"][0], "linux/amd64");
    run(dir.path(), "list").expect(2);
    fs::write(dir.path().join("empty.yaml"), "kind: Namespace\n").unwrap();
    run(dir.path(), "list --from-k8s empty.yaml").expect(3);

    let registry = TestRegistry::start(images());
    let root = dir.path().join("root");
    let by_digest = {
        let digest = &images().tags[&("small".to_owned(), "1".to_owned())];
        format!("{}@{digest}", registry.reference("small"))
    };
    prebake(&root, &format!("bake {} {by_digest}", registry.reference("base:1"))).expect(0);
    let listed = run(dir.path(), "list --from-root root").expect(0).stdout;
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    let base = registry.reference("base:1");
    assert_eq!(names, [base.as_str(), by_digest.as_str()]);
    // A list is what a bake takes.
    let mut baked = command();
    baked.args(["bake", "-f", "-", "--root"]).arg(dir.path().join("copy"));
    baked.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = baked.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), listed.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(run(dir.path(), "list --from-root copy").expect(0).stdout, listed);
}

#[test]
fn what_failed_is_tried_again_alone() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_broken = broken.clone();
    let registry = TestRegistry::faulty(images(), move |request| {
        let fails =
            is_broken.load(std::sync::atomic::Ordering::SeqCst) && request.uri().path().contains("/large/manifests/");
        fails.then(|| crate::answers::text(404, ""))
    });
    let root = tempfile::tempdir().unwrap();
    let all = ["base", "large", "small"].map(|name| registry.reference(&format!("{name}:1"))).join(" ");
    let metrics = root.path().join("bake.prom");
    let failed = prebake(root.path(), &format!("bake --metrics {} {all}", metrics.display())).expect(1);
    let said = fs::read_to_string(&metrics).unwrap();
    for line in
        ["prebake_images{result=\"ok\"} 2", "prebake_images{result=\"failed\"} 1", "# TYPE prebake_fetched_bytes gauge"]
    {
        assert!(said.lines().any(|said| said == line), "{said}");
    }
    let lines: Vec<&str> = failed.stderr.lines().rev().take(2).collect();
    assert!(lines[0].starts_with("failed: ") && lines[0].contains("/large:1: "), "{}", failed.stderr);
    assert!(lines[1].starts_with("what helps: check name, tag and platform"), "{}", failed.stderr);
    let names = || prebake(root.path(), "images").expect(0).stdout;
    assert!(names().contains("/base:1") && names().contains("/small:1") && !names().contains("/large:1"));
    registry.asked();
    prebake(root.path(), &format!("bake --retry-failed {all}")).expect(3);
    assert!(registry.asked().iter().all(|request| request.contains("/large/")));
    broken.store(false, std::sync::atomic::Ordering::SeqCst);
    prebake(root.path(), &format!("bake --retry-failed {all}")).expect(0);
    assert!(registry.asked().iter().all(|request| request.contains("/large/")));
    assert!(names().contains("/large:1"));
    let none = prebake(root.path(), &format!("bake --retry-failed --json {all}")).expect(0).last_json();
    assert!(none["done"] == 0 && registry.asked().is_empty(), "{none}");
    prebake(root.path(), "check").expect(0);
}

#[test]
fn the_first_failure_may_be_the_end() {
    let registry = TestRegistry::faulty(images(), |request| {
        let path = request.uri().path();
        if path.contains("/large/manifests/") {
            return Some(crate::answers::text(403, ""));
        }
        // Everybody else takes his time.
        std::thread::sleep(std::time::Duration::from_millis(300));
        None
    });
    let root = tempfile::tempdir().unwrap();
    let all = ["large", "base", "small"].map(|name| registry.reference(&format!("{name}:1"))).join(" ");
    let run = prebake(root.path(), &format!("bake --fail-fast --json {all}")).expect(1);
    let said = run.last_json();
    assert!(said["failed"] == 3 && said["cancelled"] == false, "{said}");
    let errors: Vec<&str> =
        said["images"].as_array().unwrap().iter().map(|image| image["error"].as_str().unwrap()).collect();
    assert!(errors[0].contains("does not give") && errors[1].contains("stopped before"), "{errors:?}");
    assert_eq!(said["images"][0]["kind"], "unauthorized");
    assert!(said["images"][0]["remedy"].as_str().unwrap().contains("--creds-file"));
    assert_eq!(prebake(root.path(), "images --json").expect(0).stdout, "");
}
