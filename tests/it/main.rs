//! Hermetic tests: no network but loopback, no root, nothing installed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod bake;
mod bolt;
mod check;
mod faults;
mod house_rules;
mod interrupt;
