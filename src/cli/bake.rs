//! `prebake bake` and `prebake fetch`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use prebake::bake::{DEFAULT_CONCURRENCY, DEFAULT_MAX_UNPACKED, Error, Report, Request, Trusted, Unpacking, run};
use prebake::metadata::{K8S_NAMESPACE, check_namespace};
use prebake::oci::{Platform, Reference};
use prebake::snapshot::OVERLAYFS;
use prebake::trust::PublicKey;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::output::{self, OutputArgs};
use super::registry::{AccessArgs, MannersArgs};
use super::{Failed, RootArgs, exit_code_of, progress};

const EXAMPLES: &str = "\
Examples:
  prebake bake --root ./chroot registry.k8s.io/pause:3.10 docker.io/library/nginx:1.27
  prebake bake --root ./chroot --file images.txt --platform linux/arm64 --pin
  cat images.txt | prebake bake --root ./chroot --file -
  prebake bake --root ./chroot --unpack-under 150MiB --file images.txt
  prebake bake --root ./chroot --unpack --discard-layers docker.io/library/nginx:1.27
  prebake bake --root ./chroot --creds-file creds.txt --hosts-dir ./certs.d registry.example/team/app:2
  prebake bake --root ./chroot --verify-key 'registry.example/*=cosign.pub' --referrers registry.example/team/app:2
Credentials come from --creds, --creds-file, $REGISTRY_AUTH_FILE, Docker's config.json ($DOCKER_CONFIG, or ~/.docker),
Podman's auth.json, and kubelet's credential provider plugins, in this order; `prebake registry explain` shows which.
In the environment, IMAGE_FETCH_ONLY=true fetches without unpacking, whatever --unpack says.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BakeArgs {
    #[command(flatten)]
    pub(super) fetch: FetchArgs,
    /// Unpack the images into overlayfs snapshots, so that containers start at once
    #[arg(long)]
    unpack: bool,
    /// Unpack only images smaller than this (compressed); larger ones are unpacked by containerd at first use
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes)]
    unpack_under: Option<u64>,
    /// Do not keep the compressed layers of images that are unpacked; such an image cannot be pushed, exported, or used by
    /// another snapshotter
    #[arg(long)]
    discard_layers: bool,
    /// Snapshotters that containers on this root will use; layers that another one than overlayfs needs are not discarded
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = OVERLAYFS)]
    snapshotters: Vec<String>,
    /// Begin even when the disk has too little space by what is known before
    #[arg(long)]
    ignore_space: bool,
    #[command(flatten)]
    limit: LimitArgs,
}

#[derive(Args)]
pub(super) struct LimitArgs {
    /// Refuse layers that unpack to more than this
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_MAX_UNPACKED, value_parser = output::parse_bytes, hide_default_value = true)]
    pub(super) max_unpacked: u64,
}

#[derive(Args)]
pub(super) struct FetchArgs {
    #[command(flatten)]
    root: RootArgs,
    /// Images: nginx, nginx:1.27, registry.example:5000/team/app@sha256:…
    #[arg(value_name = "REF", required_unless_present = "file")]
    references: Vec<String>,
    /// A file with one reference a line; # starts a comment, - is standard input
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// containerd's namespace
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = K8S_NAMESPACE, value_parser = namespace)]
    namespace: String,
    /// OS/ARCH[/VARIANT] the root is for [default: linux/ and this machine's architecture]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Keep kubelet from ever removing the images
    #[arg(long)]
    pin: bool,
    /// Blobs under way at a time, 1 to 32
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CONCURRENCY, value_parser = clap::value_parser!(u8).range(1..=32))]
    concurrency: u8,
    /// Take along what refers to the images: signatures, SBOMs, attestations; all, or those of a media or artifact type
    #[arg(long, value_name = "TYPE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    referrers: Vec<String>,
    /// Only admit images that are signed with this key (cosign.pub); with a pattern, of images whose names fit it. One of
    /// several keys for an image is enough
    #[arg(long, value_name = "[PATTERN=]FILE", value_parser = trusted)]
    verify_key: Vec<Trusted>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    manners: MannersArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn namespace(text: &str) -> Result<String, prebake::metadata::Error> {
    check_namespace(text).map(|()| text.to_owned())
}

