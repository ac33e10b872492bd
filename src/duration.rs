//! Durations as Go writes them (`time.ParseDuration`): `3s`, `1h30m`, `1.5s`, `500ms`.

use std::time::Duration;

/// The duration of a text; `None` for what is none, or is negative.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos = 0_u128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| number + at);
        let factor: u128 = match &rest[number..unit] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = digits(whole)?.checked_mul(factor)?.checked_add(digits(fraction)?.checked_mul(factor)? / scale)?;
        nanos = nanos.checked_add(part)?;
        rest = &rest[unit..];
    }
    Some(Duration::from_nanos(u64::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        for (text, millis) in
            [("0", 0), ("3s", 3000), ("1h30m", 5_400_000), ("1.5s", 1500), ("500ms", 500), (".5s", 500), ("2000us", 2)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "3", "s", "-1s", "1x", "1.2.3s", "1 s", ".s", "99999999999999999999h"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
