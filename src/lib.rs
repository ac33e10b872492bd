//! prebake
pub mod bolt;
