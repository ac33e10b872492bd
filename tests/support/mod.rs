//! What the hermetic and the interop tests share.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod bolt_fuzz;
pub mod bolt_script;
pub mod content;
pub mod crash;
pub mod layout;
pub mod prebake;
pub mod registry;
pub mod rng;
