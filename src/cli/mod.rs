//! The command line: arguments, terminal, exit codes. One file a command.

mod about;
mod bake;
mod board;
mod bolt;
mod bootstrap;
mod bundle;
mod cache;
mod check;
mod copy;
mod demo;
mod diff;
mod discard;
mod du;
mod export;
mod fixture;
mod images;
mod list;
#[cfg(feature = "live")]
mod live;
mod lock;
mod metrics;
mod output;
mod plan;
mod progress;
mod prune;
mod registry;
mod repair;
mod seal;
mod serve;
mod shard;
mod sync;
mod unpack;
mod wanted;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use prebake::bake::Failure;
use prebake::kind::Kind;
use prebake::metadata::{DEFAULT_LOCK_TIMEOUT, Wait};
use prebake::root::{CONTAINERD_ROOT, Root};

const EXIT_CODES: &str = "\
Exit codes:
  0  everything asked for is done
  1  some images failed (each is named in the last lines), or the system refused something
  2  bad arguments, a bad reference, an image that cannot be used
  3  not found: an image, a blob, a platform
  4  a registry wants other credentials
  5  a containerd or another prebake uses the root
  6  something is corrupt: what a registry sent, a blob, a database
  7  no space left
  130  stopped by Ctrl-C (143 by SIGTERM); finished blobs are kept
Where every image fails in the same way, the code is that of the failure.";

const EXAMPLES: &str = "\
Examples:
  prebake demo                                                    all of it, without a network
  prebake bake --root ./chroot registry.k8s.io/pause:3.10
  prebake check --root ./chroot
  prebake help bake";

/// Bakes OCI images straight into containerd's state directory, with no daemon running.
#[derive(Parser)]
#[command(name = "prebake", version, disable_version_flag = true, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Print the version
    #[arg(long, short = 'V')]
    version: bool,
    /// With --version: as JSON, with the target, the features, and the releases of containerd it is tested with
    #[arg(long, requires = "version")]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Pull images and write them into a root: blobs and metadata
    Bake(bake::BakeCommand),
    /// Show what a bake would do and take; nothing is written, and documents alone are fetched
    Plan(plan::PlanArgs),
    /// Write down what names lead to, so that every bake takes the same
    Lock(lock::LockArgs),
    /// Pull images' blobs into a root; `bootstrap` makes them known to containerd later
    #[command(after_help = bake::FETCH_EXAMPLES)]
    Fetch(bake::FetchCommand),
    /// Unpack images that are in a root already, and make them known to containerd
    Unpack(unpack::UnpackArgs),
    /// Make everything that was fetched into a root known to containerd: in its metadata, or over its socket
    Bootstrap(bootstrap::BootstrapArgs),
    /// Copy an image to a registry: from another one, a layout, an archive, a root
    Copy(copy::CopyArgs),
    /// Copy many images to where a mirror.toml says
    Mirror(copy::MirrorArgs),
    /// Name the images of Kubernetes objects, of components.json, of a root: as a list, or as a bake.toml
    List(list::ListArgs),
    /// List what containerd will list
    Images(images::ImagesArgs),
    /// Hash every blob and follow every reference in a root's metadata
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
    /// Show everything that keeps a blob, a snapshot, an image
    Why(why::WhyArgs),
    /// Mend what a check finds: fetch blobs again, make snapshots again, put records right
    #[command(after_help = repair::EXAMPLES)]
    Repair(repair::RepairArgs),
    /// Remove images by their names, and what nothing keeps then
    Rm(prune::RmArgs),
    /// Remove images that nobody needs
    Prune(prune::PruneArgs),
    /// Remove what containerd's garbage collector would, with no containerd running
    Gc(prune::GcArgs),
    /// Let go of the compressed layers of images that are unpacked
    DiscardLayers(discard::DiscardArgs),
    /// Show what takes how much of the disk, by image, unique and shared
    Du(du::DuArgs),
    /// Compare two roots or locks: images, layers, files
    Diff(diff::DiffArgs),
    /// Finish a root: nothing in it but containerd's own files, all synced and checked
    Seal(seal::SealArgs),
    /// Carry images to where there is no network: in one archive, or in what it lacks of one
    Bundle(bundle::BundleArgs),
    /// Write down which blobs a root really has, for `bundle create --since`
    Inventory(bundle::InventoryArgs),
    /// Write images of a root into an OCI layout, an archive of one, or what `docker load` takes
    Export(export::ExportArgs),
    /// Serve the images of a root, a bundle, a layout or an archive: a read-only registry
    Serve(serve::ServeArgs),
    /// Look into a bbolt database: containerd's meta.db, a snapshotter's metadata.db, any other
    Bolt(bolt::BoltArgs),
    /// Find out how a registry would be talked to
    Registry(registry::RegistryArgs),
    /// Look after a cache that many bakers share: fill it, verify it, make room in it
    Cache(cache::CacheCommand),
    /// Make images, registries and roots for tests, from a spec or from real images; broken ones too
    Fixture(fixture::FixtureArgs),
    /// Bake images from an embedded registry, check them, and show what was made
    Demo(demo::DemoArgs),
    /// Print what makes a shell complete prebake's commands and options
    Completions(about::CompletionsArgs),
    /// Write the man pages, one a command
    Man(about::ManArgs),
}

