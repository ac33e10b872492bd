//! Hermetic tests: no network but loopback, no root, nothing installed.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]
#![allow(clippy::format_collect, clippy::needless_pass_by_value, reason = "no test is slow for it")]

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod auth;
mod bake;
mod bolt;
mod bolt_cli;
mod bolt_fuzz;
mod bundle;
#[cfg(feature = "cache")]
mod cache;
mod campaign;
mod check;
mod copy;
mod crash;
mod diff;
mod faults;
mod fixture;
mod gc;
mod hosts;
mod house_rules;
mod interrupt;
mod keychain;
mod lock;
mod manners;
mod oddities;
mod parsers;
mod places;
mod proxy;
mod prune;
mod receiver;
mod referrers;
mod repair;
mod reproducible;
mod scale;
mod serve;
mod soak;
mod spec;
mod start;
mod transfer;
mod traps;
