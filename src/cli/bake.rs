//! `prebake bake` and `prebake fetch`.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use clap::Args;
use prebake::bake::{
    DEFAULT_CONCURRENCY, DEFAULT_MAX_UNPACKED, Listener, Part, Policies, Recorder, Report, Request, run,
};
use prebake::kind::Kind;
use prebake::oci::Digest;
use prebake::snapshot::OVERLAYFS;
use prebake::spec::{Policy, Rule, Share, parse_size};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

#[cfg(feature = "live")]
use super::live;
use super::output::{self, OutputArgs};
use super::registry::{AccessArgs, MannersArgs, ReferrersArgs};
use super::shard::{self, ShardArgs};
use super::sync::Sync;
use super::wanted::{Asked, WantedArgs};
use super::{Failed, TimesArgs, exit_code_of, metrics, progress};

/// Blobs under way at a time, at most.
pub(super) const MAX_CONCURRENCY: u8 = 32;

const EXAMPLES: &str = "\
Examples:
  prebake bake --root ./chroot registry.k8s.io/pause:3.10 docker.io/library/nginx:1.27
  prebake bake --root ./chroot --file images.txt --platform linux/arm64 --pin
  cat images.txt | prebake bake --root ./chroot --file -
  prebake bake --root ./chroot --unpack-under 150MiB --file images.txt
  prebake bake --root ./chroot --unpack --discard-layers docker.io/library/nginx:1.27
  prebake bake -f bake.toml --locked --sync
  prebake bake --root ./chroot --creds-file creds.txt --hosts-dir ./certs.d registry.example/team/app:2
  prebake bake --root ./chroot --verify-key 'registry.example/*=cosign.pub' --referrers registry.example/team/app:2
  prebake bake --root / --address /run/containerd/containerd.sock registry.k8s.io/pause:3.10
Credentials come from --creds, --creds-file, $REGISTRY_AUTH_FILE, Docker's config.json ($DOCKER_CONFIG, or ~/.docker),
Podman's auth.json, and kubelet's credential provider plugins, in this order; `prebake registry explain` shows which.
In the environment, IMAGE_FETCH_ONLY=true fetches without unpacking, whatever --unpack says.";

pub(super) const FETCH_EXAMPLES: &str = "\
Examples:
  prebake fetch --root ./chroot --file images.txt --platform linux/arm64
  prebake bootstrap --root ./chroot                          later, and without a network
  prebake fetch --root ./chroot -f bake.toml --locked --shard 2/4      one of four shares, of which the lock decides";

#[derive(Args)]
pub(super) struct FetchCommand {
    #[command(flatten)]
    pub(super) fetch: FetchArgs,
    #[command(flatten)]
    shard: ShardArgs,
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BakeCommand {
    #[command(flatten)]
    pub(super) bake: BakeArgs,
    /// The socket of a containerd that runs on the root: it gets to know of the images, and unpacks them where that is asked
    #[cfg(feature = "live")]
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["discard_layers", "max_store", "sync"])]
    address: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct BakeArgs {
    #[command(flatten)]
    pub(super) fetch: FetchArgs,
    /// Unpack the images into overlayfs snapshots, so that containers start at once
    #[arg(long)]
    unpack: bool,
    /// Unpack only images smaller than this (compressed); larger ones are unpacked by containerd at first use
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    unpack_under: Option<u64>,
    /// Do not keep the compressed layers of images that are unpacked; such an image cannot be pushed, exported, or used by
    /// another snapshotter
    #[arg(long)]
    discard_layers: bool,
    /// Snapshotters that containers on this root will use; layers that another one than overlayfs needs are not discarded
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    snapshotters: Vec<String>,
    /// Remove images that are not named when all is baked; those that somebody needs stay, see `prebake prune --help`
    #[arg(long)]
    pub(super) sync: bool,
    #[command(flatten)]
    limit: LimitArgs,
}

