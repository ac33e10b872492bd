//! Transactions on disks that lose power.

use ::prebake::bolt::{CrashStorage, Db, Fault, FreelistForm, MemStorage, Unsynced};

use super::bolt_script::{Op, random, run};
use super::rng::Rng;

/// A database with something in it, and a transaction to be made on it.
pub fn case(seed: u64) -> (Vec<u8>, Vec<Op>) {
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

pub fn dump(bytes: Vec<u8>) -> String {
    let memory = MemStorage::new(bytes);
    assert_eq!(Db::check(&memory).unwrap().findings, []);
    Db::open(Box::new(memory)).unwrap().begin().unwrap().dump().unwrap()
}

/// Runs the transaction on a disk with a fault; whether it was committed.
pub fn attempt(disk: &CrashStorage, transaction: &[Op]) -> bool {
    Db::open(Box::new(disk.clone())).and_then(|mut db| run(&mut db, transaction)).is_ok()
}

/// Makes that many transactions, each cut at each of its steps, with every fate of what was not synced: tells `judge` what
/// is then on the disk, and the dumps of the old state and the new.
pub fn cuts(transactions: u64, mut judge: impl FnMut(&str, Vec<u8>, &str, &str)) {
    for seed in 0..transactions {
        let (before, transaction) = case(seed);
        let whole = CrashStorage::new(before.clone(), None);
        assert!(attempt(&whole, &transaction));
        let (old, new) = (dump(before.clone()), dump(whole.after(Unsynced::Lost)));
        for step in 0..whole.steps() {
            let disk = CrashStorage::new(before.clone(), Some(Fault::PowerCut(step)));
            assert!(!attempt(&disk, &transaction));
            let draws = (0..4).flat_map(|i| [Unsynced::Reordered(seed * 1000 + i), Unsynced::Torn(seed * 1000 + i)]);
            for unsynced in [Unsynced::Lost, Unsynced::Kept].into_iter().chain(draws) {
                judge(&format!("seed {seed}, step {step}, {unsynced:?}"), disk.after(unsynced), &old, &new);
            }
        }
    }
}
