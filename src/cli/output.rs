//! Lines to a person or to a program. A reader that went away is nobody's error.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use clap::Args;
use prebake::bake::Outcome;
use prebake::kind::Kind;
use serde::Serialize;
use serde_json::{Value, json};

use super::Failed;

/// How to report.
#[derive(Args, Clone, Copy)]
pub(super) struct OutputArgs {
    /// Report as JSON, one object a line
    #[arg(long)]
    pub(super) json: bool,
    /// Report failures only
    #[arg(long, short, conflicts_with = "json")]
    pub(super) quiet: bool,
}

/// A line of a result.
pub(super) fn say(line: impl AsRef<str>) {
    let _ = writeln!(io::stdout().lock(), "{}", line.as_ref());
}

/// A line about how it goes, or went wrong.
pub(super) fn tell(line: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
}

/// A result as JSON, in one line.
pub(super) fn say_json(value: &impl Serialize) {
    say(serde_json::to_string(value).unwrap_or_default());
}

/// Results as JSON, a line each.
pub(super) fn say_json_lines(values: impl IntoIterator<Item = impl Serialize>) {
    let mut out = BufWriter::new(io::stdout().lock());
    for value in values {
        let _ = serde_json::to_writer(&mut out, &value);
        let _ = out.write_all(b"\n");
    }
}

/// Why a command failed.
pub(super) fn failed(failed: &Failed, json: bool) {
    if json {
        say_json(&serde_json::json!({"event": "error", "kind": failed.kind, "error": failed.message}));
    } else {
        tell(format!("prebake: {}", failed.message));
    }
}

/// A line for each image that failed; those that failed alike together, below what helps.
pub(super) fn failures(outcomes: &[Outcome]) {
    failures_by(outcomes, Kind::remedy);
}

/// As [`failures`], where something else helps.
pub(super) fn failures_by(outcomes: &[Outcome], remedy: fn(Kind) -> &'static str) {
    let mut failed: Vec<_> = outcomes.iter().filter_map(|one| Some((&one.name, one.failure.as_ref()?))).collect();
    failed.sort_by_key(|(_, failure)| failure.kind);
    let mut last = None;
    for (name, failure) in failed {
        if last.replace(failure.kind) != Some(failure.kind) {
            tell(format!("what helps: {}", remedy(failure.kind)));
        }
        tell(format!("failed: {name}: {}", failure.message));
    }
}

/// What became of an image, as JSON.
pub(super) fn outcome(Outcome { name, failure, .. }: &Outcome) -> Value {
    match failure {
        None => json!({"image": name, "ok": true}),
        Some(failure) => json!({"image": name, "ok": false, "kind": failure.kind, "error": failure.message,
            "remedy": failure.kind.remedy()}),
    }
}

/// Writes a file in one step: a reader has the old one or the new one. What is no file, such as a pipe, is written to.
pub(super) fn write_file(path: &Path, text: &str) -> Result<(), Failed> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let written = if std::fs::metadata(&target).is_ok_and(|meta| !meta.is_file()) {
        std::fs::write(&target, text)
    } else {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = target.with_file_name(name);
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &target))
    };
    written.map_err(|error| Failed {
        kind: Kind::from(&error),
        message: format!("writing {} failed: {error}", path.display()),
    })
}

/// Bytes for people: `12.3 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let power = n.ilog2() / 10;
    let unit = UNITS[power as usize - 1..].first().unwrap_or(&"PiB");
    // A tenth is exact enough for people.
    #[allow(clippy::cast_precision_loss)]
    let scaled = n as f64 / 1024f64.powi(power.cast_signed());
    format!("{scaled:.1} {unit}")
}

/// A table with its columns aligned.
pub(super) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_for_people() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (1 << 50, "1.0 PiB"),
        ] {
            assert_eq!(super::bytes(n), text);
        }
    }
}
