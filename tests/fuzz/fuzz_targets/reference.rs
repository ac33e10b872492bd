//! Any text as a reference: refused, or its name names itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prebake::oci::{Platform, Reference};

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let name = reference.to_string();
        assert_eq!(name.parse::<Reference>().expect("a name is a reference").to_string(), name);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>(), Ok(platform));
    }
});
