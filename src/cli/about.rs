//! What prebake says of itself: `--version --json`, `prebake completions`, `prebake man`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::DateTime;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use prebake::care::TESTED_RELEASES;
use prebake::kind::Kind;
use serde_json::json;

use super::{Cli, Failed, output};

const VERSION: &str = env!("CARGO_PKG_VERSION");

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  prebake completions bash > /usr/share/bash-completion/completions/prebake
  prebake completions zsh > /usr/share/zsh/vendor-completions/_prebake
  prebake completions fish > /usr/share/fish/vendor_completions.d/prebake.fish
  source <(prebake completions bash)                              in this shell only";

const MAN_EXAMPLES: &str = "\
Examples:
  prebake man /usr/local/share/man/man1
  prebake man ./man && man ./man/prebake-bake.1";

#[derive(Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Whose
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

#[derive(Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(super) struct ManArgs {
    /// Where to; prebake.1 and a page for each command, prebake-bundle-create.1 among them
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The date on them, in seconds since 1970; without it they have none
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    source_date_epoch: Option<u32>,
}

pub(super) fn version(as_json: bool) {
    if !as_json {
        return output::say(format!("prebake {VERSION}"));
    }
    let environment = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    let features = [("live", cfg!(feature = "live")), ("cache", cfg!(feature = "cache"))];
    let features: Vec<&str> = features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect();
    let mut about = json!({
        "name": "prebake",
        "version": VERSION,
        "target": format!("{}-unknown-{}-{environment}", std::env::consts::ARCH, std::env::consts::OS),
        "features": features,
        "containerd": TESTED_RELEASES,
    });
    // Told by who builds; asked for here, it would make builds depend on where they are made.
    if let Some(commit) = option_env!("PREBAKE_COMMIT") {
        about["commit"] = commit.into();
    }
    output::say_json(&about);
}

pub(super) fn completions(args: &CompletionsArgs) -> u8 {
    let shell = match &*args.shell {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        _ => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "prebake", &mut script);
    output::say(String::from_utf8_lossy(&script).trim_end());
    0
}

pub(super) fn man(args: &ManArgs) -> Result<u8, Failed> {
    fs::create_dir_all(&args.dir).map_err(|error| Failed {
        kind: Kind::from(&error),
        message: format!("making {} failed: {error}", args.dir.display()),
    })?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let date = args.source_date_epoch.and_then(|seconds| DateTime::from_timestamp(seconds.into(), 0));
    let date = date.map_or(String::new(), |time| time.format("%Y-%m-%d").to_string());
    pages(&command, &date, &args.dir)?;
    Ok(0)
}

/// A page of a command, and of each below it.
fn pages(command: &Command, date: &str, dir: &Path) -> Result<(), Failed> {
    let man = Man::new(command.clone());
    let path = dir.join(man.get_filename());
    let mut page = Vec::new();
    render(command, &man, date, &mut page)
        .map_err(|error| Failed { kind: Kind::from(&error), message: error.to_string() })?;
    // Space around breaks, which readers of man pages warn of.
    let page = String::from_utf8_lossy(&page).replace("\n.br\n\n.br\n", "\n.sp\n");
    output::write_file(&path, &page)?;
    command.get_subcommands().try_for_each(|below| pages(below, date, dir))
}

/// As [`Man::render`], but that there may be no date, that the synopsis is that of `--help`, and that examples stay the lines
/// they are.
fn render(command: &Command, man: &Man, date: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    writeln!(page, ".TH {name} 1 \"{date}\" \"prebake {VERSION}\" prebake")?;
    man.render_name_section(page)?;
    let usage = command.clone().render_usage().to_string();
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]).control("nf", []);
    for line in usage.trim_start_matches("Usage:").lines() {
        synopsis.text([roman(line.trim())]);
    }
    synopsis.control("fi", []).to_writer(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    extra(&text).to_writer(page)
}

/// What stands behind a command's options: headings, indented lines, which stay as they are, and text.
fn extra(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut indented = false;
    for line in text.lines().filter(|line| !line.is_empty()) {
        let inner = line.strip_prefix("  ");
        let was = std::mem::replace(&mut indented, inner.is_some());
        if indented && !was {
            roff.control("nf", []);
        } else if was && !indented {
            roff.control("fi", []);
        }
        match line {
            "Examples:" => roff.control("SH", ["EXAMPLES"]),
            "Exit codes:" => roff.control("SH", ["EXIT STATUS"]),
            _ if was && !indented => roff.control("PP", []).text([roman(line)]),
            _ => roff.text([roman(inner.unwrap_or(line))]),
        };
    }
    if indented {
        roff.control("fi", []);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(command: &Command) -> usize {
        let name = command.get_bin_name().unwrap_or_default().to_owned();
        assert!(command.get_about().is_some_and(|about| about.to_string().contains(' ')), "{name} does what?");
        let help = command.clone().render_long_help().to_string();
        let examples = help.split("\nExamples:\n").nth(1).unwrap_or_else(|| panic!("{name} shows no examples"));
        assert!(examples.contains(&format!("{name} ")), "{name}: {examples}");
        1 + command.get_subcommands().map(look).sum::<usize>()
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_it() {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        assert!(look(&command) > 35);
    }

    #[test]
    fn examples_stay_the_lines_they_are() {
        let text = "Examples:\n  prebake x    one\n    deeper\n.so it is\n\nExit codes:\n  0  well";
        let page = extra(text).to_roff();
        let body = page.split_once(".SH EXAMPLES\n").expect("a heading").1;
        assert_eq!(
            body,
            ".nf\nprebake x    one\n  deeper\n.fi\n.PP\n\\&.so it is\n.SH \"EXIT STATUS\"\n.nf\n0  well\n.fi\n"
        );
    }
}
