//! `prebake list`: images that others name.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use prebake::kind::Kind;
use prebake::metadata::DEFAULT_LOCK_TIMEOUT;
use prebake::oci::Reference;
use prebake::root::CONTAINERD_ROOT;
use prebake::spec::{self, Image};

use super::{Failed, RootArgs, output, wanted};

const EXAMPLES: &str = "\
Examples:
  helm template ./chart | prebake list --from-k8s - > images.txt
  kubeadm config images list | prebake list --from-k8s - --toml > bake.toml
  prebake list --from-components components.json
  prebake list --from-root / --namespace k8s.io";

#[derive(Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("from").required(true).multiple(true))]
pub(super) struct ListArgs {
    /// Kubernetes objects (YAML or JSON, any number of documents; - is standard input): the images of their pods
    #[arg(long, value_name = "FILE", group = "from")]
    from_k8s: Vec<PathBuf>,
    /// The components.json of AKS node images
    #[arg(long, value_name = "FILE", group = "from")]
    from_components: Vec<PathBuf>,
    /// What the containerd of a root has
    #[arg(long, value_name = "DIR", group = "from")]
    from_root: Vec<PathBuf>,
    /// Of a root: only this namespace of containerd's
    #[arg(long, value_parser = wanted::namespace)]
    namespace: Option<String>,
    /// As a bake.toml instead of a list
    #[arg(long, conflicts_with = "json")]
    toml: bool,
    /// As JSON, one object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &ListArgs) -> Result<u8, Failed> {
    let mut images: Vec<Image> = Vec::new();
    let mut add = |more: Vec<Image>| {
        for image in more {
            if images.iter().all(|known| known.named != image.named) {
                images.push(image);
            }
        }
    };
    for path in &args.from_k8s {
        add(spec::from_kubernetes(&wanted::text(path)?, &path.display().to_string()).map_err(Failed::new)?);
    }
    for path in &args.from_components {
        add(spec::from_components(&wanted::text(path)?, &path.display().to_string()).map_err(Failed::new)?);
    }
    for dir in &args.from_root {
        add(of_root(dir, args.namespace.as_deref())?);
    }
    if images.is_empty() {
        return Err(Failed { kind: Kind::NotFound, message: "no images are named there".to_owned() });
    }
    if args.json {
        output::say_json_lines(images.iter().map(|image| {
            let platforms: Vec<String> = image.platforms.iter().map(ToString::to_string).collect();
            serde_json::json!({"image": image.named.to_string(), "platforms": platforms})
        }));
    } else if args.toml {
        output::say(spec::to_toml(&images).trim_end());
    } else {
        for image in &images {
            output::say(image.named.to_string());
        }
    }
    Ok(0)
}

/// The images of a root by their tags; by digest where they have none.
fn of_root(dir: &std::path::Path, namespace: Option<&str>) -> Result<Vec<Image>, Failed> {
    let root = RootArgs {
        root: dir.to_owned(),
        containerd_root: CONTAINERD_ROOT.into(),
        lock_timeout: DEFAULT_LOCK_TIMEOUT.as_secs(),
    };
    let existing = root.existing()?;
    let listed = root.waiting(false, |wait| prebake::care::images(&existing, namespace, wait)).map_err(Failed::new)?;
    // What is named by its config alone has no name that a registry would know.
    let reference = |name: &str| name.parse::<Reference>().ok().filter(|reference| reference.to_string() == name);
    let named: Vec<_> = listed.iter().filter_map(|image| Some((reference(&image.name)?, &image.digest))).collect();
    let is_tagged = |digest| named.iter().any(|(name, other)| name.digest().is_none() && *other == digest);
    let names = named.iter().filter(|(name, digest)| name.digest().is_none() || !is_tagged(*digest));
    Ok(names.map(|(name, _)| Image::new(name.clone())).collect())
}
