//! `bolt` against a model: whatever is done to it, it holds what it should and stays sound.

use prebake::bolt::{Db, FreelistForm, MemStorage};

use crate::bolt_fuzz::{bases, one};
use crate::support::bolt_script::{Op, random, run};
use crate::support::rng::Rng;

fn open(memory: &MemStorage) -> Db {
    Db::open(Box::new(memory.clone())).unwrap()
}

/// Problems of the file, if any.
fn problems(memory: &MemStorage) -> Vec<String> {
    Db::check(memory).unwrap().findings.iter().map(ToString::to_string).collect()
}

#[test]
fn random_scripts_lead_where_the_model_does() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let len = 20 + rng.below(600);
        let (ops, model) = random(&mut rng, len);
        let form = if rng.one_in(2) { FreelistForm::Persisted } else { FreelistForm::Rebuilt };
        let memory = MemStorage::default();
        let mut db = Db::create(Box::new(memory.clone()), form).unwrap();
        run(&mut db, &ops).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(problems(&memory), Vec::<String>::new(), "seed {seed}");
        let dump = open(&memory).begin().unwrap().dump().unwrap();
        assert!(dump == model.dump(), "seed {seed}: the contents differ");
    }
}

#[test]
fn a_transaction_sees_its_own_writes_and_leaves_nothing_when_dropped() {
    let memory = MemStorage::default();
    let mut db = Db::create(Box::new(memory.clone()), FreelistForm::Rebuilt).unwrap();
    let before = memory.bytes();
    let mut tx = db.begin().unwrap();
    tx.put(&[b"a", b"b"], b"k", b"v").unwrap();
    assert_eq!(tx.get(&[b"a", b"b"], b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert!(tx.delete(&[b"a"], b"b").unwrap());
    assert_eq!(tx.get(&[b"a", b"b"], b"k").unwrap(), None);
    drop(tx);
    assert_eq!(memory.bytes(), before);
}

#[test]
fn what_is_there_already_is_not_written_again() {
    let memory = MemStorage::default();
    let mut db = Db::create(Box::new(memory.clone()), FreelistForm::Persisted).unwrap();
    let ops = [Op::Bucket(vec![b"a".to_vec()], 7), Op::Put(vec![b"a".to_vec()], b"k".to_vec(), b"v".to_vec())];
    run(&mut db, &ops).unwrap();
    let before = memory.bytes();
    run(&mut db, &ops).unwrap();
    assert_eq!(memory.bytes(), before);
}

#[test]
fn damaged_files_are_refused_and_never_panic() {
    let mut rng = Rng::new(7);
    let (ops, _) = random(&mut rng, 400);
    for form in [FreelistForm::Persisted, FreelistForm::Rebuilt] {
        let memory = MemStorage::default();
        let mut db = Db::create(Box::new(memory.clone()), form).unwrap();
        run(&mut db, &ops).unwrap();
        let good = memory.bytes();
        let mut refused = 0;
        for _ in 0..3000 {
            let mut bytes = good.clone();
            for _ in 0..=rng.below(3) {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
            if rng.one_in(10) {
                bytes.truncate(rng.below(good.len()));
            }
            let memory = MemStorage::new(bytes);
            let _ = Db::check(&memory);
            if let Ok(mut db) = Db::open(Box::new(memory.clone())) {
                let mut tx = db.begin().unwrap();
                tx.dump().unwrap();
                tx.put(&[b"Bnew"], b"k", b"v").unwrap();
                tx.commit().unwrap();
                drop(db);
                Db::open(Box::new(memory)).unwrap();
            } else {
                refused += 1;
            }
        }
        assert!(refused > 100, "only {refused} of 3000 were refused");
    }
}

/// Inputs of the fuzzer that each reach code no other does, a line each, as hexadecimal digits.
const CORPUS: &str = include_str!("../../fixtures/bolt.corpus");

#[test]
fn the_fuzzers_corpus_and_what_is_near_it() {
    let bases = bases();
    let corpus: Vec<Vec<u8>> = CORPUS.lines().map(|line| hex::decode(line).unwrap()).collect();
    assert!(corpus.len() > 50);
    for input in &corpus {
        one(&bases, input);
    }
    let runs: u64 = std::env::var("PREBAKE_FUZZ").map_or(5000, |n| n.parse().unwrap());
    for seed in 0..runs {
        let mut rng = Rng::new(seed);
        let mut input = corpus[rng.below(corpus.len())].clone();
        input.extend_from_slice(&corpus[rng.below(corpus.len())][1..]);
        input.truncate(1 + rng.below(input.len()));
        for _ in 0..rng.below(4) {
            let at = rng.below(input.len());
            input[at] = rng.next().to_le_bytes()[0];
        }
        one(&bases, &input);
    }
}
