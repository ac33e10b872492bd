//! What is to be baked: images of the command line, of lists, and of a `bake.toml`.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use prebake::bake::{Trusted, Wanted};
use prebake::metadata::{DEFAULT_LOCK_TIMEOUT, K8S_NAMESPACE, check_namespace};
use prebake::oci::{Platform, Reference};
use prebake::root::CONTAINERD_ROOT;
use prebake::snapshot::OVERLAYFS;
use prebake::source::{self, Held, Local};
use prebake::spec::{self, Image, Lock, Named, Place, Share, Spec, SpecError};
use prebake::trust::PublicKey;

use super::shard::{self, ShardArgs};
use super::{Failed, RootArgs, lock};

/// Which images.
#[derive(Args)]
pub(super) struct NamesArgs {
    /// Images: nginx, nginx:1.27, registry.example:5000/team/app@sha256:…; or where they are: oci:DIR, oci-archive:FILE,
    /// docker-archive:FILE, containerd:ROOT, bundle:FILE, with :NAME behind it for one of them; NAME=PLACE names it anew
    #[arg(value_name = "IMAGE")]
    references: Vec<String>,
    /// A bake.toml, or a list with one image a line (# starts a comment); - is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Vec<PathBuf>,
}

/// Which images, and where to.
#[derive(Args)]
pub(super) struct WantedArgs {
    #[command(flatten)]
    names: NamesArgs,
    /// The root: a chroot, a mounted disk image, an empty folder [default: what the bake.toml says]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Where nothing names a root: commands that need none.
    #[arg(skip)]
    pub(super) default_root: Option<PathBuf>,
    /// containerd's state directory, inside the root [default: /var/lib/containerd]
    #[arg(long, value_name = "PATH")]
    containerd_root: Option<PathBuf>,
    /// Seconds to wait for another prebake on the root; a running containerd is never waited for
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_LOCK_TIMEOUT.as_secs())]
    lock_timeout: u64,
    /// containerd's namespace [default: k8s.io]
    #[arg(long, env = "CONTAINERD_NAMESPACE", value_parser = namespace)]
    namespace: Option<String>,
    /// OS/ARCH[/VARIANT] the root is for [default: linux/ and this machine's architecture]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Only admit images that are signed with this key (cosign.pub); with a pattern, of images whose names fit it. One of
    /// several keys for an image is enough
    #[arg(long, value_name = "[PATTERN=]FILE", value_parser = trusted)]
    pub(super) verify_key: Vec<Trusted>,
    /// Take what names led to when they were locked, and ask for no tag
    #[arg(long)]
    locked: bool,
    /// The lock [default: beside the first --file, as bake.lock is beside bake.toml]
    #[arg(long, value_name = "FILE")]
    lock_file: Option<PathBuf>,
    #[arg(skip)]
    lock: OnceCell<Lock>,
}

/// What the arguments and the files come to.
pub(super) struct Asked {
    pub(super) root: RootArgs,
    pub(super) images: Vec<Wanted>,
    pub(super) trusted: Vec<Trusted>,
    /// What the `bake.toml` says besides; its paths are as they are from here.
    pub(super) spec: Spec,
}

pub(super) fn namespace(text: &str) -> Result<String, prebake::metadata::Error> {
    check_namespace(text).map(|()| text.to_owned())
}

/// `[PATTERN=]FILE` of a public key.
fn trusted(text: &str) -> Result<Trusted, String> {
    let (pattern, path) = text.split_once('=').unwrap_or(("*", text));
    Ok(Trusted { pattern: pattern.to_owned(), key: key(Path::new(path))? })
}

pub(super) fn key(path: &Path) -> Result<PublicKey, String> {
    let pem = std::fs::read_to_string(path).map_err(|error| format!("reading {} failed: {error}", path.display()))?;
    PublicKey::parse(&pem).map_err(|error| format!("{}: {error}", path.display()))
}

impl NamesArgs {
    /// Whether no image is named, and no file either.
    pub(super) fn is_empty(&self) -> bool {
        self.references.is_empty() && self.file.is_empty()
    }

