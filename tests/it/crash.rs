//! Power that goes, disks that fill up and fail, at every single write and sync of a commit.

use std::io;

use prebake::bolt::{CrashStorage, Db, Fault, FileStorage, Lock, Unsynced};

use crate::support::bolt_script::run;
use crate::support::content::demo;
use crate::support::crash::{self, attempt, case, dump};
use crate::support::prebake::{meta_db, prebake, records};
use crate::support::registry::TestRegistry;

/// How many transactions are cut at each of their steps.
const TRANSACTIONS: u64 = 300;

#[test]
fn power_cut_at_every_step_leaves_the_old_state_or_the_new() {
    let (mut cuts, mut old_states, mut new_states) = (0, 0, 0);
    crash::cuts(TRANSACTIONS, |cut, disk, old, new| {
        cuts += 1;
        let found = dump(disk);
        assert!(found == old || found == new, "{cut}: neither old nor new");
        old_states += u64::from(found == old);
        new_states += u64::from(found == new);
    });
    eprintln!("{cuts} cuts, {old_states} found the old state, {new_states} the new one");
    assert!(old_states > 1000 && new_states > 300);
}

#[test]
fn an_error_at_any_step_leaves_the_old_state() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        for seed in 0..TRANSACTIONS {
            let (before, transaction) = case(seed);
            let whole = CrashStorage::new(before.clone(), None);
            assert!(attempt(&whole, &transaction));
            let old = dump(before.clone());
            for step in 0..whole.steps() {
                let disk = CrashStorage::new(before.clone(), Some(Fault::Error(step, kind)));
                let mut db = Db::open(Box::new(disk.clone())).unwrap();
                assert!(run(&mut db, &transaction).is_err());
                assert!(db.begin().is_err(), "a database is not used after a commit that failed");
                for unsynced in [Unsynced::Kept, Unsynced::Lost] {
                    assert!(dump(disk.after(unsynced)) == old, "seed {seed}, step {step}: not the old state");
                }
            }
        }
    }
}

/// The same of the command: records that cannot be written are exit 1 (a full disk is 7, see `tests/interop`).
#[test]
fn a_database_that_may_not_grow_keeps_its_records() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("bake {}", registry.reference("demo/hello:1.0"))).expect(0);
    // Larger than the catalog, so that a limit on the size of files hits this one only.
    let mut db = Db::open(Box::new(FileStorage::open(&meta_db(root.path()), Lock::Exclusive).unwrap())).unwrap();
    let mut tx = db.begin().unwrap();
    tx.put(&[b"v1", b"large"], b"key", &vec![7; 8 << 20]).unwrap();
    tx.commit().unwrap();
    drop(db);
    prebake(root.path(), &format!("fetch {}", registry.reference("demo/docker:1.0"))).expect(0);
    let before = records(root.path());
    // No page beyond those in use may be written; the file has some room behind them.
    let info =
        Db::open(Box::new(FileStorage::open(&meta_db(root.path()), Lock::Shared).unwrap())).unwrap().info().unwrap();
    let blocks = info.pages * info.page_size as u64 / 512;
    let limited = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec {} bootstrap --root {}",
        env!("CARGO_BIN_EXE_prebake"),
        root.path().display()
    );
    let output = std::process::Command::new("sh").args(["-c", &limited]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("meta.db: ") && stderr.contains("File too large"), "{stderr}");
    assert_eq!(records(root.path()), before);
    prebake(root.path(), "bootstrap").expect(0);
    prebake(root.path(), "check").expect(0);
    assert!(records(root.path()).len() > before.len());
}
