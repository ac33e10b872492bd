//! Parts of a blob (RFC 9110, "Range Requests").

use std::ops::Range;

/// What of a blob is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it; also where the range is of another kind, or there are several.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes behind its end.
    Beyond,
}

/// What the headers `Range` and `If-Range` ask for, of `size` bytes with an entity tag.
pub(super) fn asked(range: Option<&str>, if_range: Option<&str>, tag: &str, size: u64) -> Asked {
    let Some(range) = range.filter(|_| if_range.is_none_or(|condition| condition == tag)) else { return Asked::Whole };
    parse(range, size).unwrap_or(Asked::Whole)
}

fn parse(range: &str, size: u64) -> Option<Asked> {
    let (unit, range) = range.split_once('=')?;
    let (from, to) = range.trim().split_once('-').filter(|_| unit.eq_ignore_ascii_case("bytes"))?;
    // A number that is too large for us is behind every end.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let part = match (from, to) {
        ("", last) => size.saturating_sub(number(last)?)..size,
        (from, "") => number(from)?..size,
        (from, to) => {
            let (from, to) = (number(from)?, number(to)?);
            if to < from {
                return None;
            }
            from..to.saturating_add(1).min(size)
        }
    };
    Some(if part.start < part.end { Asked::Part(part) } else { Asked::Beyond })
}

#[cfg(test)]
mod tests {
    use super::Asked::{Beyond, Part, Whole};

    #[test]
    fn ranges() {
        for (range, size, asked) in [
            ("bytes=0-0", 10, Part(0..1)),
            ("bytes=2-", 10, Part(2..10)),
            ("bytes=2-99", 10, Part(2..10)),
            ("Bytes=-3", 10, Part(7..10)),
            ("bytes=-99", 10, Part(0..10)),
            ("bytes=0-18446744073709551615", 10, Part(0..10)),
            ("bytes=0-99999999999999999999999", 10, Part(0..10)),
            ("bytes=10-", 10, Beyond),
            ("bytes=-0", 10, Beyond),
            ("bytes=0-", 0, Beyond),
            ("bytes=99999999999999999999999-", 10, Beyond),
            ("bytes=3-2", 10, Whole),
            ("bytes=0-1,3-4", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=+1-2", 10, Whole),
            ("lines=0-1", 10, Whole),
            ("0-1", 10, Whole),
        ] {
            assert_eq!(super::asked(Some(range), None, "\"t\"", size), asked, "{range}");
        }
        assert_eq!(super::asked(Some("bytes=1-"), Some("\"t\""), "\"t\"", 2), Part(1..2));
        assert_eq!(super::asked(Some("bytes=1-"), Some("W/\"t\""), "\"t\"", 2), Whole);
        assert_eq!(super::asked(None, None, "\"t\"", 2), Whole);
    }
}
