//! `prebake images`.

use clap::Args;

use super::output;
use super::{Failed, RootArgs};

const EXAMPLES: &str = "\
Examples:
  prebake images --root ./chroot
  prebake images --root ./chroot --namespace k8s.io --json";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImagesArgs {
    #[command(flatten)]
    root: RootArgs,
    /// Only this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &ImagesArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let images = args
        .root
        .waiting(args.json, |wait| prebake::care::images(&root, args.namespace.as_deref(), wait))
        .map_err(Failed::new)?;
    if args.json {
        output::say_json_lines(&images);
        return Ok(0);
    }
    let mut rows = vec![["NAMESPACE", "NAME", "TARGET", "SIZE", "PINNED"].map(str::to_owned).to_vec()];
    for image in images {
        let size = image.size.map_or("incomplete".to_owned(), output::bytes);
        let pinned = if image.pinned { "yes" } else { "" }.to_owned();
        rows.push(vec![image.namespace, image.name, image.digest, size, pinned]);
    }
    output::table(&rows);
    Ok(0)
}
