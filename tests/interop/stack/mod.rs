//! Random stacks of layers: each as an image, and in words.

mod archive;
mod attributes;
mod draw;
mod features;
mod model;
mod path;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ::prebake::fixture::Content;
use ::prebake::layer::{Compression, compress};
use ::prebake::oci::{Digest, Document, Platform, chain_ids, media_type};
use serde_json::{Value, json};

pub use archive::{Contents, Entry, Sparse};
pub use draw::draw;
pub use features::{ACCEPTED, REFUSED};

use model::Model;

const DOCKER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";

#[derive(Debug, Clone)]
pub struct Layer {
    pub entries: Vec<Entry>,
    pub compression: Compression,
    /// What is behind the two blocks that end an archive; `None`: not even those.
    pub tail: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub struct Stack {
    pub layers: Vec<Layer>,
    /// Whether the documents are Docker's.
    pub docker: bool,
}

impl Layer {
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        self.entries.iter().for_each(|entry| entry.write(&mut tar));
        if let Some(tail) = &self.tail {
            tar.resize(tar.len() + 1024, 0);
            tar.extend(tail);
        }
        tar
    }

    fn media_type(&self, docker: bool) -> String {
        match (docker, self.compression) {
            (false, compression) => compression.oci_media_type(),
            (true, Compression::None) => DOCKER_TAR.to_owned(),
            (true, Compression::Gzip) => format!("{DOCKER_TAR}.gzip"),
            (true, Compression::Zstd) => format!("{DOCKER_TAR}.zstd"),
        }
    }
}

/// An image in a registry's memory, with what its layers are known by.
pub struct Image {
    pub content: Content,
    pub config: Digest,
    /// Each layer's blob and the digest of its tar.
    pub layers: Vec<(Digest, Digest)>,
}

impl Image {
    /// An image `stack:1` of layers, each given by its media type, its blob and its tar's digest.
    pub fn new(layers: Vec<(String, Vec<u8>, Digest)>, docker: bool) -> Self {
        let mut content = Content::default();
        let mut descriptors = Vec::new();
        let mut ids = Vec::new();
        for (kind, blob, diff_id) in layers {
            let descriptor = content.add(&kind, blob);
            ids.push((descriptor.digest.clone(), diff_id));
            descriptors.push(descriptor);
        }
        let platform = Platform::host().to_string();
        let (os, architecture) = platform.split_once('/').unwrap();
        let diff_ids: Vec<&Digest> = ids.iter().map(|(_, diff_id)| diff_id).collect();
        let config: Value = json!({"architecture": architecture, "os": os, "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let (manifest_type, config_type) = if docker {
            (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG)
        } else {
            (media_type::OCI_MANIFEST, media_type::OCI_CONFIG)
        };
        let config = content.add_json(config_type, &config);
        let manifest = content.add_json(
            manifest_type,
            &json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": descriptors}),
        );
        content.tags.insert(("stack".to_owned(), "1".to_owned()), manifest.digest);
        Self { content, config: config.digest, layers: ids }
    }

    /// One of the images of a registry, as this machine takes it; `None` when it has no files.
    pub fn of(content: &Content, name: &(String, String)) -> Option<Self> {
        let mut digest = content.tags[name].clone();
        let manifest = loop {
            let (kind, bytes) = &content.blobs[&digest];
            match Document::parse(bytes, kind).unwrap().0 {
                Document::Index(index) => {
                    let host = Platform::host();
                    let own = index.manifests.iter().find(|entry| entry.platform() == Some(host.clone()));
                    digest = own?.digest.clone();
                }
                Document::Manifest(manifest) => break manifest,
            }
        };
        let config: Value = serde_json::from_slice(&content.blobs[&manifest.config.digest].1).unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array()?;
        let diff_ids = diff_ids.iter().map(|diff_id| diff_id.as_str().unwrap().parse().unwrap());
        let layers = manifest.layers.iter().map(|layer| layer.digest.clone()).zip(diff_ids).collect();
        let tags = BTreeMap::from([(name.clone(), content.tags[name].clone())]);
        let content = Content { blobs: content.blobs.clone(), tags };
        Some(Self { content, config: manifest.config.digest, layers })
    }

    /// The chain of each layer: the names of the snapshots (OCI image specification, `config.md`, on chains).
    pub fn chains(&self) -> Vec<Digest> {
        chain_ids(&self.layers.iter().map(|(_, diff_id)| diff_id.clone()).collect::<Vec<_>>())
    }
}

impl Stack {
    pub fn image(&self) -> Image {
        let layer = |layer: &Layer| {
            let tar = layer.tar();
            let blob = compress(&tar[..], layer.compression).unwrap().0;
            (layer.media_type(self.docker), blob, Digest::of(&tar))
        };
        Image::new(self.layers.iter().map(layer).collect(), self.docker)
    }

    /// Why containerd should refuse it.
    pub fn refusal(&self) -> Option<&'static str> {
        self.look().1
    }

    /// Which corners it reaches.
    pub fn features(&self) -> BTreeSet<&'static str> {
        self.look().0
    }

    fn look(&self) -> (BTreeSet<&'static str>, Option<&'static str>) {
        let mut model = Model::default();
        let mut refusal = None;
        for layer in &self.layers {
            for entry in &layer.entries {
                model.seen.extend(features::of_entry(entry));
                refusal = refusal.or(model.apply(entry).err());
            }
            refusal = refusal.or(model.can_end().err());
            if layer.entries.is_empty() && layer.tail.is_none() && layer.compression == Compression::None {
                refusal = refusal.or(Some("a blob without a byte"));
            }
            model.seen.extend(features::of_layer(layer));
            model.end();
        }
        let tars: Vec<Vec<u8>> = self.layers.iter().map(Layer::tar).collect();
        if tars.iter().enumerate().any(|(i, tar)| tars[..i].contains(tar)) {
            model.seen.insert("layer, the same again");
        }
        let docker_zstd = self.docker && self.layers.iter().any(|layer| layer.compression == Compression::Zstd);
        model.seen.insert(match (self.docker, docker_zstd) {
            (true, true) => "documents, Docker, with zstd",
            (true, false) => "documents, Docker",
            _ => "documents, OCI",
        });
        (model.seen, refusal)
    }

    /// Everything that is in it, a line for each entry.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let tail = layer.tail.as_ref().map(Vec::len);
            writeln!(out, "layer {i} ({:?}, tail {tail:?}, docker {})", layer.compression, self.docker).unwrap();
            for (n, entry) in layer.entries.iter().enumerate() {
                writeln!(out, "  {n:2} {}", entry.describe()).unwrap();
            }
        }
        out
    }

    /// Stacks with a little less in them, those with the least first.
    pub fn smaller(&self) -> Vec<Self> {
        let mut out = Vec::new();
        for i in (0..self.layers.len()).rev() {
            if self.layers.len() > 1 {
                let mut less = self.clone();
                less.layers.remove(i);
                out.push(less);
            }
        }
        for i in 0..self.layers.len() {
            let len = self.layers[i].entries.len();
            for size in [len / 2, len / 4, 1] {
                if size == 0 || size == len && size != 1 {
                    continue;
                }
                for at in (0..len).step_by(size).rev() {
                    let mut less = self.clone();
                    less.layers[i].entries.drain(at..len.min(at + size));
                    out.push(less);
                }
            }
        }
        out
    }
}
