//! `prebake check`.

use std::io::IsTerminal;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use prebake::care::{self, CheckReport};
use prebake::kind::Kind;

use super::output::{self, OutputArgs};
use super::{Failed, RootArgs, exit_code};

const EXAMPLES: &str = "\
Examples:
  prebake check --root ./chroot
  prebake check --root ./chroot --json | jq .findings
Exits with 6 when anything is off, and lists it.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) root: RootArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: &CheckArgs) -> Result<u8, Failed> {
    let show_bar = !args.output.quiet && !args.output.json && std::io::stderr().is_terminal();
    let bar = if show_bar { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    let root = args.root.existing()?;
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let quiet = args.output.quiet || args.output.json;
    let report = args.root.waiting(quiet, |wait| care::check(&root, &progress, wait)).map_err(Failed::new)?;
    bar.finish_and_clear();
    if args.output.json {
        output::say_json(&report);
    } else {
        show(&report, args.output.quiet);
    }
    Ok(if report.findings.is_empty() { 0 } else { exit_code(Kind::Corrupt) })
}

fn show(report: &CheckReport, quiet: bool) {
    for finding in &report.findings {
        output::tell(format!("{}: {}", finding.object, finding.problem));
    }
    if quiet {
        return;
    }
    let blobs = format!("{} blobs, {}, {} image records", report.blobs, output::bytes(report.bytes), report.images);
    let unreferenced = match report.unreferenced {
        0 => String::new(),
        n => format!(" ({n} blobs that no record names)"),
    };
    output::say(match report.findings.len() {
        0 => format!("sound: {blobs}{unreferenced}"),
        n => format!("{n} problems: {blobs}{unreferenced}"),
    });
}
