//! `prebake bolt`: any bbolt file, read only.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use prebake::bolt::{Db, FileStorage, FreelistForm};
use serde_json::Value;

use crate::support::content::demo;
use crate::support::prebake::{Run, command, meta_db, prebake};
use crate::support::registry::TestRegistry;

const PAGE: u64 = 4096;

fn bolt(verb: &str, file: &Path, arguments: &str) -> Run {
    command().args(["bolt", verb]).arg(file).args(arguments.split_whitespace()).output().unwrap().into()
}

fn baked() -> (tempfile::TempDir, PathBuf, String) {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let reference = registry.reference("demo/zstd:1.0");
    prebake(root.path(), &format!("bake --platform linux/amd64 {reference}")).expect(0);
    let db = meta_db(root.path());
    (root, db, reference)
}

fn lines(run: &Run) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_is_in_a_database() {
    let (_root, db, reference) = baked();
    let before = fs::read(&db).unwrap();
    let text = bolt("dump", &db, "").expect(0).stdout;
    assert!(text.starts_with("v1/\n  k8s.io/\n    content/\n"), "{text}");
    assert!(
        text.contains("\n  version = 3\n") && text.contains(&format!("      {reference}/\n        createdat = 20"))
    );
    // Keys have slashes in them too.
    let path = format!("--path v1/k8s.io/images/{reference}/target");
    let target = bolt("dump", &db, &path).expect(0).stdout;
    assert!(target.starts_with("digest = sha256:") && target.lines().count() == 3, "{target}");
    assert!(bolt("dump", &db, &format!("{path}/size")).expect(0).stdout.starts_with("size = "));
    assert_eq!(bolt("dump", &db, "--path v1/version").expect(0).stdout, "version = 3\n");
    bolt("dump", &db, "--path v1/nothing").expect(3);
    bolt("check", &db, "--path v1/nothing").expect(3);
    bolt("stats", &db, "--path v1/version").expect(2);
    let entries = lines(&bolt("dump", &db, "--json").expect(0));
    assert_eq!(entries.len(), text.lines().count());
    let version = entries.iter().find(|entry| entry["key"] == "version").unwrap();
    assert_eq!((&version["value"], &version["kind"]), (&Value::from(3), &Value::from("number")));
    let created = entries.iter().find(|entry| entry["key"] == "createdat").unwrap();
    assert!(created["kind"] == "time" && created["value"].as_str().unwrap().ends_with('Z'));

    let stats = &lines(&bolt("stats", &db, "--json").expect(0))[0];
    let buckets = entries.iter().filter(|entry| entry["bucket"].is_string()).count();
    // The root is a bucket as well.
    assert_eq!(stats["buckets"], buckets + 1);
    assert_eq!(stats["keys"], entries.len() - buckets);
    assert_eq!(stats["file_bytes"], before.len());
    let sum = |names: &[&str]| names.iter().map(|name| stats[*name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum(&["pages"]), 2 + sum(&["branch_pages", "leaf_pages", "overflow_pages", "free_pages"]));
    let part = &lines(&bolt("stats", &db, "--json --path v1/k8s.io/images").expect(0))[0];
    assert!(part["keys"].as_u64() < stats["keys"].as_u64());
    assert!(bolt("stats", &db, "").expect(0).stdout.contains(" inline\n"));

    assert_eq!(bolt("check", &db, "").expect(0).stdout, "sound\n");
    assert_eq!(bolt("check", &db, "--json").expect(0).stdout, "");
    assert!(fs::read(&db).unwrap() == before, "it was written to");
    // Through a link, and while others read; not while a containerd writes.
    let link = db.with_file_name("link");
    std::os::unix::fs::symlink(&db, &link).unwrap();
    let file = File::open(&db).unwrap();
    file.lock_shared().unwrap();
    bolt("check", &link, "").expect(0);
    file.unlock().unwrap();
    file.lock().unwrap();
    let locked = bolt("stats", &db, "").expect(5);
    assert!(locked.stderr.contains(&format!("(pid {})", std::process::id())), "{}", locked.stderr);
}

#[test]
fn what_is_wrong_and_where() {
    let (_root, db, _) = baked();
    let bytes = fs::read(&db).unwrap();
    // The page of the images: it holds their names.
    let page =
        bytes.chunks(4096).position(|page| page[8] == 2 && page.windows(10).any(|w| w == b"demo/zstd:")).unwrap();
    let file = OpenOptions::new().write(true).open(&db).unwrap();
    file.write_all_at(&[0xff; 2], page as u64 * PAGE + 8).unwrap();
    let run = bolt("check", &db, "").expect(6);
    assert_eq!(run.stdout, format!("page {page}: neither a branch nor a leaf (bucket v1/k8s.io/images)\n"));
    let json = &lines(&bolt("check", &db, "--json").expect(6))[0];
    assert_eq!((&json["bucket"][2], &json["fatal"]), (&Value::from("images"), &Value::from(true)));
    bolt("check", &db, "--path v1/k8s.io/images").expect(6);
    bolt("check", &db, "--path v1/k8s.io/content").expect(0);
    // What is wrong above a bucket concerns it.
    bolt("check", &db, "--path v1/k8s.io/images/any").expect(6);
    for verb in ["dump", "stats"] {
        let run = bolt(verb, &db, "").expect(6);
        assert!(run.stderr.contains(&format!("meta.db: the database is damaged: page {page}: ")), "{}", run.stderr);
    }
    file.write_all_at(&[0; 8192], 0).unwrap();
    assert!(bolt("check", &db, "").expect(6).stderr.contains("not a bbolt database"));
    file.set_len(0).unwrap();
    bolt("check", &db, "").expect(6);
    bolt("check", &db.with_file_name("nothing"), "").expect(3);
    bolt("check", db.parent().unwrap(), "").expect(6);
}

#[test]
fn a_thousand_findings_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.db");
    let mut db = Db::create(Box::new(FileStorage::create(&path, 0o600).unwrap()), FreelistForm::Rebuilt).unwrap();
    let mut tx = db.begin().unwrap();
    for n in 0..3000_u32 {
        // Too large to lie inline.
        tx.put(&[b"all", &n.to_be_bytes()], b"key", &[0x55; 2000]).unwrap();
    }
    tx.commit().unwrap();
    drop(db);
    let mut bytes = fs::read(&path).unwrap();
    for page in bytes.chunks_mut(4096).filter(|page| page.windows(4).any(|w| w == [0x55; 4])) {
        page[8] = 0;
    }
    fs::write(&path, bytes).unwrap();
    let run = bolt("check", &path, "").expect(6);
    assert_eq!(run.stdout.lines().count(), 1001);
    assert!(run.stdout.ends_with("\nand 2000 more\n"), "{}", run.stdout.lines().last().unwrap());
}

