//! `prebake gc`, `prebake rm` and `prebake prune`: what takes things away.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use clap::Args;
use prebake::care::{self, Collect, Collected, Fate, Prune, Pruned, Release, Unused, Which};
use prebake::metadata::K8S_NAMESPACE;

use super::output::{self, OutputArgs};
use super::{Failed, RootArgs, wanted};

const GC_EXAMPLES: &str = "\
Examples:
  prebake gc --root ./chroot --dry-run
  prebake gc --root ./chroot --containerd 2.1
  prebake gc --root ./chroot --dry-run --json | jq .removed
  prebake gc --root / --address /run/containerd/containerd.sock
Without --containerd, what any release would keep is kept.";

const RM_EXAMPLES: &str = "\
Examples:
  prebake rm --root ./chroot docker.io/library/nginx:1.27
  prebake rm --root ./chroot --dry-run sha256:0a1b2c3d
Exits with 1 when an image was kept because somebody needs it; --force removes such a name, and the image stays under its digest.";

const PRUNE_EXAMPLES: &str = "\
Examples:
  prebake prune --root ./chroot --dry-run
  prebake prune --root ./chroot --all --until 720h --keep 'registry.k8s.io/*'
  prebake prune --root ./chroot --all --filter label=stage=build
Images of containers, running or not, stay under all their names; so do pinned and leased ones, and those that an active
snapshot lies on.";

#[derive(Args)]
struct CollectArgs {
    /// Only tell what would go, and why
    #[arg(long)]
    dry_run: bool,
    /// Collect as this release of containerd does, such as 1.7 or 2.1
    #[arg(long, value_name = "RELEASE")]
    containerd: Option<Release>,
}

impl CollectArgs {
    fn collect(&self, fetched: bool) -> Collect {
        Collect { release: self.containerd, fetched, dry_run: self.dry_run }
    }
}

#[derive(Args)]
#[command(after_help = GC_EXAMPLES)]
pub(super) struct GcArgs {
    #[command(flatten)]
    root: RootArgs,
    #[command(flatten)]
    collect: CollectArgs,
    /// Also what was fetched and is not known to containerd yet
    #[arg(long)]
    fetched: bool,
    /// The socket of a containerd that runs on the root: it collects, by its own rules, and is waited for
    #[cfg(feature = "live")]
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["dry_run", "containerd", "fetched"])]
    address: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Args)]
#[command(after_help = RM_EXAMPLES)]
pub(super) struct RmArgs {
    /// Images: names, digests, or the first digits of one
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    root: RootArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Also names that containers know, and pinned ones
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    collect: CollectArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Args)]
struct PlaceArgs {
    /// containerd's namespace
    #[arg(long, default_value = K8S_NAMESPACE, value_parser = wanted::namespace)]
    namespace: String,
}

#[derive(Args)]
#[command(after_help = PRUNE_EXAMPLES)]
pub(super) struct PruneArgs {
    #[command(flatten)]
    root: RootArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Also images that have a name; without it, only those that have none left
    #[arg(long)]
    all: bool,
    /// Only images whose records are older than this, such as 720h
    #[arg(long, value_name = "AGE", value_parser = age)]
    until: Option<DateTime<Utc>>,
    /// Only images with a label, by their records or configs
    #[arg(long, value_name = "label=KEY[=VALUE]", value_parser = label)]
    filter: Vec<(String, Option<String>)>,
    /// No image with a name that fits; * stands for anything
    #[arg(long, value_name = "GLOB")]
    keep: Vec<String>,
    #[command(flatten)]
    collect: CollectArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// So long ago.
fn age(text: &str) -> Result<DateTime<Utc>, String> {
    let age = prebake::duration::parse(text).ok_or("no duration such as 720h or 90m")?;
    let age = chrono::TimeDelta::from_std(age).map_err(|error| error.to_string())?;
    Utc::now().checked_sub_signed(age).ok_or_else(|| "too long ago".to_owned())
}

fn label(text: &str) -> Result<(String, Option<String>), String> {
    let label = text.strip_prefix("label=").filter(|label| !label.is_empty());
    let label = label.ok_or("only label=KEY and label=KEY=VALUE are known")?;
    Ok(match label.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (label.to_owned(), None),
    })
}

