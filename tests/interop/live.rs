//! Images that go through a running containerd: by its socket, onto the root it runs on.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ::prebake::fixture::Content;
use ::prebake::oci::Digest;
use serde_json::Value;

use crate::bake::{everything_is_there, listed};
use crate::cri;
use crate::peers::{Containerd, RELEASES, run};
use crate::support::content::{build, demo};
use crate::support::prebake::{Run, blobs, blobs_dir, containerd_root, prebake, records, start};
use crate::support::registry::TestRegistry;

const LINE: &str = "hello from an image that prebake baked";

/// References to all of a content's images.
fn references(registry: &TestRegistry, content: &Content) -> Vec<String> {
    content.tags.keys().map(|(repository, tag)| registry.reference(&format!("{repository}:{tag}"))).collect()
}

/// Several images with large layers, some of which they share.
fn large() -> Content {
    build(&large_spec())
}

/// The same, and many small ones.
fn many() -> Content {
    let image = |n: usize| {
        format!(
            "[layer.small{n}]\nfiles = [{{ path = \"small-{n}\", random = 1000 }}]\n[[image]]\nname = \"small{n}:1\"\n\
             platforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"small{n}\"]\n"
        )
    };
    build(&(large_spec() + &(0..12).map(image).collect::<String>()))
}

fn large_spec() -> String {
    let layers = ["base", "one", "two", "three"].map(|name| {
        let files = (0..4).map(|n| format!("{{ path = \"{name}-{n}\", random = 2000000 }}"));
        // Two of them are as large as each other, which compressors do not promise.
        let compression = if name == "one" || name == "two" { "none" } else { "gzip" };
        let files = files.collect::<Vec<_>>().join(", ");
        format!("[layer.{name}]\ncompression = \"{compression}\"\nfiles = [{files}]\n")
    });
    let images = ["one", "two", "three"].map(|name| {
        format!("[[image]]\nname = \"{name}:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"base\", \"{name}\"]\n")
    });
    layers.concat() + &images.concat()
}

/// What prebake holds beside containerd's store.
fn held(root: &Path) -> PathBuf {
    containerd_root(root).join("io.containerd.content.v1.content/prebake/blobs/sha256")
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn through(containerd: &Containerd, root: &Path, arguments: &str) -> Run {
    prebake(root, &format!("{arguments} --address {}", containerd.socket().display()))
}

/// What a bootstrap is to make: names, labels and relations, without what no two runs have alike.
fn made(root: &Path) -> BTreeSet<String> {
    let wanted = |line: &&String| {
        ["> images > ", "> content > blob > ", "> snapshots > "].iter().any(|place| line.contains(place))
    };
    let line = |line: &String| -> String {
        let line = line.split(" [").next().unwrap();
        // Numbers of snapshots are those of containerd's own calls.
        match line.split_once("> name = ") {
            Some((place, name)) => format!("{place}> name = {}", name.rsplit('/').next().unwrap()),
            None => line.to_owned(),
        }
    };
    records(root).iter().filter(wanted).map(line).collect()
}

/// What was made in Kubernetes' namespace, beside what an offline bake made.
#[track_caller]
fn made_as_offline(root: &Path, offline: &Path, what: &str) {
    let (all, wanted) = (made(root), made(offline));
    let own: BTreeSet<String> = all.into_iter().filter(|line| line.starts_with("v1 > k8s.io > ")).collect();
    let (new, lost) = (own.difference(&wanted).collect::<Vec<_>>(), wanted.difference(&own).collect::<Vec<_>>());
    assert!(wanted.len() > 10 && new.is_empty() && lost.is_empty(), "{what}: new {new:#?} lost {lost:#?}");
}

/// Whether the bootstrap of a run's JSON changed anything.
fn changed(run: &Run) -> Vec<bool> {
    let lines = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == "bootstrapped").map(|line| line["changed"].as_bool().unwrap()).collect()
}

/// Nothing is left of a run but what it was to make.
fn nothing_is_left(containerd: &Containerd, root: &Path) {
    assert_eq!(containerd.ctr("leases ls").lines().count(), 1, "{}", containerd.ctr("leases ls"));
    let snapshots = containerd.ctr("snapshots ls");
    assert!(!snapshots.contains("prebake-") && !snapshots.contains("Active"), "{snapshots}");
    assert_eq!(containerd.ctr("content active").lines().count(), 1, "{}", containerd.ctr("content active"));
    assert_eq!(count(&held(root)), 0);
    assert_eq!(count(&containerd_root(root).join("io.containerd.content.v1.content/prebake/ingest")), 0);
}

