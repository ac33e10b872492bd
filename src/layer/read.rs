//! Entries of a tar stream, understood as Go's `archive/tar` understands them, because what is made of a layer must equal
//! what containerd makes of it. The blocks are laid out by the tar crate's types.
//!
//! ```text
//! block of 512: header (v7, ustar, star or GNU) → data, padded to 512 → …; two blocks of zeros end it
//!   x  records "LENGTH KEY=VALUE\n" for the next entry       g  the same for all: not applied, as in Go
//!   L, K  a long name, a long link target of the next entry
//!   S  old GNU sparse: the map is in the header and in blocks behind it
//!   GNU.sparse.*  records of PAX sparse 0.0, 0.1 (map in the records) and 1.0 (map in front of the data)
//! ```

use std::io::{self, BufRead, Read};

use tar::{GnuSparseHeader, Header};

const BLOCK: usize = 512;
/// Longest extended header or long name, in bytes (Go `maxSpecialFileSize`).
const MAX_SPECIAL: i64 = 1 << 20;
/// Most fragments of a sparse file; each costs its archive some bytes, and a reader some more.
const MAX_FRAGMENTS: usize = 1 << 20;
const XATTR: &[u8] = b"SCHILY.xattr.";
/// What a hole of a sparse file reads as.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
const SPARSE: &str = "GNU.sparse.";

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// What the archive is read from failed, or ended too early.
    #[error("reading the archive failed")]
    Io(#[from] io::Error),
    /// The archive is not one, or breaks off.
    #[error("not a tar archive: {0}")]
    Bad(&'static str),
}

type Result<T, E = TarError> = std::result::Result<T, E>;

/// An instant: seconds since 1970 and nanoseconds on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with contents.
    Regular,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Records for the whole archive; no file.
    Global,
    /// Anything else, by its type flag.
    Other(u8),
}

/// An entry of an archive. Paths and names are bytes as they were found, not cleaned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Permission bits, setuid, setgid and sticky; whatever else the archive says is kept as well.
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// When it was changed.
    pub mtime: Time,
    /// When it was read, where the archive says.
    pub atime: Option<Time>,
    /// Bytes of contents, holes included.
    pub size: i64,
    /// Major and minor number of a device.
    pub device: (i64, i64),
    /// Extended attributes in the order of their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A run of a sparse file that is in the archive.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    offset: i64,
    len: i64,
}

