//! `prebake bundle` and `prebake inventory`: images to where there is no network.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use prebake::bake::{DEFAULT_CONCURRENCY, Policies, Report, Request};
use prebake::bundle::{self, Bundle, Create, Flaw, Form, Inventory};
use prebake::kind::Kind;
use prebake::snapshot::OVERLAYFS;
use prebake::spec::{Policy, parse_size};
use prebake::trust::{PublicKey, SigningKey};
use serde_json::json;

use super::bake::{self, BakeArgs, LimitArgs};
use super::copy::{self, HowArgs};
use super::output::{self, OutputArgs};
use super::shard::{self, ShardArgs};
use super::{Failed, RootArgs, TimesArgs, exit_code, plan, progress, wanted};

const CREATE_EXAMPLES: &str = "\
Examples:
  prebake bundle create -o site.bundle -f bake.toml --sign-key bundle.key
  prebake bundle create -o site.bundle --split 4GiB docker.io/library/nginx:1.27 registry.k8s.io/pause:3.10
  prebake bundle create -o week.bundle -f bake.toml --since site.inv --dry-run";

const APPLY_EXAMPLES: &str = "\
Examples:
  prebake bundle apply --root / --verify-key bundle.pub /media/usb/site.bundle
  prebake bundle apply --root ./chroot --policy unpack site.bundle.001
  prebake bundle apply --to-registry registry.site:5000/hub site.bundle week.bundle";

const VERIFY_EXAMPLES: &str = "\
Examples:
  prebake bundle verify --verify-key bundle.pub site.bundle
  prebake bundle verify /media/usb/site.bundle.003        one part by itself";

const KEYGEN_EXAMPLES: &str = "\
Examples:
  prebake bundle keygen site                              makes site.key and site.pub";

const EXAMPLES: &str = "\
Examples:
  prebake bundle create -o site.bundle -f bake.toml --split 4GiB --sign-key bundle.key
  prebake bundle apply --root / --verify-key bundle.pub /media/usb/site.bundle
  prebake bundle apply --to-registry registry.site:5000 /media/usb/site.bundle
  prebake inventory --root / > site.inv
  prebake bundle create -o week.bundle -f bake.toml --since site.inv
  prebake bundle verify /media/usb/site.bundle.003        one part by itself
A bundle is an OCI layout archive: skopeo, umoci and ctr read it as well. docs/bundles.md says what else is in it.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BundleArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put images, with their policies, into one archive; from a registry they stream into it
    Create(Box<CreateArgs>),
    /// Bake what a bundle carries into a root
    Apply(Box<ApplyArgs>),
    /// Hash the files of a bundle, and every blob in it
    Verify(VerifyArgs),
    /// Make a key that signs bundles (FILE.key), and the one they are verified with (FILE.pub)
    Keygen(KeygenArgs),
}

#[derive(Args)]
#[command(after_help = CREATE_EXAMPLES)]
struct CreateArgs {
    #[command(flatten)]
    bake: BakeArgs,
    /// Where to
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Only what the root lacks that this inventory is of, by `prebake inventory`
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    #[command(flatten)]
    form: FormArgs,
    /// Sign it with this key, of `prebake bundle keygen`
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    #[command(flatten)]
    shard: ShardArgs,
    /// Only tell what would be in it
    #[arg(long)]
    dry_run: bool,
}

/// How an archive is written.
#[derive(Args)]
pub(super) struct FormArgs {
    /// Split it into files of this size: FILE.001, FILE.002, …
    #[arg(long, value_name = "SIZE", value_parser = part_size)]
    split: Option<u64>,
    /// Compress it, which is of use where layers are not compressed
    #[arg(long, value_name = "HOW", value_parser = ["zstd"])]
    compress: Option<String>,
}

impl FormArgs {
    pub(super) fn form(&self) -> Form {
        Form { split: self.split, compress: self.compress.is_some() }
    }
}

fn part_size(text: &str) -> Result<u64, String> {
    parse_size(text)
        .and_then(|size| if size >= 1 << 16 { Ok(size) } else { Err("it must be 64 KiB or more".to_owned()) })
}

