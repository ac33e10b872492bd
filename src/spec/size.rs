//! Sizes as people write them.

use serde::{Deserializer, de};

/// Bytes as people write them: `150MiB`, `1.5G`, `4096`; powers of 1024 but for `kB`, `MB`, `GB` and `TB`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_size(text: &str) -> Result<u64, String> {
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

/// A size in a file: a text, or a number of bytes.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Size;
    impl de::Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a size, such as \"150MiB\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            parse_size(text).map_err(E::custom)
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::custom("a size is not negative"))
        }
    }
    deserializer.deserialize_any(Size).map(Some)
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
            assert_eq!(super::parse_size(text), Ok(n), "{text}");
        }
        for text in ["", "MiB", ".", "1.2.3", "-1", "1e3", "10 apples", "99999999999999999999", "20000000T"] {
            assert!(super::parse_size(text).is_err(), "{text}");
        }
    }
}
