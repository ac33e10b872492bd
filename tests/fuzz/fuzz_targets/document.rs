//! Any bytes as a document or config.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prebake::oci::{Config, Document, media_type};

fuzz_target!(|data: &[u8]| {
    for declared in media_type::DOCUMENTS.into_iter().chain(["", "text/plain"]) {
        let _ = Document::parse(data, declared);
    }
    let _ = Config::parse(data);
});
