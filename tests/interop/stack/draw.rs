//! Draws stacks: few names, so that entries meet; mostly what containerd accepts, by the model.

use ::prebake::layer::Compression;

use super::archive::{Contents, Entry, record};
use super::attributes;
use super::features::REFUSED;
use super::model::{Kind, Model};
use super::{Layer, Stack};
use crate::support::rng::Rng;

const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"ETC",
    b"conf",
    b"data",
    b"x y",
    b"...",
    b".wh",
    b"new\nline",
    b"\xc3\xbc",
    b"\xff\xfe",
    b"LONG",
    b"-",
];
/// Draws for an entry that containerd accepts before none is taken.
const TRIES: usize = 30;

struct Draw {
    rng: Rng,
    names: Vec<Vec<u8>>,
    model: Model,
    /// For what containerd may refuse it.
    wild: Option<&'static str>,
}

/// The stack of a seed.
pub fn draw(seed: u64) -> Stack {
    let mut rng = Rng::new(seed);
    let wild = rng.one_in(5).then(|| REFUSED[rng.below(REFUSED.len())]);
    let many = 3 + rng.below(6);
    let names = (0..many).map(|_| name(&mut rng)).collect();
    let mut draw = Draw { rng, names, model: Model::default(), wild };
    let mut layers: Vec<Layer> = Vec::new();
    for i in 0..=draw.rng.below(6) {
        let layer = if i > 0 && draw.rng.one_in(15) { layers[draw.rng.below(i)].clone() } else { draw.layer() };
        layers.push(draw.settle(layer));
    }
    let docker = draw.rng.one_in(3);
    // An empty layer at the bottom would be the same in every image, and the one's snapshot would be the other's.
    if layers[0].entries.is_empty() {
        layers[0].tail = Some(seed.to_le_bytes().to_vec());
    }
    Stack { layers, docker }
}

fn name(rng: &mut Rng) -> Vec<u8> {
    match NAMES[rng.below(NAMES.len())] {
        b"LONG" => vec![b'l'; 101 + rng.below(100)],
        name => name.to_vec(),
    }
}

impl Draw {
    fn layer(&mut self) -> Layer {
        if self.wild == Some("a blob without a byte") && self.rng.one_in(2) {
            return Layer { entries: Vec::new(), compression: Compression::None, tail: None };
        }
        let count = match self.rng.below(10) {
            0 => 0,
            1 => 60,
            _ => 1 + self.rng.below(30),
        };
        let before = self.model.clone();
        let mut entries: Vec<Entry> = Vec::new();
        for _ in 0..count {
            entries.extend(self.entry(entries.last()));
        }
        // Applied when the layer is settled.
        self.model = before;
        let compression =
            [Compression::None, Compression::Gzip, Compression::Gzip, Compression::Zstd][self.rng.below(4)];
        let tail = match self.rng.below(8) {
            // Without an end as well, it would have no byte.
            0 if !entries.is_empty() => None,
            1 => {
                let len = 1 + self.rng.below(3000);
                Some(self.rng.bytes(len))
            }
            _ => Some(Vec::new()),
        };
        Layer { entries, compression, tail }
    }

    /// Applies a layer to the model, without those of its entries that are refused where it lies.
    fn settle(&mut self, mut layer: Layer) -> Layer {
        let wild = self.wild;
        layer.entries.retain(|entry| self.take(entry).is_ok() || wild.is_some());
        self.model.end();
        layer
    }