/// Which root.
#[derive(Args, Clone)]
struct RootArgs {
    /// The root: a chroot, a mounted disk image, an empty folder
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// containerd's state directory, inside the root
    #[arg(long, value_name = "PATH", default_value = CONTAINERD_ROOT)]
    containerd_root: PathBuf,
    /// Seconds to wait for another prebake on the root; a running containerd is never waited for
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_LOCK_TIMEOUT.as_secs())]
    lock_timeout: u64,
}

impl RootArgs {
    fn root(&self) -> Root {
        Root::new(&self.root, &self.containerd_root)
    }

    /// As [`waiting`], as long as asked.
    fn waiting<R>(&self, quiet: bool, f: impl FnOnce(&Wait<'_>) -> R) -> R {
        waiting(self.lock_timeout(), quiet, f)
    }

    fn lock_timeout(&self) -> Duration {
        Duration::from_secs(self.lock_timeout)
    }

    /// The root of a command that only looks: one that is not there has nothing to show.
    fn existing(&self) -> Result<Root, Failed> {
        if !self.root.is_dir() {
            let message = format!("there is no directory {}", self.root.display());
            return Err(Failed { kind: Kind::NotFound, message });
        }
        Ok(self.root())
    }
}

/// Does `f`, which waits for another prebake so long, and tells of it unless `quiet`.
fn waiting<R>(timeout: Duration, quiet: bool, f: impl FnOnce(&Wait<'_>) -> R) -> R {
    let tell = |holder: &str| {
        if !quiet {
            output::tell(progress::waiting(holder));
        }
    };
    f(&Wait { timeout, tell: &tell, stop: &AtomicBool::new(false) })
}

/// When things were made.
#[derive(Args)]
struct TimesArgs {
    /// When everything in the root was made, in seconds since 1970; without it, the images tell, never the clock
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    source_date_epoch: Option<u32>,
}

/// Why a command as a whole failed.
struct Failed {
    kind: Kind,
    message: String,
}

impl Failed {
    fn new<E: std::error::Error>(error: E) -> Self
    where
        for<'e> Kind: From<&'e E>,
    {
        Self { kind: Kind::from(&error), message: prebake::kind::chain(&error) }
    }

    /// An argument that cannot be used, and why.
    fn usage_of(error: impl std::error::Error) -> Self {
        Self::usage(error.to_string())
    }

    fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::InvalidInput, message: message.into() }
    }
}

