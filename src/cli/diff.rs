//! `prebake diff`.

use std::path::{Path, PathBuf};

use clap::Args;
use prebake::care::{self, Difference, Side, SideImage};
use prebake::metadata::{DEFAULT_LOCK_TIMEOUT, K8S_NAMESPACE};
use prebake::oci::Digest;
use prebake::root::CONTAINERD_ROOT;
use prebake::source::Local;
use prebake::spec::{Lock, Place};

use super::{Failed, RootArgs, output, wanted};

const EXAMPLES: &str = "\
Examples:
  prebake diff ./last-week ./chroot
  prebake diff --files ./last-week ./chroot
  prebake diff bake.lock ./chroot
  prebake diff bundle:last-week.bundle bundle:site.bundle
Each side is a root, a bake.lock, or a place such as bundle:FILE or oci:DIR. Exits with 1 when they differ.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DiffArgs {
    /// A root, a bake.lock, or a place
    first: PathBuf,
    /// Another
    second: PathBuf,
    /// Also the files of images that changed, by their layers
    #[arg(long)]
    files: bool,
    /// containerd's namespace, of roots
    #[arg(long, default_value = K8S_NAMESPACE, value_parser = wanted::namespace)]
    namespace: String,
    /// containerd's state directory, inside the roots
    #[arg(long, value_name = "PATH", default_value = CONTAINERD_ROOT)]
    containerd_root: PathBuf,
    /// Report as JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &DiffArgs) -> Result<u8, Failed> {
    let (first, second) = (side(args, &args.first)?, side(args, &args.second)?);
    let found = care::diff(&first, &second, args.files).map_err(Failed::new)?;
    if args.json {
        output::say_json(&found);
    } else {
        show(&found);
    }
    Ok(u8::from(!(found.only_first.is_empty() && found.only_second.is_empty() && found.changed.is_empty())))
}

fn side(args: &DiffArgs, path: &Path) -> Result<Side, Failed> {
    if let Some(place) = path.to_str().map(Place::parse).transpose().map_err(Failed::usage_of)?.flatten() {
        return Side::of_place(Local::open(&place).map_err(Failed::new)?).map_err(Failed::new);
    }
    if path.is_file() {
        let lock = Lock::parse(&wanted::text(path)?, &path.display().to_string()).map_err(Failed::new)?;
        let image = |name: &String, image: &prebake::spec::LockedImage| {
            let layers = image.platforms.values().next().map_or(Vec::new(), |platform| platform.layers.clone());
            (name.clone(), SideImage { target: image.target.digest.clone(), layers })
        };
        return Ok(Side::of_images(lock.images.iter().map(|(name, locked)| image(name, locked)).collect()));
    }
    let root = RootArgs {
        root: path.to_owned(),
        containerd_root: args.containerd_root.clone(),
        lock_timeout: DEFAULT_LOCK_TIMEOUT.as_secs(),
    };
    let existing = root.existing()?;
    root.waiting(args.json, |wait| Side::of_root(&existing, &args.namespace, wait)).map_err(Failed::new)
}

fn show(found: &Difference) {
    let lines = |mark: &str, images: &[(String, Digest)]| {
        for (name, digest) in images {
            output::say(format!("{mark} {name} {digest}"));
        }
    };
    lines("-", &found.only_first);
    lines("+", &found.only_second);
    for changed in &found.changed {
        output::say(format!("~ {} {} -> {}", changed.name, changed.first, changed.second));
        let layers = |mark: &str, layers: &[(Digest, u64)]| {
            for (digest, size) in layers {
                output::say(format!("    {mark} layer {digest}, {}", output::bytes(*size)));
            }
        };
        layers("-", &changed.layers_gone);
        layers("+", &changed.layers_new);
        for file in changed.files.iter().flatten() {
            let line = match file.what.as_str() {
                "gone" => format!("    - /{}", file.path),
                "new" => format!("    + /{}", file.path),
                what => format!("    ~ /{}: {what}", file.path),
            };
            output::say(line);
        }
    }
    output::say(format!("{} images are the same", found.same));
}
