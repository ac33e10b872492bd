//! `prebake serve`, for a test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use ::prebake::fixture::Content;
use ::prebake::oci::{Digest, media_type};
use serde_json::json;

use super::prebake::command;

/// A server that is killed when dropped.
pub struct Served {
    pub child: Child,
    /// `http://ADDRESS`, or `https://ADDRESS`.
    pub url: String,
}

impl Served {
    /// Starts `prebake serve` with arguments that are parted by spaces, on a free port.
    pub fn start(arguments: &str) -> Self {
        let mut command = command();
        command.args("serve --listen 127.0.0.1:0".split(' ')).args(arguments.split_whitespace());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(url) = line.strip_prefix("listening on ") else {
            panic!("{line}{}", std::io::read_to_string(child.stderr.take().unwrap()).unwrap())
        };
        Self { url: url.trim().to_owned(), child }
    }

    /// `127.0.0.1:PORT`.
    pub fn name(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes an OCI layout of all that is in `content`: its tags under a registry's name, and these besides.
pub fn write_layout(content: &Content, registry: &str, unnamed: &[&Digest], dir: &Path) {
    let descriptor = |digest: &Digest| {
        let (kind, bytes) = &content.blobs[digest];
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let mut manifests = Vec::new();
    for ((repository, tag), digest) in &content.tags {
        let mut entry = descriptor(digest);
        entry["annotations"] = json!({"io.containerd.image.name": format!("{registry}{repository}:{tag}"),
            "org.opencontainers.image.ref.name": tag});
        manifests.push(entry);
    }
    manifests.extend(unnamed.iter().map(|digest| descriptor(digest)));
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    for (digest, (_, bytes)) in &content.blobs {
        fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    }
}
