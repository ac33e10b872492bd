//! Any bytes as a database: verified or refused, and what is accepted can be read, changed and verified again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prebake::bolt::{Db, MemStorage};

fuzz_target!(|data: &[u8]| {
    let memory = MemStorage::new(data.to_vec());
    let _ = Db::check(&memory);
    let Ok(mut db) = Db::open(Box::new(memory.clone())) else { return };
    let Ok(mut tx) = db.begin() else { return };
    let before = tx.dump().expect("what was verified can be read");
    tx.put(&[b"fuzz bucket"], b"key", b"value").expect("what was verified can be changed");
    tx.commit().expect("what was verified can be committed");
    let mut db = Db::open(Box::new(memory)).expect("what was committed is sound");
    let mut tx = db.begin().expect("begun");
    tx.delete(&[], b"fuzz bucket").expect("deleted");
    assert!(before.contains("fuzz bucket") || tx.dump().expect("read") == before);
});
