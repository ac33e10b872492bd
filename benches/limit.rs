//! What unpacking cannot do without, each alone on one thread: inflating, the sums, and writing the same files from memory.
//!
//! `cargo bench --bench limit -- IMAGE TARGET [ROUNDS]`: an image of `benches/unpack-corpus`, and a folder (on a tmpfs,
//! say). Prints the least time of the rounds, three if not told.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::bufread::GzDecoder;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

const BUFFER: usize = 256 << 10;

#[derive(Default)]
struct Spent {
    blob: u64,
    archive: u64,
    files: u64,
    blob_sum: Duration,
    inflate: Duration,
    archive_sum: Duration,
    write: Duration,
    times: Duration,
}

fn timed<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let value = work();
    *spent += started.elapsed();
    value
}

/// Inflates and sums in turn, so that the archive is never in memory as a whole.
fn sums(blob: &[u8], spent: &mut Spent) {
    timed(&mut spent.blob_sum, || Sha256::digest(blob));
    let (mut decoder, mut sum, mut buffer) = (GzDecoder::new(blob), Sha256::new(), vec![0; BUFFER]);
    loop {
        let read = timed(&mut spent.inflate, || decoder.read(&mut buffer).unwrap());
        if read == 0 {
            break;
        }
        timed(&mut spent.archive_sum, || sum.update(&buffer[..read]));
        spent.archive += read as u64;
    }
}

/// Writes what is in the archive, as root would, without owners and extended attributes.
fn write(blob: &[u8], target: &Path, spent: &mut Spent) {
    let mut content = Vec::new();
    let mut archive = Archive::new(GzDecoder::new(blob));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = target.join(entry.path().unwrap());
        let link = entry.link_name().unwrap().map(Cow::into_owned);
        let (kind, mode) = (entry.header().entry_type(), entry.header().mode().unwrap());
        content.clear();
        entry.read_to_end(&mut content).unwrap();
        spent.files += u64::from(kind.is_file());
        let done = timed(&mut spent.write, || match kind {
            EntryType::Regular => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)
                .and_then(|mut file| file.write_all(&content)),
            EntryType::Directory => fs::DirBuilder::new().mode(mode).create(&path),
            EntryType::Symlink => symlink(link.unwrap(), &path),
            EntryType::Link => fs::hard_link(target.join(link.unwrap()), &path),
            _ => Ok(()),
        });
        match done {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            done => done.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        }
        if matches!(kind, EntryType::Regular | EntryType::Directory) {
            let time = Timespec { tv_sec: entry.header().mtime().unwrap().cast_signed(), tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            timed(&mut spent.times, || rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)).unwrap();
        }
    }
}

fn round(image: &Path, layers: &[serde_json::Value], target: &Path) -> Spent {
    let mut spent = Spent::default();
    for layer in layers {
        let name = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
        let blob = fs::read(image.join(name)).unwrap();
        let target = tempfile::tempdir_in(target).unwrap();
        spent.blob += blob.len() as u64;
        sums(&blob, &mut spent);
        write(&blob, target.path(), &mut spent);
    }
    spent
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [image, target, rounds @ ..] = arguments.as_slice() else {
        println!("cargo bench --bench limit -- IMAGE TARGET [ROUNDS]");
        return;
    };
    let manifest = fs::read(Path::new(image).join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let rounds: usize = rounds.first().map_or(3, |rounds| rounds.parse().unwrap());
    let rounds: Vec<Spent> = (0..rounds).map(|_| round(Path::new(image), layers, Path::new(target))).collect();
    let Some(Spent { blob, archive, files, .. }) = rounds.first() else { return };
    println!("{} MiB compressed, {} MiB of archive, {files} files", blob >> 20, archive >> 20);
    println!("\n| alone, one thread | s |\n|---|---|");
    let least = |what: &str, of: fn(&Spent) -> Duration| {
        println!("| {what} | {:.2} |", rounds.iter().map(of).min().unwrap_or_default().as_secs_f64());
    };
    least("sha256 of the blobs", |spent| spent.blob_sum);
    least("inflate", |spent| spent.inflate);
    least("sha256 of the archives", |spent| spent.archive_sum);
    least("open, write, close; mkdir, link", |spent| spent.write);
    least("times of files and folders", |spent| spent.times);
}