#[derive(Args)]
pub(super) struct LimitArgs {
    /// Refuse layers that unpack to more than this
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_MAX_UNPACKED, value_parser = parse_size, hide_default_value = true)]
    pub(super) max_unpacked: u64,
}

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "options are independent of each other")]
pub(super) struct FetchArgs {
    #[command(flatten)]
    pub(super) wanted: WantedArgs,
    /// Keep kubelet from ever removing the images
    #[arg(long)]
    pin: bool,
    /// Blobs under way at a time, 1 to 32 [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CONCURRENCY)))]
    concurrency: Option<u8>,
    #[command(flatten)]
    referrers: ReferrersArgs,
    /// Stop at the first image that fails; without it, the others complete
    #[arg(long)]
    fail_fast: bool,
    /// Only those images that failed, or were not come to, the last time they were asked for
    #[arg(long)]
    retry_failed: bool,
    /// Write a report when it is over, good or bad: JSON, or a page where the name ends with .html (see docs/report.md)
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Write figures for Prometheus (as the node exporter collects text files) when it is over
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Begin even when the disk has too little space by what is known before
    #[arg(long)]
    ignore_space: bool,
    /// Refuse when the root's blobs and snapshots would take more than this
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_store: Option<u64>,
    #[command(flatten)]
    times: TimesArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    manners: MannersArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn bake(args: BakeCommand) -> Result<u8, Failed> {
    let (output, files) = (args.bake.fetch.output, args.bake.fetch.files());
    #[cfg(feature = "live")]
    if let Some(address) = args.address {
        let go = |request, listener| live::bake(request, &address, listener);
        return execute(request(args.bake)?, None, output, &files, go);
    }
    let sync = args.bake.sync;
    let request = request(args.bake)?;
    let sync = sync.then(|| Sync::to(&request.root, request.lock_timeout, &request.images));
    execute(request, None, output, &files, |request, listener| {
        let (report, signal) = go(request, listener)?;
        if let Some(sync) = sync.filter(|_| !report.cancelled) {
            sync.execute(output)?;
        }
        Ok((report, signal))
    })
}

pub(super) fn fetch(FetchCommand { fetch, shard }: FetchCommand) -> Result<u8, Failed> {
    let (output, files) = (fetch.output, fetch.files());
    let share = fetch.wanted.share(shard)?;
    let mut request = fetch.request(None)?;
    request.part = share.clone().map(|share| Arc::new(move |digest: &Digest| share.has(digest)) as Part);
    execute(request, share.as_deref(), output, &files, go)
}

/// What a bake is asked to do.
pub(super) fn request(args: BakeArgs) -> Result<Request, Failed> {
    let unpacking = Unpacking {
        all: args.unpack,
        under: args.unpack_under,
        discard: args.discard_layers,
        snapshotters: args.snapshotters,
        max_unpacked: args.limit.max_unpacked,
    };
    args.fetch.request(Some(unpacking))
}

/// What is written when a bake is over.
struct Files {
    reports: Vec<PathBuf>,
    metrics: Option<PathBuf>,
}

/// A report, with the signal that stopped what it is of, if one did.
pub(super) type Gone = Result<(Report, Option<u8>), Failed>;

fn execute(
    request: Request,
    share: Option<&Share>,
    output: OutputArgs,
    files: &Files,
    go: impl FnOnce(Request, Arc<dyn Listener>) -> Gone,
) -> Result<u8, Failed> {
    let root = request.root.clone();
    let recorder = (!files.reports.is_empty()).then(|| Arc::new(Recorder::new(&root)));
    let listener = progress::listener(output);
    // Let go of when the bake is over: bars on a terminal go with it.
    let listener: Arc<dyn Listener> = match &recorder {
        Some(recorder) => Arc::new((listener, recorder.clone() as Arc<dyn Listener>)),
        None => listener,
    };
    let (report, signal) = go(request, listener)?;
    let code = end(&report, signal, share, output);
    for (path, recorder) in files.reports.iter().zip(recorder.iter().cycle()) {
        let is_page = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("html"));
        let text =
            if is_page { recorder.html(&root, &report) } else { format!("{:#}\n", recorder.json(&root, &report)) };
        output::write_file(path, &text)?;
    }
    if let Some(path) = &files.metrics {
        output::write_file(path, &metrics::text(&report))?;
    }
    Ok(code)
}

/// What the options say about unpacking.
pub(super) struct Unpacking {
    all: bool,
    under: Option<u64>,
    discard: bool,
    snapshotters: Vec<String>,
    max_unpacked: u64,
}

/// What becomes of layers, by the options and by the `bake.toml`. `None`: they are fetched.
fn policies(unpacking: Option<Unpacking>, asked: &mut Asked) -> Result<Policies, Failed> {
    let spec = &asked.spec;
    let mut policies = Policies { pin: spec.defaults.pin.unwrap_or(false), ..Policies::default() };
    policies.rules.clone_from(&spec.rules);
    let Some(Unpacking { all, under, discard, snapshotters, max_unpacked }) = unpacking else {
        fetch_all(&mut policies, asked);
        return Ok(policies);
    };
    // As the image-fetcher of AKS has it: exactly this value.
    let fetch_only = std::env::var_os("IMAGE_FETCH_ONLY").is_some_and(|value| value == "true");
    if discard && (fetch_only || !all && under.is_none()) {
        let why =
            if fetch_only { "IMAGE_FETCH_ONLY=true is set" } else { "neither --unpack nor --unpack-under is given" };
        return Err(Failed::usage(format!("--discard-layers would leave images that cannot start: {why}")));
    }
    policies.max_unpacked = max_unpacked;
    policies.snapshotters = if snapshotters.is_empty() { vec![OVERLAYFS.to_owned()] } else { snapshotters };
    if !policies.snapshotters.iter().any(|name| name == OVERLAYFS) && (all || under.is_some()) {
        return Err(Failed::usage("prebake unpacks for overlayfs, which --snapshotters does not name"));
    }
    policies.snapshotters.extend(spec.target.further_snapshotters.iter().cloned());
    let unpack = if discard { Policy::UnpackDiscard } else { Policy::Unpack };
    policies.default = match (all, under) {
        (_, Some(_)) => Policy::Fetch,
        (true, None) => unpack,
        (false, None) => spec.defaults.policy.unwrap_or(Policy::Fetch),
    };
    policies.rules.extend(under.map(|_| Rule {
        under,
        policy: Some(unpack),
        option: Some("--unpack-under"),
        ..Rule::default()
    }));
    if fetch_only {
        fetch_all(&mut policies, asked);
    }
    Ok(policies)
}

