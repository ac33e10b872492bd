//! Parsers meet any input; `tests/fuzz` looks deeper.

use std::io;
use std::sync::Arc;

use prebake::bundle::Inventory;
use prebake::layer::{
    Entry, EntryKind, Frames, ReadAt, Reader, member_header, members, padding, tar, zstd_content, zstd_frame,
};
use prebake::oci::{Config, Digest, Document, Platform, Reference, media_type};
use proptest::prelude::*;

struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let most = buf.len().min(self.0.len() - from);
        buf[..most].copy_from_slice(&self.0[from..from + most]);
        Ok(most)
    }
}

fn memory(bytes: &[u8]) -> Arc<dyn ReadAt> {
    Arc::new(Memory(bytes.to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_reference_names_itself(text in "\\PC{0,80}|[a-zA-Z0-9:/@._\\[\\]-]{0,60}|[a-z.]{1,9}(:[0-9]{1,5})?(/[a-z0-9._-]{1,9}){1,3}(:[A-Za-z0-9._-]{1,9})?(@sha256:[0-9a-f]{64})?") {
        match text.parse::<Reference>() {
            Ok(reference) => {
                let name = reference.to_string();
                prop_assert_eq!(name.parse::<Reference>().unwrap().to_string(), name);
            }
            Err(error) => prop_assert!(error.to_string().contains("bad reference")),
        }
    }

    #[test]
    fn a_platform_names_itself(text in "[a-z0-9]{1,8}/[a-z0-9_]{1,8}(/v?[0-9]{1,2})?") {
        let platform: Platform = text.parse().unwrap();
        prop_assert_eq!(platform.to_string().parse::<Platform>().unwrap(), platform);
    }

    #[test]
    fn documents_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..200, with in any::<u8>()) {
        let digest = Digest::of(b"");
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{digest}","size":5}}"#);
        let mut manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor},{descriptor}]}}"#).into_bytes();
        manifest[at] = with;
        for bytes in [&bytes, &manifest] {
            for declared in media_type::DOCUMENTS.into_iter().chain([""]) {
                let _ = Document::parse(bytes, declared);
            }
            let _ = Config::parse(bytes);
        }
    }

    #[test]
    fn archives_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0usize..1536, with in any::<u8>()) {
        let good = tar(&[(Entry::new("a/file", EntryKind::Regular), b"contents".to_vec())]).unwrap();
        let mut entries = Reader::new(good.as_slice());
        let entry = entries.next_entry().unwrap().unwrap();
        prop_assert_eq!((entry.path.as_slice(), entry.size), (&b"a/file"[..], 8));
        prop_assert_eq!(entries.chunk().unwrap(), b"contents");
        prop_assert!(entries.next_entry().unwrap().is_none());
        let mut bad = good;
        bad[at] = with;
        for bytes in [bytes, bad] {
            let mut entries = Reader::new(bytes.as_slice());
            while let Ok(Some(_)) = entries.next_entry() {}
        }
    }

    #[test]
    fn archives_of_images_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0usize..1536, with in any::<u8>()) {
        let mut bad = member_header("index.json", 8).unwrap();
        bad.extend(b"contents");
        bad.resize(bad.len() + padding(8) + 1024, 0);
        prop_assert_eq!(members(&memory(&bad)).unwrap()[0].at, 512);
        let at = at % bad.len();
        bad[at] = with;
        for bytes in [bytes, bad] {
            for member in members(&memory(&bytes)).unwrap_or_default() {
                prop_assert!(member.at + member.size <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn zstd_headers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in any::<u32>(), with in any::<u8>()) {
        let good = [zstd_frame(&bytes).unwrap(), zstd_frame(b"more").unwrap()].concat();
        prop_assert_eq!(zstd_content(&*memory(&good)).unwrap(), Some(bytes.len() as u64 + 4));
        let mut bad = good;
        let at = at as usize % bad.len();
        bad[at] = with;
        for bytes in [bytes, bad] {
            let _ = zstd_content(&*memory(&bytes));
            if let Ok(Some(frames)) = Frames::new(memory(&bytes)) {
                let _ = frames.read_at(&mut [0; 4000], frames.len() / 2);
            }
        }
    }

    #[test]
    fn inventories_never_panic(count in 0usize..20, bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<u32>(), with in any::<u8>()) {
        let good = Inventory::new((0..count).map(|n| Digest::of(&[u8::try_from(n).unwrap()])).collect());
        let mut bad = good.to_bytes();
        prop_assert_eq!(&Inventory::parse(&bad).unwrap(), &good);
        let at = at as usize % bad.len();
        let same = bad[at] == with;
        bad[at] = with;
        prop_assert_eq!(Inventory::parse(&bad).is_ok(), same);
        prop_assert!(Inventory::parse(&bytes).is_err());
        let _ = Inventory::parse(&[b"prebake inventory 1\n", &bytes[..]].concat());
    }

    #[test]
    fn a_digest_is_its_text(text in "(sha256|sha512|md5):[0-9a-fA-F]{0,130}") {
        if let Ok(digest) = text.parse::<Digest>() {
            prop_assert_eq!(digest.as_str(), text);
        }
    }
}