/// CRI hears of images a little later than they are made.
fn cri_knows(containerd: &Containerd, images: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while cri::list_images(&containerd.socket()).len() < images && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn three_releases_have_what_was_bootstrapped_live_as_if_it_were_offline() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(demo());
    let references = references(&registry, &demo()).join(" ");
    for flags in ["", "--unpack"] {
        let offline = dir.path().join(format!("offline{flags}"));
        prebake(&offline, &format!("bake {flags} {references}")).expect(0);
        let images = listed(&offline);
        let all: BTreeSet<String> = blobs(&offline).into_keys().collect();
        let ids = images.keys().filter(|name| name.starts_with("sha256:")).count();
        for release in RELEASES {
            let root = dir.path().join(format!("{release}{flags}"));
            prebake(&root, &format!("fetch {references}")).expect(0);
            let inodes = |root: &Path| -> BTreeSet<u64> {
                fs::read_dir(blobs_dir(root)).unwrap().map(|blob| blob.unwrap().metadata().unwrap().ino()).collect()
            };
            let before = inodes(&root);
            let work = dir.path().join(format!("work-{release}{flags}"));
            let mut containerd = Containerd::start(release, &containerd_root(&root), &work);
            let first = through(&containerd, &root, &format!("bootstrap --json {flags}")).expect(0);
            assert_eq!(changed(&first), [true], "{}", first.stdout);
            cri_knows(&containerd, ids - 1);
            everything_is_there(&containerd, &images, &all);
            nothing_is_left(&containerd, &root);
            // Not a byte was copied.
            assert_eq!(inodes(&root), before, "{release}");

            let second = through(&containerd, &root, &format!("bootstrap --json {flags}")).expect(0);
            assert_eq!(changed(&second), [false], "{}", second.stdout);
            cri::collect(&containerd.socket(), 0);
            everything_is_there(&containerd, &images, &all);
            nothing_is_left(&containerd, &root);
            containerd.stop();
            made_as_offline(&root, &offline, &format!("{release} {flags}"));
            prebake(&root, "check").expect(0);

            containerd.launch();
            let unpacked = containerd.ctr("snapshots ls");
            assert_eq!(unpacked.lines().count() > 1, !flags.is_empty(), "{unpacked}");
            for name in ["hello", "docker", "zstd", "plain"] {
                let output = containerd.run(&registry.reference(&format!("demo/{name}:1.0")), name, &[]);
                assert_eq!(output.trim(), LINE, "{release} {name}");
            }
            if !flags.is_empty() {
                assert_eq!(containerd.ctr("snapshots ls"), unpacked, "something was unpacked again");
            }
        }
    }
}

#[test]
fn a_bake_through_three_releases() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(demo());
    let references = references(&registry, &demo()).join(" ");
    let offline = dir.path().join("offline");
    prebake(&offline, &format!("bake --unpack {references}")).expect(0);
    let images = listed(&offline);
    let all: BTreeSet<String> = blobs(&offline).into_keys().collect();
    for release in RELEASES {
        let root = dir.path().join(release);
        let mut containerd =
            Containerd::start(release, &containerd_root(&root), &dir.path().join(format!("{release}-work")));
        assert!(through(&containerd, &root, &format!("bake {references} --discard-layers")).code == 2);
        let first = through(&containerd, &root, &format!("bake --json --unpack {references}")).expect(0);
        assert_eq!(changed(&first), [true]);
        assert!(first.last_json()["unpacked_layers"].as_u64().unwrap() > 3, "{}", first.stdout);
        cri_knows(&containerd, 4);
        everything_is_there(&containerd, &images, &all);
        nothing_is_left(&containerd, &root);
        registry.asked();
        let second = through(&containerd, &root, &format!("bake --json --unpack {references}")).expect(0);
        assert_eq!((changed(&second), second.last_json()["fetched_blobs"].as_u64()), (vec![false], Some(0)));
        assert!(registry.asked().iter().all(|asked| !asked.contains("/blobs/")));
        // In another namespace the same blobs are there; its snapshots are its own.
        through(&containerd, &root, &format!("bake --unpack --namespace other {references}")).expect(0);
        assert!(containerd.ctr_in("other", "images check").contains(" complete ("));
        nothing_is_left(&containerd, &root);
        // Policies that a file asks for are refused by the image.
        let spec = dir.path().join("bake.toml");
        let hello = registry.reference("demo/hello:1.0");
        fs::write(&spec, format!("[[images]]\nref = \"{hello}\"\npolicy = \"unpack-discard\"\n")).unwrap();
        let refused = through(&containerd, &root, &format!("bake --file {}", spec.display())).expect(2);
        assert!(refused.stderr.contains("the containerd that runs on the root"), "{}", refused.stderr);
        assert_eq!(containerd.run(&hello, "hello", &[]).trim(), LINE);
        containerd.stop();
        made_as_offline(&root, &offline, release);
        prebake(&root, "check").expect(0);
    }
}