pub(super) fn gc(args: &GcArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    #[cfg(feature = "live")]
    if let Some(address) = &args.address {
        return super::live::gc(&root, address, args.output);
    }
    let collect = args.collect.collect(args.fetched);
    let quiet = args.output.quiet || args.output.json;
    let collected = args.root.waiting(quiet, |wait| care::gc(&root, collect, wait)).map_err(Failed::new)?;
    if args.output.json {
        output::say_json(&collected);
    } else if !args.output.quiet {
        show_garbage(&collected);
        summarise(&collected, collect.dry_run);
    }
    Ok(0)
}

pub(super) fn rm(args: RmArgs) -> Result<u8, Failed> {
    let which = Which::Named { names: args.names, force: args.force };
    let request = Prune { which, namespace: args.place.namespace, collect: args.collect.collect(false) };
    let pruned = remove(&args.root, &request, args.output)?;
    Ok(u8::from(pruned.images.iter().any(|decision| decision.fate == Fate::Kept)))
}

pub(super) fn prune(args: PruneArgs) -> Result<u8, Failed> {
    let unused = Unused { all: args.all, before: args.until, labels: args.filter, keep: args.keep };
    let collect = args.collect.collect(false);
    let request = Prune { which: Which::Unused(unused), namespace: args.place.namespace, collect };
    remove(&args.root, &request, args.output).map(|_| 0)
}

/// Removes images, and tells of it.
fn remove(args: &RootArgs, request: &Prune, output: OutputArgs) -> Result<Pruned, Failed> {
    let quiet = output.quiet || output.json;
    let root = args.existing()?;
    let pruned = args.waiting(quiet, |wait| care::prune(&root, request, wait)).map_err(Failed::new)?;
    if output.json {
        output::say_json(&pruned);
    } else {
        show(&pruned, request, output.quiet);
    }
    Ok(pruned)
}

/// What became of images, or would, in words.
pub(super) fn show(pruned: &Pruned, request: &Prune, quiet: bool) {
    for decision in &pruned.images {
        let (name, why) = (&decision.name, &decision.why);
        match decision.fate {
            Fate::Kept if matches!(request.which, Which::Named { .. }) => output::tell(format!("kept: {name}: {why}")),
            _ if quiet => {}
            Fate::Kept => output::say(format!("kept: {name}: {why}")),
            Fate::Removed => output::say(format!("removed: {name}: {why}")),
            Fate::Dangling => output::say(format!("untagged: {name}: {why}")),
        }
    }
    if !quiet {
        if request.collect.dry_run {
            show_garbage(&pruned.collected);
        }
        summarise(&pruned.collected, request.collect.dry_run);
    }
}

/// What a collection removes.
pub(super) fn show_garbage(collected: &Collected) {
    for garbage in &collected.removed {
        let namespace = garbage.namespace.as_ref().map(|namespace| format!("{namespace} ")).unwrap_or_default();
        output::say(format!("{namespace}{} {}: {}", garbage.kind, garbage.name, garbage.why));
    }
    for (namespace, name) in &collected.fetched {
        output::say(format!("kept: {name} in namespace {namespace}: it was fetched, and has no records yet"));
    }
}

/// How much of what a collection removes.
pub(super) fn summarise(collected: &Collected, dry_run: bool) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for garbage in &collected.removed {
        *counts.entry(garbage.kind).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}s")).collect();
    let what = if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") };
    let (verb, freed) = if dry_run { ("would be removed", "would be free") } else { ("removed", "freed") };
    output::say(format!("{what} {verb}; {} {freed}", output::bytes(collected.bytes)));
}
