//! `prebake copy` and `prebake mirror`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use prebake::bake::{DEFAULT_CONCURRENCY, Listener, Outcome};
use prebake::bundle::{
    Bundle, Copied, CopyRequest, Error, Images, MirrorRequest, Moved, Pushed, Report, What, copy as copy_images,
    mirror as copy_mirror,
};
use prebake::kind::Kind;
use prebake::oci::{Platform, Reference};
use prebake::registry::Options;
use prebake::root::{CONTAINERD_ROOT, Root};
use prebake::source::Local;
use prebake::spec::{Mirror, MirrorImage, MirrorTarget, Named, Place, Registries, Share, Which};
use serde_json::{Value, json};

use super::bake::{self, Cancel, MAX_CONCURRENCY};
use super::output::{self, OutputArgs};
use super::registry::{AccessArgs, MannersArgs, ReferrersArgs};
use super::shard::{self, ShardArgs};
use super::{Failed, exit_code_of_all, lock, progress, wanted};

const COPY_EXAMPLES: &str = "\
Examples:
  prebake copy docker.io/library/nginx:1.27 registry.example/hub/nginx:1.27     all platforms, every byte as it is
  prebake copy --platform linux/amd64 nginx:1.27 registry.example/nginx:1.27    the manifest of one platform gets the name
  prebake copy --referrers registry.example/app:2 mirror.example/app:2          signatures, SBOMs, attestations as well
  prebake copy oci:layout:app registry.example/team/app:1
  prebake copy --platform linux/amd64 containerd:./chroot registry.example/pause:3.10
  prebake copy --file images.txt registry.example/hub                           each below registry.example/hub
Blobs that are there stay; those of another repository of the registry are mounted. The name is given last, so that it never
leads to something that is not whole. With several --platform, an index of just those manifests gets the name: the same one
each time, with another digest than the whole.";

const MIRROR_EXAMPLES: &str = "\
Examples:
  prebake mirror -f mirror.toml --dry-run     what goes where, and what would move
  prebake mirror -f mirror.toml
  prebake mirror -f mirror.toml --lock        what all names lead to, into mirror.lock; copies nothing
  prebake mirror -f mirror.toml --locked      what they led to then
  prebake mirror -f mirror.toml --locked --shard 2/4     one of four shares of it, of which the lock decides
docs/mirror.md describes the file.";

/// Schemes of others that are no registry either.
const FOREIGN: [&str; 4] = ["dir:", "docker-daemon:", "containers-storage:", "ostree:"];

#[derive(Args)]
#[command(after_help = COPY_EXAMPLES)]
pub(super) struct CopyArgs {
    /// What to copy, and where to: an image, or a place such as oci:DIR:NAME, oci-archive:FILE, docker-archive:FILE,
    /// containerd:ROOT; then its name in a registry. With --file, only the registry and what names there begin with
    #[arg(value_name = "SRC DST", num_args = 1..=2, required = true)]
    names: Vec<String>,
    /// A bake.toml, or a list with one image a line, of what to copy; - is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only the manifests for these platforms, OS/ARCH[/VARIANT] [default: all]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    #[command(flatten)]
    referrers: ReferrersArgs,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Args)]
#[command(after_help = MIRROR_EXAMPLES)]
pub(super) struct MirrorArgs {
    /// A mirror.toml; - is standard input
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// Copy nothing: find out what all names lead to, and what that consists of, and write it into the lock
    #[arg(long, conflicts_with_all = ["locked", "shard", "dry_run"])]
    lock: bool,
    /// Copy what was locked, and ask for no tag
    #[arg(long)]
    locked: bool,
    /// The lock [default: beside --file, as mirror.lock is beside mirror.toml]
    #[arg(long, value_name = "FILE")]
    lock_file: Option<PathBuf>,
    #[command(flatten)]
    shard: ShardArgs,
    #[command(flatten)]
    how: HowArgs,
}