/// Reads an archive entry by entry. After an error it is not to be used any more.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// Bytes of the current entry that are still to come from the archive, and of padding behind them.
    left: i64,
    pad: usize,
    /// Where in the current entry's contents it is, and how long they are.
    at: i64,
    size: i64,
    /// The fragments of a sparse file that are still to come; `None`: it is all there.
    fragments: Option<std::vec::IntoIter<Fragment>>,
    fragment: Fragment,
    /// Whether the last chunk was of a hole.
    in_hole: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads from `inner`. Behind the archive there may be more.
    pub fn new(inner: R) -> Self {
        let fragment = Fragment { offset: 0, len: 0 };
        Self { inner, left: 0, pad: 0, at: 0, size: 0, fragments: None, fragment, in_hole: false }
    }

    /// The next entry; `None` behind the last.
    ///
    /// # Errors
    /// [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let Some(block) = self.skip()?.then(|| self.header()).transpose()?.flatten() else { return Ok(None) };
            let (mut entry, flag) = decode(&block)?;
            self.expect_data(&entry)?;
            match flag {
                b'x' => records = self.special().and_then(|bytes| Records::parse(&bytes))?,
                b'g' => {
                    let records = self.special().and_then(|bytes| Records::parse(&bytes))?;
                    let path = records.get("path").filter(|path| !path.is_empty()).map_or(entry.path, <[u8]>::to_vec);
                    return Ok(Some(Entry { path, ..entry }));
                }
                b'L' => long_name = Some(until_nul(&self.special()?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.special()?).to_vec()),
                _ => {
                    records.merge(&mut entry)?;
                    entry.path = long_name.filter(|name| !name.is_empty()).unwrap_or(entry.path);
                    entry.link = long_link.filter(|link| !link.is_empty()).unwrap_or(entry.link);
                    if flag == 0 && entry.path.last() == Some(&b'/') {
                        entry.kind = EntryKind::Directory;
                    }
                    // The records may have changed the size.
                    self.expect_data(&entry)?;
                    let fragments = if flag == b'S' {
                        Some(self.old_sparse(&block, &mut entry)?)
                    } else {
                        self.pax_sparse(&records, &mut entry)?
                    };
                    self.begin(&entry, fragments)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The next piece of the current entry's contents, as it lies in the buffer of what is read from; empty at their end.
    /// The same again until [`Reader::advance`] passes over it.
    ///
    /// # Errors
    /// [`TarError`]; also when the archive ends before they do.
    pub fn chunk(&mut self) -> Result<&[u8]> {
        let until = |end: i64, at: i64| usize::try_from(end - at).unwrap_or(usize::MAX);
        let mut len = until(self.size, self.at);
        self.in_hole = false;
        if let Some(fragments) = &mut self.fragments {
            while self.at >= self.fragment.offset + self.fragment.len {
                match fragments.next() {
                    Some(next) => self.fragment = next,
                    // Nothing but a hole behind the last one.
                    None => self.fragment = Fragment { offset: self.size, len: i64::MAX - self.size },
                }
            }
            if len == 0 && self.left > 0 {
                return Err(TarError::Bad("a sparse file with more data than its map"));
            }
            if self.at < self.fragment.offset {
                self.in_hole = true;
                return Ok(&ZEROS[..len.min(until(self.fragment.offset, self.at)).min(ZEROS.len())]);
            }
            len = len.min(until(self.fragment.offset + self.fragment.len, self.at));
        }
        if len == 0 {
            return Ok(&[]);
        }
        len = len.min(until(self.left, 0));
        if len == 0 {
            return Err(TarError::Bad("a sparse file with less data than its map"));
        }
        match self.inner.fill_buf()? {
            [] => Err(TarError::Bad("it ends in the middle of a file")),
            bytes => Ok(&bytes[..len.min(bytes.len())]),
        }
    }

    /// Passes over `n` bytes of what [`Reader::chunk`] gave.
    pub fn advance(&mut self, n: usize) {
        let passed = i64::try_from(n).unwrap_or(0);
        self.at += passed;
        if !self.in_hole {
            self.inner.consume(n);
            self.left -= passed;
        }
    }

    /// What it reads from.
    pub(super) fn source(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Bytes of the current entry that are still to come.
    pub(super) fn left(&self) -> u64 {
        u64::try_from(self.left).unwrap_or(0)
    }

    /// Whether the current entry has holes.
    pub(super) fn is_sparse(&self) -> bool {
        self.fragments.is_some()
    }

    /// The source was moved behind the current entry's contents.
    pub(super) fn passed(&mut self) {
        self.left = 0;
    }

    /// Passes over what is left of the current entry; `false` when the archive ends in its padding, which Go lets pass.
    fn skip(&mut self) -> Result<bool> {
        while self.left > 0 {
            let bytes = self.inner.fill_buf()?;
            if bytes.is_empty() {
                return Err(TarError::Bad("it ends in the middle of a file"));
            }
            let n = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.inner.consume(n);
            self.left -= i64::try_from(n).unwrap_or(0);
        }
        let mut pad = [0; BLOCK];
        let whole = read_full(&mut self.inner, &mut pad[..self.pad])? == self.pad;
        self.pad = 0;
        Ok(whole)
    }

    /// The next header's block; `None` at the end, which two blocks of zeros mark, or nothing at all.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        for zeros in 0..2 {
            match read_full(&mut self.inner, &mut block)? {
                0 => return Ok(None),
                BLOCK => {}
                _ => return Err(TarError::Bad("it ends in the middle of a block")),
            }
            if block.iter().any(|byte| *byte != 0) {
                return if zeros == 0 { Ok(Some(block)) } else { Err(TarError::Bad("a lone block of zeros")) };
            }
        }
        Ok(None)
    }

    /// Prepares to pass over, or to read, an entry's data.
    fn expect_data(&mut self, entry: &Entry) -> Result<()> {
        let header_only = !matches!(entry.kind, EntryKind::Regular | EntryKind::Other(_) | EntryKind::Global);
        let size = if header_only { 0 } else { entry.size };
        if size < 0 {
            return Err(TarError::Bad("a negative size"));
        }
        self.left = size;
        self.pad = usize::try_from(size % 512).map_or(0, |rest| (BLOCK - rest) % BLOCK);
        (self.at, self.size, self.fragments) = (0, size, None);
        Ok(())
    }

    /// The whole data of an entry that says something about the next one.
    fn special(&mut self) -> Result<Vec<u8>> {
        if self.left > MAX_SPECIAL {
            return Err(TarError::Bad("an extended header of more than 1 MiB"));
        }
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or(0)];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    fn exact(&mut self, buf: &mut [u8]) -> Result<()> {
        if read_full(&mut self.inner, buf)? < buf.len() {
            return Err(TarError::Bad("it ends in the middle of a file"));
        }
        self.left -= i64::try_from(buf.len()).unwrap_or(0);
        Ok(())
    }

    /// Makes ready for reading the contents.
    fn begin(&mut self, entry: &Entry, fragments: Option<Vec<Fragment>>) -> Result<()> {
        let Some(mut fragments) = fragments else { return Ok(()) };
        let header_only = !matches!(entry.kind, EntryKind::Regular | EntryKind::Other(_));
        let mut end = 0;
        for fragment in &fragments {
            let next = fragment.offset.checked_add(fragment.len);
            let Some(next) = next.filter(|next| fragment.offset >= end && fragment.len >= 0 && *next <= entry.size)
            else {
                return Err(TarError::Bad("a sparse map that does not fit its file"));
            };
            end = next;
        }
        if header_only || entry.size < 0 {
            return Err(TarError::Bad("a sparse map of something without contents"));
        }
        fragments.retain(|fragment| fragment.len > 0);
        self.size = entry.size;
        let mut fragments = fragments.into_iter();
        self.fragment = fragments.next().unwrap_or(Fragment { offset: self.size, len: i64::MAX - self.size });
        self.fragments = Some(fragments);
        Ok(())
    }

    fn old_sparse(&mut self, block: &[u8; BLOCK], entry: &mut Entry) -> Result<Vec<Fragment>> {
        let header = Header::from_byte_slice(block);
        let gnu = header.as_gnu().ok_or(TarError::Bad("a sparse file of an unknown kind"))?;
        entry.size = numeric(&gnu.realsize)?;
        let mut fragments = Vec::new();
        add_fragments(&gnu.sparse, &mut fragments)?;
        let mut more = gnu.isextended[0] != 0;
        while more {
            let mut extension = tar::GnuExtSparseHeader::new();
            // Not part of the data's size.
            if read_full(&mut self.inner, extension.as_mut_bytes())? < BLOCK {
                return Err(TarError::Bad("it ends in the middle of a block"));
            }
            add_fragments(&extension.sparse, &mut fragments)?;
            more = extension.isextended[0] != 0;
        }
        Ok(fragments)
    }

    fn pax_sparse(&mut self, records: &Records, entry: &mut Entry) -> Result<Option<Vec<Fragment>>> {
        let get = |name: &str| records.get(&format!("{SPARSE}{name}")).unwrap_or_default();
        let version = (get("major"), get("minor"));
        let in_data = match version {
            (b"0", b"0" | b"1") => false,
            (b"1", b"0") => true,
            (b"", b"") if !get("map").is_empty() => false,
            _ => return Ok(None),
        };
        if !get("name").is_empty() {
            entry.path = get("name").to_vec();
        }
        let size = if get("size").is_empty() { get("realsize") } else { get("size") };
        if !size.is_empty() {
            entry.size = decimal(size)?;
        }
        let bad = || TarError::Bad("a bad sparse map");
        let limit = |count: i64| usize::try_from(count).ok().filter(|n| *n <= MAX_FRAGMENTS).ok_or_else(bad);
        if !in_data {
            let count = limit(decimal(get("numblocks"))?)?;
            let map = get("map");
            let numbers: Vec<&[u8]> =
                if map.is_empty() { Vec::new() } else { map.split(|byte| *byte == b',').collect() };
            if numbers.len() != 2 * count {
                return Err(bad());
            }
            let pair = |pair: &[&[u8]]| Ok(Fragment { offset: decimal(pair[0])?, len: decimal(pair[1])? });
            return numbers.chunks_exact(2).map(pair).collect::<Result<_>>().map(Some);
        }
        let mut numbers = Numbers::default();
        let count = limit(numbers.next(self)?)?;
        let mut fragments = Vec::new();
        for _ in 0..count {
            fragments.push(Fragment { offset: numbers.next(self)?, len: numbers.next(self)? });
        }
        Ok(Some(fragments))
    }
}

