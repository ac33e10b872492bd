//! `--shard`: one share of the work, where several machines do it.

use clap::Args;
use prebake::spec::{Shard, Share};
use serde_json::{Value, json};

use super::output;

/// What is wrong with `--shard` alone.
pub(super) const NEEDS_LOCK: &str = "--shard needs --locked: each shard takes its share from the lock alone, so that all split the same; `prebake lock` makes one";

/// Whose share of the work.
#[derive(Args, Clone, Copy)]
pub(super) struct ShardArgs {
    /// Only one share of the work, the Ith of N; or `job`: the one that a Kubernetes Indexed Job gives. See docs/sharding.md
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub(super) shard: Option<Shard>,
}

fn shard(text: &str) -> Result<Shard, String> {
    let variable = |name| std::env::var(name).ok();
    let shard = match text {
        "job" => Shard::of_job(variable("JOB_COMPLETION_INDEX").as_deref(), variable("JOB_COMPLETIONS").as_deref()),
        text => text.parse(),
    };
    shard.map_err(|error| error.to_string())
}

/// Adds to a summary whose share it was.
pub(super) fn add_to(summary: &mut Value, share: Option<&Share>, left: usize) {
    if let Some(share) = share {
        let (blobs, bytes) = share.load();
        summary["shard"] = json!(share.shard().index());
        summary["of"] = json!(share.shard().of());
        summary["owned_blobs"] = json!(blobs);
        summary["owned_bytes"] = json!(bytes);
    }
    if share.is_some() || left > 0 {
        summary["left"] = json!(left);
    }
}

/// The same for people, behind a summary; nothing where nothing is shared.
pub(super) fn said(share: Option<&Share>, left: usize) -> String {
    share.map_or_else(String::new, |share| {
        let (blobs, bytes) = share.load();
        let left = if left > 0 { format!("; {left} images are left to other shards") } else { String::new() };
        format!("\nshard {}: {blobs} blobs of all, {}{left}", share.shard(), output::bytes(bytes))
    })
}
