//! Layers that mean harm, or are broken: nothing is written outside of their snapshots, their image fails with a word about
//! what is wrong, nothing of it stays, and the others complete.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ::prebake::fixture::Content;
use ::prebake::layer::{Compression, compress};
use ::prebake::oci::{Digest, media_type};

use crate::stack::{Contents, Entry, Image, Sparse};
use crate::support::prebake::{Run, containerd_root, prebake};
use crate::support::registry::TestRegistry;
use crate::tree::{self, Now};

pub fn snapshots_dir(root: &Path) -> PathBuf {
    containerd_root(root).join("io.containerd.snapshotter.v1.overlayfs/snapshots")
}

/// Names in the directory of snapshots.
pub fn snapshots(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(snapshots_dir(root))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        entry.write(&mut tar);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn file(path: &str, contents: &[u8]) -> Entry {
    Entry { contents: Contents::Plain(contents.to_vec()), ..Entry::new(path, b'0') }
}

fn link(path: &str, target: impl AsRef<[u8]>, flag: u8) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..Entry::new(path, flag) }
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer as it should be.
fn layer(tar: &[u8], compression: Compression) -> (String, Vec<u8>, Digest) {
    (compression.oci_media_type(), compress(tar, compression).unwrap().0, Digest::of(tar))
}

fn good() -> Image {
    let tar = tar(&[Entry::new("good", b'5'), file("good/file", b"good")]);
    Image::new(vec![layer(&tar, Compression::Gzip)], false)
}

/// A registry with one image `stack:1` and a good one `good:1`.
fn registry(image: Image) -> TestRegistry {
    let mut all: Content = image.content;
    let good = good().content;
    all.blobs.extend(good.blobs);
    all.tags.extend(good.tags.into_iter().map(|((_, tag), digest)| (("good".to_owned(), tag), digest)));
    TestRegistry::start(all)
}

fn bake(root: &Path, image: Image, flags: &str) -> Run {
    let registry = registry(image);
    prebake(root, &format!("bake --unpack {flags} {} {}", registry.reference("stack:1"), registry.reference("good:1")))
}