/// Lines of decimal numbers in the blocks in front of a sparse file's data.
#[derive(Default)]
struct Numbers {
    block: Vec<u8>,
    at: usize,
}

impl Numbers {
    fn next<R: BufRead>(&mut self, reader: &mut Reader<R>) -> Result<i64> {
        let mut line = Vec::new();
        loop {
            if self.at == self.block.len() {
                self.block.resize(BLOCK, 0);
                if reader.left < 512 {
                    return Err(TarError::Bad("a sparse map that does not end"));
                }
                reader.exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&line),
                byte if line.len() < 32 => line.push(byte),
                _ => return Err(TarError::Bad("a bad sparse map")),
            }
        }
    }
}

fn add_fragments(entries: &[GnuSparseHeader], fragments: &mut Vec<Fragment>) -> Result<()> {
    for entry in entries.iter().take_while(|entry| entry.offset[0] != 0) {
        if fragments.len() == MAX_FRAGMENTS {
            return Err(TarError::Bad("a bad sparse map"));
        }
        fragments.push(Fragment { offset: numeric(&entry.offset)?, len: numeric(&entry.numbytes)? });
    }
    Ok(())
}

/// The records of an extended header; of several with one key the last counts.
#[derive(Default)]
struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Parses "LENGTH KEY=VALUE\n" by the length: a value may hold anything.
    fn parse(mut bytes: &[u8]) -> Result<Self> {
        let bad = || TarError::Bad("a bad extended header");
        let mut records = Self::default();
        let mut map: Vec<Vec<u8>> = Vec::new();
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let len = usize::try_from(decimal(&bytes[..space])?).map_err(|_| bad())?;
            if len < 5 || len > bytes.len() || len < space + 2 {
                return Err(bad());
            }
            let (record, rest) = bytes.split_at(len);
            bytes = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
            if key.is_empty() || if text { value.contains(&0) } else { key.contains(&0) } {
                return Err(bad());
            }
            match key {
                // Version 0.0 of sparse files has a pair of records for each fragment.
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let offset = key == b"GNU.sparse.offset";
                    if offset != map.len().is_multiple_of(2) || value.contains(&b',') {
                        return Err(bad());
                    }
                    map.push(value.to_vec());
                }
                _ => records.set(key, value),
            }
        }
        if !map.is_empty() {
            records.set(b"GNU.sparse.map", &map.join(&b','));
        }
        Ok(records)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.0.push((key.to_vec(), value.to_vec())),
        }
    }

    fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Puts the records into an entry; an empty value leaves what the header says.
    fn merge(&self, entry: &mut Entry) -> Result<()> {
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(XATTR) {
                entry.xattrs.push((name.to_vec(), value.clone()));
            }
            if value.is_empty() {
                continue;
            }
            match key.as_slice() {
                b"path" => entry.path.clone_from(value),
                b"linkpath" => entry.link.clone_from(value),
                b"uid" => entry.uid = decimal(value)?,
                b"gid" => entry.gid = decimal(value)?,
                b"size" => entry.size = decimal(value)?,
                b"mtime" => entry.mtime = pax_time(value)?,
                b"atime" => entry.atime = Some(pax_time(value)?),
                b"ctime" => drop(pax_time(value)?),
                _ => {}
            }
        }
        entry.xattrs.sort_unstable();
        Ok(())
    }
}

