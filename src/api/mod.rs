//! The library's own front door: what other programs build on. Small, so that it can stay; the rooms behind it change.

mod bake;
mod check;

use std::fmt;

pub use bake::{Bake, Baked, BakedImage};
pub use check::check;

use crate::kind::{Kind, chain};

/// Why something was not done: of which kind, and in words with all causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

impl Error {
    fn new<E: std::error::Error>(error: E) -> Self
    where
        for<'e> Kind: From<&'e E>,
    {
        Self { kind: Kind::from(&error), message: chain(&error) }
    }

    fn input(error: &dyn std::error::Error) -> Self {
        Self { kind: Kind::InvalidInput, message: chain(error) }
    }

    /// Of which kind it is: what a program decides by.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
