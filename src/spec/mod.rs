//! What to bake: `bake.toml`, plain lists, other people's lists. Pure: texts in, values out.

mod components;
mod file;
mod kubernetes;
mod list;
mod lock;
mod mirror;
mod place;
mod rules;
mod shard;
mod size;

pub use components::from_components;
pub use file::{Defaults, Image, Registries, SharedCache, Spec, Target};
pub use kubernetes::from_kubernetes;
pub use list::{parse, to_toml};
pub use lock::{Lock, LockedImage, LockedPlatform};
pub use mirror::{Mirror, MirrorImage, MirrorTarget, NoDestination, Referrers, Rewrite, Which};
pub use place::{Named, Place, PlaceError, Scheme};
pub use rules::{Choice, Policy, Reason, Rule, Sizes, choose};
pub use shard::{MAX_SHARDS, Shard, ShardError, Share, Split};
pub use size::parse_size;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Counted from 1; `None` where it is about the whole.
    pub line: Option<usize>,
    /// Counted from 1, in characters.
    pub column: Option<usize>,
    /// What is wrong.
    pub what: String,
}

/// A text that does not say what to bake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(place, wrong))]
pub struct SpecError {
    /// The file's name.
    pub place: String,
    /// Everything that is wrong; at least one.
    pub wrong: Vec<Wrong>,
}

fn lines(place: &str, wrong: &[Wrong]) -> String {
    let line = |Wrong { line, column, what }: &Wrong| match (line, column) {
        (Some(line), Some(column)) => format!("{place}:{line}:{column}: {what}"),
        (Some(line), None) => format!("{place}:{line}: {what}"),
        _ => format!("{place}: {what}"),
    };
    wrong.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl SpecError {
    fn one(place: &str, what: impl Into<String>) -> Self {
        Self { place: place.to_owned(), wrong: vec![Wrong { line: None, column: None, what: what.into() }] }
    }
}
