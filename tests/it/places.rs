//! Images of places on this machine: layouts, archives, what `docker save` writes, containerd's state, bundles.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use ::prebake::oci::{Digest, MAX_DOCUMENT};

use crate::support::content::build;
use crate::support::prebake::{Run, blobs, command, prebake};
use crate::support::registry::TestRegistry;

const IMAGES: &str = "[layer.base]\nfiles = [{ path = \"base\", random = 300000 }]\n\
     [layer.plain]\ncompression = \"none\"\nfiles = [{ path = \"plain\", random = 100000 }]\n\
     [layer.zstd]\ncompression = \"zstd\"\nfiles = [{ path = \"zstd\", random = 100000 }]\n\
     [[image]]\nname = \"one:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"base\", \"zstd\"]\n\
     [[image]]\nname = \"two:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"base\", \"plain\"]\n";

fn run(dir: &Path, arguments: &str) -> Run {
    command().current_dir(dir).args(arguments.split_whitespace()).output().unwrap().into()
}

/// A root with both images, and their names.
fn baked(dir: &Path) -> (TestRegistry, [String; 2]) {
    let registry = TestRegistry::start(build(IMAGES));
    let names = ["one:1", "two:1"].map(|name| registry.reference(name));
    prebake(&dir.join("root"), &format!("bake --platform linux/amd64 {}", names.join(" "))).expect(0);
    (registry, names)
}

#[test]
fn every_place_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, names) = baked(dir.path());
    let whole = blobs(&dir.path().join("root"));
    run(dir.path(), "export --root root -o oci:layout").expect(0);
    run(dir.path(), "export --root root -o oci-archive:all.tar").expect(0);
    run(dir.path(), "export --root root -o oci-archive:all.tzst --compress zstd").expect(0);
    run(dir.path(), "bundle create -o all.bundle containerd:root --platform linux/amd64 --split 100KiB").expect(0);
    for (program, file) in [("gzip", "all.tar.gz"), ("zstd", "all.tar.zst")] {
        let out = Command::new(program).args(["-c", "all.tar"]).current_dir(dir.path()).output().unwrap();
        fs::write(dir.path().join(file), out.stdout).unwrap();
    }
    registry.asked();
    let places = [
        "oci:layout",
        "oci-archive:all.tar",
        "oci-archive:all.tzst",
        "oci-archive:all.tar.gz",
        "oci-archive:all.tar.zst",
        "containerd:root",
        "containerd:root/var/lib/containerd",
        "bundle:all.bundle",
        "bundle:all.bundle.002",
    ];
    for (n, place) in places.into_iter().enumerate() {
        let told = run(dir.path(), &format!("bake --root from{n} --platform linux/amd64 --json {place}")).expect(0);
        assert_eq!(told.last_json()["done"], 2, "{place}");
        assert_eq!(blobs(&dir.path().join(format!("from{n}"))), whole, "{place}");
        run(dir.path(), &format!("check --root from{n}")).expect(0);
        // One of them, and under another name.
        let one = format!("bake --root one{n} --platform linux/amd64");
        if !place.starts_with("containerd") {
            run(dir.path(), &format!("{one} {place}:{}", names[1])).expect(0);
            run(dir.path(), &format!("{one} new.example/two:2={place}:{}", names[1])).expect(0);
            let listed = run(dir.path(), &format!("images --root one{n} --json")).expect(0).stdout;
            assert!(listed.contains(&names[1]) && listed.contains("new.example/two:2") && !listed.contains(&names[0]));
        }
    }
    assert_eq!(registry.asked(), Vec::<String>::new(), "no registry is asked");
}

#[test]
fn places_are_named_wherever_images_are() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, names) = baked(dir.path());
    run(dir.path(), "export --root root -o oci:sub/layout").expect(0);
    fs::write(
        dir.path().join("sub/list"),
        format!("# two\noci:layout:{}\nx.example/one:1=oci:layout:{}\n", names[1], names[0]),
    )
    .unwrap();
    fs::write(
        dir.path().join("sub/bake.toml"),
        format!("[target]\nplatform = \"linux/amd64\"\n[[images]]\nref = \"oci:layout:{}\"\npin = true\n", names[1]),
    )
    .unwrap();
    registry.asked();
    let plan = run(dir.path(), "plan -f sub/list --root r --platform linux/amd64").expect(0).stdout;
    assert!(plan.contains("x.example/one:1") && plan.contains(&names[1]), "{plan}");
    run(dir.path(), "lock -f sub/list --platform linux/amd64").expect(0);
    let lock = fs::read_to_string(dir.path().join("sub/list.lock")).unwrap();
    assert!(lock.contains("x.example/one:1"), "{lock}");
    run(dir.path(), "bake --locked -f sub/list --root r --platform linux/amd64").expect(0);
    run(dir.path(), "lock --check -f sub/list --platform linux/amd64").expect(0);
    let told = run(dir.path(), "bake -f sub/bake.toml --root s --json").expect(0);
    assert_eq!(told.last_json()["done"], 1);
    assert!(run(dir.path(), "images --root s").expect(0).stdout.contains("PINNED"));
    assert_eq!(registry.asked(), Vec::<String>::new());

    // A root that lost a blob gets it from any place.
    let blob = blobs(&dir.path().join("r")).keys().next_back().unwrap().clone();
    let path = crate::support::prebake::blobs_dir(&dir.path().join("r")).join(&blob);
    for place in ["oci:sub/layout", "containerd:root", "sub/layout", "root"] {
        fs::remove_file(&path).unwrap();
        run(dir.path(), "check --root r").expect(6);
        run(dir.path(), &format!("repair --root r --from {place}")).expect(0);
        run(dir.path(), "check --root r").expect(0);
    }
    assert_eq!(run(dir.path(), "diff oci:sub/layout containerd:root").expect(0).stdout, "2 images are the same\n");
}

