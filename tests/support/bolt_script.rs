//! Random scripts of bbolt operations, in the language of `tests/interop/bbolt/main.go`, and what they must lead to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ::prebake::bolt::{Db, Error};

use super::rng::Rng;

/// One operation; paths and keys are raw bytes.
#[derive(Debug, Clone)]
pub enum Op {
    Bucket(Vec<Vec<u8>>, u64),
    Put(Vec<Vec<u8>>, Vec<u8>, Vec<u8>),
    Delete(Vec<Vec<u8>>, Vec<u8>),
    DeleteBucket(Vec<Vec<u8>>),
    Commit,
}

/// A bucket as it must be.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Model {
    sequence: u64,
    entries: BTreeMap<Vec<u8>, Entry>,
}

#[derive(Debug, Clone, PartialEq)]
enum Entry {
    Value(Vec<u8>),
    Bucket(Model),
}

impl Model {
    /// The bucket at `path`, made where it is missing; `None` when a value is in the way.
    fn at(&mut self, path: &[Vec<u8>]) -> Option<&mut Model> {
        path.iter().try_fold(self, |model, key| {
            match model.entries.entry(key.clone()).or_insert_with(|| Entry::Bucket(Model::default())) {
                Entry::Bucket(model) => Some(model),
                Entry::Value(_) => None,
            }
        })
    }

    pub fn dump(&self) -> String {
        let mut out = String::new();
        self.dump_into("", &mut out);
        out
    }

    fn dump_into(&self, path: &str, out: &mut String) {
        for (key, entry) in &self.entries {
            match entry {
                Entry::Value(value) => {
                    writeln!(out, "k {path} {} {}", hex::encode(key), hex_or_dash(value)).expect("string");
                }
                Entry::Bucket(model) => {
                    let path = if path.is_empty() { hex::encode(key) } else { format!("{path}/{}", hex::encode(key)) };
                    writeln!(out, "b {path} {}", model.sequence).expect("string");
                    model.dump_into(&path, out);
                }
            }
        }
    }
}

pub fn hex_or_dash(bytes: &[u8]) -> String {
    if bytes.is_empty() { "-".into() } else { hex::encode(bytes) }
}

/// Runs a script on our database; commits at the end too.
pub fn run(db: &mut Db, ops: &[Op]) -> Result<(), Error> {
    for part in ops.split(|op| matches!(op, Op::Commit)) {
        let mut tx = db.begin()?;
        for op in part {
            match op {
                Op::Bucket(path, sequence) => {
                    tx.create_bucket(&slices(path))?;
                    tx.set_sequence(&slices(path), *sequence)?;
                }
                Op::Put(path, key, value) => tx.put(&slices(path), key, value)?,
                Op::Delete(path, key) => assert!(tx.delete(&slices(path), key)?),
                Op::DeleteBucket(path) => {
                    let (key, parent) = path.split_last().expect("a path");
                    assert!(tx.delete(&slices(parent), key)?);
                }
                Op::Commit => unreachable!("split at commits"),
            }
        }
        tx.commit()?;
    }
    Ok(())
}

fn slices(path: &[Vec<u8>]) -> Vec<&[u8]> {
    path.iter().map(Vec::as_slice).collect()
}

/// What random scripts are like: some are flat and big, others deep and small.
pub struct Shape {
    buckets: Vec<Vec<Vec<u8>>>,
    key_space: usize,
    key_size: usize,
    value_size: usize,
    deletes: usize,
    commits: usize,
}

impl Shape {
    /// A shape for scripts of about `len` operations.
    pub fn random(rng: &mut Rng, len: usize) -> Self {
        let mut buckets: Vec<Vec<Vec<u8>>> = Vec::new();
        for _ in 0..=rng.below(8) {
            let top = buckets.is_empty() || rng.one_in(3);
            let mut path = if top { Vec::new() } else { buckets[rng.below(buckets.len())].clone() };
            let long = rng.one_in(8);
            let size = 1 + rng.below(if long { 300 } else { 12 });
            path.push([b"B".to_vec(), rng.bytes(size)].concat());
            buckets.push(path);
        }
        Self {
            buckets,
            key_space: [20, 300, 5000][rng.below(3)],
            key_size: [4, 4, 40, 2000][rng.below(4)],
            value_size: [1, 20, 200, 3000, 20_000][rng.below(5)].min(600_000 / len.max(1) + 200),
            deletes: [0, 3, 8][rng.below(3)],
            commits: [len + 1, 10, 60][rng.below(3)],
        }
    }
}

/// A random script of about `len` operations on an empty database, and the state it leads to.
pub fn random(rng: &mut Rng, len: usize) -> (Vec<Op>, Model) {
    let mut model = Model::default();
    let shape = Shape::random(rng, len);
    let ops = random_on(rng, len, &mut model, &shape);
    (ops, model)
}

/// A random script of about `len` operations on the state `model`, which becomes the state it leads to.
pub fn random_on(rng: &mut Rng, len: usize, model: &mut Model, shape: &Shape) -> Vec<Op> {
    let Shape { buckets, key_space, key_size, value_size, deletes, commits } = shape;
    let (key_space, key_size, value_size) = (*key_space, *key_size, *value_size);
    let (deletes, commits) = (*deletes, *commits);
    let mut ops = Vec::new();
    for _ in 0..len {
        let path = &buckets[rng.below(buckets.len())];
        if rng.one_in(commits) {
            ops.push(Op::Commit);
        } else if rng.one_in(40) {
            let sequence = rng.next() >> 1;
            model.at(path).expect("bucket paths never meet values").sequence = sequence;
            ops.push(Op::Bucket(path.clone(), sequence));
        } else if deletes > 0 && rng.below(10) < deletes {
            let bucket = model.at(path).expect("bucket paths never meet values");
            let keys: Vec<_> =
                bucket.entries.iter().filter(|(_, e)| matches!(e, Entry::Value(_))).map(|(k, _)| k.clone()).collect();
            // Runs of deletes empty whole leaves.
            if keys.is_empty() {
                ops.push(Op::Bucket(path.clone(), bucket.sequence));
                continue;
            }
            let start = rng.below(keys.len());
            for key in keys.into_iter().skip(start).take(1 + rng.below(30)) {
                bucket.entries.remove(&key);
                ops.push(Op::Delete(path.clone(), key));
            }
        } else if rng.one_in(150) && path.len() > 1 {
            let (key, parent) = path.split_last().expect("a path");
            let parent_model = model.at(parent).expect("bucket paths never meet values");
            if parent_model.entries.remove(key).is_some() {
                ops.push(Op::DeleteBucket(path.clone()));
            } else {
                ops.push(Op::Bucket(parent.to_vec(), parent_model.sequence));
            }
        } else {
            let mut key = format!("k{:06}", rng.below(key_space)).into_bytes();
            let tail = rng.below(key_size);
            key.extend(vec![b'x'; tail]);
            let size = rng.below(value_size + 1);
            let value = rng.bytes(size);
            model
                .at(path)
                .expect("bucket paths never meet values")
                .entries
                .insert(key.clone(), Entry::Value(value.clone()));
            ops.push(Op::Put(path.clone(), key, value));
        }
    }
    ops
}
