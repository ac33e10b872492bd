//! `prebake repair`.

use std::sync::Arc;

use clap::Args;
use prebake::bake::{Lost, refetch};
use prebake::care::{self, Mended, Missing, Repair, RepairFrom as From, RepairReport, Severity};
use prebake::kind::{Kind, chain};
use prebake::oci::Reference;
use prebake::root::Root;
use prebake::source::Local;
use prebake::spec::{Place, Registries};

use super::bake::LimitArgs;
use super::check::{bar, line};
use super::output::{self, OutputArgs};
use super::registry::{AccessArgs, MannersArgs};
use super::{Failed, RootArgs, exit_code, progress};

pub(super) const EXAMPLES: &str = "\
Examples:
  prebake repair --root ./chroot --dry-run
  prebake repair --root ./chroot
  prebake repair --root ./chroot --snapshots --json | jq .remaining
  prebake repair --root ./chroot --from ./another-root
  prebake repair --root ./chroot --restore-layers
Blobs are asked for, by their digests, at the registries that the images' names, the catalog and the blobs' labels tell of.
Exits with 0 when a check finds no error afterwards, with 6 when something remains.";

#[derive(Args)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    root: RootArgs,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Unpack every layer again, and replace the snapshots that differ from theirs
    #[arg(long)]
    snapshots: bool,
    /// Fetch layers again that were discarded, and give them their records and labels
    #[arg(long)]
    restore_layers: bool,
    /// Take blobs from here instead of from registries: another root, an OCI layout, or a place such as bundle:FILE or
    /// docker-archive:FILE; every byte is verified
    #[arg(long, value_name = "DIR")]
    from: Option<String>,
    #[command(flatten)]
    limit: LimitArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    manners: MannersArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: &RepairArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let options = Repair {
        dry_run: args.dry_run,
        snapshots: args.snapshots,
        restore_layers: args.restore_layers,
        from: args.from.as_deref().map(from).transpose()?,
        max_unpacked: args.limit.max_unpacked,
    };
    let bar = bar(args.output);
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut fetch = |missing: &[Missing]| {
        fetch(args, &root, missing).unwrap_or_else(|failed| vec![Some(failed.message); missing.len()])
    };
    let quiet = args.output.quiet || args.output.json;
    let report = args.root.waiting(quiet, |wait| care::repair(&root, &options, &mut fetch, &progress, wait));
    let report = report.map_err(Failed::new)?;
    bar.finish_and_clear();
    if args.output.json {
        output::say_json(&report);
    } else {
        show(&report, args);
    }
    Ok(if report.is_sound() { 0 } else { exit_code(Kind::Corrupt) })
}

fn from(text: &str) -> Result<From, Failed> {
    match Place::parse(text).map_err(Failed::usage_of)? {
        Some(place) => Ok(From::Place(Arc::new(Local::open(&place).map_err(Failed::new)?))),
        None => Ok(From::Dir(text.into())),
    }
}

fn fetch(args: &RepairArgs, root: &Root, missing: &[Missing]) -> Result<Vec<Option<String>>, Failed> {
    prebake::install_tls();
    let references: Vec<&Reference> = missing.iter().flat_map(|missing| &missing.references).collect();
    let registry = args.access.options_for(&args.manners, root, &Registries::default(), &references)?;
    let lost = |Missing { descriptor, references }: &Missing| {
        let (descriptor, references) = (descriptor.clone(), references.clone());
        Lost { descriptor, references }
    };
    let lost: Vec<Lost> = missing.iter().map(lost).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed { kind: Kind::from(&error), message: chain(&error) })?;
    // JSON is one object, which comes at the end.
    let listener = progress::listener(OutputArgs { quiet: args.output.quiet || args.output.json, json: false });
    runtime.block_on(refetch(root, &lost, registry, listener)).map_err(Failed::new)
}

fn show(report: &RepairReport, args: &RepairArgs) {
    let quiet = args.output.quiet;
    for Mended { object, done } in report.mended.iter().filter(|_| !quiet) {
        output::say(format!("{object}: {done}"));
    }
    for Mended { object, done } in &report.failed {
        output::tell(format!("not mended: {object}: {done}"));
    }
    if !args.dry_run {
        let shown = |severity| severity == Severity::Error || severity == Severity::Warning && !quiet;
        for finding in report.remaining.iter().filter(|finding| shown(finding.severity)) {
            output::tell(format!("remains: {}", line(finding)));
        }
    }
    if quiet {
        return;
    }
    let done = report.mended.len();
    output::say(match (args.dry_run, done, report.is_sound()) {
        (true, 0, true) => "nothing to be mended".to_owned(),
        (true, n, _) => format!("{n} things to be done"),
        (false, 0, true) => "sound: nothing to be mended".to_owned(),
        (false, n, true) => format!("sound: {n} things mended"),
        (false, n, false) => format!("{n} things mended, and something remains"),
    });
}
