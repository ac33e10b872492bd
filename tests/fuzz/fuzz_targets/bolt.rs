//! Databases with bytes changed at will.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../it/bolt_fuzz.rs"]
mod bolt_fuzz;

static BASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

fuzz_target!(|input: &[u8]| bolt_fuzz::one(BASES.get_or_init(bolt_fuzz::bases), input));
