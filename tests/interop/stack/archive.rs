//! Entries of archives, and their bytes in every format there is: written by hand, because what is tested is what no
//! writer of archives would write.

use std::fmt::Write as _;

const BLOCK: usize = 512;

/// Seconds since 1970, rounded down, and nanoseconds on top.
pub type Time = (i64, u32);

/// How an entry's header is laid out. What a format cannot hold is written in one that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    V7,
    Ustar,
    Gnu,
    Pax,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

#[derive(Debug, Clone)]
pub enum Contents {
    Plain(Vec<u8>),
    /// Version, size with its holes, and what lies where.
    Sparse(Sparse, u64, Vec<(u64, Vec<u8>)>),
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    /// The type flag; `0` is the old one of regular files.
    pub flag: u8,
    pub link: Vec<u8>,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub mtime: Time,
    pub atime: Option<Time>,
    pub device: (i64, i64),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub contents: Contents,
    /// What the header says of its size, where that has no contents behind it.
    pub claimed: Option<u32>,
    pub format: Format,
}

impl Entry {
    pub fn new(path: impl Into<Vec<u8>>, flag: u8) -> Self {
        Self {
            path: path.into(),
            flag,
            link: Vec::new(),
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: (1_600_000_000, 0),
            atime: None,
            device: (0, 0),
            xattrs: Vec::new(),
            contents: Contents::Plain(Vec::new()),
            claimed: None,
            format: Format::Ustar,
        }
    }

    /// The path Go gives it: global records may have one for themselves, and have no long one before them.
    pub fn go_path(&self) -> &[u8] {
        let Contents::Plain(bytes) = &self.contents else { return &self.path };
        if self.flag != b'g' {
            return &self.path;
        }
        match bytes.windows(6).position(|window| window == b" path=") {
            Some(at) => &bytes[at + 6..bytes.len() - 1],
            None => &self.path[..self.path.len().min(100)],
        }
    }

    /// The format it is written in.
    pub fn real_format(&self) -> Format {
        let long = self.path.len() > 100 || self.link.len() > 100;
        let nanos = self.mtime.1 > 0 || self.atime.is_some_and(|atime| atime.1 > 0);
        match (&self.contents, self.format) {
            (Contents::Sparse(Sparse::OldGnu, ..), _) => Format::Gnu,
            (Contents::Sparse(..), _) => Format::Pax,
            _ if !self.xattrs.is_empty() || nanos => Format::Pax,
            (_, Format::V7 | Format::Ustar) if long => Format::Gnu,
            (_, Format::V7) if self.atime.is_some() || matches!(self.flag, b'3' | b'4') => Format::Gnu,
            (_, format) => format,
        }
    }

    /// Appends its blocks.
    pub fn write(&self, out: &mut Vec<u8>) {
        let format = self.real_format();
        let (flag, data) = match &self.contents {
            Contents::Plain(bytes) => (self.flag, bytes.clone()),
            Contents::Sparse(version, _, fragments) => {
                let data: Vec<u8> = fragments.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
                match version {
                    Sparse::OldGnu => (b'S', data),
                    Sparse::Pax00 | Sparse::Pax01 => (self.flag, data),
                    Sparse::Pax10 => (self.flag, [map_in_data(fragments), data].concat()),
                }
            }
        };
        match format {
            Format::Pax => {
                let records = self.records();
                if !records.is_empty() {
                    block(out, &Self { mtime: (0, 0), ..Self::new("PaxHeaders/x", b'x') }, Format::Ustar, &records);
                    data_blocks(out, &records);
                }
            }
            Format::Gnu => {
                for (flag, text) in [(b'L', &self.path), (b'K', &self.link)] {
                    if text.len() > 100 {
                        let text = [text.as_slice(), b"\0"].concat();
                        block(out, &Self::new("././@LongLink", flag), Format::Gnu, &text);
                        data_blocks(out, &text);
                    }
                }
            }
            Format::V7 | Format::Ustar => {}
        }
        let header = out.len();
        block(out, &Self { flag, ..self.clone() }, format, &data);
        if let Contents::Sparse(Sparse::OldGnu, size, fragments) = &self.contents {
            old_gnu_map(out, header, *size, fragments);
        }
        data_blocks(out, &data);
    }

