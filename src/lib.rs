//! prebake pulls OCI images over HTTP and writes them straight into the directory where containerd keeps its state, inside
//! any root, with no daemon running. The library behind the `prebake` command; `docs/design.md` draws the house.

pub mod bake;
pub mod bolt;
pub mod bootstrap;
pub mod bundle;
pub mod care;
pub mod catalog;
pub mod content;
pub mod duration;
pub mod fixture;
pub mod kind;
pub mod layer;
pub mod metadata;
pub mod oci;
mod parallel;
pub mod registry;
pub mod root;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod spec;
pub mod testing;
pub mod times;
pub mod trust;

/// Chooses ring as the process's TLS provider. To be called once, before the first [`registry::Client`].
pub fn install_tls() {
    // An error says that a provider was chosen before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
