//! What the hermetic and the interop tests share.

pub mod bolt_script;
pub mod content;
pub mod crash;
#[allow(dead_code, reason = "tests/interop looks at no last line of JSON")]
pub mod prebake;
#[allow(dead_code, reason = "tests/interop has no use for faults and for what was asked: its peers are real")]
pub mod registry;
pub mod rng;
