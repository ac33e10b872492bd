//! Lines to a person or to a program. A reader that went away is nobody's error.

use std::io::{self, BufWriter, Write};

use clap::Args;
use prebake::bake::Outcome;
use serde::Serialize;

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

/// A line for each image that failed.
pub(super) fn failures(outcomes: &[Outcome]) {
    for Outcome { name, failure } in outcomes {
        if let Some(failure) = failure {
            tell(format!("failed: {name}: {}", failure.message));
        }
    }
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

/// Bytes as people write them: `150MiB`, `1.5G`, `4096`; powers of 1024 but for `kB`, `MB`, `GB` and `TB`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write it like 150MiB");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (power, base) = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => (0, 1024_u64),
        "k" | "ki" | "kib" => (1, 1024),
        "m" | "mi" | "mib" => (2, 1024),
        "g" | "gi" | "gib" => (3, 1024),
        "t" | "ti" | "tib" => (4, 1024),
        "kb" => (1, 1000),
        "mb" => (2, 1000),
        "gb" => (3, 1000),
        "tb" => (4, 1000),
        _ => return Err(bad()),
    };
    let factor = u128::from(base.pow(power));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = if whole.is_empty() && !fraction.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    // Nine digits are more than any unit has.
    let fraction: u128 = format!("{fraction:0<9}").get(..9).and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
    let bytes = whole.checked_mul(factor).ok_or_else(bad)? + fraction * factor / 1_000_000_000;
    u64::try_from(bytes).map_err(|_| bad())
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
    fn sizes_of_people() {
        for (text, n) in [
            ("0", 0),
            ("4096", 4096),
            ("150MiB", 150 << 20),
            ("150 mib", 150 << 20),
            ("1.5G", 3 << 29),
            (".5k", 512),
            ("2MB", 2_000_000),
            ("0.1GB", 100_000_000),
        ] {
            assert_eq!(super::parse_bytes(text), Ok(n), "{text}");
        }
        for text in ["", "MiB", ".", "1.2.3", "-1", "1e3", "10 apples", "99999999999999999999", "20000000T"] {
            assert!(super::parse_bytes(text).is_err(), "{text}");
        }
    }

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
