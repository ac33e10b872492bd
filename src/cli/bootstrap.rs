//! `prebake bootstrap`.

use clap::Args;
use prebake::bake::Outcome;
use prebake::metadata::K8S_NAMESPACE;
use serde_json::json;

use super::output::{self, OutputArgs};
use super::{Failed, RootArgs, TimesArgs, exit_code_of, progress, wanted};

const EXAMPLES: &str = "\
Examples:
  prebake fetch --root ./chroot registry.k8s.io/pause:3.10
  prebake bootstrap --root ./chroot";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BootstrapArgs {
    #[command(flatten)]
    root: RootArgs,
    /// containerd's namespace
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = K8S_NAMESPACE, value_parser = wanted::namespace)]
    namespace: String,
    #[command(flatten)]
    times: TimesArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: &BootstrapArgs) -> Result<u8, Failed> {
    let listener = progress::listener(args.output);
    let root = args.root.existing()?;
    let (epoch, timeout) = (args.times.source_date_epoch, args.root.lock_timeout());
    let outcomes = prebake::bake::bootstrap(&root, &args.namespace, epoch, &*listener, timeout).map_err(Failed::new)?;
    drop(listener);
    if args.output.json {
        let line = |outcome: &Outcome| {
            let failure = outcome.failure.as_ref().map(|failure| &failure.message);
            json!({"event": "image", "image": outcome.name, "ok": failure.is_none(), "error": failure})
        };
        output::say_json_lines(outcomes.iter().map(line));
    } else {
        output::failures(&outcomes);
        if outcomes.is_empty() && !args.output.quiet {
            output::say(format!("nothing was fetched for namespace {}", args.namespace));
        }
    }
    Ok(exit_code_of(&outcomes))
}
