//! `prebake check`.

use std::io::IsTerminal;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use prebake::bake::DEFAULT_MAX_UNPACKED;
use prebake::care::{self, Check, CheckReport, Finding, Release, Severity, Start, StartReport, Verdict};
use prebake::kind::Kind;
use prebake::oci::Platform;
use prebake::snapshot::OVERLAYFS;

use super::bake::LimitArgs;
use super::output::{self, OutputArgs};
use super::{Failed, RootArgs, exit_code};

pub(super) const EXAMPLES: &str = "\
Examples:
  prebake check --root ./chroot
  prebake check --root ./chroot --quick --json | jq .findings
  prebake check --root ./chroot --snapshots
  prebake check --root ./chroot --would-start 2.1 --snapshotter erofs
Exits with 6 when containerd would fail at anything or lose it, or any image would fail; warnings alone are no failure.
Each finding says what is wrong, what containerd would do about it, and which command mends it.";

#[derive(Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    root: RootArgs,
    /// Do not hash blobs
    #[arg(long, conflicts_with = "would_start")]
    quick: bool,
    /// Unpack every layer again beside the snapshots, and compare path by path
    #[arg(long, conflicts_with = "would_start")]
    snapshots: bool,
    #[command(flatten)]
    limit: LimitArgs,
    /// Say of each image what this release of containerd would do when a container needs it: run it, unpack it first, or fail
    #[arg(long, value_name = "RELEASE")]
    would_start: Option<Release>,
    /// The snapshotter of the runtime that the images are for
    #[arg(long, value_name = "NAME", default_value = OVERLAYFS, requires = "would_start")]
    snapshotter: String,
    /// The machine that containerd would start on [default: this one]
    #[arg(long, value_name = "OS/ARCH", requires = "would_start")]
    platform: Option<Platform>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl CheckArgs {
    /// A whole check of a root, without its snapshots' contents.
    pub(super) fn of(root: RootArgs, output: OutputArgs) -> Self {
        let limit = LimitArgs { max_unpacked: DEFAULT_MAX_UNPACKED };
        let (would_start, snapshotter, platform) = (None, OVERLAYFS.to_owned(), None);
        Self { root, quick: false, snapshots: false, limit, would_start, snapshotter, platform, output }
    }
}

pub(super) fn run(args: &CheckArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let quiet = args.output.quiet || args.output.json;
    if let Some(release) = args.would_start {
        let platform = args.platform.clone().unwrap_or_else(Platform::host);
        let start = Start { release, snapshotter: args.snapshotter.clone(), platform };
        let report = args.root.waiting(quiet, |wait| care::would_start(&root, &start, wait)).map_err(Failed::new)?;
        return Ok(show_start(&report, args.output));
    }
    let options = Check { quick: args.quick, snapshots: args.snapshots.then_some(args.limit.max_unpacked) };
    reported(args.output, |progress| {
        args.root.waiting(quiet, |wait| care::check(&root, &options, progress, wait)).map_err(Failed::new)
    })
}

/// Hears of bytes done and of all there are.
type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Makes a check, shows how it goes and what it found; the exit code.
pub(super) fn reported(
    output: OutputArgs,
    check: impl FnOnce(Progress<'_>) -> Result<CheckReport, Failed>,
) -> Result<u8, Failed> {
    let bar = bar(output);
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let report = check(&progress)?;
    bar.finish_and_clear();
    if output.json {
        output::say_json(&report);
    } else {
        show(&report, output.quiet);
    }
    Ok(if errors(&report.findings) == 0 { 0 } else { exit_code(Kind::Corrupt) })
}

/// A bar of bytes, where somebody looks.
pub(super) fn bar(output: OutputArgs) -> ProgressBar {
    let show = !output.quiet && !output.json && std::io::stderr().is_terminal();
    let bar = if show { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar
}

pub(super) fn errors(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.severity == Severity::Error).count()
}

/// A finding in one line.
pub(super) fn line(Finding { severity, object, problem, consequence, remedy, .. }: &Finding) -> String {
    let severity = match severity {
        Severity::Error => "",
        Severity::Warning => "warning: ",
        Severity::Info => "note: ",
    };
    let remedy = remedy.as_ref().map_or(String::new(), |remedy| format!(" [{remedy}]"));
    format!("{severity}{object}: {problem}; {consequence}{remedy}")
}

fn show(report: &CheckReport, quiet: bool) {
    for finding in report.findings.iter().filter(|finding| !quiet || finding.severity == Severity::Error) {
        output::tell(line(finding));
    }
    if quiet {
        return;
    }
    let errors = errors(&report.findings);
    let blobs = format!("{} blobs, {}, {} image records", report.blobs, output::bytes(report.bytes), report.images);
    let compared =
        if report.compared > 0 { format!(", {} snapshots compared", report.compared) } else { String::new() };
    let unreferenced = match report.unreferenced {
        0 => String::new(),
        n => format!(" ({n} blobs that no record names)"),
    };
    let warnings = match report.findings.iter().filter(|finding| finding.severity == Severity::Warning).count() {
        0 => String::new(),
        n => format!(", {n} warnings"),
    };
    output::say(match errors {
        0 => format!("sound: {blobs}{compared}{unreferenced}{warnings}"),
        n => format!("{n} problems: {blobs}{compared}{unreferenced}{warnings}"),
    });
}

fn show_start(report: &StartReport, output: OutputArgs) -> u8 {
    let fails = report.images.iter().filter(|image| image.verdict == Verdict::Fails).count();
    if output.json {
        output::say_json(report);
    } else {
        if let Some(why) = &report.refuses {
            output::tell(format!("containerd does not start: {why}"));
        }
        let shown = report.images.iter().filter(|image| !output.quiet || image.verdict == Verdict::Fails);
        let rows: Vec<Vec<String>> = shown
            .map(|one| vec![one.verdict.to_string(), format!("{}/{}", one.namespace, one.image), one.why.clone()])
            .collect();
        output::table(&rows);
    }
    if fails == 0 && report.refuses.is_none() { 0 } else { exit_code(Kind::Corrupt) }
}
