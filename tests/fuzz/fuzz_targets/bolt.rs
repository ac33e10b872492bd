//! A sound database with bytes changed at will: verified or refused, and what is accepted can be read, changed, committed
//! and verified again. The input is patches of four bytes: a place (24 bits) and a value.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use prebake::bolt::{Db, FreelistForm, MemStorage};

static BASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

fn bases() -> Vec<Vec<u8>> {
    [FreelistForm::Persisted, FreelistForm::Rebuilt]
        .map(|form| {
            let memory = MemStorage::default();
            let mut db = Db::create(Box::new(memory.clone()), form).expect("made");
            for round in 0..3u8 {
                let mut tx = db.begin().expect("begun");
                for i in 0..40u8 {
                    let path: [&[u8]; 2] = [b"bucket", &[i % 7 + 1]];
                    tx.put(&path, &[i, round], &vec![i; usize::from(i) * 13]).expect("put");
                    tx.set_sequence(&path, u64::from(i)).expect("set");
                }
                tx.commit().expect("committed");
            }
            memory.bytes()
        })
        .to_vec()
}

fuzz_target!(|data: &[u8]| {
    let bases = BASES.get_or_init(bases);
    let Some((choice, patches)) = data.split_first() else { return };
    let mut bytes = bases[usize::from(choice % 2)].clone();
    // The checksum of a meta page holds nearly every patch of it off, so mostly the pages behind are patched.
    let start = if choice & 2 == 0 { 8192 } else { 0 };
    for patch in patches.chunks_exact(4) {
        let place = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
        let at = start + place % (bytes.len() - start);
        bytes[at] = patch[3];
    }
    let memory = MemStorage::new(bytes);
    let _ = Db::check(&memory);
    let Ok(mut db) = Db::open(Box::new(memory.clone())) else { return };
    let mut tx = db.begin().expect("begun");
    let before = tx.dump().expect("what was verified can be read");
    tx.put(&[b"fuzz bucket"], b"key", b"value").expect("what was verified can be changed");
    tx.commit().expect("what was verified can be committed");
    let mut db = Db::open(Box::new(memory)).expect("what was committed is sound");
    let mut tx = db.begin().expect("begun");
    assert!(tx.delete(&[], b"fuzz bucket").expect("deleted"));
    assert!(tx.dump().expect("read") == before);
});