/// Collections that remove something, one after another, as long as this lives.
fn collecting<R>(socket: &Path, work: impl FnOnce() -> R) -> (R, usize) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    cri::collect(socket, rounds.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
        let result = work();
        stop.store(true, Ordering::Relaxed);
        (result, rounds.load(Ordering::Relaxed))
    })
}

#[test]
fn collections_at_every_moment_take_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(many());
    let references = references(&registry, &many()).join(" ");
    let offline = dir.path().join("offline");
    prebake(&offline, &format!("bake --unpack {references}")).expect(0);
    let images = listed(&offline);
    let all: BTreeSet<String> = blobs(&offline).into_keys().collect();
    let mut collections = 0;
    for release in RELEASES {
        for (turn, command) in ["bake --unpack", "bootstrap --unpack"].into_iter().enumerate() {
            let root = dir.path().join(format!("{release}-{turn}"));
            if turn == 1 {
                prebake(&root, &format!("fetch {references}")).expect(0);
            }
            let mut containerd =
                Containerd::start(release, &containerd_root(&root), &dir.path().join(format!("{release}-{turn}-work")));
            let socket = containerd.socket();
            let arguments = format!("{command} --json --address {}", socket.display());
            let rounds = if turn == 0 {
                let (run, rounds) = collecting(&socket, || prebake(&root, &format!("{arguments} {references}")));
                run.expect(0);
                rounds
            } else {
                let mut child = start(&root, &arguments);
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                // From here on, it holds what is there.
                assert!(lines.any(|line| line.unwrap().contains("\"images\"")));
                let (ended, rounds) = collecting(&socket, || {
                    lines.for_each(drop);
                    child.wait().unwrap()
                });
                assert!(ended.success());
                rounds
            };
            collections += rounds;
            cri::collect(&socket, rounds + 1);
            cri_knows(&containerd, 15);
            everything_is_there(&containerd, &images, &all);
            nothing_is_left(&containerd, &root);
            containerd.stop();
            made_as_offline(&root, &offline, &format!("{release} {command}"));
            prebake(&root, "check").expect(0);
        }
    }
    assert!(collections > 60, "only {collections} collections");
}

#[test]
fn content_that_is_not_shared_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(large());
    let references = references(&registry, &large()).join(" ");
    let offline = dir.path().join("offline");
    prebake(&offline, &format!("bake {references}")).expect(0);
    for (release, command) in RELEASES.into_iter().zip(["bootstrap", "bake", "bootstrap"]) {
        let root = dir.path().join(release);
        prebake(&root, &format!("fetch {references}")).expect(0);
        let work = dir.path().join(format!("{release}-work"));
        let mut containerd = Containerd::new(release, &containerd_root(&root), &work, "registry.invalid/pause:1");
        containerd.settings = "[plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n";
        containerd.launch();
        let arguments = if command == "bake" { format!("bake {references}") } else { command.to_owned() };
        through(&containerd, &root, &arguments).expect(0);
        cri_knows(&containerd, 3);
        let all: BTreeSet<String> = blobs(&offline).into_keys().collect();
        everything_is_there(&containerd, &listed(&offline), &all);
        nothing_is_left(&containerd, &root);
        let second = through(&containerd, &root, &format!("{arguments} --json")).expect(0);
        assert_eq!(changed(&second), [false], "{release}");
        containerd.stop();
        made_as_offline(&root, &offline, release);
        prebake(&root, "check").expect(0);
    }
}

