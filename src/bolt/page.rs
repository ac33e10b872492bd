//! Bytes of pages: headers, meta pages, freelists. Elements are in `node.rs`.

use super::{Error, Problem, Result};

pub(super) const HEADER: usize = 16;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const META_LEN: usize = 64;
const NO_FREELIST: u64 = u64::MAX;
/// A header's count that says "the real count is the first element" (`bbolt` freelist.go).
const COUNT_IN_BODY: usize = 0xFFFF;

/// Page ids that files may be made with; bbolt takes the system's page size when it creates one.
pub(super) const PAGE_SIZES: std::ops::RangeInclusive<usize> = 1024..=65_536;

pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Branch = 0x01,
    Leaf = 0x02,
    Meta = 0x04,
    Freelist = 0x10,
}

/// The 16 bytes every page starts with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) kind: Option<Kind>,
    pub(super) count: usize,
    /// Pages that follow this one and belong to it.
    pub(super) overflow: u32,
}

impl Header {
    /// `b` holds at least [`HEADER`] bytes.
    pub(super) fn decode(b: &[u8]) -> Self {
        let kind = match u16_at(b, 8) {
            0x01 => Some(Kind::Branch),
            0x02 => Some(Kind::Leaf),
            0x04 => Some(Kind::Meta),
            0x10 => Some(Kind::Freelist),
            _ => None,
        };
        Self { id: u64_at(b, 0), kind, count: usize::from(u16_at(b, 10)), overflow: u32_at(b, 12) }
    }

    pub(super) fn encode(id: u64, kind: Kind, count: usize, overflow: u32) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..8].copy_from_slice(&id.to_le_bytes());
        out[8..10].copy_from_slice(&(kind as u16).to_le_bytes());
        // Both callers keep below the limit: nodes split, freelists use COUNT_IN_BODY.
        out[10..12].copy_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
        out[12..16].copy_from_slice(&overflow.to_le_bytes());
        out
    }
}

/// One state of the database: what a meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_size: usize,
    pub(super) root: u64,
    pub(super) sequence: u64,
    /// `None`: not persisted (`NoFreelistSync`, as containerd ≥ 1.7 opens meta.db).
    pub(super) freelist: Option<u64>,
    /// First page id never used.
    pub(super) high_water: u64,
    pub(super) txid: u64,
}

impl Meta {
    /// Reads the meta page whose first bytes are `b`.
    pub(super) fn decode(b: &[u8]) -> Result<Self, &'static str> {
        if b.len() < HEADER + META_LEN {
            return Err("the file is too short");
        }
        let body = &b[HEADER..HEADER + META_LEN];
        if u32_at(body, 0) != MAGIC {
            return Err("no bbolt magic in either meta page");
        }
        if u32_at(body, 4) != VERSION {
            return Err("a format version other than 2");
        }
        if u64_at(body, 56) != fnv1a(&body[..56]) {
            return Err("a wrong checksum in the meta pages");
        }
        let page_size = u32_at(body, 8) as usize;
        if !PAGE_SIZES.contains(&page_size) || !page_size.is_power_of_two() {
            return Err("an impossible page size");
        }
        Ok(Self {
            page_size,
            root: u64_at(body, 16),
            sequence: u64_at(body, 24),
            freelist: Some(u64_at(body, 32)).filter(|id| *id != NO_FREELIST),
            high_water: u64_at(body, 40),
            txid: u64_at(body, 48),
        })
    }

    /// What a meta page may have said whose checksum is wrong.
    pub(super) fn guess(b: &[u8]) -> Option<Self> {
        let body = b.get(HEADER..HEADER + META_LEN)?;
        let size = u32_at(body, 8) as usize;
        // Most files have pages of this size.
        let page_size = if PAGE_SIZES.contains(&size) && size.is_power_of_two() { size } else { super::PAGE_SIZE };
        Some(Self {
            page_size,
            root: u64_at(body, 16),
            sequence: u64_at(body, 24),
            freelist: None,
            high_water: u64_at(body, 40),
            txid: u64_at(body, 48),
        })
    }

    /// The page (0 or 1) this state belongs on.
    pub(super) fn slot(&self) -> u64 {
        self.txid % 2
    }

    /// The whole meta page for `slot`.
    pub(super) fn encode(&self, slot: u64) -> Vec<u8> {
        let mut page = vec![0; self.page_size];
        page[..HEADER].copy_from_slice(&Header::encode(slot, Kind::Meta, 0, 0));
        let body = &mut page[HEADER..HEADER + META_LEN];
        body[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        body[4..8].copy_from_slice(&VERSION.to_le_bytes());
        body[8..12].copy_from_slice(&u32::try_from(self.page_size).unwrap_or(0).to_le_bytes());
        for (at, value) in [
            (16, self.root),
            (24, self.sequence),
            (32, self.freelist.unwrap_or(NO_FREELIST)),
            (40, self.high_water),
            (48, self.txid),
        ] {
            body[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let sum = fnv1a(&body[..56]);
        body[56..64].copy_from_slice(&sum.to_le_bytes());
        page
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The ids on a freelist page (`b`: the page with its overflow).
pub(super) fn decode_freelist(b: &[u8]) -> Result<Vec<u64>> {
    let header = Header::decode(b);
    let bad = || Error::Damaged(Problem::BadPage { id: header.id, what: "a freelist longer than its pages" });
    let (count, start) = if header.count == COUNT_IN_BODY {
        let count = b.get(HEADER..HEADER + 8).map(|b| u64_at(b, 0)).ok_or_else(bad)?;
        (usize::try_from(count).map_err(|_| bad())?, HEADER + 8)
    } else {
        (header.count, HEADER)
    };
    let bytes = count.checked_mul(8).and_then(|len| b.get(start..start.checked_add(len)?)).ok_or_else(bad)?;
    Ok(bytes.chunks_exact(8).map(|id| u64_at(id, 0)).collect())
}

/// Bytes a freelist page of `count` ids takes, header included.
pub(super) fn freelist_len(count: usize) -> usize {
    HEADER + 8 * (count + usize::from(count >= COUNT_IN_BODY))
}

/// A freelist page over `pages` pages; `ids` ascend.
pub(super) fn encode_freelist(id: u64, ids: &[u64], pages: u32, page_size: usize) -> Vec<u8> {
    let mut out = Header::encode(id, Kind::Freelist, ids.len().min(COUNT_IN_BODY), pages - 1).to_vec();
    if ids.len() >= COUNT_IN_BODY {
        out.extend((ids.len() as u64).to_le_bytes());
    }
    out.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    out.resize(pages as usize * page_size, 0);
    out
}