/// How to push.
#[derive(Args)]
pub(super) struct HowArgs {
    /// Write nothing, push nothing; show what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Uploads at a time, 1 to 32 [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CONCURRENCY)))]
    concurrency: Option<u8>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    manners: MannersArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl CopyArgs {
    pub(super) fn json(&self) -> bool {
        self.how.output.json
    }

    fn what(&self) -> What {
        What {
            platforms: self.platform.clone(),
            referrers: self.referrers.types(),
            dry_run: self.how.dry_run,
            locked: None,
        }
    }
}

impl MirrorArgs {
    pub(super) fn json(&self) -> bool {
        self.how.output.json
    }
}

pub(super) fn copy(args: &CopyArgs) -> Result<u8, Failed> {
    match (&args.file, &args.names[..]) {
        (None, [from, to]) => one(args, from, to),
        (Some(path), [registry]) => {
            let (images, _) = wanted::spec(&wanted::text(path)?, path).map_err(Failed::new)?;
            let image = |image: prebake::spec::Image| MirrorImage {
                which: Which::Named(image.named),
                platforms: image.platforms,
            };
            let mut mirror = Mirror {
                target: MirrorTarget::parse(registry).map_err(Failed::usage)?,
                images: images.into_iter().map(image).collect(),
                platforms: args.platform.clone(),
                ..Mirror::default()
            };
            mirror.set_referrers(args.referrers.types());
            let request = request(&args.how, mirror)?;
            args.how.run(async |listener, cancel| copy_mirror(request, listener, cancel).await)
        }
        (None, _) => Err(Failed::usage("what to copy, and where to: prebake copy SRC DST")),
        (Some(_), _) => {
            Err(Failed::usage("with --file, only the registry is named: prebake copy --file FILE REGISTRY"))
        }
    }
}

pub(super) fn mirror(args: &MirrorArgs) -> Result<u8, Failed> {
    let text = wanted::text(&args.file)?;
    let mut mirror = Mirror::parse(&text, &args.file.display().to_string()).map_err(Failed::new)?;
    mirror.resolve_paths(args.file.parent().unwrap_or(Path::new("")));
    if mirror.images.is_empty() {
        return Err(Failed::usage(format!("{} names no images", args.file.display())));
    }
    let mut request = request(&args.how, mirror)?;
    let lock_path = || lock::path(args.lock_file.as_deref(), std::slice::from_ref(&args.file));
    if args.lock {
        return lock::mirror(&lock_path()?, request, args.how.output);
    }
    if args.locked {
        let lock = lock::read(&lock_path()?)?;
        request.share = args.shard.shard.map(|shard| Share::of_lock(shard, &lock));
        request.lock = Some(lock);
    } else if args.shard.shard.is_some() {
        return Err(Failed::usage(shard::NEEDS_LOCK.replace("prebake lock", "prebake mirror --lock")));
    }
    args.how.run(async |listener, cancel| copy_mirror(request, listener, cancel).await)
}

fn one(args: &CopyArgs, from: &str, to: &str) -> Result<u8, Failed> {
    let to = destination(to)?;
    let named = Named::parse(from).map_err(|error| Failed::usage(error.to_string()))?;
    let image = match &named {
        Named::Registry(from) => Images::new(from.clone(), to.clone(), args.what()),
        Named::Place(place) | Named::As(_, place) => {
            let local = Local::open(place).map_err(Failed::new)?;
            Images::of_place(Arc::new(local), to.clone(), args.what()).map_err(Failed::new)?
        }
    };
    let references: Vec<&Reference> = named.reference().into_iter().chain([&to]).collect();
    let request = CopyRequest {
        images: vec![image],
        concurrency: args.how.concurrency.unwrap_or(DEFAULT_CONCURRENCY).into(),
        registry: args.how.options(&references)?,
        dry_run: args.how.dry_run,
    };
    args.how.run(async |listener, cancel| copy_images(request, listener, cancel).await)
}

fn request(how: &HowArgs, mirror: Mirror) -> Result<MirrorRequest, Failed> {
    let from = mirror.images.iter().filter_map(|image| match &image.which {
        Which::Named(named) => named.reference().cloned(),
        Which::Tagged { repository, .. } => Some(repository.clone()),
    });
    let mut references: Vec<Reference> = from.collect();
    let to: Vec<Reference> = references.iter().filter_map(|from| mirror.destination(from).ok()).collect();
    references.extend(to);
    Ok(MirrorRequest {
        concurrency: how
            .concurrency
            .or(mirror.concurrency)
            .unwrap_or(DEFAULT_CONCURRENCY)
            .clamp(1, MAX_CONCURRENCY)
            .into(),
        mirror,
        registry: how.options(&references.iter().collect::<Vec<_>>())?,
        dry_run: how.dry_run,
        lock: None,
        share: None,
    })
}

/// Pushes what a bundle carries, for the machines that it carries it for.
pub(super) fn push_bundle(bundle: &Bundle, registry: &str, how: &HowArgs) -> Result<u8, Failed> {
    let mirror = Mirror { target: MirrorTarget::parse(registry).map_err(Failed::usage)?, ..Mirror::default() };
    let mut images = Vec::new();
    for wanted in bundle.wanted().map_err(Failed::new)? {
        for name in std::iter::once(&wanted.reference).chain(&wanted.names) {
            images.push(Images {
                from: wanted.reference.clone(),
                place: wanted.from.clone(),
                to: mirror.destination(name).map_err(Failed::usage_of)?,
                what: What { platforms: wanted.platforms.clone(), referrers: None, dry_run: how.dry_run, locked: None },
            });
        }
    }
    let to: Vec<Reference> = images.iter().map(|image| image.to.clone()).collect();
    let request = CopyRequest {
        images,
        concurrency: how.concurrency.unwrap_or(DEFAULT_CONCURRENCY).into(),
        registry: how.options(&to.iter().collect::<Vec<_>>())?,
        dry_run: how.dry_run,
    };
    how.run(async |listener, cancel| copy_images(request, listener, cancel).await)
}

/// A name in a registry.
fn destination(text: &str) -> Result<Reference, Failed> {
    let wrong = |error: &dyn std::fmt::Display| Failed::usage(error.to_string());
    let is_foreign = FOREIGN.iter().any(|scheme| text.starts_with(scheme));
    if is_foreign || Place::parse(text).map_err(|error| wrong(&error))?.is_some() {
        return Err(Failed::usage(format!("{text:?} is no registry; `prebake export` writes layouts and archives")));
    }
    match Named::parse(text).map_err(|error| wrong(&error))? {
        Named::Registry(reference) => Ok(reference),
        _ => Err(Failed::usage(format!("{text:?} is not the name of an image in a registry"))),
    }
}

impl HowArgs {
    fn options(&self, references: &[&Reference]) -> Result<Options, Failed> {
        let root = Root::new(Path::new("/"), CONTAINERD_ROOT);
        self.access.options_for(&self.manners, &root, &Registries::default(), references)
    }