/// Nothing is unpacked, whatever the `bake.toml` says.
fn fetch_all(policies: &mut Policies, asked: &mut Asked) {
    policies.default = Policy::Fetch;
    policies.rules.iter_mut().for_each(|rule| rule.policy = None);
    asked.images.iter_mut().for_each(|image| image.policy = None);
}

/// Says what came of it; the exit code.
pub(super) fn end(report: &Report, signal: Option<u8>, share: Option<&Share>, output: OutputArgs) -> u8 {
    summarise(report, share, output);
    signal.map_or_else(|| exit_code_of(&report.images), |signal| 128 + signal)
}

impl FetchArgs {
    fn files(&self) -> Files {
        Files { reports: self.report.clone(), metrics: self.metrics.clone() }
    }

    pub(super) fn request(self, unpacking: Option<Unpacking>) -> Result<Request, Failed> {
        let mut asked = self.wanted.asked()?;
        let bootstrap = unpacking.is_some();
        let mut policies = policies(unpacking, &mut asked)?;
        policies.pin |= self.pin;
        policies.ignore_space = self.ignore_space;
        policies.max_store = self.max_store;
        let root = asked.root.root();
        let registry = self.access.options(&self.manners, &root, &asked)?;
        let concurrency = self.concurrency.or(asked.spec.registries.concurrency).unwrap_or(DEFAULT_CONCURRENCY);
        Ok(Request {
            lock_timeout: asked.root.lock_timeout(),
            root,
            images: asked.images,
            concurrency: concurrency.clamp(1, MAX_CONCURRENCY).into(),
            registry,
            referrers: self.referrers.types(),
            trusted: asked.trusted,
            bootstrap,
            part: None,
            policies,
            detailed: !self.report.is_empty(),
            fail_fast: self.fail_fast,
            retry_failed: self.retry_failed,
            epoch: self.times.source_date_epoch,
        })
    }
}

/// Runs a bake.
pub(super) fn go(request: Request, listener: Arc<dyn Listener>) -> Gone {
    let (report, signal) = interruptible(async |cancel| run(request, listener, cancel).await)?;
    let signal = signal.filter(|_| report.cancelled);
    Ok((report, signal))
}

/// What a signal asks for.
pub(super) type Cancel = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs something that a signal stops; with the signal that came, if one did.
pub(super) fn interruptible<R, E: std::error::Error>(
    work: impl AsyncFnOnce(Cancel) -> Result<R, E>,
) -> Result<(R, Option<u8>), Failed>
where
    for<'e> Kind: From<&'e E>,
{
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
        let (mut waited_for, mut came) = (Some(cancelled), false);
        // One phase of the work after another asks for it, also when it came. Without signals, nothing ever comes.
        let cancel = Box::pin(std::future::poll_fn(move |context| {
            if let Some(signal) = &mut waited_for
                && let Poll::Ready(answer) = Pin::new(signal).poll(context)
            {
                came = answer.is_ok();
                waited_for = None;
            }
            if came { Poll::Ready(()) } else { Poll::Pending }
        }));
        let report = work(cancel).await.map_err(Failed::new)?;
        Ok((report, stopped.try_recv().ok()))
    })
}

pub(super) fn summarise(report: &Report, share: Option<&Share>, output: OutputArgs) {
    let failed = report.images.iter().filter(|outcome| outcome.failure.is_some()).count();
    let done = report.images.len() - failed - report.left.len();
    let totals = report.totals;
    let seconds = report.elapsed.as_secs_f64();
    if output.json {
        let images: Vec<_> = report.images.iter().map(output::outcome).collect();
        let mut summary = json!({"event": "summary", "images": images, "done": done, "failed": failed,
            "fetched_blobs": totals.fetched_blobs, "fetched_bytes": totals.fetched_bytes,
            "present_blobs": totals.present_blobs, "present_bytes": totals.present_bytes,
            "unpacked_layers": totals.unpacked_layers, "unpacked_bytes": totals.unpacked_bytes, "cache": totals.cache,
            "seconds": seconds, "cancelled": report.cancelled});
        shard::add_to(&mut summary, share, report.left.len());
        output::say_json(&summary);
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
    let cached = totals.cache.map_or(String::new(), |usage| format!(" ({})", super::cache::in_words(&usage)));
    output::say(format!(
        "{done} images{failures}; {} blobs, {} fetched{cached}, {} already there{unpacked}; {seconds:.1} s{}",
        totals.fetched_blobs + totals.present_blobs,
        output::bytes(totals.fetched_bytes),
        output::bytes(totals.present_bytes),
        shard::said(share, report.left.len()),
    ));
}
