//! What the hermetic and the interop tests share.

pub mod bolt_script;
pub mod campaign;
pub mod content;
pub mod crash;
pub mod damage;
pub mod prebake;
pub mod registry;
pub mod rng;
pub mod served;
pub mod situations;
pub mod world;