    fn run(&self, work: impl AsyncFnOnce(Arc<dyn Listener>, Cancel) -> Result<Report, Error>) -> Result<u8, Failed> {
        let (report, signal) = {
            let quiet = OutputArgs { quiet: self.output.quiet || self.dry_run && !self.output.json, ..self.output };
            let listener = progress::listener(quiet);
            bake::interruptible(async |cancel| work(listener, cancel).await)?
        };
        tell(&report, self.dry_run, self.output);
        let code = exit_code_of_all(report.images.iter().map(|image| image.result.as_ref().err()));
        Ok(signal.filter(|_| report.cancelled).map_or(code, |signal| 128 + signal))
    }
}

/// What helps when an image could not be copied.
fn remedy(kind: Kind) -> &'static str {
    match kind {
        Kind::Unavailable => "try again: what came through is found, and not sent again",
        Kind::Unauthorized => "log in, or name credentials with --creds-file; to push takes more rights than to pull",
        kind => kind.remedy(),
    }
}

pub(super) fn tell(report: &Report, dry_run: bool, output: OutputArgs) {
    let done: Vec<&Pushed> = report.images.iter().filter_map(|image| image.result.as_ref().ok()).collect();
    let failed = report.images.len() - done.len();
    let left = done.iter().filter(|pushed| pushed.left).count();
    let sum = |of: fn(&Pushed) -> Moved| {
        done.iter().map(|pushed| of(pushed)).fold(Moved::default(), |sum, moved| Moved {
            blobs: sum.blobs + moved.blobs,
            bytes: sum.bytes + moved.bytes,
        })
    };
    let (uploaded, mounted, present) =
        (sum(|pushed| pushed.uploaded), sum(|pushed| pushed.mounted), sum(|pushed| pushed.present));
    let seconds = report.elapsed.as_secs_f64();
    if output.json {
        let images: Vec<Value> = report.images.iter().map(as_json).collect();
        let mut summary = json!({"event": "summary", "images": images, "done": done.len() - left, "failed": failed,
            "uploaded_blobs": uploaded.blobs, "uploaded_bytes": uploaded.bytes, "mounted_blobs": mounted.blobs,
            "mounted_bytes": mounted.bytes, "present_blobs": present.blobs, "present_bytes": present.bytes,
            "dry_run": dry_run, "seconds": seconds, "cancelled": report.cancelled});
        shard::add_to(&mut summary, report.share.as_ref(), left);
        output::say_json(&summary);
        return;
    }
    if dry_run && !output.quiet {
        report.images.iter().for_each(would_move);
    }
    let outcome = |image: &Copied| Outcome {
        name: image.to.as_ref().map_or_else(|| image.name.clone(), |to| format!("{} to {to}", image.name)),
        namespace: String::new(),
        failure: image.result.as_ref().err().cloned(),
    };
    output::failures_by(&report.images.iter().map(outcome).collect::<Vec<_>>(), remedy);
    if output.quiet {
        return;
    }
    let is_up_to_date = failed + left == 0 && done.iter().all(|pushed| pushed.is_up_to_date());
    let first = if is_up_to_date { "up to date: " } else { "" };
    let failures = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    let would = if dry_run { " would be" } else { "" };
    output::say(format!(
        "{first}{} images{failures}; {} blobs,{would} {} uploaded, {} mounted, {} already there; {seconds:.1} s{}",
        done.len() - left,
        uploaded.blobs + mounted.blobs + present.blobs,
        output::bytes(uploaded.bytes),
        output::bytes(mounted.bytes),
        output::bytes(present.bytes),
        shard::said(report.share.as_ref(), left),
    ));
}

