//! Fixtures before real peers: they take what is right, and refuse what is broken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::prebake::fixture::{Break, Broken, Content, Spec};
use ::prebake::oci::Digest;
use ::prebake::testing::{self, Options};

use crate::bake::push_debian;
use crate::hostile::snapshots;
use crate::peers::{Containerd, RELEASES, Registry, run};
use crate::support::prebake::{Run, command, containerd_root, prebake};

const LINE: &str = "hello from a fixture";

fn every() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/every.toml")
}

fn ours(dir: &Path, arguments: &str) -> Run {
    command().current_dir(dir).args(arguments.split_whitespace()).output().unwrap().into()
}

#[test]
fn images_of_a_spec_run() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    let spec = every().display().to_string();
    let registry = Registry::start(dir);
    ours(dir, &format!("fixture build {spec} -o registry:{}/team --plain-http", registry.name())).expect(0);
    let name = format!("{}/team/app:1", registry.name());
    let inspected = run(Command::new("skopeo").args(["inspect", "--tls-verify=false", &format!("docker://{name}")]));
    assert!(inspected.contains("\"stable\"") && inspected.contains("org.example.team"), "{inspected}");
    // What refers to it went along, by the tag that stands for a list of it.
    ours(dir, "fixture build SPEC -o layout".replace("SPEC", &spec).as_str()).expect(0);
    let layout = fs::read_to_string(dir.join("layout/index.json")).unwrap();
    let tag = layout.split('"').find(|word| word.starts_with("sha256-") && !word.contains('.')).unwrap().to_owned();
    let list = format!("docker://{}/team/app:{tag}", registry.name());
    let list = run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &list]));
    assert!(list.contains("application/spdx+json") && list.contains("sigstore"), "{list}");
    ours(dir, &format!("fixture build {spec} -o containerd:root --unpack")).expect(0);
    for release in RELEASES {
        let site = dir.join(release);
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(dir.join("root")).arg(&site));
        let containerd = Containerd::start(release, &containerd_root(&site), &site.join("work"));
        for (n, image) in ["app:1", "docker:1"].into_iter().enumerate() {
            let image = format!("registry.example/{image}");
            // Another user than root has no pid 1 of its own here.
            assert_eq!(containerd.run(&image, &format!("baked-{n}"), &[]).trim(), LINE, "{release} {image}");
        }
        containerd.ctr(&format!("images pull --plain-http {name}"));
        assert_eq!(containerd.run(&name, "pulled", &[]).trim(), LINE, "{release}");
    }
}

#[test]
fn another_machine_makes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let spec = every().display().to_string();
    ours(dir, &format!("fixture build {spec} -o here.tar -q")).expect(0);
    let made = Digest::of(&fs::read(dir.join("here.tar")).unwrap());
    // Machines with other instructions: the oldest there is, and a newer one.
    if cfg!(target_arch = "x86_64") {
        for cpu in ["qemu64", "Nehalem", "max"] {
            let mut emulated = Command::new("qemu-x86_64");
            emulated.args(["-cpu", cpu, env!("CARGO_BIN_EXE_prebake"), "fixture", "build", &spec, "-q", "-o"]);
            run(emulated.arg(dir.join(cpu).with_extension("tar")));
            assert_eq!(Digest::of(&fs::read(dir.join(cpu).with_extension("tar")).unwrap()), made, "{cpu}");
        }
    }
}

const SMALL: &str = r#"
[layer.base]
files = [{ path = "bin" }, { path = "bin/hello", program = "hello" }, { path = "data", random = 20000 }]
[layer.top]
files = [{ path = "etc" }, { path = "etc/motd", words = 5000 }, { path = "etc/issue", text = "BREAK" }]
[[image]]
name = "app:1"
platforms = ["linux/amd64", "linux/arm64"]
layers = ["base", "top"]
command = ["/bin/hello"]
[[image]]
name = "good:1"
platforms = ["linux/amd64", "linux/arm64"]
layers = ["base"]
command = ["/bin/hello"]
"#;

/// How a bake of each ends, and whether containerd 2.1.9 takes it; docs/ci-fixtures.md has the same list.
const BREAKS: [(Break, i32, bool); 26] = [
    (Break::WrongDigest, 6, false),
    (Break::TruncatedLayer, 6, false),
    (Break::OverlongLayer, 6, false),
    (Break::MissingBlob, 3, false),
    (Break::MissingConfig, 3, false),
    (Break::MissingManifest, 3, false),
    (Break::WrongSize, 6, false),
    (Break::BadGzip, 6, false),
    (Break::BadZstd, 6, false),
    (Break::BadTar, 6, false),
    (Break::TruncatedTar, 6, false),
    (Break::WrongDiffid, 6, false),
    (Break::MissingDiffid, 6, false),
    (Break::BadConfig, 6, false),
    (Break::BadManifest, 6, false),
    (Break::WrongPlatform, 6, true),
    (Break::UnknownLayerType, 6, false),
    (Break::CyclicIndex, 6, false),
    (Break::DeepIndex, 6, true),
    (Break::WideIndex, 6, false),
    (Break::HugeManifest, 6, true),
    (Break::Traversal, 0, true),
    (Break::SymlinkEscape, 0, true),
    (Break::HardlinkEscape, 6, false),
    (Break::BadWhiteout, 6, false),
    (Break::Bomb, 6, true),
];