/// A header's fields, and its type flag.
fn decode(block: &[u8; BLOCK]) -> Result<(Entry, u8)> {
    let header = Header::from_byte_slice(block);
    let old = header.as_old();
    let (unsigned, signed) = checksums(block);
    if ![unsigned, signed].contains(&octal(&old.cksum)?) {
        return Err(TarError::Bad("a header with a wrong checksum"));
    }
    let mut device = (0, 0);
    let mut atime = None;
    let mut prefix: &[u8] = &[];
    if let Some(gnu) = header.as_gnu() {
        device = (numeric(&gnu.dev_major)?, numeric(&gnu.dev_minor)?);
        let time = |field: &[u8; 12]| if field[0] == 0 { Ok(None) } else { numeric(field).map(Some) };
        match (time(&gnu.atime), time(&gnu.ctime)) {
            (Ok(read), Ok(_)) => atime = read,
            // Go before 1.8 wrote a prefix there.
            _ => prefix = header.as_ustar().map_or(&block[345..500], |ustar| &ustar.prefix[..]),
        }
        prefix = until_nul(prefix);
        if !prefix.is_ascii() {
            prefix = &[];
        }
    } else if block[257..263] == *b"ustar\0" {
        device = (numeric(&block[329..337])?, numeric(&block[337..345])?);
        if block[508..] == *b"tar\0" {
            prefix = until_nul(&block[345..476]);
            atime = Some(numeric(&block[476..488])?);
            numeric(&block[488..500])?;
        } else {
            prefix = until_nul(&block[345..500]);
        }
    }
    let name = until_nul(&old.name);
    let path = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
    let flag = old.linkflag[0];
    let kind = match flag {
        b'0' | 0 => EntryKind::Regular,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::Char,
        b'4' => EntryKind::Block,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'g' => EntryKind::Global,
        other => EntryKind::Other(other),
    };
    let at = |seconds| Time { seconds, nanos: 0 };
    let entry = Entry {
        path,
        kind,
        link: until_nul(&old.linkname).to_vec(),
        mode: numeric(&old.mode)?,
        uid: numeric(&old.uid)?,
        gid: numeric(&old.gid)?,
        mtime: at(numeric(&old.mtime)?),
        atime: atime.map(at),
        size: numeric(&old.size)?,
        device,
        xattrs: Vec::new(),
    };
    Ok((entry, flag))
}

