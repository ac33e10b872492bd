//! What containerd makes of images that prebake unpacked: it starts them as they are, and frees everything when they go.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::bake::push_debian;
use crate::cri;
use crate::hostile::{snapshots, snapshots_dir};
use crate::peers::{Containerd, RELEASES, Registry};
use crate::support::content::demo;
use crate::support::prebake::{blobs_dir, command, containerd_root, meta_db, prebake};

const LINE: &str = "hello from an image that prebake baked";

/// Keys of committed snapshots.
fn committed(containerd: &Containerd) -> BTreeSet<String> {
    let table = containerd.ctr("snapshots ls");
    let rows = table.lines().skip(1).filter(|row| row.trim_end().ends_with("Committed"));
    rows.map(|row| row.split_whitespace().next().unwrap().to_owned()).collect()
}

fn is_sound(database: &Path) {
    let output = command().args(["bolt", "check"]).arg(database).output().unwrap();
    assert!(output.status.success(), "{}: {output:?}", database.display());
}

fn starts(release: &'static str, flags: &str, registry: &Registry, references: &[String], debian: &str, dir: &Path) {
    let root = dir.join("root");
    prebake(&root, &format!("bake --unpack {flags} {} {debian}", references.join(" "))).expect(0);
    let before = snapshots(&root);
    let mut containerd = Containerd::new(release, &containerd_root(&root), &dir.join("work"), debian);
    containerd.launch();
    let chains = committed(&containerd);
    assert_eq!(chains.len(), before.len(), "{release}");

    // REF TYPE DIGEST STATUS (n/n) SIZE/SIZE UNPACKED
    let checked = containerd.ctr("images check");
    let kept = if flags.is_empty() { "complete (" } else { "incomplete (" };
    for row in checked.lines().skip(1).filter(|row| !row.contains("/chart")) {
        // The chart's third record has only a digest for a name, and no layers either.
        assert!(row.trim_end().ends_with("true") && row.contains(kept) || row.contains("(2/2)"), "{release}: {row}");
    }
    for name in ["hello", "docker", "zstd", "plain"] {
        let image = format!("{}/demo/{name}:1.0", registry.name());
        let output = containerd.run(&image, name, &[]);
        assert_eq!(output.trim(), LINE, "{release} {name}");
    }
    let pod = cri::run_pod(&containerd.socket(), "unpacked");
    let container = cri::run_container(&containerd.socket(), &pod, "unpacked", debian, &["sleep", "1000"]);
    assert!(cri::states(&containerd.socket(), true).contains(&(container, 1)), "{release}");
    // Nothing was unpacked for any of it.
    assert_eq!(committed(&containerd), chains, "{release}");
    containerd.collect_garbage();
    assert_eq!(committed(&containerd), chains, "{release}");

    cri::remove_pod(&containerd.socket(), &pod);
    for image in cri::list_images(&containerd.socket()) {
        cri::remove_image(&containerd.socket(), &image.id);
    }
    // CRI does not know what is no image.
    for name in containerd.ctr("images ls -q").lines() {
        containerd.ctr(&format!("images rm {name}"));
    }
    containerd.collect_garbage();
    assert_eq!(snapshots(&root), Vec::<String>::new(), "{release}");
    assert_eq!(fs::read_dir(blobs_dir(&root)).unwrap().count(), 0, "{release}");
    containerd.stop();
    is_sound(&meta_db(&root));
    is_sound(&snapshots_dir(&root).with_file_name("metadata.db"));
    prebake(&root, "check").expect(0);
    // And it can be baked into again.
    prebake(&root, &format!("bake --unpack {flags} {debian}")).expect(0);
    containerd.launch();
    assert_eq!(committed(&containerd).len(), 3);
    let version = containerd.run(debian, "again", &["cat", "/etc/debian_version"]);
    assert!(version.starts_with("12."), "{release}: {version}");
}

#[test]
fn three_releases_start_what_was_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let references = registry.push(&demo());
    let debian = push_debian(&registry, dir.path(), "real/debian:12", &["/bin/sleep", "1000"]);
    for release in RELEASES {
        for flags in ["", "--discard-layers"] {
            let work = dir.path().join(format!("{release}{flags}"));
            starts(release, flags, &registry, &references, &debian, &work);
            fs::remove_dir_all(work.join("root")).unwrap();
        }
    }
}