/// `[PATTERN=]FILE` of a public key.
fn trusted(text: &str) -> Result<Trusted, String> {
    let (pattern, path) = text.split_once('=').unwrap_or(("*", text));
    let pem = std::fs::read_to_string(path).map_err(|error| format!("reading {path} failed: {error}"))?;
    let key = PublicKey::parse(&pem).map_err(|error| format!("{path}: {error}"))?;
    Ok(Trusted { pattern: pattern.to_owned(), key })
}

pub(super) fn bake(args: BakeArgs) -> Result<u8, Failed> {
    let unpack = unpacking(&args)?;
    execute(args.fetch, true, unpack)
}

/// Whether to unpack, and how.
fn unpacking(args: &BakeArgs) -> Result<Option<Unpacking>, Failed> {
    // As the image-fetcher of AKS has it: exactly this value.
    let fetch_only = std::env::var_os("IMAGE_FETCH_ONLY").is_some_and(|value| value == "true");
    let asked = args.unpack || args.unpack_under.is_some();
    if args.discard_layers && (fetch_only || !asked) {
        let why =
            if fetch_only { "IMAGE_FETCH_ONLY=true is set" } else { "neither --unpack nor --unpack-under is given" };
        return Err(Failed::usage(format!("--discard-layers would leave images that cannot start: {why}")));
    }
    if asked && !args.snapshotters.iter().any(|name| name == OVERLAYFS) {
        return Err(Failed::usage("prebake unpacks for overlayfs, which --snapshotters does not name"));
    }
    Ok((asked && !fetch_only).then(|| Unpacking {
        under: args.unpack_under,
        discard: args.discard_layers,
        snapshotters: args.snapshotters.clone(),
        max_unpacked: args.limit.max_unpacked,
        ignore_space: args.ignore_space,
    }))
}

pub(super) fn fetch(args: FetchArgs) -> Result<u8, Failed> {
    execute(args, false, None)
}

/// Says what came of it; the exit code.
pub(super) fn end(report: &Report, signal: Option<u8>, output: OutputArgs) -> u8 {
    summarise(report, output);
    signal.map_or_else(|| exit_code_of(&report.images), |signal| 128 + signal)
}

fn execute(args: FetchArgs, bootstrap: bool, unpack: Option<Unpacking>) -> Result<u8, Failed> {
    let output = args.output;
    let root = args.root.root();
    let references = references(&args.references, &args.file)?;
    let registry = args.access.options(&args.manners, &root, &references)?;
    let request = Request {
        references,
        root,
        lock_timeout: args.root.lock_timeout(),
        namespace: args.namespace,
        platform: args.platform.unwrap_or_else(Platform::host),
        pin: args.pin,
        concurrency: args.concurrency.into(),
        registry,
        referrers: (!args.referrers.is_empty()).then(|| {
            // Where all are wanted, those of some type are.
            if args.referrers.iter().any(String::is_empty) { Vec::new() } else { args.referrers }
        }),
        trusted: args.verify_key,
        bootstrap,
        unpack,
    };
    let (report, signal) = go(request, output)?;
    Ok(end(&report, signal, output))
}

/// Runs a bake; with the signal that stopped it, if one did.
pub(super) fn go(request: Request, output: OutputArgs) -> Result<(Report, Option<u8>), Failed> {
    interruptible(async |cancel| run(request, progress::listener(output), cancel).await)
}