    /// The PAX records of what a header cannot say.
    fn records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |key: &[u8], value: &[u8]| out.extend(record(key, value));
        match &self.contents {
            Contents::Sparse(Sparse::Pax10, size, _) => {
                put(b"GNU.sparse.major", b"1");
                put(b"GNU.sparse.minor", b"0");
                put(b"GNU.sparse.name", &self.path);
                put(b"GNU.sparse.realsize", size.to_string().as_bytes());
            }
            Contents::Sparse(version, size, fragments) => {
                put(b"GNU.sparse.size", size.to_string().as_bytes());
                put(b"GNU.sparse.numblocks", fragments.len().to_string().as_bytes());
                let numbers: Vec<(String, String)> =
                    fragments.iter().map(|(at, bytes)| (at.to_string(), bytes.len().to_string())).collect();
                if *version == Sparse::Pax01 {
                    let map: Vec<String> = numbers.iter().map(|(at, len)| format!("{at},{len}")).collect();
                    put(b"GNU.sparse.map", map.join(",").as_bytes());
                } else {
                    for (at, len) in &numbers {
                        put(b"GNU.sparse.offset", at.as_bytes());
                        put(b"GNU.sparse.numbytes", len.as_bytes());
                    }
                }
            }
            Contents::Plain(_) => {}
        }
        if self.path.len() > 100 || !self.path.is_ascii() {
            put(b"path", &self.path);
        }
        if self.link.len() > 100 || !self.link.is_ascii() {
            put(b"linkpath", &self.link);
        }
        for (key, id) in [(b"uid", self.uid), (b"gid", self.gid)] {
            if !(0..0o10_000_000).contains(&id) {
                put(key, id.to_string().as_bytes());
            }
        }
        if self.mtime.1 > 0 || !(0..0o100_000_000_000).contains(&self.mtime.0) {
            put(b"mtime", time_text(self.mtime).as_bytes());
        }
        if let Some(atime) = self.atime {
            put(b"atime", time_text(atime).as_bytes());
        }
        for (name, value) in &self.xattrs {
            put(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        out
    }

    /// A line that says everything about it.
    pub fn describe(&self) -> String {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let mut line = format!(
            "{} {:?} {} mode {:o} owner {}:{} mtime {}",
            char::from(if self.flag == 0 { b'V' } else { self.flag }),
            self.real_format(),
            text(&self.path),
            self.mode,
            self.uid,
            self.gid,
            time_text(self.mtime)
        );
        let mut add = |what: &str| line.push_str(what);
        if let Some(atime) = self.atime {
            add(&format!(" atime {}", time_text(atime)));
        }
        if !self.link.is_empty() {
            add(&format!(" -> {}", text(&self.link)));
        }
        if self.device != (0, 0) || matches!(self.flag, b'3' | b'4') {
            add(&format!(" device {}:{}", self.device.0, self.device.1));
        }
        match &self.contents {
            Contents::Plain(bytes) => add(&format!(" {} bytes", bytes.len())),
            Contents::Sparse(version, size, fragments) => {
                add(&format!(" {version:?} {size} bytes in {} fragments", fragments.len()));
            }
        }
        if let Some(claimed) = self.claimed {
            add(&format!(" said to be {claimed}"));
        }
        for (name, value) in &self.xattrs {
            add(&format!(" {}=0x{}", text(name), hex::encode(value)));
        }
        line
    }
}

/// A PAX record: its length counts its own digits.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    len = rest + len.to_string().len();
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn time_text((seconds, nanos): Time) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (..0, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
        _ => format!("{seconds}.{nanos:09}"),
    }
}

/// A number in octal, or in base 256 where that is too short for it.
fn number(field: &mut [u8], n: i64) {
    let digits = field.len() - 1;
    let octal = format!("{n:0digits$o}");
    if n >= 0 && octal.len() <= digits {
        field[..digits].copy_from_slice(octal.as_bytes());
        return;
    }
    let mut rest = n;
    for byte in field.iter_mut().rev() {
        *byte = rest.to_le_bytes()[0];
        rest >>= 8;
    }
    field[0] |= 0x80;
}

fn block(out: &mut Vec<u8>, entry: &Entry, format: Format, data: &[u8]) {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        let len = bytes.len().min(room);
        header[at..at + len].copy_from_slice(&bytes[..len]);
    };
    put(0, 100, &entry.path);
    put(157, 100, &entry.link);
    put(156, 1, &[entry.flag]);
    match format {
        Format::V7 => {}
        Format::Ustar | Format::Pax => put(257, 8, b"ustar\x0000"),
        Format::Gnu => put(257, 8, b"ustar  \0"),
    }
    // A PAX record stands for what does not fit.
    let fits = |n: i64, limit: i64| if format != Format::Pax || (0..limit).contains(&n) { n } else { 0 };
    number(&mut header[100..108], fits(entry.mode, i64::MAX));
    number(&mut header[108..116], fits(entry.uid, 0o10_000_000));
    number(&mut header[116..124], fits(entry.gid, 0o10_000_000));
    number(&mut header[124..136], entry.claimed.map_or_else(|| i64::try_from(data.len()).expect("fits"), i64::from));
    number(&mut header[136..148], fits(entry.mtime.0, 0o100_000_000_000));
    if format != Format::V7 {
        number(&mut header[329..337], entry.device.0);
        number(&mut header[337..345], entry.device.1);
    }
    if let (Format::Gnu, Some((atime, _))) = (format, entry.atime) {
        number(&mut header[345..357], atime);
    }
    checksum(&mut header);
    out.extend(header);
}

fn checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn data_blocks(out: &mut Vec<u8>, data: &[u8]) {
    out.extend(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// The map of PAX sparse 1.0, in whole blocks.
fn map_in_data(fragments: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut map = format!("{}\n", fragments.len());
    for (at, bytes) in fragments {
        writeln!(map, "{at}\n{}", bytes.len()).unwrap();
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Puts the map into the old GNU header that begins at `header`, and into blocks behind it.
fn old_gnu_map(out: &mut Vec<u8>, header: usize, size: u64, fragments: &[(u64, Vec<u8>)]) {
    let element = |(at, bytes): &(u64, Vec<u8>)| -> [u8; 24] {
        let mut element = [0; 24];
        number(&mut element[..12], at.cast_signed());
        number(&mut element[12..], i64::try_from(bytes.len()).expect("fits"));
        element
    };
    let (first, rest) = fragments.split_at(fragments.len().min(4));
    let own = &mut out[header..header + BLOCK];
    for (i, fragment) in first.iter().enumerate() {
        own[386 + 24 * i..][..24].copy_from_slice(&element(fragment));
    }
    own[482] = u8::from(!rest.is_empty());
    number(&mut own[483..495], size.cast_signed());
    checksum(own);
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut more = [0; BLOCK];
        for (i, fragment) in chunk.iter().enumerate() {
            more[24 * i..][..24].copy_from_slice(&element(fragment));
        }
        more[504] = u8::from(chunks.peek().is_some());
        out.extend(more);
    }
}
