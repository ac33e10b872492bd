//! How a cache that many bakers share is named, and `prebake cache`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand};
use prebake::bake::{Request, Warmed, warm};
use prebake::cache::{Cache, CacheUrl, DEFAULT_CLAIM_EXPIRY, Options, Pruning, Usage};
use prebake::oci::Digest;
use prebake::registry::{self, Client};
use prebake::spec::{SharedCache, parse_size};
use serde_json::json;

use super::bake::{self, FetchArgs};
use super::output::{self, OutputArgs};
use super::shard::{self, ShardArgs};
use super::{Failed, exit_code_of, progress};

const CACHE: &str = "Where many bakers share blobs: s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX or file:///DIR; who we \
    are is in the environment, as the clouds' own tools have it (see docs/cache.md)";

/// Which cache.
#[derive(Args, Clone)]
#[command(next_help_heading = "Cache")]
pub(super) struct CacheArgs {
    // Parsed below: clap would show what it cannot parse, and somebody's password may be in it.
    #[arg(long, value_name = "URL", env = "PREBAKE_CACHE", hide_env_values = true, help = CACHE)]
    cache: Option<String>,
    /// Fail when the cache does; without it, a bake goes on without the cache
    #[arg(long)]
    cache_required: bool,
    /// How long another baker that gets a blob may be silent before this one takes its place, such as 60s [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    cache_claim_expiry: Option<Duration>,
}

impl CacheArgs {
    /// Which one, by these or by what a bake.toml says.
    pub(super) fn options(&self, said: &SharedCache) -> Result<Option<Options>, Failed> {
        let parse =
            |url: &str, said: &str| url.parse::<CacheUrl>().map_err(|why| Failed::usage(format!("{said}: {why}")));
        // An empty variable says as much as none.
        let url = match (self.cache.as_deref().filter(|url| !url.is_empty()), &said.url) {
            (Some(url), _) => parse(url, "--cache, or PREBAKE_CACHE")?,
            (None, Some(url)) => parse(url, "[cache] url")?,
            (None, None) if self.cache_required => return Err(Failed::usage("--cache-required without --cache")),
            (None, None) => return Ok(None),
        };
        Ok(Some(Options {
            url,
            required: self.cache_required || said.required,
            claim_expiry: self.cache_claim_expiry.or(said.claim_expiry).unwrap_or(DEFAULT_CLAIM_EXPIRY),
            make: true,
        }))
    }
}

/// What a run had of its cache.
pub(super) fn in_words(usage: &Usage) -> String {
    let Usage { hits, hit_bytes, stored, stored_bytes, .. } = usage;
    format!(
        "{hits} from the cache, {}; {stored} put there, {}",
        output::bytes(*hit_bytes),
        output::bytes(*stored_bytes)
    )
}

const EXAMPLES: &str = "\
Examples:
  prebake cache warm --cache s3://bakes/blobs -f bake.toml --locked
  prebake cache stats --cache s3://bakes/blobs --json
  prebake cache check --cache file:///mnt/cache --remove
  prebake cache prune --cache s3://bakes/blobs --unused 30d --max-size 2TiB --dry-run";

