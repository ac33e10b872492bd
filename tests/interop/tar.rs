//! Archives read by us and by Go's `archive/tar`, which containerd uses: the same entries, the same contents, and the same
//! archives refused.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prebake::layer::{Entry, EntryKind, Reader, TarError, Time};
use prebake::oci::Digest;

use crate::bbolt::Oracle;
use crate::peers::run;
use crate::support::rng::Rng;

/// How much of each file is compared, in bytes: a sparse one may say that it has exabytes.
const LOOKED_AT: usize = 1 << 20;

/// What we read, as `tests/interop/tar/main.go` writes it.
fn ours(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut reader = Reader::new(bytes);
    let last = loop {
        match next(&mut reader) {
            Ok(Some(line)) => out.push_str(&line),
            Ok(None) => break "end",
            Err(_) => break "bad",
        }
    };
    out + last + "\n"
}

fn next(reader: &mut Reader<&[u8]>) -> Result<Option<String>, TarError> {
    let Some(entry) = reader.next_entry()? else { return Ok(None) };
    if entry.kind == EntryKind::Global {
        // In Go, its name depends on the order of a map when one of its records is bad.
        return Ok(Some("g\n".to_owned()));
    }
    let mut contents = Vec::new();
    while contents.len() < LOOKED_AT {
        let chunk = reader.chunk()?;
        // Less than there is, so that its parts join.
        let len = chunk.len().min(1000).min(LOOKED_AT - contents.len());
        if len == 0 {
            break;
        }
        contents.extend_from_slice(&chunk[..len]);
        reader.advance(len);
    }
    Ok(Some(line(&entry, &contents)))
}

fn line(entry: &Entry, contents: &[u8]) -> String {
    let kind = match entry.kind {
        EntryKind::Regular => '0',
        EntryKind::HardLink => '1',
        EntryKind::Symlink => '2',
        EntryKind::Char => '3',
        EntryKind::Block => '4',
        EntryKind::Directory => '5',
        EntryKind::Fifo => '6',
        EntryKind::Global => 'g',
        EntryKind::Other(flag) => char::from(flag),
    };
    let time = |time: Time| format!("{}.{:09}", time.seconds, time.nanos);
    let mut xattrs: Vec<String> =
        entry.xattrs.iter().map(|(k, v)| format!("{}={}", hex::encode(k), hex::encode(v))).collect();
    xattrs.sort();
    let mut out = String::new();
    writeln!(
        out,
        "{kind} {} {} {} {} {} {} {} {} {}:{} [{}] {}",
        hex::encode(&entry.path),
        hex::encode(&entry.link),
        entry.mode,
        entry.uid,
        entry.gid,
        time(entry.mtime),
        entry.atime.map_or("-".to_owned(), time),
        entry.size,
        entry.device.0,
        entry.device.1,
        xattrs.join(" "),
        Digest::of(contents).hex()
    )
    .unwrap();
    out
}

struct Judge {
    oracle: Oracle,
    dir: tempfile::TempDir,
    refused: usize,
    entries: usize,
}

impl Judge {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
        Self { oracle: Oracle::of("tar"), dir, refused: 0, entries: 0 }
    }

    #[track_caller]
    fn same(&mut self, bytes: &[u8], what: &str) {
        let (archive, list) = (self.dir.path().join("a.tar"), self.dir.path().join("list"));
        fs::write(&archive, bytes).unwrap();
        self.oracle.ask(&format!("{} {}", archive.display(), list.display())).unwrap();
        let theirs = fs::read_to_string(&list).unwrap();
        let ours = ours(bytes);
        assert_eq!(ours, theirs, "{what}");
        self.entries += theirs.lines().count() - 1;
        self.refused += usize::from(theirs.ends_with("bad\n"));
    }
}

