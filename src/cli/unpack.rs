//! `prebake unpack`.

use clap::Args;
use prebake::bake::{UnpackRequest, unpack};
use prebake::metadata::K8S_NAMESPACE;
use prebake::oci::Reference;

use super::bake::{self, LimitArgs};
use super::output::{self, OutputArgs};
use super::wanted::{self, NamesArgs};
use super::{Failed, RootArgs, TimesArgs, progress};

const EXAMPLES: &str = "\
Examples:
  prebake unpack --root ./chroot                                every image that is in the root
  prebake unpack --root ./chroot registry.k8s.io/pause:3.10     only this one
  prebake unpack --root ./chroot --file images.txt              those of a list, or of a bake.toml";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UnpackArgs {
    #[command(flatten)]
    root: RootArgs,
    #[command(flatten)]
    names: NamesArgs,
    /// containerd's namespace
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = K8S_NAMESPACE, value_parser = wanted::namespace)]
    namespace: String,
    #[command(flatten)]
    limit: LimitArgs,
    #[command(flatten)]
    times: TimesArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: &UnpackArgs) -> Result<u8, Failed> {
    let output = args.output;
    let names = if args.names.is_empty() { Vec::new() } else { args.names.references()? };
    let request = UnpackRequest {
        root: args.root.existing()?,
        names: names.iter().map(Reference::to_string).collect(),
        namespace: args.namespace.clone(),
        max_unpacked: args.limit.max_unpacked,
        epoch: args.times.source_date_epoch,
        lock_timeout: args.root.lock_timeout(),
    };
    let work = async |cancel| unpack(request, progress::listener(output), cancel).await;
    let (report, signal) = bake::interruptible(work)?;
    let signal = signal.filter(|_| report.cancelled);
    if report.images.is_empty() && !output.json && !output.quiet {
        output::say("the root has no images");
        return Ok(0);
    }
    Ok(bake::end(&report, signal, None, output))
}
