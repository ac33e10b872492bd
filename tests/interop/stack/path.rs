//! Paths as Go's `path/filepath` cleans, joins and splits them, on bytes.

/// `filepath.Clean`.
pub fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => drop(parts.pop()),
            b".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

/// `filepath.Join` of two.
pub fn join(first: &[u8], second: &[u8]) -> Vec<u8> {
    match (first, second) {
        (b"", b"") => Vec::new(),
        (b"", path) | (path, b"") => clean(path),
        _ => clean(&[first, b"/", second].concat()),
    }
}

/// `filepath.Split`: what ends with the last slash, and what is behind it.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1))
}

/// The directory of a clean, rooted path.
pub fn parent(path: &[u8]) -> Vec<u8> {
    clean(split(path).0)
}

/// Whether a clean, rooted path is `dir` or below it.
pub fn is_within(path: &[u8], dir: &[u8]) -> bool {
    path == dir || dir == b"/" || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}