/// `prebake cache`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CacheCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring images' blobs to the cache, and nowhere else
    Warm(Box<WarmArgs>),
    /// Count what is in the cache
    Stats(StatsArgs),
    /// Read everything in the cache, and tell what is not what its digest says
    Check(CheckArgs),
    /// Remove what nobody needs any more; others may bake meanwhile
    Prune(PruneArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  prebake cache warm --cache s3://bakes/blobs -f bake.toml --locked
  prebake cache warm --cache file:///mnt/cache --platform linux/amd64 registry.k8s.io/pause:3.10
  prebake cache warm --cache s3://bakes/blobs -f bake.toml --locked --shard 2/4     one of four shares")]
struct WarmArgs {
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    shard: ShardArgs,
}

#[derive(Args)]
struct WhichArgs {
    #[command(flatten)]
    cache: CacheArgs,
    /// Certificates (PEM) to trust besides the machine's own
    #[arg(long, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  prebake cache stats --cache s3://bakes/blobs
  prebake cache stats --cache file:///mnt/cache --json | jq .bytes")]
struct StatsArgs {
    #[command(flatten)]
    which: WhichArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  prebake cache check --cache s3://bakes/blobs
  prebake cache check --cache file:///mnt/cache --remove
Exits with 6 when something is wrong.")]
struct CheckArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Remove what is wrong; whoever needs it next gets it from its registry
    #[arg(long)]
    remove: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  prebake cache prune --cache s3://bakes/blobs --unused 30d --dry-run
  prebake cache prune --cache file:///mnt/cache --max-size 200GiB
What was stored or used within the last hour, or is claimed, stays.")]
struct PruneArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// What no run used or stored for so long, such as 30d or 12h
    #[arg(long, value_name = "TIME", value_parser = time, required_unless_present = "max_size")]
    unused: Option<Duration>,
    /// What is too much for this size, such as 2TiB; what was used longest ago goes first
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
    /// Only tell what would go
    #[arg(long)]
    dry_run: bool,
}

/// Days, or a duration as Go writes it.
fn time(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    days.map(|days| Duration::from_secs(u64::from(days) * 86_400))
        .or_else(|| prebake::duration::parse(text))
        .ok_or_else(|| format!("{text:?} is no time; write 30d, 12h or 60s"))
}

impl CacheCommand {
    pub(super) fn json(&self) -> bool {
        match &self.command {
            Command::Warm(args) => args.fetch.output.json,
            Command::Stats(args) => args.which.output.json,
            Command::Check(args) => args.which.output.json,
            Command::Prune(args) => args.which.output.json,
        }
    }
}

pub(super) fn run(args: CacheCommand) -> Result<u8, Failed> {
    match args.command {
        Command::Warm(args) => warm_all(*args),
        Command::Stats(args) => stats(&args),
        Command::Check(args) => check(&args),
        Command::Prune(args) => prune(&args),
    }
}

impl WhichArgs {
    /// Does something with the cache; `None`: it was stopped.
    fn with<R>(
        &self,
        work: impl AsyncFnOnce(Arc<Cache>) -> prebake::cache::Result<R>,
    ) -> Result<(Option<R>, Option<u8>), Failed> {
        let Some(mut cache) = self.cache.options(&SharedCache::default())? else {
            return Err(Failed::usage("which cache? --cache URL, or PREBAKE_CACHE"));
        };
        (cache.required, cache.make) = (true, false);
        let options =
            registry::Options { ca_files: self.ca_file.clone(), cache: Some(cache), ..registry::Options::default() };
        let listener = progress::listener(OutputArgs { quiet: true, ..self.output });
        bake::interruptible(async |cancel| {
            let client = Client::new(options, prebake::bake::notices(listener))?;
            let Some(cache) = client.cache().cloned() else { return Ok(None) };
            tokio::select! {
                done = work(cache) => Ok::<_, registry::Error>(Some(done?)),
                () = cancel => Ok(None),
            }
        })
    }
}

fn warm_all(mut args: WarmArgs) -> Result<u8, Failed> {
    let output = args.fetch.output;
    args.fetch.wanted.default_root = Some(".".into());
    let share = args.fetch.wanted.share(args.shard)?;
    let request: Request = args.fetch.request(None)?;
    if request.registry.cache.is_none() {
        return Err(Failed::usage("which cache? --cache URL, PREBAKE_CACHE, or [cache] in the bake.toml"));
    }
    let listener = progress::listener(output);
    let keep = |digest: &Digest| share.as_ref().is_none_or(|share| share.has(digest));
    let (warmed, signal) = bake::interruptible(async |cancel| warm(request, keep, listener, cancel).await)?;
    let Warmed { failed, images, fetched, present, usage, seconds, cancelled } = warmed;
    let done = images - failed.len();
    if output.json {
        let outcomes: Vec<_> = failed.iter().map(output::outcome).collect();
        let mut summary = json!({"event": "summary", "images": outcomes, "done": done, "failed": failed.len(),
            "fetched_blobs": fetched.0, "fetched_bytes": fetched.1, "present_blobs": present.0,
            "present_bytes": present.1, "cache": usage, "seconds": seconds, "cancelled": cancelled});
        shard::add_to(&mut summary, share.as_deref(), 0);
        output::say_json(&summary);
    } else {
        output::failures(&failed);
        if !output.quiet {
            let failures = if failed.is_empty() { String::new() } else { format!(", {} failed", failed.len()) };
            output::say(format!(
                "{done} images{failures}; {} blobs, {} fetched, {} already there; {seconds:.1} s{}",
                fetched.0 + present.0,
                output::bytes(fetched.1),
                output::bytes(present.1),
                shard::said(share.as_deref(), 0),
            ));
        }
    }
    Ok(signal.filter(|_| cancelled).map_or_else(|| exit_code_of(&failed), |signal| 128 + signal))
}

fn stats(args: &StatsArgs) -> Result<u8, Failed> {
    let (stats, signal) = args.which.with(async |cache| cache.stats().await)?;
    let Some(stats) = stats else { return Ok(128 + signal.unwrap_or(2)) };
    if args.which.output.json {
        output::say_json(&stats);
        return Ok(0);
    }
    let at = |time: Option<chrono::DateTime<chrono::Utc>>| {
        time.map_or("-".to_owned(), |time| time.format("%F %T").to_string())
    };
    output::say(format!(
        "{} blobs, {}, the largest {}; stored from {} to {}; {} claims, {} runs noted",
        stats.blobs,
        output::bytes(stats.bytes),
        output::bytes(stats.largest),
        at(stats.oldest),
        at(stats.newest),
        stats.claims,
        stats.runs,
    ));
    if stats.unknown > 0 {
        output::say(format!("{} objects are not the cache's; they stay", stats.unknown));
    }
    Ok(0)
}

fn check(args: &CheckArgs) -> Result<u8, Failed> {
    let bytes = AtomicU64::new(0);
    let seen = |more: u64| {
        bytes.fetch_add(more, Ordering::Relaxed);
    };
    let (checked, signal) = args.which.with(async |cache| cache.check(args.remove, &seen).await)?;
    let Some((unsound, blobs)) = checked else { return Ok(128 + signal.unwrap_or(2)) };
    let bytes = bytes.into_inner();
    if args.which.output.json {
        output::say_json_lines(&unsound);
        output::say_json(&json!({"event": "summary", "blobs": blobs, "bytes": bytes, "wrong": unsound.len()}));
    } else {
        for wrong in &unsound {
            let gone = if wrong.removed { "; it is removed" } else { "" };
            output::say(format!("{} is not what is stored under it{gone}", wrong.digest));
        }
        if !args.which.output.quiet {
            output::say(format!("{blobs} blobs, {}: {} wrong", output::bytes(bytes), unsound.len()));
        }
    }
    Ok(if unsound.is_empty() { 0 } else { super::exit_code(prebake::kind::Kind::Corrupt) })
}

fn prune(args: &PruneArgs) -> Result<u8, Failed> {
    let pruning = Pruning { unused: args.unused, max_size: args.max_size, dry_run: args.dry_run };
    let (pruned, signal) = args.which.with(async |cache| cache.prune(pruning).await)?;
    let Some(pruned) = pruned else { return Ok(128 + signal.unwrap_or(2)) };
    if args.which.output.json {
        output::say_json(&pruned);
    } else if !args.which.output.quiet {
        let would = if args.dry_run { "would be" } else { "are" };
        output::say(format!(
            "{} blobs, {}, {would} removed; {} blobs, {}, stay",
            pruned.blobs,
            output::bytes(pruned.bytes),
            pruned.kept,
            output::bytes(pruned.kept_bytes),
        ));
        if pruned.unnamed > 0 {
            output::say(format!("{} unfinished files of writers that were killed {would} removed", pruned.unnamed));
        }
    }
    Ok(0)
}
