//! A sound database with bytes changed at will: verified or refused, and what is accepted can be read, changed, committed
//! and verified again. Shared by the fuzzer (`tests/fuzz`) and by `bolt.rs`, which replays what it found.

use prebake::bolt::{Db, FreelistForm, MemStorage, Seen, View};

const PAGE: usize = 4096;

/// The databases that are patched: small and flat in both freelist forms, and one of long keys with branches on branches
/// and values over several pages.
pub fn bases() -> Vec<Vec<u8>> {
    let flat = |tx: &mut prebake::bolt::Tx<'_>, round: u8| {
        for i in 0..40u8 {
            let path: [&[u8]; 2] = [b"bucket", &[i % 7 + 1]];
            tx.put(&path, &[i, round], &vec![i; usize::from(i) * 13]).unwrap();
            tx.set_sequence(&path, u64::from(i)).unwrap();
        }
    };
    let deep = |tx: &mut prebake::bolt::Tx<'_>, round: u8| {
        for i in 0..50u8 {
            tx.put(&[b"deep"], &[&[i, round][..], &[b'k'; 900]].concat(), b"value").unwrap();
        }
        tx.put(&[b"deep", b"inside"], &[round], &vec![round; 9000]).unwrap();
    };
    let build = |form, fill: &dyn Fn(&mut prebake::bolt::Tx<'_>, u8)| {
        let memory = MemStorage::default();
        let mut db = Db::create(Box::new(memory.clone()), form).unwrap();
        for round in 0..3 {
            let mut tx = db.begin().unwrap();
            fill(&mut tx, round);
            tx.commit().unwrap();
        }
        memory.bytes()
    };
    vec![
        build(FreelistForm::Persisted, &flat),
        build(FreelistForm::Rebuilt, &flat),
        build(FreelistForm::Persisted, &deep),
    ]
}

/// Runs one input: a byte that chooses the base and what is patched, then patches of four bytes, a place (24 bits) and a
/// value.
pub fn one(bases: &[Vec<u8>], input: &[u8]) {
    let Some((choice, patches)) = input.split_first() else { return };
    let mut bytes = bases[usize::from(choice >> 2) % bases.len()].clone();
    // The pages, the meta pages with their checksums made good, or anything as it comes.
    let (from, to) = match choice % 4 {
        0 | 1 => (2 * PAGE, bytes.len()),
        2 => (0, 2 * PAGE),
        _ => (0, bytes.len()),
    };
    for patch in patches.chunks_exact(4) {
        let place = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
        bytes[from + place % (to - from)] = patch[3];
    }
    if choice % 4 == 2 {
        for meta in [16, PAGE + 16] {
            let sum = fnv1a(&bytes[meta..meta + 56]);
            bytes[meta + 56..meta + 64].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let memory = MemStorage::new(bytes);
    if let Ok(report) = Db::check(&memory) {
        report.findings.iter().for_each(|finding| drop(finding.to_string()));
    }
    let Ok(mut db) = Db::open(Box::new(memory.clone())) else { return };
    let mut tx = db.begin().unwrap();
    let before = tx.dump().expect("what was verified can be read");
    let seen = tx.view(&[], &mut |root| root.map_or(Ok(0), |root| entries(&root)));
    assert_eq!(seen.expect("what was verified can be viewed"), before.lines().count());
    tx.put(&[b"fuzz bucket"], b"key", b"value").expect("what was verified can be changed");
    tx.commit().expect("what was verified can be committed");
    let mut db = Db::open(Box::new(memory)).expect("what was committed is sound");
    let mut tx = db.begin().unwrap();
    assert!(tx.delete(&[], b"fuzz bucket").unwrap());
    assert!(tx.dump().unwrap() == before);
}

fn entries(view: &View<'_>) -> Result<usize, prebake::bolt::Error> {
    let mut count = 0;
    view.each(&mut |_, seen| {
        count += match seen {
            Seen::Value(_) => 1,
            Seen::Bucket(view) => 1 + entries(&view)?,
        };
        Ok(())
    })?;
    Ok(count)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