/// Archives of real tools, in every format they write.
fn made_by_tools(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let tree = dir.join("tree");
    let script = r#"
        mkdir -p "$1/dir/sub" && cd "$1"
        long=$(printf '%0150d' 0)
        echo text > file; ln file hard; ln -s /elsewhere/$long sym; ln -s short sym2; mkfifo fifo
        mknod char c 1 3; mknod block b 200 300
        mkdir -p "$long/$long"; echo deep > "$long/$long/file"
        touch -d '1969-12-31 23:59:58.25 UTC' old; touch -d '2300-01-01 00:00:00.123456789 UTC' new
        chown 3000000:4000000 file; chmod 6755 file; chmod 1777 dir
        setfattr -n user.a -v "$(printf 'x\ny')" file 2>/dev/null || true
        dd if=/dev/urandom of=sparse bs=4096 count=1 seek=100 2>/dev/null
        for n in 3 9 14 20 31; do dd if=/dev/urandom of=sparse bs=4096 count=1 seek=$n conv=notrunc 2>/dev/null; done
        truncate -s 1M sparse; truncate -s 300K hole
    "#;
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(&tree));
    let mut archives = Vec::new();
    for options in [
        "--format=v7",
        "--format=oldgnu",
        "--format=gnu",
        "--format=ustar",
        "--format=pax",
        "--format=pax --xattrs --selinux --acls",
        "--format=gnu --sparse",
        "--format=pax --sparse --sparse-version=0.0",
        "--format=pax --sparse --sparse-version=0.1",
        "--format=pax --sparse --sparse-version=1.0",
        "--format=pax --pax-option=globexthdr.name=global,comment=x",
        "--format=gnu --atime-preserve --incremental",
    ] {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&tree).args(options.split(' ')).args(["-cf", "-", "."]);
        // Old formats cannot hold every entry, and say so; what they hold is what counts.
        let output = tar.output().unwrap();
        assert!(output.stdout.len() > 20_000, "tar {options}: {}", String::from_utf8_lossy(&output.stderr));
        archives.push((format!("tar {options}"), output.stdout));
    }
    archives
}

/// The archives that Go's own tests read.
fn of_gos_tests() -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(run(Command::new("go").args(["env", "GOROOT"])).trim()).join("src/archive/tar/testdata");
    let mut archives = Vec::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Their sparse files have gigabytes.
        if path.extension().is_some_and(|extension| extension == "tar") && !name.contains("-big") {
            archives.push((name, fs::read(path).unwrap()));
        }
    }
    assert!(archives.len() > 30, "{} archives", archives.len());
    archives
}

fn fix_checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn archives_are_read_as_go_reads_them() {
    let mut judge = Judge::new();
    let dir = tempfile::tempdir().unwrap();
    let mut archives = made_by_tools(dir.path());
    archives.extend(of_gos_tests());
    for (name, bytes) in &archives {
        judge.same(bytes, name);
    }
    // Bytes changed in headers and records, with good checksums; ends cut off.
    let rounds: u64 = std::env::var("PREBAKE_ARCHIVES").map_or(4000, |n| n.parse().unwrap());
    for seed in 0..rounds {
        let mut rng = Rng::new(seed);
        let (name, bytes) = &archives[rng.below(archives.len())];
        let mut bytes = bytes[..bytes.len().min(40 * 512)].to_vec();
        if bytes.len() < 1024 {
            continue;
        }
        for _ in 0..=rng.below(3) {
            let block = rng.below(bytes.len() / 512) * 512;
            let at = block + rng.below(512);
            bytes[at] = match rng.below(3) {
                0 => rng.next().to_le_bytes()[0],
                1 => b"0179 =\n\0xgLKS5"[rng.below(14)],
                _ => bytes[at] ^ (1 << rng.below(8)),
            };
            if bytes[block + 257..block + 262] == *b"ustar" {
                fix_checksum(&mut bytes[block..block + 512]);
            }
        }
        if rng.one_in(10) {
            bytes.truncate(rng.below(bytes.len()));
        }
        judge.same(&bytes, &format!("seed {seed}, {name}"));
    }
    eprintln!("{} entries, {} archives refused", judge.entries, judge.refused);
    assert!(judge.entries > 1000 && judge.refused > 100);
}