    /// Applies an entry, unless it would be refused.
    fn take(&mut self, entry: &Entry) -> Result<(), &'static str> {
        self.model = self.after(entry)?;
        Ok(())
    }

    fn after(&self, entry: &Entry) -> Result<Model, &'static str> {
        let mut model = self.model.clone();
        model.apply(entry)?;
        model.can_end()?;
        Ok(model)
    }

    /// An entry that is refused for the wanted reason.
    fn refused(&mut self, wanted: &str) -> Option<Entry> {
        for _ in 0..300 {
            let entry = self.any();
            if self.after(&entry).is_err_and(|reason| reason == wanted) {
                return Some(entry);
            }
        }
        None
    }

    fn entry(&mut self, last: Option<&Entry>) -> Option<Entry> {
        if let Some(wanted) = self.wild
            && self.rng.one_in(20)
        {
            return self.refused(wanted);
        }
        for _ in 0..TRIES {
            let entry = match last {
                // Twice the same, as archives that were appended to have it.
                Some(last) if self.rng.one_in(40) => last.clone(),
                _ => self.any(),
            };
            if self.take(&entry).is_ok() {
                return Some(entry);
            }
        }
        None
    }

    fn any(&mut self) -> Entry {
        let path = self.path();
        let mut entry = match self.rng.below(100) {
            0..22 => Entry::new(path, b'5'),
            22..48 => Entry { contents: attributes::contents(&mut self.rng), ..Entry::new(path, b'0') },
            48..60 => Entry { link: self.symlink_target(), ..Entry::new(path, b'2') },
            60..70 => Entry { link: self.hard_link_target(&path), ..Entry::new(path, b'1') },
            70..80 => Entry::new(self.whiteout(), b'0'),
            80..84 => Entry::new([self.directory(), b"/.wh..wh..opq".to_vec()].concat(), b'0'),
            84..89 => Entry { device: self.device(), ..Entry::new(path, [b'3', b'4'][self.rng.below(2)]) },
            89..91 => Entry::new(path, b'6'),
            91..93 => Entry { contents: self.global(), ..Entry::new(self.global_name(path), b'g') },
            93..95 => Entry::new([&b"."[..], b"./", b"/", b"..", b"a/..", b"../../"][self.rng.below(6)], b'5'),
            95..97 => Entry::new([path, b"/".to_vec()].concat(), 0),
            97 => Entry { contents: attributes::contents(&mut self.rng), ..Entry::new(path, 0) },
            98 => Entry::new(self.odd_whiteout(), b'0'),
            _ if self.wild.is_some() => Entry::new(path, b"7AMZ"[self.rng.below(4)]),
            _ => Entry::new(path, b'5'),
        };
        if entry.flag != b'g' {
            attributes::set(&mut self.rng, &mut entry);
        }
        entry.path = self.spelled(entry.path, entry.flag);
        entry
    }

    fn name(&mut self) -> Vec<u8> {
        self.names[self.rng.below(self.names.len())].clone()
    }

    /// A path from the few names, or one that is there already, here or in a lower layer.
    fn path(&mut self) -> Vec<u8> {
        match self.rng.below(10) {
            0..2 => self.known(|_| true),
            2..5 => [self.known(|kind| matches!(kind, Kind::Directory | Kind::Link(_))), b"/".to_vec(), self.name()]
                .concat(),
            5..8 => [self.name(), b"/".to_vec(), self.name()].concat(),
            8 => (0..4).map(|_| self.name()).collect::<Vec<_>>().join(&b'/'),
            _ => self.name(),
        }
    }

    fn known(&mut self, wanted: impl Fn(&Kind) -> bool) -> Vec<u8> {
        let trees = self.model.lower.len() + 1;
        let tree = match self.rng.below(trees + 2) {
            i if i < trees - 1 => &self.model.lower[i],
            _ => &self.model.tree,
        };
        let paths: Vec<&Vec<u8>> = tree.nodes.iter().filter(|(_, kind)| wanted(kind)).map(|(path, _)| path).collect();
        if paths.is_empty() { self.name() } else { paths[self.rng.below(paths.len())][1..].to_vec() }
    }

    fn directory(&mut self) -> Vec<u8> {
        match self.rng.below(5) {
            0 => b".".to_vec(),
            1 => self.path(),
            _ => self.known(|kind| *kind == Kind::Directory),
        }
    }

    fn symlink_target(&mut self) -> Vec<u8> {
        let path = self.path();
        match self.rng.below(8) {
            0 if self.rng.one_in(8) => Vec::new(),
            0 => [b"/", path.as_slice()].concat(),
            1 => [b"../", path.as_slice()].concat(),
            2 => [self.known(|kind| matches!(kind, Kind::Link(_))), b"/../".to_vec(), self.name()].concat(),
            3 => [b"../../../", path.as_slice()].concat(),
            4 => b".".to_vec(),
            5 => self.known(|kind| matches!(kind, Kind::Link(_))),
            6 => [self.name(), b"/./".to_vec(), vec![b's'; 100]].concat(),
            _ => path,
        }
    }

    fn hard_link_target(&mut self, own: &[u8]) -> Vec<u8> {
        let target = match self.rng.below(8) {
            0 => own.to_vec(),
            1 => self.path(),
            2 => [self.known(|kind| matches!(kind, Kind::Link(_))), b"/".to_vec(), self.name()].concat(),
            3 => self.known(|kind| matches!(kind, Kind::Link(_) | Kind::Other)),
            _ => self.known(|kind| *kind == Kind::File),
        };
        [&b""[..], b"", b"", b"/", b"./", b"../"][self.rng.below(6)].iter().copied().chain(target).collect()
    }

    fn whiteout(&mut self) -> Vec<u8> {
        let path = self.path();
        let (dir, base) = super::path::split(&path);
        [dir, b".wh.", base].concat()
    }

    fn odd_whiteout(&mut self) -> Vec<u8> {
        let base = [&b".wh."[..], b".wh..", b".wh...", b".wh..wh.foo", b".wh..wh.", b".wh..wh.plnk"][self.rng.below(6)];
        match self.rng.below(2) {
            0 => base.to_vec(),
            _ => [self.directory(), b"/".to_vec(), base.to_vec()].concat(),
        }
    }

    fn device(&mut self) -> (i64, i64) {
        [
            (0, 0),
            (0, 0),
            (1, 3),
            (5, 1),
            (8, 255),
            (4095, 1_048_575),
            (4096, 1),
            (1, 1 << 20),
            (70_000, 3),
            (0, 0o7_777_777),
        ][self.rng.below(10)]
    }

    fn global(&mut self) -> Contents {
        let path = self.path();
        let records = match self.rng.below(3) {
            0 => record(b"path", &path),
            _ => [record(b"comment", b"of everything"), record(b"mtime", b"1234567890.5")].concat(),
        };
        Contents::Plain(records)
    }

    fn global_name(&mut self, path: Vec<u8>) -> Vec<u8> {
        if self.rng.one_in(3) { path } else { b"pax_global_header".to_vec() }
    }

    /// Another spelling of a path.
    fn spelled(&mut self, path: Vec<u8>, flag: u8) -> Vec<u8> {
        let around = |before: &[u8], behind: &[u8]| [before, path.as_slice(), behind].concat();
        match self.rng.below(30) {
            0 => around(b"/", b""),
            1 => around(b"../", b""),
            2 => around(b"gone/../", b""),
            3 => around(b"", b"/."),
            4 => path.iter().flat_map(|byte| if *byte == b'/' { b"//".to_vec() } else { vec![*byte] }).collect(),
            5 => around(b"", b"/"),
            6..9 => around(b"./", b""),
            9..20 if flag == b'5' => around(b"", b"/"),
            _ => path,
        }
    }
}