#[derive(Args)]
#[command(after_help = APPLY_EXAMPLES)]
struct ApplyArgs {
    #[command(flatten)]
    root: Option<RootArgs>,
    /// Push it to this registry instead, below this path: HOST[/PATH]
    #[arg(long, value_name = "HOST", conflicts_with_all = ["root", "policy", "snapshotters"])]
    to_registry: Option<String>,
    /// Bundles, the first one first; of one that is split, any of its files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only admit bundles that are signed with this key; one of several is enough
    #[arg(long, value_name = "FILE")]
    verify_key: Vec<PathBuf>,
    /// What becomes of layers, whatever the bundle says: fetch, unpack, unpack-discard
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    policy: Option<Policy>,
    /// Snapshotters that containers on this root will use; layers that another one than overlayfs needs are not discarded
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    snapshotters: Vec<String>,
    /// Begin even when the disk has too little space by what is known before
    #[arg(long)]
    ignore_space: bool,
    #[command(flatten)]
    limit: LimitArgs,
    #[command(flatten)]
    times: TimesArgs,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Args)]
#[command(after_help = VERIFY_EXAMPLES)]
struct VerifyArgs {
    /// A bundle, or one of its files
    file: PathBuf,
    /// Only admit bundles that are signed with this key; one of several is enough
    #[arg(long, value_name = "FILE")]
    verify_key: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
#[command(after_help = KEYGEN_EXAMPLES)]
struct KeygenArgs {
    /// The keys' name, without .key and .pub
    #[arg(default_value = "bundle")]
    name: PathBuf,
}

const INVENTORY_EXAMPLES: &str = "\
Examples:
  prebake inventory --root / > site.inv
  prebake bundle create -o week.bundle -f bake.toml --since site.inv";

/// `prebake inventory`.
#[derive(Args)]
#[command(after_help = INVENTORY_EXAMPLES)]
pub(super) struct InventoryArgs {
    #[command(flatten)]
    root: RootArgs,
    /// Where to; standard output without it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn policy(text: &str) -> Result<Policy, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("{text:?} is none of fetch, unpack, unpack-discard"))
}

impl BundleArgs {
    pub(super) fn json(&self) -> bool {
        match &self.command {
            Command::Create(args) => args.bake.fetch.output.json,
            Command::Apply(args) => args.how.output.json,
            Command::Verify(args) => args.output.json,
            Command::Keygen(_) => false,
        }
    }
}

pub(super) fn run(args: BundleArgs) -> Result<u8, Failed> {
    match args.command {
        Command::Create(args) => create(*args),
        Command::Apply(args) => apply(&args),
        Command::Verify(args) => verify(&args),
        Command::Keygen(args) => keygen(&args.name),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failed> {
    std::fs::read(path).map_err(|error| Failed::usage(format!("reading {} failed: {error}", path.display())))
}

fn create(mut args: CreateArgs) -> Result<u8, Failed> {
    let out = args.bake.fetch.output;
    args.bake.fetch.wanted.default_root = Some(".".into());
    let since = args.since.as_deref().map(|path| {
        Inventory::parse(&read(path)?).map_err(|error| {
            let failed = Failed::new(error);
            Failed { message: format!("{}: {}", path.display(), failed.message), ..failed }
        })
    });
    let key = args.sign_key.as_deref().map(|path| {
        let pem = wanted::text(path)?;
        SigningKey::parse(&pem).map_err(|error| Failed::usage(format!("{}: {error}", path.display())))
    });
    let (since, key) = (since.transpose()?, key.transpose()?);
    let share = args.bake.fetch.wanted.share(args.shard)?;
    let request = bake::request(args.bake)?;
    if request.referrers.is_some() {
        return Err(Failed::usage(
            "bundles do not carry what refers to images; `prebake copy --referrers` takes it to a registry",
        ));
    }
    let create = Create {
        request,
        output: args.output.clone(),
        form: args.form.form(),
        since,
        share: share.as_deref().cloned(),
        key,
        dry_run: args.dry_run,
    };
    let listener = progress::listener(out);
    let (created, signal) =
        bake::interruptible(async |cancel| Ok::<_, bundle::Error>(bundle::create(create, listener, cancel).await))?;
    let created = match (created, signal) {
        (Err(bundle::Error::Stopped), Some(signal)) => return Ok(128 + signal),
        (Err(bundle::Error::Images(failed)), _) => {
            if out.json {
                output::say_json_lines(failed.iter().map(output::outcome));
            } else {
                output::failures(&failed);
            }
            return Err(Failed::new(bundle::Error::Images(failed)));
        }
        (created, _) => created.map_err(Failed::new)?,
    };
    let (images, (blobs, bytes), (there, left_out)) =
        (created.contents.images.len(), created.carried, created.left_out);
    if out.json {
        let files: Vec<_> =
            created.files.iter().map(|file| json!({"file": file.path, "size": file.size, "sum": file.sum})).collect();
        let mut said = json!({"event": "bundle", "images": images, "blobs": blobs, "bytes": bytes,
            "left_out_blobs": there, "left_out_bytes": left_out, "since": created.contents.since, "files": files,
            "contents": args.dry_run.then_some(&created.contents)});
        let left = created.contents.left();
        shard::add_to(&mut said, share.as_deref(), left);
        output::say_json(&said);
    } else if !out.quiet {
        for file in &created.files {
            output::say(format!("{}  {}  {}", file.path.display(), output::bytes(file.size), file.sum));
        }
        let verb = if args.dry_run { "would carry" } else { "carries" };
        let rest = if share.is_some() {
            format!("; {there} more, {}, are other shards' or the receiver's", output::bytes(left_out))
        } else if there > 0 || created.contents.since.is_some() {
            format!("; the receiver has {there} more, {}", output::bytes(left_out))
        } else {
            String::new()
        };
        let left = shard::said(share.as_deref(), created.contents.left());
        output::say(format!("{verb} {images} images in {blobs} blobs, {}{rest}{left}", output::bytes(bytes)));
    }
    Ok(0)
}

fn keys(paths: &[PathBuf]) -> Result<Vec<PublicKey>, Failed> {
    paths.iter().map(|path| wanted::key(path)).collect::<Result<_, _>>().map_err(Failed::usage)
}

fn apply(args: &ApplyArgs) -> Result<u8, Failed> {
    let bundles = bundle::open_all(&args.files, &keys(&args.verify_key)?).map_err(Failed::new)?;
    if let Some(share) = bundles.iter().find(|bundle| args.to_registry.is_some() && bundle.contents.shard.is_some()) {
        return Err(Failed::usage(format!(
            "{} has a share of the images, and to a registry go whole ones; `prebake mirror --locked --shard` shares that work",
            share.path().display()
        )));
    }
    let mut code = 0;
    for bundle in &bundles {
        code = code.max(match (&args.root, &args.to_registry) {
            (_, Some(registry)) => copy::push_bundle(bundle, registry, &args.how)?,
            (Some(root), None) => apply_one(args, root, bundle)?,
            (None, None) => return Err(Failed::usage("where to: --root names a root, --to-registry a registry")),
        });
    }
    Ok(code)
}

fn apply_one(args: &ApplyArgs, to: &RootArgs, bundle: &Bundle) -> Result<u8, Failed> {
    let (root, output) = (to.root(), args.how.output);
    let mut images = bundle.wanted().map_err(Failed::new)?;
    if bundle.contents.shard.is_none() {
        let store = prebake::content::Store::open(&root).map_err(Failed::new)?;
        bundle.check(&store).map_err(Failed::new)?;
    } else if !args.how.dry_run {
        // First, all that is in it; of images of which that was the last, the rest then.
        let mut part = Request::new(root.clone(), images.clone());
        (part.bootstrap, part.part) = (false, Some(bundle.part()));
        (part.policies.ignore_space, part.lock_timeout) = (args.ignore_space, to.lock_timeout());
        part.epoch = args.times.source_date_epoch;
        let (report, signal) = bake::go(part, progress::listener(OutputArgs { quiet: true, ..output }))?;
        images.retain(|image| !report.left.contains(&(image.namespace.clone(), image.reference.to_string())));
        let failed = report.images.iter().any(|image| image.failure.is_some());
        tell_left(&report, bundle, output);
        if signal.is_some() || failed || images.is_empty() {
            return Ok(bake::end(&report, signal, None, output));
        }
    }
    for image in &mut images {
        image.policy = args.policy.or(image.policy);
    }
    let mut snapshotters = vec![OVERLAYFS.to_owned()];
    snapshotters.extend(args.snapshotters.iter().cloned());
    let request = Request {
        root,
        images,
        concurrency: DEFAULT_CONCURRENCY.into(),
        registry: prebake::registry::Options::default(),
        bootstrap: true,
        part: None,
        referrers: None,
        trusted: Vec::new(),
        policies: Policies {
            snapshotters,
            max_unpacked: args.limit.max_unpacked,
            ignore_space: args.ignore_space,
            ..Policies::default()
        },
        detailed: false,
        fail_fast: false,
        retry_failed: false,
        epoch: args.times.source_date_epoch,
        lock_timeout: to.lock_timeout(),
    };
    if args.how.dry_run {
        return plan::show(request, None, output);
    }
    let (report, signal) = bake::go(request, progress::listener(output))?;
    Ok(bake::end(&report, signal, None, output))
}

/// Tells of the images that wait for what other shards' bundles carry.
fn tell_left(report: &Report, bundle: &Bundle, output: OutputArgs) {
    if !output.quiet && !output.json && !report.left.is_empty() {
        let (path, left) = (bundle.path().display(), report.left.len());
        let or = match bundle.contents.since {
            Some(_) => ", or lack what the receiver had by the inventory",
            None => "",
        };
        output::tell(format!(
            "{path}: {left} images wait for the bundles of other shards{or}; what is in it is in place"
        ));
    }
}

fn verify(args: &VerifyArgs) -> Result<u8, Failed> {
    let part = args.file.extension().is_some_and(|number| number.len() == 3) && args.file.is_file();
    if part && !args.verify_key.is_empty() {
        return Err(Failed::usage("one part by itself has no signature; name the bundle, without the part's number"));
    }
    let (mut flaws, files) = bundle::verify_files(&args.file).map_err(Failed::new)?;
    let mut blobs = 0;
    // What is damaged as a file need not be understood; and one part alone cannot be.
    if flaws.is_empty() && !part {
        let bundle = Bundle::open(&args.file, &keys(&args.verify_key)?).map_err(Failed::new)?;
        flaws = bundle.verify().map_err(Failed::new)?;
        blobs = bundle.contents.blobs.iter().filter(|blob| blob.here).count();
    }
    if args.output.json {
        let flaws: Vec<_> = flaws.iter().map(|Flaw { what, why }| json!({"what": what, "why": why})).collect();
        output::say_json(&json!({"event": "verified", "files": files, "blobs": blobs, "flaws": flaws}));
    } else {
        for Flaw { what, why } in &flaws {
            output::tell(format!("damaged: {what}: {why}"));
        }
        if !args.output.quiet && flaws.is_empty() {
            output::say(format!("right: {files} files by their sums, {blobs} blobs by their digests"));
        }
    }
    Ok(if flaws.is_empty() { 0 } else { exit_code(Kind::Corrupt) })
}

fn keygen(name: &Path) -> Result<u8, Failed> {
    let with = |extension: &str| {
        let mut path = name.as_os_str().to_owned();
        path.push(extension);
        PathBuf::from(path)
    };
    let io =
        |error: std::io::Error| Failed { kind: Kind::from(&error), message: format!("making keys failed: {error}") };
    let pem = SigningKey::generate().map_err(io)?;
    let public = SigningKey::parse(&pem).map_err(Failed::usage_of)?.public_key();
    let (secret, shown) = (with(".key"), with(".pub"));
    // Never over another: bundles may be signed with it.
    let new = |path: &Path, mode: u32, text: &str| {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| Failed {
            kind: Kind::from(&error),
            message: format!("writing {} failed: {error}", path.display()),
        })
    };
    new(&secret, 0o600, &pem)?;
    new(&shown, 0o644, &public)?;
    output::say(format!("{} signs, and is to be kept secret; {} verifies", secret.display(), shown.display()));
    Ok(0)
}

pub(super) fn inventory(args: &InventoryArgs) -> Result<u8, Failed> {
    use std::io::Write as _;
    let root = args.root.existing()?;
    let (inventory, wrong) = Inventory::of_root(&root).map_err(Failed::new)?;
    for digest in wrong {
        output::tell(format!("left out: blob {digest} is damaged; `prebake repair` mends it"));
    }
    let bytes = inventory.to_bytes();
    let written = match &args.output {
        Some(path) => std::fs::write(path, &bytes),
        None => std::io::stdout().lock().write_all(&bytes),
    };
    written.map_err(|error| Failed {
        kind: Kind::from(&error),
        message: format!("writing the inventory failed: {error}"),
    })?;
    output::tell(format!("{} blobs; inventory {}", inventory.blobs.len(), inventory.id));
    Ok(0)
}
