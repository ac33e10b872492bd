//! Archives of any bytes, made into a layer: nothing beside its directory changes, and nothing panics. Needs root.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use prebake::layer::{Buffers, Job, Onto, remove_dir, unpack};
use prebake::oci::Digest;

const LIMIT: u64 = 1 << 20;

/// A folder of this process with a canary in it.
fn work() -> &'static Path {
    static WORK: OnceLock<std::path::PathBuf> = OnceLock::new();
    WORK.get_or_init(|| {
        let work = Path::new("/dev/shm").join(format!("prebake-fuzz-{}", std::process::id()));
        fs::create_dir_all(work.join("canary")).expect("made");
        fs::write(work.join("canary/a"), "alive").expect("written");
        work
    })
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, archive)) = input.split_first() else { return };
    // The checksum of a header holds off nearly every change of it, so every header gets a good one.
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let work = work();
    let (dir, lower) = (work.join("layer"), work.join("lower"));
    for dir in [&dir, &lower] {
        fs::create_dir_all(dir).expect("made");
    }
    let below = |n| if n == 0 { Ok(Some(fs::File::open(&lower)?.into())) } else { Ok(None) };
    let onto = if kind & 1 == 0 { Onto::Nothing } else { Onto::Layers(&below) };
    let media_type = ["tar", "tar+gzip", "tar+zstd"][usize::from(kind >> 1) % 3];
    let job = Job {
        media_type: &format!("application/vnd.oci.image.layer.v1.{media_type}"),
        diff_id: &Digest::of(&archive),
        limit: LIMIT,
        buffers: &Buffers::new(),
        stop: &|| false,
    };
    let _ = unpack(archive.as_slice(), &job, fs::File::open(&dir).expect("opened").into(), &onto);
    remove_dir(&dir).expect("removed");
    assert_eq!(fs::read(work.join("canary/a")).expect("alive"), b"alive");
    assert_eq!(fs::read_dir(work.join("canary")).expect("listed").count(), 1);
    assert_eq!(fs::read_dir(work).expect("listed").count(), 2, "the canary, and the layer below");
});
