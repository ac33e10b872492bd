//! `prebake check`.

use std::io::IsTerminal;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use prebake::care::{self, CheckReport, Finding, Severity};
use prebake::kind::Kind;

use super::output::{self, OutputArgs};
use super::{Failed, RootArgs, exit_code};

const EXAMPLES: &str = "\
Examples:
  prebake check --root ./chroot
  prebake check --root ./chroot --json | jq .findings
Exits with 6 when containerd would fail at anything or lose it; warnings alone are no failure.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) root: RootArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: &CheckArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let quiet = args.output.quiet || args.output.json;
    reported(args.output, |progress| {
        args.root.waiting(quiet, |wait| care::check(&root, progress, wait)).map_err(Failed::new)
    })
}

/// Hears of bytes done and of all there are.
type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Makes a check, shows how it goes and what it found; the exit code.
pub(super) fn reported(
    output: OutputArgs,
    check: impl FnOnce(Progress<'_>) -> Result<CheckReport, Failed>,
) -> Result<u8, Failed> {
    let show_bar = !output.quiet && !output.json && std::io::stderr().is_terminal();
    let bar = if show_bar { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
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
    Ok(if errors(&report) == 0 { 0 } else { exit_code(Kind::Corrupt) })
}

fn errors(report: &CheckReport) -> usize {
    report.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
}

fn show(report: &CheckReport, quiet: bool) {
    let errors = errors(report);
    for Finding { severity, object, problem } in &report.findings {
        match severity {
            Severity::Error => output::tell(format!("{object}: {problem}")),
            Severity::Warning if quiet => {}
            Severity::Warning => output::tell(format!("warning: {object}: {problem}")),
        }
    }
    if quiet {
        return;
    }
    let blobs = format!("{} blobs, {}, {} image records", report.blobs, output::bytes(report.bytes), report.images);
    let unreferenced = match report.unreferenced {
        0 => String::new(),
        n => format!(" ({n} blobs that no record names)"),
    };
    let warnings = match report.findings.len() - errors {
        0 => String::new(),
        n => format!(", {n} warnings"),
    };
    output::say(match errors {
        0 => format!("sound: {blobs}{unreferenced}{warnings}"),
        n => format!("{n} problems: {blobs}{unreferenced}{warnings}"),
    });
}