/// Parses the arguments and runs the command.
pub(crate) fn main() -> ExitCode {
    // As early as can be: when that process is gone, another one is the parent.
    let parent = std::os::unix::process::parent_id();
    // A defect of prebake's own does no more than a kill: what is in place stays, and nothing is half done.
    std::panic::set_hook(Box::new(|panic| {
        output::tell(format!("prebake: a defect in prebake itself: {panic}; what is in place is whole, run it again"));
        std::process::exit(1);
    }));
    let cli = Cli::parse();
    let Some(command) = cli.command else {
        about::version(cli.json);
        return ExitCode::SUCCESS;
    };
    let json = match &command {
        Command::Bake(args) => args.bake.fetch.output.json,
        Command::Fetch(args) => args.fetch.output.json,
        Command::Plan(args) => args.json(),
        Command::Lock(args) => args.fetch.output.json,
        Command::Unpack(args) => args.output.json,
        Command::Bootstrap(args) => args.output.json,
        Command::Copy(args) => args.json(),
        Command::Mirror(args) => args.json(),
        Command::Images(args) => args.json,
        Command::List(args) => args.json,
        Command::Check(args) => args.output.json,
        Command::Why(args) => args.json,
        Command::Repair(args) => args.output.json,
        Command::Rm(args) => args.output.json,
        Command::Prune(args) => args.output.json,
        Command::Gc(args) => args.output.json,
        Command::DiscardLayers(args) => args.output.json,
        Command::Du(args) => args.json,
        Command::Diff(args) => args.json,
        Command::Seal(args) => args.output.json,
        Command::Bundle(args) => args.json(),
        Command::Inventory(_) => false,
        Command::Export(args) => args.out.json,
        Command::Serve(args) => args.output.json,
        Command::Bolt(args) => args.json(),
        Command::Cache(args) => args.json(),
        Command::Registry(args) => args.json(),
        Command::Fixture(args) => args.json(),
        Command::Demo(_) | Command::Completions(_) | Command::Man(_) => false,
    };
    let code = match command {
        Command::Bake(args) => bake::bake(args),
        Command::Fetch(args) => bake::fetch(args),
        Command::Plan(args) => plan::run(args),
        Command::Lock(args) => lock::run(args),
        Command::Unpack(args) => unpack::run(&args),
        Command::Bootstrap(args) => bootstrap::run(&args),
        Command::Copy(args) => copy::copy(&args),
        Command::Mirror(args) => copy::mirror(&args),
        Command::Images(args) => images::run(&args),
        Command::List(args) => list::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Rm(args) => prune::rm(args),
        Command::Prune(args) => prune::prune(args),
        Command::Gc(args) => prune::gc(&args),
        Command::DiscardLayers(args) => discard::run(args),
        Command::Du(args) => du::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Seal(args) => seal::run(&args),
        Command::Bundle(args) => bundle::run(args),
        Command::Inventory(args) => bundle::inventory(&args),
        Command::Export(args) => export::run(args),
        Command::Serve(args) => serve::run(&args),
        Command::Bolt(args) => bolt::run(&args),
        Command::Cache(args) => cache::run(args),
        Command::Registry(args) => registry::run(&args),
        Command::Fixture(args) => fixture::run(args, parent),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => Ok(about::completions(&args)),
        Command::Man(args) => about::man(&args),
    };
    ExitCode::from(code.unwrap_or_else(|failed| {
        output::failed(&failed, json);
        exit_code(failed.kind)
    }))
}

fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Unavailable | Kind::Io => 1,
        Kind::InvalidInput => 2,
        Kind::NotFound => 3,
        Kind::Unauthorized => 4,
        Kind::Busy => 5,
        Kind::Corrupt => 6,
        Kind::NoSpace => 7,
    }
}

/// The code for images that failed one by one.
fn exit_code_of(outcomes: &[prebake::bake::Outcome]) -> u8 {
    exit_code_of_all(outcomes.iter().map(|outcome| outcome.failure.as_ref()))
}

fn exit_code_of_all<'f>(failures: impl Iterator<Item = Option<&'f Failure>>) -> u8 {
    let mut kinds = failures.map(|failure| failure.map(|failure| failure.kind));
    match kinds.next() {
        None => 0,
        Some(first) if kinds.all(|kind| kind == first) => first.map_or(0, exit_code),
        Some(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const KINDS: [Kind; 8] = [
        Kind::NotFound,
        Kind::Unauthorized,
        Kind::Busy,
        Kind::Corrupt,
        Kind::NoSpace,
        Kind::InvalidInput,
        Kind::Unavailable,
        Kind::Io,
    ];

    /// The codes of the first column of the table below `header`, and the second column.
    fn table(text: &'static str, header: &str) -> Vec<(Vec<u8>, &'static str)> {
        let rows = text.split(header).nth(1).expect("a table").lines().skip(2);
        let rows = rows.take_while(|row| row.starts_with('|')).map(|row| {
            let mut cells = row.split('|').skip(1).map(str::trim);
            let codes = cells.next().expect("a cell").split(", ").map(|code| code.parse().expect("a code")).collect();
            (codes, cells.next().expect("two cells").trim_matches('`'))
        });
        rows.collect()
    }

    #[test]
    fn exit_codes_are_those_that_are_documented() {
        let variants = include_str!("../kind.rs").split("pub enum Kind {").nth(1).expect("it").split('}').next();
        let variants = variants.expect("its end").lines().filter(|line| line.ends_with(',')).count();
        assert_eq!(variants, KINDS.len());

        let documented = table(include_str!("../../docs/exit-codes.md"), "| code | kind |");
        let kinds: BTreeSet<(u8, String)> = documented
            .iter()
            .filter(|(_, kind)| !kind.is_empty())
            .map(|(codes, kind)| (codes[0], format!("\"{kind}\"")))
            .collect();
        let real = KINDS.map(|kind| (exit_code(kind), serde_json::to_string(&kind).expect("a word")));
        assert_eq!(kinds, real.into_iter().collect());

        let codes =
            |rows: &[(Vec<u8>, &str)]| rows.iter().flat_map(|(codes, _)| codes.clone()).collect::<BTreeSet<_>>();
        let help = EXIT_CODES.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        assert_eq!(codes(&documented), help.collect());
        assert_eq!(codes(&documented), codes(&table(include_str!("../../README.md"), "| exit code | means |")));
    }
}
