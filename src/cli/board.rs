//! How far a bake is, from its events: what every way of showing it shows.

use std::collections::HashSet;
use std::time::Instant;

use prebake::bake::Event;
use prebake::oci::Digest;

use super::output;

/// A blob that is coming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moving {
    pub(super) digest: Digest,
    /// The image it is for.
    pub(super) image: String,
    /// In bytes.
    pub(super) size: u64,
    pub(super) came: u64,
}

/// How far it is.
pub(super) struct Board {
    started: Instant,
    images: Vec<String>,
    /// Images that are over, and how many of them failed.
    ended: HashSet<String>,
    failed: usize,
    resolved: usize,
    /// Blobs that are coming, in the order they began.
    pub(super) moving: Vec<Moving>,
    /// Layers that are being unpacked.
    pub(super) layers: usize,
    /// Bytes that came over the network, of those that are to come, which a plan tells.
    pub(super) fetched: u64,
    pub(super) to_fetch: Option<u64>,
}

/// How many of the images are where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) images: usize,
    pub(super) done: usize,
    pub(super) failed: usize,
    /// Some blob of theirs is coming.
    pub(super) moving: usize,
    pub(super) waiting: usize,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            images: Vec::new(),
            ended: HashSet::new(),
            failed: 0,
            resolved: 0,
            moving: Vec::new(),
            layers: 0,
            fetched: 0,
            to_fetch: None,
        }
    }

    pub(super) fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Images { images } => self.images = images.to_vec(),
            Event::ImageResolved { .. } => self.resolved += 1,
            Event::Planned { fetch, .. } => self.to_fetch = Some(*fetch),
            Event::ImageFetched { image, .. } | Event::ImageCopied { image, .. } | Event::ImageLeft { image } => {
                self.ended.insert((*image).to_owned());
            }
            Event::ImageFailed { image, .. } => {
                self.ended.insert((*image).to_owned());
                self.failed += 1;
            }
            Event::BlobStarted { digest, size, image } => {
                let (digest, image) = ((*digest).clone(), (*image).to_owned());
                self.moving.push(Moving { digest, image, size: *size, came: 0 });
            }
            Event::BlobProgress { digest, bytes } => {
                self.fetched += bytes;
                self.blob(digest, |blob| blob.came += bytes);
            }
            Event::BlobRetried { digest, lost, .. } => {
                self.fetched = self.fetched.saturating_sub(*lost);
                self.blob(digest, |blob| blob.came = blob.came.saturating_sub(*lost));
            }
            Event::BlobFailed { digest, lost } => {
                self.fetched = self.fetched.saturating_sub(*lost);
                self.moving.retain(|blob| blob.digest != **digest);
            }
            Event::BlobDone { digest, .. } => self.moving.retain(|blob| blob.digest != **digest),
            Event::LayerStarted { .. } => self.layers += 1,
            Event::LayerEnded { .. } => self.layers = self.layers.saturating_sub(1),
            _ => {}
        }
    }

    fn blob(&mut self, digest: &Digest, change: impl FnOnce(&mut Moving)) {
        if let Some(blob) = self.moving.iter_mut().find(|blob| blob.digest == *digest) {
            change(blob);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let moving = self.moving.iter().map(|blob| &blob.image).collect::<HashSet<_>>();
        let moving = moving.into_iter().filter(|image| !self.ended.contains(*image)).count();
        let done = self.ended.len().saturating_sub(self.failed);
        let images = self.images.len().max(self.ended.len());
        let waiting = images.saturating_sub(self.ended.len() + moving);
        Counts { images, done, failed: self.failed, moving, waiting }
    }

    /// Those that wait, in their order.
    fn waiting(&self) -> impl Iterator<Item = &str> {
        let moving = |image: &String| self.moving.iter().any(|blob| blob.image == *image);
        self.images.iter().filter(move |image| !self.ended.contains(*image) && !moving(image)).map(String::as_str)
    }

    /// Bytes a second since the start.
    pub(super) fn rate(&self) -> u64 {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.fetched.saturating_mul(1000) / millis
    }

    pub(super) fn seconds_left(&self) -> Option<u64> {
        self.to_fetch?.saturating_sub(self.fetched).checked_div(self.rate())
    }

    /// Where the images are, in one line; with as many names of those that wait. `None` before anything is known.
    pub(super) fn images(&self, names: usize) -> Option<String> {
        let Counts { images, done, failed, moving, waiting } = self.counts();
        if images == 0 {
            return None;
        }
        if self.to_fetch.is_none() && self.layers == 0 && self.resolved > 0 {
            let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
            return Some(format!("resolved {} of {images} images{failed}", self.resolved));
        }
        let mut parts = vec![format!("{done} of {images} images done")];
        parts.extend((failed > 0).then(|| format!("{failed} failed")));
        parts.extend((moving > 0).then(|| format!("{moving} coming")));
        parts.extend((self.layers > 0).then(|| format!("{} layers unpacking", self.layers)));
        if waiting > 0 {
            let mut next: Vec<&str> = self.waiting().take(names).collect();
            if names > 0 && waiting > names {
                next.push("…");
            }
            let next = if next.is_empty() { String::new() } else { format!(" ({})", next.join(", ")) };
            parts.push(format!("{waiting} waiting{next}"));
        }
        Some(parts.join(", "))
    }

    /// How many bytes came, in one line; `None` where none are to.
    pub(super) fn bytes(&self) -> Option<String> {
        let total = self.to_fetch.filter(|total| *total > 0)?;
        let left = self.seconds_left().map_or(String::new(), |seconds| format!(", {seconds} s left"));
        let [done, total, rate] = [self.fetched, total, self.rate()].map(output::bytes);
        Some(format!("{done} of {total}, {rate}/s{left}"))
    }
}

