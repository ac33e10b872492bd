//! Images carried out of roots and into them: what real tools make of ours, and we of theirs, and a site behind an air gap.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use ::prebake::fixture::Content;
use ::prebake::oci::{Digest, Platform};
use serde_json::json;

use crate::bake::listed;
use crate::peers::{self, Containerd, RELEASES, Registry, run};
use crate::support::content::{build, demo};
use crate::support::prebake::{Run, blobs, command, containerd_root, prebake};

const LINE: &str = "hello from an image that prebake baked";

fn ours(dir: &Path, arguments: &str) -> Run {
    command().current_dir(dir).args(arguments.split_whitespace()).output().unwrap().into()
}

fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("sh").args(["-ec", script]).current_dir(dir))
}

/// Name and digest of each of a containerd's images, but for those that are named by a digest.
fn images(containerd: &Containerd) -> BTreeMap<String, String> {
    let table = containerd.ctr("images ls");
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| !row[0].contains('@') && !row[0].starts_with("sha256:"));
    rows.map(|row| (row[0].to_owned(), row[2].to_owned())).collect()
}

#[test]
fn exports_are_taken_by_everybody() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    let registry = Registry::start(dir);
    let references = registry.push(&demo());
    prebake(&dir.join("root"), &format!("bake {}", references.join(" "))).expect(0);
    let hello = format!("{}/demo/hello:1.0", registry.name());
    ours(dir, "export --root root -o oci-archive:all.tar").expect(0);
    ours(dir, "export --root root -o oci-archive:again.tar").expect(0);
    assert!(fs::read(dir.join("all.tar")).unwrap() == fs::read(dir.join("again.tar")).unwrap(), "every time the same");
    ours(dir, "export --root root -o oci:layout *demo/hello*").expect(0);
    ours(dir, &format!("export --root root -o docker-archive:hello.tar {hello}")).expect(0);
    ours(dir, "bundle create -o b.bundle containerd:root:k8s.io --compress zstd --pin").expect(0);
    let target = listed(&dir.join("root"))[&hello]["digest"].as_str().unwrap().to_owned();

    // skopeo and umoci.
    let raw = sh(dir, &format!("skopeo inspect --raw oci-archive:all.tar:{hello} | sha256sum"));
    assert_eq!(format!("sha256:{}", raw.split(' ').next().unwrap()), target);
    sh(
        dir,
        &format!(
            "skopeo copy -q oci:layout:{hello} dir:from-layout && skopeo copy -q docker-archive:hello.tar dir:from-docker"
        ),
    );
    sh(dir, &format!("zstd -dq b.bundle -o b.tar && skopeo copy -q oci-archive:b.tar:{hello} oci:plain:hello"));
    ours(dir, &format!("export --root root --platform {} -o oci:one *demo/hello*", Platform::host())).expect(0);
    sh(dir, &format!("umoci unpack --image one:{hello} of-one"));
    assert!(fs::read_dir(dir.join("of-one/rootfs")).unwrap().count() > 0);
    sh(dir, "umoci unpack --image plain:hello unpacked && umoci stat --image plain:hello >/dev/null");
    assert!(fs::read_dir(dir.join("unpacked/rootfs")).unwrap().count() > 0);

    // A site that runs a registry.
    let second = Registry::serve(&dir.join("second"), &dir.join("second/data"), "", "");
    let told =
        ours(dir, &format!("bundle apply --to-registry {} --plain-http --json b.bundle", second.name())).expect(0);
    assert_eq!(told.last_json()["done"], references.len(), "{}", told.stdout);
    let pushed = format!("docker://{}/demo/hello:1.0", second.name());
    let there = sh(dir, &format!("skopeo inspect --tls-verify=false --format '{{{{.Digest}}}}' {pushed}"));
    let manifest = fs::read(dir.join("from-layout/manifest.json")).unwrap();
    assert_eq!(there.trim(), Digest::of(&manifest).to_string(), "the manifest of this machine");
    let again = format!("bundle apply --to-registry {} --plain-http --json b.bundle", second.name());
    assert_eq!(ours(dir, &again).expect(0).last_json()["uploaded_blobs"], 0);

    for release in RELEASES {
        let site = dir.join(release);
        let containerd = Containerd::start(release, &site.join("state"), &site.join("work"));
        // ctr cannot unpack what is no image.
        containerd.ctr(&format!("images import --no-unpack {}", dir.join("all.tar").display()));
        let all = images(&containerd);
        let expected: BTreeMap<String, String> = listed(&dir.join("root"))
            .into_iter()
            .filter(|(name, _)| references.contains(name))
            .map(|(name, image)| (name, image["digest"].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(all, expected, "{release}");
        assert_eq!(containerd.run(&hello, "carried", &[]).trim(), LINE, "{release}");
        for name in all.keys() {
            containerd.ctr(&format!("images rm --sync {name}"));
        }
        containerd.ctr(&format!("images import {}", dir.join("hello.tar").display()));
        assert_eq!(containerd.run(&hello, "loaded", &[]).trim(), LINE, "{release}");
        containerd.ctr(&format!("images import --no-unpack {}", dir.join("b.tar").display()));
        assert_eq!(images(&containerd).len(), references.len(), "{release}: a bundle is a layout");
    }
}

/// `debian.tar`, of real content, as `docker save` wrote archives before Docker 25: a folder a layer, one of them by a link.
fn save_debian(dir: &Path) {
    let arch = run(Command::new("dpkg").arg("--print-architecture"));
    let mut diff_ids = Vec::new();
    for n in 0..3 {
        let tar = fs::read(peers::dir().join(format!("debian/layer{n}.tar"))).unwrap();
        diff_ids.push(Digest::of(&tar).to_string());
        fs::create_dir_all(dir.join(format!("saved/{n}"))).unwrap();
        fs::write(dir.join(format!("saved/{n}/layer.tar")), tar).unwrap();
    }
    // The same layer once more.
    diff_ids.push(diff_ids[2].clone());
    fs::create_dir_all(dir.join("saved/3")).unwrap();
    std::os::unix::fs::symlink("../2/layer.tar", dir.join("saved/3/layer.tar")).unwrap();
    let config = json!({"architecture": arch.trim(), "os": "linux", "config": {"Cmd": ["cat", "/etc/debian_version"],
        "Env": ["PATH=/usr/bin:/bin"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    fs::write(dir.join("saved").join(&name), config).unwrap();
    let layers: Vec<String> = (0..4).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": name, "RepoTags": ["x.example/debian:12"], "Layers": layers}]);
    fs::write(dir.join("saved/manifest.json"), manifest.to_string()).unwrap();
    sh(dir, "cd saved && tar -cf ../debian.tar --sort=name *");
}

#[test]
fn what_others_export_is_baked() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    let registry = Registry::start(dir);
    registry.push(&demo());
    let hello = format!("{}/demo/hello:1.0", registry.name());
    save_debian(dir);
    let from = format!("--src-tls-verify=false docker://{hello}");
    sh(dir, &format!("skopeo copy -q {from} oci:layout:named && skopeo copy -q {from} oci-archive:a.tar:named"));
    sh(dir, &format!("skopeo copy -q {from} docker-archive:d.tar:x.example/hello:1"));
    for release in RELEASES {
        let site = dir.join(release);
        let containerd = Containerd::start(release, &site.join("state"), &site.join("work"));
        // In a namespace of its own: an import takes layers that are there compressed, and a pull none that are unpacked.
        containerd.ctr_in("apart", &format!("images pull --plain-http {hello}"));
        let tar = site.join("ctr.tar");
        containerd.export("apart", &Platform::host().to_string(), &tar, &hello);
        // What containerd makes of a docker archive has the same digest as what we make of it.
        containerd.ctr(&format!("images import {}", dir.join("d.tar").display()));
        containerd.ctr(&format!("images import {}", dir.join("debian.tar").display()));
        let theirs = images(&containerd);
        let root = site.join("root");
        let places = [
            "docker-archive:d.tar".to_owned(),
            "docker-archive:debian.tar".to_owned(),
            "y.example/layout:1=oci:layout".to_owned(),
            "y.example/archive:1=oci-archive:a.tar:named".to_owned(),
            format!("oci-archive:{release}/ctr.tar"),
        ];
        ours(dir, &format!("bake --unpack --root {} {}", root.display(), places.join(" "))).expect(0);
        prebake(&root, "check --snapshots").expect(0);
        let baked = listed(&root);
        for (name, digest) in theirs {
            assert_eq!(baked[&name]["digest"].as_str().unwrap(), digest, "{release}: {name}");
        }
        drop(containerd);
        let containerd = Containerd::start(release, &containerd_root(&root), &site.join("again"));
        for name in ["x.example/hello:1", "y.example/layout:1", "y.example/archive:1", &hello] {
            assert_eq!(containerd.run(name, "ours", &[]).trim(), LINE, "{release}: {name}");
        }
        assert!(containerd.run("x.example/debian:12", "debian", &[]).starts_with("12."), "{release}");
    }
}

const IMAGES: usize = 30;
const WEEKS: usize = 5;

/// The images of a week: in each, the next six have another layer.
fn week(week: usize) -> Content {
    let mut spec = "[layer.base]\nfiles = [{ path = \"base\", random = 4000000 }]\n".to_owned();
    for n in 0..IMAGES {
        let version = (1..=week).filter(|week| n / 6 == week % 5).max().unwrap_or(0);
        // As images are: some of one platform, some of two.
        let platforms = if n % 3 == 0 { "[\"linux/amd64\", \"linux/arm64\"]" } else { "[\"linux/amd64\"]" };
        let own = format!(
            "[layer.own{n}]\nfiles = [{{ path = \"own/{n}/{version}\", random = {} }}]\n\
             [[image]]\nname = \"app{n}:1\"\nplatforms = {platforms}\nlayers = [\"base\", \"own{n}\"]\n",
            1_200_000 + n * 1000 + version
        );
        spec.push_str(&own);
    }
    build(&spec)
}

/// Those of a week's images that were others the week before.
fn changed(n: usize) -> Content {
    let (before, mut now) = (week(n - 1), week(n));
    now.tags.retain(|name, digest| before.tags.get(name) != Some(digest));
    now
}

/// Runs prebake where there is no network at all.
fn behind(dir: &Path, arguments: &str) -> Run {
    let mut apart = Command::new("unshare");
    apart.arg("--net").arg(env!("CARGO_BIN_EXE_prebake")).args(arguments.split_whitespace());
    apart.current_dir(dir).output().unwrap().into()
}

fn size(dir: &Path, name: &str) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let own = files.filter(|file| file.file_name().to_str().unwrap().starts_with(name));
    own.map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn a_site_behind_an_air_gap() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    let registry = Registry::start(dir);
    let references = registry.push(&week(0));
    assert_eq!(references.len(), IMAGES);
    fs::write(dir.join("list"), references.join("\n")).unwrap();
    ours(dir, "bundle keygen key").expect(0);
    let create = "bundle create -f list --platform linux/amd64 --unpack --sign-key key.key --json";
    let apply = "bundle apply --root site/root --verify-key key.pub --quiet";
    fs::create_dir(dir.join("site")).unwrap();
    fs::create_dir(dir.join("usb")).unwrap();

    // First all of it, on several media.
    let started = Instant::now();
    ours(dir, &format!("{create} -o usb/full.bundle --split 9MB")).expect(0);
    let elapsed = started.elapsed();
    sh(dir, "cd usb && sha256sum --quiet -c full.bundle.sha256");
    assert!(dir.join("usb/full.bundle.004").exists());
    let full = size(&dir.join("usb"), "full.bundle");
    behind(dir, &format!("{apply} usb/full.bundle.001")).expect(0);
    let skopeo = |name: &str| {
        let images: String = (0..IMAGES).map(|n| format!("    app{n}: ['1']\n")).collect();
        fs::write(dir.join("sync.yml"), format!("{}:\n  tls-verify: false\n  images:\n{images}", registry.name()))
            .unwrap();
        let started = Instant::now();
        sh(dir, &format!("skopeo sync --src yaml --dest dir sync.yml {name} >/dev/null 2>&1"));
        let bytes = sh(dir, &format!("du -sb {name}"));
        (started.elapsed(), bytes.split('\t').next().unwrap().parse::<u64>().unwrap())
    };
    let (their_time, their_bytes) = skopeo("sync0");
    eprintln!("full: {full} bytes in {elapsed:?}; skopeo sync: {their_bytes} bytes in {their_time:?}");
    assert!(full < their_bytes);

    // Then week by week what has changed.
    let (mut carried, mut new_bytes) = (0, 0);
    for n in 1..=WEEKS {
        behind(dir, "inventory --root site/root -o usb/site.inv").expect(0);
        let had: BTreeSet<String> = blobs(&dir.join("site/root")).into_keys().collect();
        registry.push(&changed(n));
        let started = Instant::now();
        let told = ours(dir, &format!("{create} -o usb/week{n}.bundle --since usb/site.inv")).expect(0).last_json();
        let elapsed = started.elapsed();
        behind(dir, &format!("{apply} usb/week{n}.bundle")).expect(0);
        let now = blobs(&dir.join("site/root"));
        let new: u64 = now.iter().filter(|(name, _)| !had.contains(*name)).map(|(_, blob)| blob.len() as u64).sum();
        let size = fs::metadata(dir.join(format!("usb/week{n}.bundle"))).unwrap().len();
        eprintln!("week {n}: {size} bytes for {new} new ones in {elapsed:?}; {} left out", told["left_out_bytes"]);
        assert!(new > 3_000_000 && size <= new + new / 100, "week {n}: {size} for {new}");
        carried += size;
        new_bytes += new;
    }
    let (their_time, their_bytes) = skopeo("sync5");
    eprintln!(
        "five weeks: {carried} bytes for {new_bytes}; skopeo sync each week: {their_bytes} bytes in {their_time:?}"
    );

    // An inventory that is out of date: since, the site has let go of an image.
    behind(dir, "inventory --root site/root -o usb/stale.inv").expect(0);
    behind(dir, &format!("rm --root site/root {}", references[7])).expect(0);
    registry.push(&changed(WEEKS + 1));
    let told = ours(dir, &format!("{create} -o usb/stale.bundle --since usb/stale.inv")).expect(0).last_json();
    let before = blobs(&dir.join("site/root"));
    let refused = behind(dir, &format!("{apply} usb/stale.bundle")).expect(3);
    let inventory = told["since"].as_str().unwrap();
    assert!(refused.stderr.contains(inventory) && refused.stderr.contains("sha256:"), "{}", refused.stderr);
    assert!(blobs(&dir.join("site/root")) == before, "nothing is changed");
    behind(dir, "inventory --root site/root -o usb/site.inv").expect(0);
    ours(dir, &format!("{create} -o usb/last.bundle --since usb/site.inv")).expect(0);
    behind(dir, &format!("{apply} usb/last.bundle")).expect(0);
    behind(dir, "check --root site/root --snapshots").expect(0);

    containerd_has_what_the_list_says(dir, &references);
}

fn containerd_has_what_the_list_says(dir: &Path, references: &[String]) {
    let spec: BTreeMap<String, String> = references
        .iter()
        .map(|name| {
            let raw = sh(dir, &format!("skopeo inspect --raw --tls-verify=false docker://{name} | sha256sum"));
            (name.clone(), format!("sha256:{}", raw.split(' ').next().unwrap()))
        })
        .collect();
    for release in RELEASES {
        sh(dir, &format!("cp -a site/root {release}"));
        let site = dir.join(release);
        let containerd = Containerd::start(release, &containerd_root(&site), &dir.join("work").join(release));
        assert_eq!(images(&containerd), spec, "{release}");
        let checked = containerd.ctr("images check");
        let rows = checked.lines().skip(1);
        assert!(
            rows.clone().count() >= IMAGES
                && rows.clone().all(|row| row.contains(" complete (") && row.trim_end().ends_with("true")),
            "{checked}"
        );
        containerd.collect_garbage();
        assert_eq!(images(&containerd), spec, "{release}");
    }
}
