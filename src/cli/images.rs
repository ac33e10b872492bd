//! `prebake images`.

use clap::Args;
use prebake::care::Kept;

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
    let header = ["NAMESPACE", "NAME", "TARGET", "POLICY", "COMPRESSED", "UNPACKED", "SHARED", "PINNED"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for image in images {
        let policy = match image.policy {
            Some(Kept::Fetch) => "fetch",
            Some(Kept::Unpack) => "unpack",
            Some(Kept::UnpackDiscard) => "unpack-discard",
            Some(Kept::Incomplete) | None => "incomplete",
        };
        let size = |size: u64| if size == 0 { String::new() } else { output::bytes(size) };
        let pinned = if image.pinned { "yes" } else { "" }.to_owned();
        rows.push(vec![
            image.namespace,
            image.name,
            image.digest,
            policy.to_owned(),
            image.size.map_or(String::new(), output::bytes),
            size(image.unpacked),
            size(image.shared),
            pinned,
        ]);
    }
    output::table(&rows);
    Ok(0)
}
