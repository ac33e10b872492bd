//! Tests against the real peers that `tests/setup` puts in place: containerd in three releases, runc, docker-registry,
//! skopeo, umoci, bbolt and servers of object stores. `tests/run` runs them.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]
#![allow(clippy::format_collect, clippy::needless_pass_by_value, reason = "no test is slow for it")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod api;
mod bake;
mod bbolt;
#[cfg(feature = "cache")]
mod cache;
mod campaign;
mod carry;
mod collect;
mod copy;
mod cri;
mod docs;
mod fixture;
mod foreign;
mod hostile;
mod install;
mod layout;
mod life;
mod live;
mod lock;
mod lockstep;
#[cfg(feature = "cache")]
mod mirrors;
mod peers;
mod policies;
#[cfg(feature = "cache")]
mod relay;
mod report;
mod resume;
mod schema;
mod script;
mod serve;
mod shard;
mod sides;
mod signed;
mod snapshots;
mod snippets;
mod space;
mod stack;
mod started;
#[cfg(feature = "cache")]
mod stores;
mod tar;
mod tree;
mod unpack;