/// Every way out that archives have tried; `canary` is outside.
fn escapes(canary: &Path) -> Vec<(&'static str, Vec<Vec<Entry>>)> {
    let out = canary.to_str().unwrap();
    let up = format!("{}{out}", "../".repeat(40));
    let opaque = |dir: &str| Entry::new(format!("{dir}/.wh..wh..opq"), b'0');
    let below = |path: &str| {
        vec![
            file(&format!("{path}/file"), b"bad"),
            file(&format!("{path}/new"), b"bad"),
            Entry { mode: 0o777, ..Entry::new(format!("{path}/dir"), b'5') },
            Entry::new(format!("{path}/.wh.file"), b'0'),
            opaque(path),
            link(&format!("{path}/s"), "/", b'2'),
            link(&format!("{path}/h"), "file", b'1'),
            Entry { device: (1, 3), ..Entry::new(format!("{path}/null"), b'3') },
        ]
    };
    let each = |first: Vec<Entry>, path: &str| -> Vec<Vec<Vec<Entry>>> {
        let two = |next: Entry| [first.clone(), vec![next]].concat();
        // In one layer, and with the way out in the layer below.
        let same = below(path).into_iter().map(|next| vec![two(next)]);
        let above = below(path).into_iter().map(|next| vec![first.clone(), vec![next]]);
        same.chain(above).collect()
    };
    let mut all: Vec<(&'static str, Vec<Vec<Entry>>)> = Vec::new();
    let mut add = |what, stacks: Vec<Vec<Vec<Entry>>>| all.extend(stacks.into_iter().map(|stack| (what, stack)));
    add("dots", each(Vec::new(), &up));
    add("an absolute name", each(Vec::new(), out));
    add("an absolute link", each(vec![link("l", out, b'2')], "l"));
    add("a relative link", each(vec![link("l", &up, b'2')], "l"));
    add("links over links", each(vec![link("a", "b", b'2'), link("b", out, b'2')], "a"));
    add("a link in a link's text", each(vec![link("r", "/", b'2'), link("l", format!("r{out}"), b'2')], "l"));
    add(
        "a directory that becomes a link",
        each(vec![Entry::new("d", b'5'), file("d/x", b""), link("d", out, b'2')], "d"),
    );
    add(
        "a link that becomes a directory and a link again",
        each(vec![link("d", out, b'2'), Entry::new("d", b'5'), file("d/x", b""), link("d", &up, b'2')], "d"),
    );
    add(
        "the link itself",
        vec![
            vec![vec![link("l", out, b'2'), Entry { mode: 0o777, uid: 7, ..Entry::new("l", b'5') }]],
            vec![vec![Entry { mode: 0o777, uid: 7, ..Entry::new("d", b'5') }, link("d", out, b'2')]],
            vec![vec![link("s", format!("{out}/file"), b'2'), link("h", "s", b'1'), file("h", b"bad")]],
            vec![vec![link("s", format!("{out}/file"), b'2'), file("s", b"bad")]],
            vec![vec![Entry {
                xattrs: vec![(b"user.x".to_vec(), b"y".to_vec())],
                mode: 0o777,
                uid: 7,
                ..link("l", out, b'2')
            }]],
        ],
    );
    add(
        "hard links",
        vec![
            vec![vec![link("h", format!("{out}/file"), b'1'), file("h", b"bad")]],
            vec![vec![link("h", format!("{up}/file"), b'1'), file("h", b"bad")]],
            vec![vec![link("l", out, b'2'), link("h", "l/file", b'1'), Entry { mode: 0o777, ..Entry::new("h", b'0') }]],
            vec![vec![link("h", "..", b'1')], vec![link("h", "", b'1')]],
        ],
    );
    add(
        "whiteouts of directories above",
        vec![
            vec![vec![Entry::new(".wh..", b'0')]],
            vec![vec![Entry::new(".wh...", b'0')]],
            vec![vec![Entry::new(".wh.", b'0')]],
            vec![vec![file("x", b"")], vec![Entry::new("d/.wh...", b'0')]],
            vec![vec![file("x", b"")], vec![Entry::new(".wh..", b'0')]],
        ],
    );
    add(
        "devices",
        vec![vec![vec![
            file("f", b"x"),
            Entry { device: (1, 3), ..Entry::new("f", b'3') },
            file("f", b"over a device"),
        ]]],
    );
    all
}

#[test]
fn nothing_is_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    fs::create_dir_all(canary.join("dir/inside")).unwrap();
    fs::write(canary.join("file"), "alive").unwrap();
    symlink("file", canary.join("link")).unwrap();
    // Read once before: that is what their access times say then.
    tree::read(&canary);
    let before = tree::read(&canary);
    let root = dir.path().join("root");
    let (mut refused, mut taken) = (0, 0);
    let escapes = escapes(&canary);
    for (what, layers) in &escapes {
        let layers: Vec<_> = layers.iter().map(|entries| layer(&tar(entries), Compression::None)).collect();
        let run = bake(&root, Image::new(layers, false), "");
        let text = format!("{what}: {run:?}");
        match run.code {
            0 => taken += 1,
            1 => {
                refused += 1;
                // One of the two images failed, by a layer.
                assert!(run.stderr.contains("stack:1: unpacking layer sha256:"), "{text}");
                assert!(run.stdout.contains("1 images, 1 failed"), "{text}");
            }
            _ => panic!("{text}"),
        }
        let now = Now::since(std::time::SystemTime::now());
        assert_eq!(tree::differences(&before, &tree::read(&canary), &now), Vec::<String>::new(), "{text}");
        assert!(snapshots(&root).iter().all(|name| name.parse::<u64>().is_ok()), "{text}");
        let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside.len(), 2, "{text}: {beside:?}");
    }
    eprintln!("{} ways out: {taken} led nowhere, {refused} refused", escapes.len());
    assert!(taken > 30 && refused > 10);
    prebake(&root, "check").expect(0);
}