    /// The images' names alone; without any, an error.
    pub(super) fn references(&self) -> Result<Vec<Reference>, Failed> {
        Ok(self.chosen()?.into_iter().map(|chosen| chosen.reference).collect())
    }

    /// Takes those of the arguments that are patterns of names.
    pub(super) fn take_globs(&mut self) -> Vec<String> {
        self.references.extract_if(.., |name| name.contains('*')).collect()
    }

    /// The images, and the places they are in.
    pub(super) fn chosen(&self) -> Result<Vec<Chosen>, Failed> {
        expand(self.read()?.0)
    }

    /// Reads the files; everything that is wrong with references is named at once.
    fn read(&self) -> Result<(Vec<Image>, Spec), Failed> {
        if self.is_empty() {
            return Err(Failed::usage("no images: name some, or a --file that does; --help has examples"));
        }
        let mut wrong = Vec::new();
        let mut images = Vec::new();
        for text in &self.references {
            match Named::parse(text) {
                Ok(named) => images.push(Image::new(named)),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        let mut all = Spec::default();
        let mut from: Option<&Path> = None;
        for path in &self.file {
            let text = text(path)?;
            match spec(&text, path) {
                Err(error) => wrong.push(error.to_string()),
                Ok((mut more, spec)) => {
                    images.append(&mut more);
                    if spec == Spec::default() {
                        continue;
                    }
                    if let Some(other) = from.replace(path) {
                        let (other, path) = (other.display(), path.display());
                        wrong.push(format!("{other} and {path} both say more than names; only one bake.toml can"));
                    }
                    all = spec;
                }
            }
        }
        if !wrong.is_empty() {
            return Err(Failed::usage(wrong.join("\n")));
        }
        if images.is_empty() {
            return Err(Failed::usage("no images: the file names none"));
        }
        Ok((images, all))
    }
}

impl WantedArgs {
    /// What the arguments and the files come to.
    pub(super) fn asked(&self) -> Result<Asked, Failed> {
        let (images, spec) = self.names.read()?;
        let target = &spec.target;
        let root = self.root.clone().or_else(|| target.root.clone()).or_else(|| self.default_root.clone());
        let root =
            root.ok_or_else(|| Failed::usage("no root: neither --root nor a bake.toml's target.root names one"))?;
        let containerd_root = self.containerd_root.clone().or_else(|| target.containerd_root.clone());
        let root = RootArgs {
            root,
            containerd_root: containerd_root.unwrap_or_else(|| CONTAINERD_ROOT.into()),
            lock_timeout: self.lock_timeout,
        };
        if let Some(other) = target.snapshotter.as_ref().filter(|name| *name != OVERLAYFS) {
            return Err(Failed::usage(format!(
                "target.snapshotter is {other:?}: prebake unpacks for overlayfs; name the others in further-snapshotters"
            )));
        }
        let namespace = self.namespace.clone().or_else(|| target.namespace.clone());
        let namespace = namespace.unwrap_or_else(|| K8S_NAMESPACE.to_owned());
        check_namespace(&namespace).map_err(Failed::new)?;
        let platform = self.platform.clone().or_else(|| target.platform.clone()).unwrap_or_else(Platform::host);
        let wanted = |Chosen { reference, from, image }: Chosen| {
            let Image { named: _, policy, pin, names, labels, platforms, namespace: own, verify_keys } = image;
            let namespace = own.unwrap_or_else(|| namespace.clone());
            check_namespace(&namespace).map_err(Failed::new)?;
            let keys = verify_keys.iter().map(|path| key(path)).collect::<Result<_, _>>().map_err(Failed::usage)?;
            let mut all_labels = spec.defaults.labels.clone();
            all_labels.extend(labels);
            let platforms = if platforms.is_empty() { vec![platform.clone()] } else { platforms };
            let locked = None;
            Ok(Wanted { reference, namespace, platforms, policy, pin, names, labels: all_labels, keys, locked, from })
        };
        let mut images: Vec<Wanted> = expand(images)?.into_iter().map(wanted).collect::<Result<_, Failed>>()?;
        if self.locked {
            self.pin(&mut images)?;
        }
        let mut trusted = self.verify_key.clone();
        for path in &spec.defaults.verify_keys {
            trusted.push(Trusted { pattern: "*".to_owned(), key: key(path).map_err(Failed::usage)? });
        }
        Ok(Asked { root, images, trusted, spec })
    }

    /// A shard's share of what the lock names.
    pub(super) fn share(&self, ShardArgs { shard }: ShardArgs) -> Result<Option<Arc<Share>>, Failed> {
        let Some(shard) = shard else { return Ok(None) };
        if !self.locked {
            return Err(Failed::usage(shard::NEEDS_LOCK));
        }
        Ok(Some(Arc::new(Share::of_lock(shard, self.lock()?))))
    }

    /// Where the lock is.
    pub(super) fn lock_path(&self) -> Result<PathBuf, Failed> {
        lock::path(self.lock_file.as_deref(), &self.names.file)
    }

    /// The lock, which is read once: it may be large.
    fn lock(&self) -> Result<&Lock, Failed> {
        if let Some(lock) = self.lock.get() {
            return Ok(lock);
        }
        let lock = lock::read(&self.lock_path()?)?;
        Ok(self.lock.get_or_init(|| lock))
    }

    /// Gives images what they led to when they were locked; all that are not locked are named.
    fn pin(&self, images: &mut [Wanted]) -> Result<(), Failed> {
        let (path, lock) = (self.lock_path()?, self.lock()?);
        let mut missing = Vec::new();
        for image in images {
            let name = image.reference.to_string();
            let locked = lock.images.get(&name);
            for platform in &image.platforms {
                if locked.is_none_or(|locked| !locked.platforms.contains_key(&platform.to_string())) {
                    missing.push(format!("{name} for {platform} is not in {}; `prebake lock` adds it", path.display()));
                }
            }
            image.locked = locked.cloned();
        }
        if missing.is_empty() { Ok(()) } else { Err(Failed::usage(missing.join("\n"))) }
    }
}

/// An image by its name.
pub(super) struct Chosen {
    pub(super) reference: Reference,
    /// The place it is in, and what it is there.
    pub(super) from: Option<(Arc<Local>, Held)>,
    /// What else was said of it.
    pub(super) image: Image,
}

/// Opens the places that images are in; everything that is wrong with them is named at once.
pub(super) fn expand(images: Vec<Image>) -> Result<Vec<Chosen>, Failed> {
    let mut open: HashMap<Place, Arc<Local>> = HashMap::new();
    let (mut all, mut failure): (Vec<Chosen>, Option<Failed>) = (Vec::new(), None);
    for image in images {
        let one = source::chosen(&image.named, &mut |place| {
            if let Some(local) = open.get(place) {
                return Ok(local.clone());
            }
            let local = Arc::new(Local::open(place)?);
            open.insert(place.clone(), local.clone());
            Ok(local)
        });
        match (one, &mut failure) {
            (Ok(chosen), _) => {
                all.extend(chosen.into_iter().map(|(reference, from)| Chosen {
                    reference,
                    from,
                    image: image.clone(),
                }));
            }
            (Err(error), None) => failure = Some(Failed::new(error)),
            (Err(error), Some(failure)) => {
                failure.message = format!("{}\n{}", failure.message, Failed::new(error).message);
            }
        }
    }
    failure.map_or(Ok(all), Err)
}

/// The images of a file with this text, and what else it says; its paths are as they are from here.
pub(super) fn spec(text: &str, path: &Path) -> Result<(Vec<Image>, Spec), SpecError> {
    let mut spec = spec::parse(text, &path.display().to_string())?;
    spec.resolve_paths(path.parent().unwrap_or(Path::new("")));
    Ok((std::mem::take(&mut spec.images), spec))
}

/// A file's text, or what standard input gives.
pub(super) fn text(path: &Path) -> Result<String, Failed> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|error| Failed::usage(format!("reading {} failed: {error}", path.display())))?;
    Ok(text)
}