/// What a signal asks for.
type Cancel = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs something that a signal stops; with the signal that did, if one did.
pub(super) fn interruptible(
    work: impl AsyncFnOnce(Cancel) -> Result<Report, Error>,
) -> Result<(Report, Option<u8>), Failed> {
    prebake::install_tls();
    let io = |error: std::io::Error| Failed::usage(format!("starting failed: {error}"));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io);
    let (stopped_by, mut stopped) = tokio::sync::oneshot::channel();
    let (cancel, cancelled) = tokio::sync::oneshot::channel::<()>();
    // On a thread of its own: the other one may be busy with a disk.
    let signals = runtime()?;
    let (mut interrupt, mut terminate) = {
        let _inside = signals.enter();
        (signal(SignalKind::interrupt()).map_err(io)?, signal(SignalKind::terminate()).map_err(io)?)
    };
    std::thread::spawn(move || {
        signals.block_on(async move {
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => 2u8,
                    _ = terminate.recv() => 15,
                }
            };
            let _ = stopped_by.send(next().await);
            let _ = cancel.send(());
            // Whoever asks twice does not want to wait for a disk.
            std::process::exit(i32::from(128 + next().await));
        });
    });
    // One thread for the network: it mostly hands on what came, and others hash, decompress and write.
    runtime()?.block_on(async {
        let cancel = Box::pin(async {
            // Without signals, nothing ever comes.
            if cancelled.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let report = work(cancel).await.map_err(Failed::new)?;
        let signal = stopped.try_recv().ok().filter(|_| report.cancelled);
        Ok((report, signal))
    })
}

/// The references of the command line and of files; every bad one is named.
fn references(given: &[String], files: &[PathBuf]) -> Result<Vec<Reference>, Failed> {
    let mut all: Vec<(String, String)> = given.iter().map(|text| (String::new(), text.clone())).collect();
    for path in files {
        let text = read(path).map_err(|error| Failed::usage(format!("reading {} failed: {error}", path.display())))?;
        for (i, line) in text.lines().enumerate() {
            let line = line.split(" #").next().unwrap_or_default().trim();
            if !line.is_empty() && !line.starts_with('#') {
                all.push((format!("{}:{}: ", path.display(), i + 1), line.to_owned()));
            }
        }
    }
    let mut bad = Vec::new();
    let mut good = Vec::new();
    for (place, text) in all {
        match text.parse::<Reference>() {
            Ok(reference) => good.push(reference),
            Err(error) => bad.push(format!("{place}{error}")),
        }
    }
    match bad.is_empty() {
        true if good.is_empty() => Err(Failed::usage("no images: the file names none")),
        true => Ok(good),
        false => Err(Failed::usage(bad.join("\n"))),
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    }
}

pub(super) fn summarise(report: &Report, output: OutputArgs) {
    let failed = report.images.iter().filter(|outcome| outcome.failure.is_some()).count();
    let done = report.images.len() - failed;
    let totals = report.totals;
    let seconds = report.elapsed.as_secs_f64();
    if output.json {
        let images: Vec<_> = report
            .images
            .iter()
            .map(|outcome| match &outcome.failure {
                None => json!({"image": outcome.name, "ok": true}),
                Some(failure) => {
                    json!({"image": outcome.name, "ok": false, "kind": failure.kind, "error": failure.message})
                }
            })
            .collect();
        output::say_json(&json!({"event": "summary", "images": images, "done": done, "failed": failed,
            "fetched_blobs": totals.fetched_blobs, "fetched_bytes": totals.fetched_bytes,
            "present_blobs": totals.present_blobs, "present_bytes": totals.present_bytes,
            "unpacked_layers": totals.unpacked_layers, "unpacked_bytes": totals.unpacked_bytes,
            "seconds": seconds, "cancelled": report.cancelled}));
        return;
    }
    output::failures(&report.images);
    if output.quiet {
        return;
    }
    let failures = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    let unpacked = match totals.unpacked_layers {
        0 => String::new(),
        n => format!("; {n} layers unpacked, {}", output::bytes(totals.unpacked_bytes)),
    };
    output::say(format!(
        "{done} images{failures}; {} blobs, {} fetched, {} already there{unpacked}; {seconds:.1} s",
        totals.fetched_blobs + totals.present_blobs,
        output::bytes(totals.fetched_bytes),
        output::bytes(totals.present_bytes),
    ));
}