/// A line for an image of a dry run.
fn would_move(image: &Copied) {
    let (Ok(pushed), Some(to)) = (&image.result, &image.to) else { return };
    let what = if pushed.is_up_to_date() {
        "up to date".to_owned()
    } else {
        let Pushed { uploaded, mounted, documents, .. } = pushed;
        let (uploads, mounts) = (output::bytes(uploaded.bytes), output::bytes(mounted.bytes));
        format!(
            "{} blobs to upload ({uploads}), {} to mount ({mounts}), {documents} documents",
            uploaded.blobs, mounted.blobs
        )
    };
    output::say(format!("{} -> {to}: {what}", image.name));
}

fn as_json(Copied { name, to, result }: &Copied) -> Value {
    match result {
        Ok(pushed) => json!({"image": name, "to": to, "ok": true, "digest": pushed.target.digest,
            "up_to_date": pushed.is_up_to_date(), "uploaded_blobs": pushed.uploaded.blobs,
            "uploaded_bytes": pushed.uploaded.bytes, "mounted_blobs": pushed.mounted.blobs,
            "present_blobs": pushed.present.blobs, "documents": pushed.documents, "left": pushed.left}),
        Err(failure) => json!({"image": name, "to": to, "ok": false, "kind": failure.kind, "error": failure.message,
            "remedy": remedy(failure.kind)}),
    }
}
