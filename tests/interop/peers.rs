//! Where the real peers are, and daemons that end with the test that started them.

use std::path::PathBuf;

/// The folder `tests/setup` filled; `PREBAKE_PEERS` names another one.
pub fn dir() -> PathBuf {
    let dir = std::env::var_os("PREBAKE_PEERS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers"), PathBuf::from);
    assert!(dir.join("bbolt-oracle").exists(), "{} is not set up: run tests/setup first", dir.display());
    dir
}