/// A database of a few pages that says it has a terabyte, most of it a hole.
fn sparse(dir: &Path, overflow: u32) -> PathBuf {
    let path = dir.join("sparse.db");
    let _ = fs::remove_file(&path);
    drop(Db::create(Box::new(FileStorage::create(&path, 0o600).unwrap()), FreelistForm::Rebuilt).unwrap());
    let pages: u64 = 1 << 28;
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.set_len(pages * PAGE).unwrap();
    for meta in [0, PAGE] {
        let mut body = [0; 64];
        file.read_exact_at(&mut body, meta + 16).unwrap();
        body[40..48].copy_from_slice(&pages.to_le_bytes());
        let sum = body[..56]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        body[56..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&body, meta + 16).unwrap();
    }
    // Page 2 is the root.
    file.write_all_at(&overflow.to_le_bytes(), 2 * PAGE + 12).unwrap();
    path
}

#[test]
fn a_terabyte_of_nothing_takes_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let check = |path: &Path| -> Run {
        // In KiB, of addresses: far less than the file, or than its first page says it has.
        let limited = format!("ulimit -v 400000; exec {} bolt check {}", env!("CARGO_BIN_EXE_prebake"), path.display());
        Command::new("sh").args(["-c", &limited]).output().unwrap().into()
    };
    let run = check(&sparse(dir.path(), 0)).expect(0);
    assert_eq!(run.stdout, "sound\n");
    let run = check(&sparse(dir.path(), 1 << 27)).expect(6);
    assert_eq!(run.stdout, "page 2: a page with more overflow pages than prebake reads\n");
    let run = check(&sparse(dir.path(), u32::MAX)).expect(6);
    assert_eq!(run.stdout, "page 2: overflow pages past the pages in use\n");
}