#[test]
fn a_kill_at_any_moment_is_followed_by_a_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(large());
    let references = references(&registry, &large()).join(" ");
    let offline = dir.path().join("offline");
    prebake(&offline, &format!("bake --unpack {references}")).expect(0);
    let images = listed(&offline);
    let all: BTreeSet<String> = blobs(&offline).into_keys().collect();
    for release in RELEASES {
        let root = dir.path().join(release);
        let mut containerd =
            Containerd::start(release, &containerd_root(&root), &dir.path().join(format!("{release}-work")));
        let socket = containerd.socket();
        let arguments = format!("bake --unpack --json --address {} {references}", socket.display());
        for (n, moment) in
            ["\"blob_done\"", "\"image_fetched\"", "\"layer_started\"", "\"layer_ended\""].iter().enumerate()
        {
            let mut child = start(&root, &arguments);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains(moment)), "{moment}");
            child.kill().unwrap();
            child.wait().unwrap();
            cri::collect(&socket, n);
            assert!(count(&held(&root)) > 0, "{moment}");
        }
        let last = prebake(&root, &arguments).expect(0);
        // All was taken over.
        assert_eq!(last.last_json()["fetched_blobs"], 0, "{}", last.stdout);
        cri_knows(&containerd, 3);
        everything_is_there(&containerd, &images, &all);
        nothing_is_left(&containerd, &root);
        containerd.stop();
        made_as_offline(&root, &offline, release);
        prebake(&root, "check").expect(0);
    }
}

#[test]
fn what_a_live_bake_left_an_offline_one_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(large());
    let references = references(&registry, &large()).join(" ");
    let root = dir.path().join("root");
    let mut containerd = Containerd::start("2.1.9", &containerd_root(&root), &dir.path().join("work"));
    let mut child = start(&root, &format!("bake --json --address {} {references}", containerd.socket().display()));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"image_fetched\"")));
    child.kill().unwrap();
    child.wait().unwrap();
    containerd.stop();
    let run = prebake(&root, &format!("bake --json {references}")).expect(0);
    assert!(run.last_json()["present_blobs"].as_u64().unwrap() > 2, "{}", run.stdout);
    assert!(!held(&root).exists());
    prebake(&root, "check").expect(0);
}

#[test]
fn a_blob_that_was_collected_fails_its_images_alone() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(large());
    let (root, content) = (dir.path().join("root"), large());
    prebake(&root, &format!("fetch {}", references(&registry, &content).join(" "))).expect(0);
    let containerd = Containerd::start("1.7.24", &containerd_root(&root), &dir.path().join("work"));
    let target = &content.tags[&("two".to_owned(), "1".to_owned())];
    fs::remove_file(blobs_dir(&root).join(target.hex())).unwrap();
    let run = through(&containerd, &root, "bootstrap").expect(1);
    let two = registry.reference("two:1");
    let line = format!("failed: {two}: blob {target} of {two} is not in the content store; fetch the image again");
    assert!(run.stderr.contains(&line), "{}", run.stderr);
    let names = containerd.ctr("images ls -q");
    assert!(names.contains("/one:1") && names.contains("/three:1") && !names.contains("/two:1"), "{names}");
    // Its other blobs are kept for the next run.
    assert!(count(&held(&root)) > 0);
    let json = through(&containerd, &root, "bootstrap --json").expect(1);
    let failed: Value = json
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|line: &Value| line["event"] == "image" && line["ok"] == false)
        .unwrap();
    assert_eq!(failed["image"], two);
    through(&containerd, &root, &format!("bake {two}")).expect(0);
    assert!(containerd.ctr("images ls -q").contains("/two:1"));
    nothing_is_left(&containerd, &root);
}

#[test]
fn a_layer_that_is_not_its_images_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let content = large();
    let registry = TestRegistry::start(content.clone());
    let root = dir.path().join("root");
    prebake(&root, &format!("fetch {}", references(&registry, &content).join(" "))).expect(0);
    let containerd = Containerd::start("2.1.9", &containerd_root(&root), &dir.path().join("work"));
    // Another layer's bytes by the name of one that one image alone has: as large as it, so that nobody sees it before.
    let sizes: Vec<(Digest, u64)> =
        content.blobs.iter().map(|(digest, (_, bytes))| (digest.clone(), bytes.len() as u64)).collect();
    let layers: Vec<_> = sizes.iter().filter(|(_, size)| *size > 1_000_000).collect();
    let (a, b) = layers
        .iter()
        .enumerate()
        .find_map(|(i, a)| layers[i + 1..].iter().find(|b| b.1 == a.1).map(|b| (a, b)))
        .unwrap();
    fs::remove_file(blobs_dir(&root).join(a.0.hex())).unwrap();
    fs::copy(blobs_dir(&root).join(b.0.hex()), blobs_dir(&root).join(a.0.hex())).unwrap();
    let run = through(&containerd, &root, "bootstrap --unpack");
    assert!(run.stderr.contains(&format!("layer {} unpacks to an archive with the digest", a.0)), "{}", run.stderr);
    assert!(run.code == 6 || run.code == 1, "{}", run.code);
    assert!(!containerd.ctr("snapshots ls").contains("Active"));
}

