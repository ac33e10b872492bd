//! prebake puts OCI images straight into the directory where containerd keeps its state, inside any root, with no daemon running,
//! and makes images, registries and roots for tests.
//!
//! This is its library. It is small on purpose: what is below is kept stable by semantic versioning, and nothing else is public.
//!
//! # Baking
//!
//! [`Bake`] takes images from registries and from places on this machine (OCI layouts, archives, roots), and makes containerd list
//! them, whole: blobs first, databases last and in one commit, so that a kill at any moment leaves the old state or the new
//! one. One image that fails does not keep others from theirs; [`Baked::is_complete`] tells.
//!
//! # Checking
//!
//! [`check()`] says whether containerd would start what is in a root: each blob hashed, each reference followed.
//!
//! # Fixtures
//!
//! [`fixture`] makes images from a text, the same bytes on every machine; [`testing`] serves them from a registry that can
//! misbehave, for the length of a test. Together:
//!
//! ```
//! use prebake::fixture::{Content, Spec};
//! use prebake::testing::{Options, Registry};
//!
//! let spec = Spec::parse(
//!     r#"
//!     [layer.base]
//!     files = [{ path = "etc" }, { path = "etc/motd", text = "hello\n" }]
//!
//!     [[image]]
//!     name = "app:1"
//!     platforms = ["linux/amd64"]
//!     layers = ["base"]
//!     "#,
//! )?;
//! let registry = Registry::start(Content::build(&spec)?, Options::default())?;
//! let root = std::env::temp_dir().join(format!("prebake-doc-{}", std::process::id()));
//!
//! let baked = prebake::Bake::new(&root).image(registry.reference("app:1")).platform("linux/amd64").run()?;
//! assert!(baked.is_complete());
//! assert!(prebake::check(&root)?.findings.is_empty());
//! # std::fs::remove_dir_all(&root)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! Depend on it with `default-features = false`. The feature `cli`, on by default, is for the `prebake` command: it opens the rooms
//! that the command is built from, which may change with any release, and brings what a command line needs. `live` is the way
//! through a running containerd's socket, which only the command has.
// Without the command, there is much in the rooms that nobody calls; with it, all lints hold.
#![cfg_attr(not(feature = "cli"), allow(unused, unreachable_pub, clippy::pedantic))]

mod api;
pub mod fixture;
mod parallel;
pub mod testing;

pub use api::{Bake, Baked, BakedImage, Error, check};
pub use care::{CheckReport, Finding, Severity};
pub use kind::Kind;

#[cfg(feature = "cli")]
pub mod bake;
#[cfg(not(feature = "cli"))]
mod bake;
#[cfg(feature = "cli")]
pub mod bolt;
#[cfg(not(feature = "cli"))]
mod bolt;
#[cfg(feature = "cli")]
pub mod bootstrap;
#[cfg(not(feature = "cli"))]
mod bootstrap;
#[cfg(feature = "cli")]
pub mod bundle;
#[cfg(not(feature = "cli"))]
mod bundle;
#[cfg(feature = "cli")]
pub mod cache;
#[cfg(not(feature = "cli"))]
mod cache;
#[cfg(feature = "cli")]
pub mod care;
#[cfg(not(feature = "cli"))]
mod care;
#[cfg(feature = "cli")]
pub mod catalog;
#[cfg(not(feature = "cli"))]
mod catalog;
#[cfg(feature = "cli")]
pub mod content;
#[cfg(not(feature = "cli"))]
mod content;
#[cfg(feature = "cli")]
pub mod duration;
#[cfg(not(feature = "cli"))]
mod duration;
#[cfg(feature = "cli")]
pub mod kind;
#[cfg(not(feature = "cli"))]
mod kind;
#[cfg(feature = "cli")]
pub mod layer;
#[cfg(not(feature = "cli"))]
mod layer;
#[cfg(feature = "cli")]
pub mod metadata;
#[cfg(not(feature = "cli"))]
mod metadata;
#[cfg(feature = "cli")]
pub mod oci;
#[cfg(not(feature = "cli"))]
mod oci;
#[cfg(feature = "cli")]
pub mod registry;
#[cfg(not(feature = "cli"))]
mod registry;
#[cfg(feature = "cli")]
pub mod root;
#[cfg(not(feature = "cli"))]
mod root;
#[cfg(feature = "cli")]
pub mod serve;
#[cfg(not(feature = "cli"))]
mod serve;
#[cfg(feature = "cli")]
pub mod snapshot;
#[cfg(not(feature = "cli"))]
mod snapshot;
#[cfg(feature = "cli")]
pub mod source;
#[cfg(not(feature = "cli"))]
mod source;
#[cfg(feature = "cli")]
pub mod spec;
#[cfg(not(feature = "cli"))]
mod spec;
#[cfg(feature = "cli")]
pub mod times;
#[cfg(not(feature = "cli"))]
mod times;
#[cfg(feature = "cli")]
pub mod trust;
#[cfg(not(feature = "cli"))]
mod trust;

/// Chooses ring as the process's TLS provider. To be called once, before the first client of registries.
#[doc(hidden)]
pub fn install_tls() {
    // An error says that a provider was chosen before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
