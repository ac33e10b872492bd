//! The bbolt file format (go.etcd.io/bbolt, format version 2): read, verify, and commit in place, without `unsafe`.
//!
//! ```text
//! page 0  meta ┐ the valid one with the higher txid counts; a commit writes the other
//! page 1  meta ┘ {magic, version, page size, flags, root bucket, freelist, high water, txid, FNV-1a}
//! page n  header {id u64, flags u16, count u16, overflow u32}, then `count` elements of 16 bytes, then their bytes
//!   branch    element {pos u32, key size u32, child page u64}          pos counts from the element's own start
//!   leaf      element {flags u32, pos u32, key size u32, value size u32}; flags 1: the value is a bucket
//!   freelist  `count` page ids of u64 (0xFFFF: the first u64 is the count)
//! bucket value  {root page u64, sequence u64}; root 0: a leaf page with no sub-buckets follows inline
//! ```
//!
//! A transaction copies the pages it changes, writes the copies to pages nobody uses, syncs, writes the other meta page,
//! and syncs again: at any moment the file holds the old state or the new one. Pages freed by a transaction are used
//! again from the next one on, because from then on no meta page on disk can lead to them.
//!
//! Opening verifies the whole structure (what `Tx.Check` of bbolt verifies, and more), so that everything behind it can
//! walk the tree without fear of cycles.

mod alloc;
mod bucket;
mod check;
mod db;
mod node;
mod page;
mod salvage;
mod stats;
mod storage;
mod view;

pub use check::{Finding, MAX_FINDINGS, Problem, Report, SHOWN_KEY};
pub use db::{Db, Entry, FreelistForm, Info, Item, Tx};
pub use stats::Stats;
pub use storage::{CrashStorage, Fault, FileStorage, Holder, Lock, MemStorage, Storage, Unsynced, lock_holder};
pub use view::{Seen, View};

use std::io;

/// Page size of the files prebake creates, in bytes; files of any other size are read and kept as they are.
pub const PAGE_SIZE: usize = 4096;
/// Longest key bbolt accepts, in bytes (`bbolt.MaxKeySize`).
pub const MAX_KEY: usize = 32_768;
/// Longest value that is written, in bytes; bbolt accepts twice as much (`bbolt.MaxValueSize`).
pub const MAX_VALUE: usize = MAX_PAGE - (1 << 16);
/// Longest page with its overflow pages that is read, in bytes: a value of nearly that size fits on one.
pub const MAX_PAGE: usize = 1 << 30;
/// How deep pages and buckets may nest altogether. containerd's own files reach about twenty.
pub const MAX_DEPTH: usize = 128;

/// Why a bbolt file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading, writing or syncing the file failed.
    #[error("{action} the database file failed")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process holds the file's lock.
    #[error("the database is locked by another process")]
    Locked,
    /// Neither meta page is valid: not a bbolt file, or one destroyed beyond use.
    #[error("not a bbolt database: {0}")]
    NotBolt(&'static str),
    /// The structure is damaged in a way that makes writing unsafe.
    #[error("the database is damaged: {0}")]
    Damaged(Problem),
    /// A key is empty or too long, a value is too long, or a path meets a value where it needs a bucket.
    #[error("{0}")]
    Invalid(&'static str),
    /// An earlier commit failed half way: the file must be opened again.
    #[error("an earlier commit failed; open the database again")]
    Poisoned,
}

impl Error {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// A key as a person reads it: text where it is printable, else escaped.
pub fn key_text(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => key.escape_ascii().to_string(),
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;
