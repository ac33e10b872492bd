//! `prebake seal`.

use clap::Args;
use prebake::care;

use super::check;
use super::output::OutputArgs;
use super::{Failed, RootArgs};

const EXAMPLES: &str = "\
Examples:
  prebake bake --root ./chroot --file images.txt && prebake seal --root ./chroot
Exits with 6 when the check at its end finds that containerd would fail at anything.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SealArgs {
    #[command(flatten)]
    root: RootArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: &SealArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let quiet = args.output.quiet || args.output.json;
    check::reported(args.output, |progress| {
        args.root.waiting(quiet, |wait| care::seal(&root, progress, wait)).map_err(Failed::new)
    })
}
