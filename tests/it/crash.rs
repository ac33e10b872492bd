//! Power that goes, disks that fill up and fail, at every single write and sync of a commit.

use std::io;

use prebake::bolt::{CrashStorage, Db, Fault, Unsynced};

use crate::support::bolt_script::run;
use crate::support::crash::{self, attempt, case, dump};

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
