//! `prebake discard-layers`.

use clap::Args;
use prebake::care::{self, Collect, Discard};
use prebake::metadata::K8S_NAMESPACE;
use prebake::oci::Reference;
use prebake::spec::{Image, Policy, Sizes, Spec, choose};

use super::output::{self, OutputArgs};
use super::prune::{show_garbage, summarise};
use super::wanted::{self, NamesArgs};
use super::{Failed, RootArgs};

const EXAMPLES: &str = "\
Examples:
  prebake discard-layers --root ./chroot --dry-run
  prebake discard-layers --root ./chroot --image docker.io/library/nginx:1.27
  prebake discard-layers --root ./chroot --rules bake.toml
What is discarded cannot be unpacked again, exported or pushed; `prebake repair --restore-layers` fetches it again. Images keep
their layers that are not unpacked, that another snapshotter or namespace needs, or that a rule protects. Exits with 1 when one
that was named keeps them.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    root: RootArgs,
    /// Only this image, or these; without it, all that can do without their layers
    #[arg(long, value_name = "NAME")]
    image: Vec<String>,
    #[command(flatten)]
    names: NamesArgs,
    /// A bake.toml whose entries and rules say which images keep their layers, and which further snapshotters there are
    #[arg(long, value_name = "FILE")]
    rules: Option<std::path::PathBuf>,
    /// containerd's namespace
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = K8S_NAMESPACE, value_parser = wanted::namespace)]
    namespace: String,
    /// Snapshotters that containers on this root will use
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    snapshotters: Vec<String>,
    /// Only tell what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: DiscardArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let (images, spec) = match &args.rules {
        Some(path) => wanted::spec(&wanted::text(path)?, path).map_err(Failed::new)?,
        None => (Vec::new(), Spec::default()),
    };
    let mut names = args.image;
    if !args.names.is_empty() {
        names.extend(args.names.references()?.iter().map(Reference::to_string));
    }
    let is_named = !names.is_empty();
    let protects = |name: &Reference, compressed: u64, unpacked: u64| {
        protected(&images, &spec, name, Sizes { compressed, unpacked })
    };
    let mut snapshotters = args.snapshotters;
    snapshotters.extend(spec.target.further_snapshotters.iter().cloned());
    let collect = Collect { dry_run: args.dry_run, ..Collect::default() };
    let request = Discard { namespace: args.namespace, names, snapshotters, protects: &protects, collect };
    let quiet = args.output.quiet || args.output.json;
    let discards = args.root.waiting(quiet, |wait| care::discard_layers(&root, &request, wait)).map_err(Failed::new)?;
    let kept = discards.images.iter().any(|image| !image.discarded);
    if args.output.json {
        output::say_json(&discards);
    } else {
        for image in &discards.images {
            let name = image.names.first().unwrap_or(&image.digest);
            if !image.discarded && is_named {
                output::tell(format!("kept: {name}: {}", image.why));
            } else if !args.output.quiet {
                let verb = if image.discarded { "discarded" } else { "kept" };
                output::say(format!("{verb}: {name}: {}", image.why));
            }
        }
        if !args.output.quiet {
            if args.dry_run {
                show_garbage(&discards.collected);
            }
            summarise(&discards.collected, args.dry_run);
        }
    }
    Ok(u8::from(kept && is_named))
}

/// Why an image's layers stay, by its entry or a rule.
fn protected(images: &[Image], spec: &Spec, name: &Reference, sizes: Sizes) -> Option<String> {
    let entry = images.iter().find(|image| image.named.reference() == Some(name)).and_then(|image| image.policy);
    let choice = choose((entry, None), &spec.rules, (Policy::UnpackDiscard, false), name, sizes);
    (choice.policy != Policy::UnpackDiscard).then(|| format!("by {}, its policy is {}", choice.reason, choice.policy))
}
