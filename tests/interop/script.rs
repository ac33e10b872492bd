//! Scripts of bbolt operations as the oracle reads and writes them.

use std::fmt::Write as _;

use crate::support::bolt_script::{Op, hex_or_dash};

fn hex_path(path: &[Vec<u8>]) -> String {
    path.iter().map(hex::encode).collect::<Vec<_>>().join("/")
}

/// The script as the oracle reads it.
pub fn text(ops: &[Op]) -> String {
    ops.iter().fold(String::new(), |mut out, op| {
        match op {
            Op::Bucket(path, sequence) => writeln!(out, "b {} {sequence}", hex_path(path)),
            Op::Put(path, key, value) => {
                writeln!(out, "k {} {} {}", hex_path(path), hex::encode(key), hex_or_dash(value))
            }
            Op::Delete(path, key) => writeln!(out, "d {} {}", hex_path(path), hex::encode(key)),
            Op::DeleteBucket(path) => writeln!(out, "D {}", hex_path(path)),
            Op::Commit => writeln!(out, "c"),
        }
        .expect("string");
        out
    })
}

/// A dump as the script that leads to it.
pub fn parse(dump: &str) -> Vec<Op> {
    let bytes = |text: &str| hex::decode(text).expect("digits");
    let path = |text: &str| text.split('/').map(bytes).collect();
    dump.lines()
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["b", at, sequence] => Op::Bucket(path(at), sequence.parse().expect("a number")),
            ["k", at, key, value] => {
                Op::Put(path(at), bytes(key), if value == "-" { Vec::new() } else { bytes(value) })
            }
            _ => panic!("not a line of a dump: {line}"),
        })
        .collect()
}

/// The same script inside a bucket.
pub fn under(prefix: &[&str], ops: &[Op]) -> Vec<Op> {
    let inside = |path: &Vec<Vec<u8>>| {
        prefix.iter().map(|key| key.as_bytes().to_vec()).chain(path.iter().cloned()).collect::<Vec<Vec<u8>>>()
    };
    ops.iter()
        .map(|op| match op {
            Op::Bucket(path, sequence) => Op::Bucket(inside(path), *sequence),
            Op::Put(path, key, value) => Op::Put(inside(path), key.clone(), value.clone()),
            Op::Delete(path, key) => Op::Delete(inside(path), key.clone()),
            Op::DeleteBucket(path) => Op::DeleteBucket(inside(path)),
            Op::Commit => Op::Commit,
        })
        .collect()
}
