//! docs/design.md's house, held against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Non-test lines a source file may have.
const MAX_LINES: usize = 700;

/// What each room of the house may import of the others.
#[expect(clippy::too_many_lines, reason = "a table")]
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("oci", &[][..]),
        ("bolt", &[]),
        ("root", &[]),
        ("parallel", &[]),
        ("duration", &[]),
        ("layer", &["oci"]),
        ("content", &["oci", "root"]),
        ("cache", &["oci"]),
        ("registry", &["cache", "duration", "oci"]),
        ("source", &["bolt", "cache", "content", "layer", "metadata", "oci", "registry", "root", "spec"]),
        ("trust", &["oci"]),
        ("spec", &["duration", "oci"]),
        ("times", &["oci"]),
        ("metadata", &["bolt", "oci", "root"]),
        ("catalog", &["content", "oci"]),
        ("snapshot", &["layer", "metadata", "oci", "root"]),
        ("bootstrap", &["catalog", "content", "metadata", "oci", "root", "snapshot", "times"]),
        (
            "bake",
            &[
                "bolt",
                "bootstrap",
                "cache",
                "catalog",
                "content",
                "kind",
                "layer",
                "metadata",
                "oci",
                "parallel",
                "registry",
                "root",
                "snapshot",
                "source",
                "spec",
                "times",
                "trust",
            ],
        ),
        (
            "care",
            &[
                "bolt",
                "bootstrap",
                "catalog",
                "content",
                "duration",
                "kind",
                "layer",
                "metadata",
                "oci",
                "parallel",
                "root",
                "snapshot",
                "source",
                "times",
            ],
        ),
        (
            "bundle",
            &[
                "bake", "catalog", "content", "kind", "layer", "oci", "parallel", "registry", "root", "source", "spec",
                "trust",
            ],
        ),
        ("serve", &["oci", "source", "spec"]),
        ("fixture", &["layer", "oci", "source", "spec", "trust"]),
        ("testing", &["duration", "fixture", "oci", "spec"]),
        (
            "kind",
            &[
                "bake",
                "bolt",
                "bootstrap",
                "bundle",
                "cache",
                "care",
                "catalog",
                "content",
                "fixture",
                "layer",
                "metadata",
                "oci",
                "registry",
                "root",
                "serve",
                "snapshot",
                "source",
                "spec",
            ],
        ),
        // The command line uses the library from outside.
        ("cli", &[]),
        ("main", &["cli"]),
        ("api", &["bake", "care", "kind", "metadata", "oci", "registry", "root", "source", "spec"]),
        ("lib", &["api", "care", "kind"]),
    ])
}

/// Where each third party may be named.
const FENCES: [(&str, &[&str]); 31] = [
    ("similar", &["cli"]),
    ("oci_client", &["registry"]),
    ("reqwest", &["cache", "registry"]),
    ("rustls", &["registry", "serve", "lib"]),
    ("rustls_native_certs", &["registry"]),
    ("redb", &["catalog", "kind"]),
    ("tar", &["layer"]),
    ("flate2", &["layer"]),
    ("crc32fast", &["layer"]),
    ("zstd", &["layer"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("indicatif", &["cli"]),
    ("hyper", &["fixture", "serve", "testing"]),
    ("hyper_util", &["fixture", "serve"]),
    ("http_body_util", &["cache", "fixture"]),
    ("tokio_rustls", &["serve"]),
    ("toml", &["fixture", "registry", "spec"]),
    ("serde_saphyr", &["registry", "spec"]),
    ("webpki_roots", &["registry"]),
    ("http_auth", &["registry"]),
    ("httpdate", &["registry"]),
    ("ring", &["cache", "trust"]),
    ("sha2", &["oci"]),
    ("chrono", &["cache", "metadata", "content", "bake", "bootstrap", "care", "cli", "fixture", "snapshot", "times"]),
    ("tonic", &["bootstrap", "kind"]),
    ("tonic_prost", &["bootstrap"]),
    ("prost", &["bootstrap"]),
    ("http", &["bootstrap", "cache"]),
    ("object_store", &["cache"]),
];

/// Direct dependencies; a new one is a decision.
const DEPENDENCIES: [&str; 40] = [
    "base64",
    "bytes",
    "chrono",
    "clap",
    "clap_complete",
    "clap_mangen",
    "crc32fast",
    "flate2",
    "futures-util",
    "hex",
    "http",
    "http-auth",
    "http-body-util",
    "httpdate",
    "hyper",
    "hyper-util",
    "indicatif",
    "object_store",
    "oci-client",
    "prost",
    "redb",
    "reqwest",
    "ring",
    "rustix",
    "rustls",
    "rustls-native-certs",
    "serde",
    "serde-saphyr",
    "serde_json",
    "sha2",
    "similar",
    "tar",
    "thiserror",
    "tokio",
    "tokio-rustls",
    "toml",
    "tonic",
    "tonic-prost",
    "webpki-roots",
    "zstd",
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else {
                out.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut out = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut out);
    out
}

/// The room a file is in.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The code without tests and comments.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// First path segments behind `crate::`, through braces too.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = &list[..list.find(';').unwrap_or(list.len())];
                let mut depth = 0;
                let mut item = String::new();
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            found.insert(word(item.trim()));
                            item.clear();
                        }
                        c if depth == 0 => item.push(c),
                        _ => {}
                    }
                }
                found.insert(word(item.trim()));
            }
            None => {
                found.insert(word(rest));
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn imports_go_the_way_they_are_drawn() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let room = room(&path);
        let may = allowed.get(room.as_str()).unwrap_or_else(|| panic!("{room} is not in the house"));
        for import in imports(&code(&text)) {
            if import != room && allowed.contains_key(import.as_str()) && !may.contains(&import.as_str()) {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn third_parties_stay_behind_their_fences() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let (room, code) = (room(&path), code(&text));
        for (name, rooms) in FENCES {
            let start =
                |at: usize| !code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "_:".contains(c));
            let named = code.match_indices(&format!("{name}::")).any(|(at, _)| start(at));
            if named && !rooms.contains(&room.as_str()) {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn async_only_where_the_network_is() {
    let rooms = ["cache", "registry", "source", "bake", "bundle", "fixture", "serve", "cli"];
    for (path, text) in sources() {
        let is_async = code(&text).contains("async ");
        let is_live = path.to_str().unwrap().contains("/bootstrap/live/");
        assert!(!is_async || is_live || rooms.contains(&room(&path).as_str()), "{} is async", path.display());
    }
}

#[test]
fn the_library_never_prints() {
    for (path, text) in sources() {
        let code = code(&text);
        for call in ["println!", "eprintln!", "print!(", "dbg!", "stdout()", "stderr()"] {
            assert!(room(&path) == "cli" || !code.contains(call), "{} has {call}", path.display());
        }
    }
}

#[test]
fn files_can_be_held_in_the_head() {
    for (path, text) in sources() {
        let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
        let lines = text[..end].lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", path.display());
    }
}

#[test]
fn dependencies_are_on_the_list() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names: BTreeSet<&str> = section
        .lines()
        .filter(|l| !l.starts_with('#') && l.contains('='))
        .map(|l| l.split(' ').next().unwrap())
        .collect();
    let listed: BTreeSet<&str> = DEPENDENCIES.into();
    assert_eq!(names, listed);
}

#[test]
fn every_fixture_has_an_origin() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let readme = fs::read_to_string(fixtures.join("README.md")).unwrap();
    for entry in fs::read_dir(&fixtures).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || readme.contains(&format!("`{name}`")), "{name} is not in fixtures/README.md");
    }
}
