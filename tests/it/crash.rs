//! Power that goes, disks that fill up and fail, at every single write and sync of a commit.

use std::io;

use prebake::bolt::{CrashStorage, Db, Fault, FreelistForm, MemStorage, Unsynced};

use crate::support::bolt_script::{Op, random, run};
use crate::support::rng::Rng;

/// How many transactions are cut at each of their steps.
const TRANSACTIONS: u64 = 300;

/// A database with something in it, and a transaction to be made on it.
fn case(seed: u64) -> (Vec<u8>, Vec<Op>) {
    let mut rng = Rng::new(seed);
    let len = 10 + rng.below(120);
    let (ops, _) = random(&mut rng, len);
    let split = rng.below(ops.len());
    let form = if rng.one_in(2) { FreelistForm::Persisted } else { FreelistForm::Rebuilt };
    let memory = MemStorage::default();
    let mut db = Db::create(Box::new(memory.clone()), form).unwrap();
    run(&mut db, &ops[..split]).unwrap();
    let transaction = ops[split..].iter().filter(|op| !matches!(op, Op::Commit)).cloned().collect();
    (memory.bytes(), transaction)
}

fn dump(bytes: Vec<u8>) -> String {
    let memory = MemStorage::new(bytes);
    assert_eq!(Db::check(&memory).unwrap().findings, []);
    Db::open(Box::new(memory)).unwrap().begin().unwrap().dump().unwrap()
}

/// Runs the transaction on a disk with a fault; whether it was committed.
fn attempt(disk: &CrashStorage, transaction: &[Op]) -> bool {
    Db::open(Box::new(disk.clone())).and_then(|mut db| run(&mut db, transaction)).is_ok()
}

#[test]
fn power_cut_at_every_step_leaves_the_old_state_or_the_new() {
    let (mut cuts, mut old_states, mut new_states) = (0, 0, 0);
    for seed in 0..TRANSACTIONS {
        let (before, transaction) = case(seed);
        let whole = CrashStorage::new(before.clone(), None);
        assert!(attempt(&whole, &transaction));
        let (old, new) = (dump(before.clone()), dump(whole.after(Unsynced::Lost)));
        for step in 0..whole.steps() {
            let disk = CrashStorage::new(before.clone(), Some(Fault::PowerCut(step)));
            assert!(!attempt(&disk, &transaction));
            let draws = (0..2).flat_map(|i| [Unsynced::Reordered(seed * 1000 + i), Unsynced::Torn(seed * 1000 + i)]);
            for unsynced in [Unsynced::Lost, Unsynced::Kept].into_iter().chain(draws) {
                cuts += 1;
                let found = dump(disk.after(unsynced));
                assert!(found == old || found == new, "seed {seed}, step {step}, {unsynced:?}: neither old nor new");
                old_states += u64::from(found == old);
                new_states += u64::from(found == new);
            }
        }
    }
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
