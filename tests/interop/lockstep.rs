//! We and the real bbolt commit in turn to one file; after each, both must read what a model says.

use std::fs;
use std::path::Path;

use prebake::bolt::{Db, FileStorage, Lock};

use crate::bbolt::Oracle;
use crate::script::text;
use crate::support::bolt_script::{Model, Op, Shape, random_on, run};
use crate::support::rng::Rng;

/// Transactions in all; `PREBAKE_LOCKSTEP` for a long campaign.
fn transactions() -> usize {
    std::env::var("PREBAKE_LOCKSTEP").map_or(10_000, |n| n.parse().unwrap())
}

/// Transactions on one file before the next begins: many files, so that every form meets every shape of content.
const A_FILE: usize = 25;
/// How bbolt makes the files. Pages of 4 KiB are those with values that need several.
const FORMS: [&str; 6] = ["", "nofreelist", "", "nofreelist", "16384", "nofreelist 65536"];

#[test]
fn in_turn_with_bbolt_on_one_file() {
    // Thousands of syncs: in memory where there is some.
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
    let mut oracle = Oracle::start();
    let (file, script) = (dir.path().join("both.db"), dir.path().join("script"));
    for seed in 0..transactions().div_ceil(A_FILE) as u64 {
        let mut rng = Rng::new(7_000_000 + seed);
        let form = FORMS[rng.below(FORMS.len())];
        let _ = fs::remove_file(&file);
        let mut model = Model::default();
        let shape = Shape::random(&mut rng, 60);
        for turn in 0..A_FILE {
            let len = 1 + rng.below(40);
            let mut ops: Vec<Op> = random_on(&mut rng, len, &mut model, &shape);
            ops.retain(|op| !matches!(op, Op::Commit));
            if turn % 2 == 0 {
                fs::write(&script, text(&ops)).unwrap();
                oracle.ask(&format!("build {} {} nosync {form}", file.display(), script.display())).unwrap();
            } else {
                let mut db = Db::open(Box::new(FileStorage::open(&file, Lock::Exclusive).unwrap())).unwrap();
                run(&mut db, &ops).unwrap();
            }
            let expected = model.dump();
            let mut db = Db::open(Box::new(FileStorage::open(&file, Lock::Shared).unwrap())).unwrap();
            assert!(
                db.begin().unwrap().dump().unwrap() == expected,
                "seed {seed}, turn {turn}: we read something else"
            );
            drop(db);
            if turn % 2 == 1 {
                assert_eq!(oracle.check(&file), Ok(()), "seed {seed}, turn {turn}");
                assert!(oracle.dump(&file) == expected, "seed {seed}, turn {turn}: bbolt reads something else");
            }
        }
    }
}
