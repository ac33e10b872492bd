//! Hermetic tests: no network but loopback, no root, nothing installed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod bolt;
