//! Streams of any bytes: what is decoded, where flate2 takes it as well, is what that decodes.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use prebake::layer::{Buffers, Gunzip};

const LOOKED_AT: usize = 8 << 20;

fuzz_target!(|input: &[u8]| {
    let mut gunzip = Gunzip::new(input, Buffers::new());
    let mut ours = Vec::new();
    while ours.len() < LOOKED_AT {
        match gunzip.next_block() {
            Ok(Some(block)) => ours.extend_from_slice(&block),
            Ok(None) => {
                let mut theirs = Vec::new();
                // Go, and so we, let reserved flags pass.
                let accepted = flate2::bufread::MultiGzDecoder::new(input).read_to_end(&mut theirs).is_ok();
                assert!(!accepted || ours == theirs);
                return;
            }
            Err(_) => return,
        }
    }
});
