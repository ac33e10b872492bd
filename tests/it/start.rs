//! How long a command takes that has next to nothing to do.

use std::time::{Duration, Instant};

use crate::support::prebake::command;

/// The fastest of many runs: what a busy machine adds is not prebake's.
#[test]
fn a_command_starts_at_once() {
    const LIMIT: Duration = Duration::from_millis(15);
    const RUNS: usize = 100;
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    for arguments in [&["--version"][..], &["images", "--root", root, "--json"]] {
        let run = || {
            let start = Instant::now();
            let output = command().args(arguments).output().unwrap();
            let took = start.elapsed();
            assert!(output.status.success(), "{output:?}");
            took
        };
        let mut fastest = Duration::MAX;
        for _ in 0..RUNS {
            fastest = fastest.min(run());
            if fastest < LIMIT {
                break;
            }
        }
        assert!(fastest < LIMIT, "{arguments:?} takes {fastest:?}");
    }
}

#[test]
fn the_version_tells_of_every_feature() {
    let said = command().args(["--version", "--json"]).output().unwrap();
    let about: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let features = [("live", cfg!(feature = "live")), ("cache", cfg!(feature = "cache"))];
    let on: Vec<&str> = features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect();
    assert_eq!(about["features"], serde_json::json!(on));
}
