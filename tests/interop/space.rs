//! A file that many bakes change stays small, and sound to the real bbolt after each of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use prebake::bolt::{Db, FileStorage, FreelistForm, Lock};
use prebake::bootstrap::offline;
use prebake::catalog::{ImageBlob, ImageRecord};
use prebake::content::Store;
use prebake::metadata::{K8S_NAMESPACE, MetaDb, Wait, labels};
use prebake::oci::{Descriptor, Digest, media_type};
use prebake::root::{CONTAINERD_ROOT, Root};
use prebake::times::Times;

use crate::bbolt::Oracle;
use crate::script::parse;
use crate::support::bolt_script::run;
use crate::support::prebake::{blobs_dir, meta_db};

const BAKES: usize = 1000;
const IMAGES: usize = 50;

/// An image whose manifest, config and layer are those of a version.
fn image(root: &Path, n: usize, version: usize) -> ImageRecord {
    let put = |kind: &str, text: String| {
        let digest = Digest::of(text.as_bytes());
        std::fs::write(blobs_dir(root).join(digest.hex()), &text).unwrap();
        Descriptor::new(kind, digest, text.len() as u64)
    };
    let config = put(media_type::OCI_CONFIG, format!("config {n} {version}"));
    let layer = put(media_type::OCI_LAYER, format!("layer {n} {version}"));
    let target = put(media_type::OCI_MANIFEST, format!("manifest {n} {version}"));
    let children = [config.clone(), layer.clone()];
    let labels = labels::children(&children);
    let blob = |descriptor, children| ImageBlob { descriptor, children };
    ImageRecord {
        created: None,
        name: format!("registry.example/team/app{n}:1.0"),
        aliases: vec![format!("registry.example/team/app{n}@{}", target.digest), config.digest.to_string()],
        target: target.clone(),
        names: Vec::new(),
        labels: BTreeMap::new(),
        pinned: false,
        blobs: vec![blob(target, labels), blob(config, Vec::new()), blob(layer, Vec::new())],
        source: Some(("registry.example".to_owned(), format!("team/app{n}"))),
    }
}

fn bake(root: &Root, images: Vec<ImageRecord>) {
    let store = Store::create(root).unwrap();
    let wait = Wait { timeout: Duration::ZERO, tell: &|_| {}, stop: &AtomicBool::new(false) };
    let mut meta = MetaDb::lock(root, Lock::Exclusive, &wait).unwrap();
    let ready: Vec<_> = images.into_iter().map(|image| offline::ready(&store, K8S_NAMESPACE, image).unwrap()).collect();
    assert!(offline::bootstrap(&mut meta, &ready, &Times::new(None)).unwrap());
}

/// Bakes one image a time, the versions of each taking turns; the file's size after it, and that of a fresh one with the
/// same records.
fn sizes(versions: usize, freelist: &str) -> (u64, u64) {
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
    let root = Root::new(dir.path(), CONTAINERD_ROOT);
    Store::create(&root).unwrap();
    let mut oracle = Oracle::start();
    bake(&root, (0..IMAGES).map(|n| image(dir.path(), n, 0)).collect());
    // From here on as a file that bbolt made.
    let db = meta_db(dir.path());
    oracle.dump(&db);
    std::fs::remove_file(&db).unwrap();
    oracle.ask(&format!("build {} {} {freelist}", db.display(), db.with_extension("dump").display())).unwrap();
    for turn in 0..BAKES {
        bake(&root, vec![image(dir.path(), turn % IMAGES, (turn / IMAGES + 1) % versions)]);
        // A file that grows takes bbolt longer and longer.
        if versions == 2 || turn % 20 == 0 || turn + 1 == BAKES {
            assert_eq!(oracle.check(&db), Ok(()), "bake {turn}");
        }
    }
    let fresh = dir.path().join("fresh.db");
    let form = if freelist.is_empty() { FreelistForm::Persisted } else { FreelistForm::Rebuilt };
    let mut new = Db::create(Box::new(FileStorage::create(&fresh, 0o600).unwrap()), form).unwrap();
    run(&mut new, &parse(&oracle.dump(&db))).unwrap();
    drop(new);
    assert!(oracle.dump(&fresh) == oracle.dump(&db));
    (std::fs::metadata(&db).unwrap().len(), std::fs::metadata(fresh).unwrap().len())
}

#[test]
fn a_thousand_bakes_leave_a_small_file() {
    for freelist in ["", "nofreelist"] {
        // A tag that goes to and fro, and one that never comes back: then the records of all versions are there.
        for versions in [2, usize::MAX] {
            let (used, fresh) = sizes(versions, freelist);
            eprintln!("{BAKES} bakes, {versions} versions, {freelist:?}: {used} bytes, {fresh} fresh");
            assert!(used < 2 * fresh, "{versions} versions, {freelist:?}: {used} bytes, {fresh} fresh");
        }
    }
}