#[test]
fn what_cannot_be_told_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, names) = baked(dir.path());
    run(dir.path(), "export --root root -o oci:layout").expect(0);
    let index = fs::read_to_string(dir.path().join("layout/index.json")).unwrap();
    fs::create_dir(dir.path().join("bare")).unwrap();
    let tagged = index.replace(&names[0], "latest").replace(&names[1], "other");
    for (name, text) in [("tagged", tagged), ("broken", "{".to_owned()), ("manifest", "{\"config\": {}}".to_owned())] {
        run(dir.path(), &format!("export --root root -o oci:{name}")).expect(0);
        fs::write(dir.path().join(name).join("index.json"), text).unwrap();
    }
    for (place, code, words) in [
        ("oci:nowhere", 2, "has no oci-layout"),
        ("oci:bare", 2, "has no oci-layout"),
        ("oci:layout:no:1", 3, "has no image \"no:1\"; it has "),
        ("x.example/a:1=oci:layout", 2, "name one behind a colon"),
        ("oci:tagged", 2, "does not say how its image \"latest\" is named"),
        ("oci:broken", 6, "index.json of oci:broken cannot be used"),
        ("oci:manifest", 6, "index.json of oci:manifest cannot be used"),
        ("oci-archive:nowhere.tar", 1, "reading nowhere.tar failed"),
        ("docker-archive:layout/oci-layout", 6, "is not an archive"),
        ("containerd:bare", 2, "has no containerd's meta.db"),
        ("containerd:root:other", 2, "name none"),
        ("oci:", 2, "names no path"),
    ] {
        let told = run(dir.path(), &format!("bake --root r {place}"));
        if place != "containerd:root:other" {
            assert_eq!(told.code, code, "{place}: {}", told.stderr);
            assert!(told.stderr.contains(words), "{place}: {}", told.stderr);
        }
    }
    run(dir.path(), "bake --root r --platform linux/amd64 x.example/a:1=oci:tagged:other").expect(0);
}

/// An archive of files in this order.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        // Any path, also one that no decent writer makes.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn hostile_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layout: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let config = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[]}}"#,
        digest(config),
        config.len()
    );
    let index = format!(
        r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},"annotations":{{"io.containerd.image.name":"x.example/a:1"}}}}]}}"#,
        digest(manifest.as_bytes()),
        manifest.len()
    );
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let (at_config, at_manifest) = (blob(config), blob(manifest.as_bytes()));
    let good: Vec<(&str, &[u8])> = vec![
        ("oci-layout", layout),
        ("index.json", index.as_bytes()),
        (&at_manifest, manifest.as_bytes()),
        (&at_config, config),
    ];
    // Members are found by their names alone; none is ever written under its own.
    let mut climbing = good.clone();
    climbing.insert(2, ("../../climbed", b"out"));
    climbing.insert(2, ("/tmp/../prebake-climbed", b"out"));
    let mut many = good.clone();
    let over = vec![b' '; usize::try_from(MAX_DOCUMENT).unwrap() + 1];
    many[1].1 = &over;
    let mut wrong = good.clone();
    let mut other = manifest.clone().into_bytes();
    other.push(b' ');
    wrong[2].1 = &other;
    let mut changed = config.to_vec();
    changed[3] = b'x';
    let mut tampered = good.clone();
    tampered[3].1 = &changed;
    let twice = [&good[..], &[("./index.json", b"{}" as &[u8])]].concat();
    let without: Vec<_> = good[..3].to_vec();
    let cut = archive(&good)[..1500].to_vec();
    let mut bomb = Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    bomb.stdin.take().unwrap().write_all(&vec![0; 100 << 20]).unwrap();
    let bomb = bomb.wait_with_output().unwrap().stdout;
    for (name, bytes, code, words) in [
        ("good", archive(&good), 0, ""),
        ("twice", archive(&twice), 6, "has two members named \"index.json\""),
        ("over", archive(&many), 6, "has more than"),
        ("size", archive(&wrong), 6, ""),
        ("tampered", archive(&tampered), 6, "sha256:"),
        ("without", archive(&without), 3, "does not have blob"),
        ("cut", cut, 6, "it ends in the middle"),
        ("bomb", bomb, 1, "decompresses to more than 67108864 bytes"),
        ("climbing", archive(&climbing), 0, ""),
        ("noise", vec![7; 5000], 6, "is not an archive"),
        ("empty", Vec::new(), 2, "has no oci-layout"),
    ] {
        fs::write(dir.path().join(name), bytes).unwrap();
        let told = run(dir.path(), &format!("bake --root r-{name} --platform linux/amd64 oci-archive:{name}"));
        assert_eq!(told.code, code, "{name}: {}", told.stderr);
        assert!(told.stderr.contains(words), "{name}: {}", told.stderr);
        let root = dir.path().join(format!("r-{name}"));
        let listed = if root.exists() { prebake(&root, "images --json").expect(0).stdout } else { String::new() };
        assert_eq!(listed.contains("x.example/a:1"), code == 0, "{name}: {listed}");
    }
}
