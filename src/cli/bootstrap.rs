//! `prebake bootstrap`.

use clap::Args;
use prebake::bake::Outcome;
use prebake::metadata::K8S_NAMESPACE;
use serde_json::json;

use super::output::{self, OutputArgs};
use super::{Failed, RootArgs, TimesArgs, exit_code_of, progress, wanted};

#[cfg(not(feature = "live"))]
const EXAMPLES: &str = "\
Examples:
  prebake fetch --root ./chroot registry.k8s.io/pause:3.10
  prebake bootstrap --root ./chroot";

#[cfg(feature = "live")]
const EXAMPLES: &str = "\
Examples:
  prebake fetch --root ./chroot registry.k8s.io/pause:3.10
  prebake bootstrap --root ./chroot                          no containerd runs on the root
  prebake bootstrap --root / --address /run/containerd/containerd.sock
                                                             one does; blobs are registered where they are
  prebake bootstrap --root ./chroot --install-unit --unpack-under 150MiB
                                                             one will, at the first boot of what is baked
Through a running containerd, times are those of its clock, and an image whose blobs it has collected has to be fetched again.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BootstrapArgs {
    #[command(flatten)]
    pub(super) root: RootArgs,
    /// containerd's namespace
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = K8S_NAMESPACE, value_parser = wanted::namespace)]
    pub(super) namespace: String,
    #[cfg(feature = "live")]
    #[command(flatten)]
    pub(super) live: super::live::LiveArgs,
    #[command(flatten)]
    times: TimesArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: &BootstrapArgs) -> Result<u8, Failed> {
    #[cfg(feature = "live")]
    if let Some(code) = super::live::bootstrap(args)? {
        return Ok(code);
    }
    let listener = progress::listener(args.output);
    let root = args.root.existing()?;
    let (epoch, timeout) = (args.times.source_date_epoch, args.root.lock_timeout());
    let outcomes = prebake::bake::bootstrap(&root, &args.namespace, epoch, &*listener, timeout).map_err(Failed::new)?;
    drop(listener);
    Ok(end(args, &outcomes))
}

/// Says what came of it; the exit code.
pub(super) fn end(args: &BootstrapArgs, outcomes: &[Outcome]) -> u8 {
    if args.output.json {
        let line = |outcome: &Outcome| {
            let failure = outcome.failure.as_ref().map(|failure| &failure.message);
            json!({"event": "image", "image": outcome.name, "ok": failure.is_none(), "error": failure})
        };
        output::say_json_lines(outcomes.iter().map(line));
    } else {
        output::failures(outcomes);
        if outcomes.is_empty() && !args.output.quiet {
            output::say(format!("nothing was fetched for namespace {}", args.namespace));
        }
    }
    exit_code_of(outcomes)
}
