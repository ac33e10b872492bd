//! `prebake du`.

use clap::Args;
use prebake::care::{self, DiskUse};

use super::{Failed, RootArgs, output};

const EXAMPLES: &str = "\
Examples:
  prebake du --root ./chroot
  prebake du --root ./chroot --json | jq '.images | sort_by(-.unique)[:10]'
Bytes are those on disk, as du counts them; unique is what removing the image alone would free.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DuArgs {
    #[command(flatten)]
    root: RootArgs,
    /// Report as JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &DuArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let used = args.root.waiting(args.json, |wait| care::du(&root, wait)).map_err(Failed::new)?;
    if args.json {
        output::say_json(&used);
    } else {
        show(used);
    }
    Ok(0)
}

fn show(mut used: DiskUse) {
    used.images.sort_by_key(|image| std::cmp::Reverse(image.unique + image.shared));
    let head = ["NAMESPACE", "IMAGE", "BLOBS", "SNAPSHOTS", "UNIQUE", "SHARED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(used.images.into_iter().map(|image| {
        let sizes = [image.blobs, image.snapshots, image.unique, image.shared].map(output::bytes);
        // Its shortest name says most.
        let name = image.names.into_iter().min_by_key(String::len).unwrap_or(image.digest);
        [vec![image.namespace, name], sizes.to_vec()].concat()
    }));
    output::table(&rows);
    for (what, bytes) in [
        ("blobs of images", used.blobs),
        ("snapshots of images", used.snapshots),
        ("other blobs", used.other_blobs),
        ("other snapshots", used.other_snapshots),
        ("unfinished writes", used.ingests),
        ("databases, directories", used.rest),
        ("containerd's, in all", used.containerd),
        ("prebake's", used.prebake),
    ] {
        output::say(format!("{what:<24}{}", output::bytes(bytes)));
    }
}