#[cfg(test)]
mod tests {
    use prebake::kind::Kind;

    use super::*;

    #[test]
    fn seventy_images_in_a_line() {
        let digests: Vec<Digest> = (0..70u8).map(|n| Digest::of(&[n])).collect();
        let images: Vec<String> = (0..70).map(|n| format!("registry.example/app{n}:1")).collect();
        let mut board = Board::new();
        assert_eq!((board.images(2), board.bytes()), (None, None));
        board.on(&Event::Images { images: &images });
        for n in 0..30 {
            let (image, digest) = (images[n].as_str(), &digests[n]);
            board.on(&Event::ImageResolved { image, digest, platforms: &[], blobs: 1, bytes: 100 });
        }
        assert_eq!(board.images(2).as_deref(), Some("resolved 30 of 70 images"));
        board.on(&Event::Planned { fetch: 7000, store: 7000, snapshots: 0 });
        for n in 0..12 {
            board.on(&Event::BlobStarted { digest: &digests[n], size: 100, image: &images[n] });
            board.on(&Event::BlobProgress { digest: &digests[n], bytes: 60 });
        }
        for n in 0..8 {
            board.on(&Event::BlobDone { digest: &digests[n], size: 100, fetched: true });
            board.on(&Event::ImageFetched { image: &images[n], digest: &digests[n] });
        }
        board.on(&Event::BlobFailed { digest: &digests[8], lost: 60 });
        board.on(&Event::ImageFailed { image: &images[8], kind: Kind::NotFound, error: "gone" });
        board.on(&Event::LayerStarted { digest: &digests[9], chain: &digests[9] });
        let counts = Counts { images: 70, done: 8, failed: 1, moving: 3, waiting: 58 };
        assert_eq!(board.counts(), counts);
        assert_eq!(
            board.images(2).unwrap_or_default(),
            "8 of 70 images done, 1 failed, 3 coming, 1 layers unpacking, 58 waiting (registry.example/app12:1, \
             registry.example/app13:1, …)"
        );
        assert_eq!(board.fetched, 11 * 60);
        assert!(board.bytes().unwrap_or_default().starts_with("660 B of 6.8 KiB, "));
    }
}