/// What is wrong, the layer, flags, and what the error has to say.
type Broken = (&'static str, (String, Vec<u8>, Digest), &'static str, &'static str);

fn broken() -> Vec<Broken> {
    let gzip = |tar: &[u8]| compress(tar, Compression::Gzip).unwrap().0;
    let zstd = |tar: &[u8]| compress(tar, Compression::Zstd).unwrap().0;
    let plain = tar(&[file("a", &(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())]);
    let kind = |compression: Compression| compression.oci_media_type();
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let flip = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 0x55;
        bytes
    };
    let more = |mut bytes: Vec<u8>| {
        bytes.extend(b"garbage");
        bytes
    };
    let one = |entry: Entry| layer(&tar(&[entry]), Compression::Gzip);
    let id = Digest::of(&plain);
    let with = |compression: Compression, bytes: Vec<u8>| (kind(compression), bytes, id.clone());
    let bomb = tar(&[file("zeros", &vec![0; 64 << 20])]);
    let holes = Entry { contents: Contents::Sparse(Sparse::Pax10, 1 << 50, Vec::new()), ..Entry::new("holes", b'0') };
    vec![
        (
            "truncated gzip",
            with(Compression::Gzip, cut(gzip(&plain))),
            "",
            "gzip cannot be decompressed: unexpected end",
        ),
        ("damaged gzip", with(Compression::Gzip, flip(gzip(&plain), 5000)), "", "gzip cannot be decompressed"),
        ("garbage behind gzip", with(Compression::Gzip, more(gzip(&plain))), "", "gzip cannot be decompressed"),
        ("truncated zstd", with(Compression::Zstd, cut(zstd(&plain))), "", "zstd cannot be decompressed"),
        ("damaged zstd", with(Compression::Zstd, flip(zstd(&plain), 8)), "", "zstd cannot be decompressed"),
        ("garbage behind zstd", with(Compression::Zstd, more(zstd(&plain))), "", "zstd cannot be decompressed"),
        ("a truncated archive", with(Compression::None, cut(plain.clone())), "", "not a tar archive: it ends"),
        ("no archive", (kind(Compression::None), vec![b'x'; 4096], id.clone()), "", "not a tar archive"),
        ("another archive", (GZIP.to_owned(), gzip(&tar(&[])), id.clone()), "", "and the image's config says sha256:"),
        ("bytes behind the archive", with(Compression::None, more(plain.clone())), "", "and the image's config says"),
        ("a bomb", layer(&bomb, Compression::Gzip), "--max-unpacked 1MiB", "unpacks to more than 1048576 bytes"),
        (
            "a bomb of zstd",
            layer(&bomb, Compression::Zstd),
            "--max-unpacked 1MiB",
            "unpacks to more than 1048576 bytes",
        ),
        ("a bomb of holes", one(holes), "--max-unpacked 16MiB", "unpacks to more than 16777216 bytes"),
        ("an unknown type", one(Entry::new("odd/thing", b'7')), "", "\"odd/thing\" is of the type '7'"),
        ("a long name", one(file(&"n".repeat(10_000), b"")), "", "making the file \"nnn"),
        ("a long path", one(file(&"n/".repeat(5_000), b"")), "", "making the directory of \"n/n/"),
        ("a name over a file", layer(&tar(&[file("a", b""), file("a/b", b"")]), Compression::None), "", "\"a/b\""),
        ("a missing target", one(link("here", "nowhere", b'1')), "", "making the hard link \"here\""),
        (
            "an unknown media type",
            ("application/vnd.oci.image.layer.v1.brotli".to_owned(), plain.clone(), id.clone()),
            "",
            "containerd cannot unpack the media type",
        ),
    ]
}

#[test]
fn broken_layers_say_what_is_wrong() {
    for flags in ["", "--discard-layers"] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for (what, layer, more, says) in broken() {
            let blob = Digest::of(&layer.1);
            let run = bake(&root, Image::new(vec![layer], false), &format!("{flags} {more}")).expect(1);
            assert!(
                run.stderr.contains(&format!("stack:1: unpacking layer {blob} failed: ")),
                "{what}: {}",
                run.stderr
            );
            assert!(run.stderr.contains(says), "{what}: {}", run.stderr);
            assert_eq!(snapshots(&root), ["1"], "{what}: only the good one's");
            prebake(&root, "check").expect(0);
        }
    }
}

#[test]
fn layers_and_diff_ids_have_to_fit() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = good();
    let tag = image.content.tags.keys().next().unwrap().clone();
    let manifest = image.content.blobs[&image.content.tags[&tag]].1.clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array_mut().unwrap();
    layers.push(layers[0].clone());
    let digest = image.content.add_json(media_type::OCI_MANIFEST, &manifest).digest;
    image.content.tags.insert(tag, digest);
    let run = bake(dir.path(), image, "").expect(1);
    assert!(run.stderr.contains("the manifest has 2 layers and the config 1 diffIDs"), "{}", run.stderr);
}

/// With `PREBAKE_ENTRIES` as many.
#[test]
fn very_many_entries() {
    let count: u32 = std::env::var("PREBAKE_ENTRIES").map_or(100_000, |n| n.parse().unwrap());
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let entries = |n: u32| {
        if n.is_multiple_of(10) {
            Entry::new(format!("d{n}"), b'5')
        } else {
            file(&format!("d{}/f{n}", n - n % 10), b"")
        }
    };
    let mut archive = Vec::new();
    (0..count).for_each(|n| entries(n).write(&mut archive));
    archive.resize(archive.len() + 1024, 0);
    let registry = TestRegistry::start(Image::new(vec![layer(&archive, Compression::Gzip)], false).content);
    let reference = registry.reference("stack:1");
    prebake(dir.path(), &format!("bake --unpack {reference}")).expect(0);
    let listed = prebake(dir.path(), "images --json").expect(0);
    assert!(listed.stdout.contains(r#""policy":"unpack""#));
    let dirs = fs::read_dir(snapshots_dir(dir.path()).join("1/fs")).unwrap().count();
    assert_eq!(dirs, count.div_ceil(10) as usize);
}