#[test]
fn broken_images_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    let containerd = Containerd::start("2.1.9", &dir.join("state"), &dir.join("work"));
    let mut taken = BTreeMap::new();
    let mut ends = BTreeMap::new();
    for (how, ..) in Break::ALL.map(|(how, name, _)| (how, name)) {
        // Of one's own, so that containerd has nothing of it from the one before.
        let spec = SMALL.replace("BREAK", &how.to_string());
        let mut content = Content::build(&Spec::parse(&spec).unwrap()).unwrap();
        content.breaks(&Broken { how, image: Some("app:1".to_owned()) }).unwrap();
        let registry = testing::Registry::start(content, Options::default()).unwrap();
        let (broken, good) = (registry.reference("app:1"), registry.reference("good:1"));
        let root = dir.join(how.to_string());
        let bake = format!("bake --unpack --tries 2 --max-unpacked 100MiB --platform linux/amd64 {broken} {good}");
        let run = prebake(&root, &bake);
        assert!(!run.stderr.contains("panicked"), "{how}: {}", run.stderr);
        // One of two failed: the code that tells of it is that of the one alone.
        let alone =
            prebake(&root, &format!("bake --unpack --tries 2 --max-unpacked 100MiB --platform linux/amd64 {broken}"));
        assert_eq!(run.code, i32::from(alone.code != 0), "{how}: {}", run.stderr);
        ends.insert(how, alone.code);
        prebake(&root, "check").expect(0);
        let listed = prebake(&root, "images --json").expect(0).stdout;
        assert_eq!(listed.contains(&broken), alone.code == 0, "{how}");
        assert!(listed.contains(&good), "{how}: the other one is there");
        assert!(snapshots(&root).iter().all(|name| !name.contains("new")), "{how}");
        assert!(!dir.join("escaped").exists() && !Path::new("/escaped").exists(), "{how}");
        let mut pull = containerd.ctr_command();
        let pulled =
            pull.args(["images", "pull", "--plain-http", "--platform", "linux/amd64", &broken]).output().unwrap();
        taken.insert(how, pulled.status.success());
    }
    let expected: BTreeMap<Break, i32> = BREAKS.iter().map(|(how, code, _)| (*how, *code)).collect();
    assert_eq!(ends, expected);
    // The documentation says the same.
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ci-fixtures.md")).unwrap();
    for (how, name, what) in Break::ALL {
        let takes = match (how, taken[&how]) {
            // Seen both ways with one containerd: which is not told by anything of the image.
            (Break::BadConfig, _) => "takes it or not, by chance",
            (_, true) => "takes it",
            (_, false) => "refuses it",
        };
        let code = ends[&how];
        let line = format!("| `{name}` | {what} | {code} | {takes} |");
        assert!(page.contains(&line), "docs/ci-fixtures.md lacks {line}");
    }
    let mut expected: BTreeMap<Break, bool> = BREAKS.iter().map(|(how, _, taken)| (*how, *taken)).collect();
    expected.insert(Break::BadConfig, taken[&Break::BadConfig]);
    assert_eq!(taken, expected);
}

#[test]
fn a_real_image_becomes_small() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    let registry = Registry::start(dir);
    let reference = push_debian(&registry, dir, "real/debian:12", &["/bin/sh"]);
    let said = ours(dir, &format!("fixture shrink {reference} --plain-http -o small.tar --json")).expect(0);
    let first: serde_json::Value = serde_json::from_str(said.stdout.lines().next().unwrap()).unwrap();
    let (was, is) = (first["bytes"].as_u64().unwrap(), fs::metadata(dir.join("small.tar")).unwrap().len());
    eprintln!("{was} bytes of layers become an archive of {is}");
    assert!(was > 80 << 20 && is < 1 << 20, "{was} {is}");
    ours(dir, "bake --root root --unpack oci-archive:small.tar").expect(0);
    ours(dir, "check --root root --snapshots").expect(0);
    ours(dir, &format!("bake --root real --unpack {reference}")).expect(0);
    // Every path of it is there.
    let paths = |root: &str| {
        let find = format!(
            "cd {root}/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots && find . -printf '%p %y %m %U %G %l\\n' | sort"
        );
        run(Command::new("sh").current_dir(dir).args(["-c", &find]))
    };
    let real = paths("real");
    assert!(real.lines().count() > 3000);
    assert!(real == paths("root"), "other paths");
    let containerd = Containerd::start("2.1.9", &containerd_root(&dir.join("root")), &dir.join("work"));
    assert!(containerd.ctr("images check").contains("complete"));
}