/// The sums of a header's bytes, its checksum taken for spaces, as unsigned and as signed bytes.
fn checksums(block: &[u8; BLOCK]) -> (i64, i64) {
    block.iter().enumerate().fold((0, 0), |(unsigned, signed), (i, byte)| {
        let byte = if (148..156).contains(&i) { b' ' } else { *byte };
        (unsigned + i64::from(byte), signed + i64::from(byte.cast_signed()))
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// A number in a header: octal, or, by its first bit, in base 256 and two's complement.
fn numeric(field: &[u8]) -> Result<i64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let invert = if field[0] & 0x40 == 0 { 0 } else { 0xff };
    let mut n: u64 = 0;
    for (i, byte) in field.iter().enumerate() {
        let byte = byte ^ invert;
        let byte = if i == 0 { byte & 0x7f } else { byte };
        if n >> 56 > 0 {
            return Err(TarError::Bad("a number that is too large"));
        }
        n = n << 8 | u64::from(byte);
    }
    let n = i64::try_from(n).map_err(|_| TarError::Bad("a number that is too large"))?;
    Ok(if invert == 0 { n } else { !n })
}

fn octal(field: &[u8]) -> Result<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let digits = until_nul(&field[start..end]);
    let bad = || TarError::Bad("a field that is no number");
    digits
        .iter()
        .try_fold(0_u64, |n, digit| {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
            n.checked_mul(8)?.checked_add(digit.into())
        })
        .map(u64::cast_signed)
        .ok_or_else(bad)
}

fn decimal(text: &[u8]) -> Result<i64> {
    // Go's and Rust's rules are the same: an optional sign, then digits.
    let parsed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    parsed.ok_or(TarError::Bad("a record that is no number"))
}

/// Seconds with a fraction, of which nine digits count.
fn pax_time(text: &[u8]) -> Result<Time> {
    let bad = || TarError::Bad("a record that is no time");
    let (seconds, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let whole = decimal(seconds)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let digit = |i: usize| u32::from(fraction.get(i).map_or(0, |digit| digit - b'0'));
    let nanos = (0..9).fold(0, |nanos, i| nanos * 10 + digit(i));
    if nanos > 0 && seconds.first() == Some(&b'-') {
        return Ok(Time { seconds: whole.checked_sub(1).ok_or_else(bad)?, nanos: 1_000_000_000 - nanos });
    }
    Ok(Time { seconds: whole, nanos })
}

/// Fills `buf` as far as there is something; how much.
fn read_full(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match from.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