#[test]
fn nobody_at_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let run = prebake(dir.path(), "bootstrap --address /nonexistent/containerd.sock").expect(1);
    assert!(run.stderr.contains("connecting to containerd at /nonexistent/containerd.sock failed; is it running"));
    assert!(run.stderr.contains("No such file or directory"), "{}", run.stderr);
}

#[test]
fn a_collection_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let containerd = Containerd::start("1.6.20", &containerd_root(&root), &dir.path().join("work"));
    let file = dir.path().join("file");
    fs::write(&file, "nobody's").unwrap();
    let digest = Digest::of(b"nobody's");
    let ingest = |name: &str| {
        let mut command = containerd.ctr_command();
        command.args(["content", "ingest", name]).stdin(fs::File::open(&file).unwrap());
        assert!(command.output().unwrap().status.success());
    };
    // It is leased for a while, which ctr is over with at once.
    ingest("nobody");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(::prebake::bootstrap::live::collect_garbage(&containerd.socket(), "k8s.io")).unwrap();
    assert!(!blobs_dir(&root).join(digest.hex()).exists());
    assert_eq!(containerd.ctr("leases ls").lines().count(), 1);
}

/// What systemd itself has to say of the unit in a root, where there is one.
fn is_a_unit(root: &Path) {
    let (programs, units) = (root.join("usr/bin"), root.join("usr/lib/systemd/system"));
    if !Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return;
    }
    for dir in [&programs, &units] {
        fs::create_dir_all(dir).unwrap();
    }
    for program in ["prebake", "touch", "containerd"] {
        fs::copy("/bin/true", programs.join(program)).unwrap();
    }
    fs::write(units.join("containerd.service"), "[Service]\nExecStart=/usr/bin/containerd\n").unwrap();
    run(Command::new("sh").arg("-c").arg(format!("cp -L /lib/systemd/system/*.target {}", units.display())));
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").arg(format!("--root={}", root.display())).arg("/etc/systemd/system/prebake.service");
    let output = verify.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_unit_of_a_first_boot() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(demo());
    let root = dir.path().join("root");
    prebake(&root, &format!("fetch {}", registry.reference("demo/hello:1.0"))).expect(0);
    fs::create_dir_all(root.join("etc")).unwrap();
    let work = dir.path().join("work");
    let socket = work.join("c.sock");
    let install = format!("bootstrap --install-unit --unpack --address {}", socket.display());
    let said = prebake(&root, &install).expect(0);
    assert!(said.stdout.contains("etc/systemd/system/prebake.service runs `prebake bootstrap"), "{}", said.stdout);
    let again = prebake(&root, &format!("{install} --json")).expect(0);
    assert_eq!(again.last_json()["event"], "unit");
    let system = root.join("etc/systemd/system");
    let unit = fs::read_to_string(system.join("prebake.service")).unwrap();
    for line in ["After=containerd.service", "Before=kubelet.service", "Type=oneshot", "WantedBy=multi-user.target"] {
        assert!(unit.lines().any(|other| other == line), "{line}: {unit}");
    }
    let link = fs::read_link(system.join("multi-user.target.wants/prebake.service")).unwrap();
    assert_eq!(link, Path::new("../prebake.service"));
    assert_eq!(count(&system), 2);
    is_a_unit(&root);

    // What it runs, on this machine's root instead of that of the machine that boots.
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=prebake bootstrap --root / ")).unwrap();
    let containerd = Containerd::start("2.1.9", &containerd_root(&root), &work);
    prebake(&root, &format!("bootstrap {command}")).expect(0);
    let checked = containerd.ctr("images check");
    assert!(
        checked.lines().skip(1).all(|row| row.contains(" complete (") && row.trim_end().ends_with("true")),
        "{checked}"
    );
}
