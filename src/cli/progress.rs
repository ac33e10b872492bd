//! Three ways to show a bake: bars on a terminal, plain lines elsewhere, NDJSON for programs.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use prebake::bake::{Event, Listener};
use prebake::oci::Digest;
use serde_json::json;

use super::output::{self, OutputArgs};

/// How often plain lines and NDJSON tell how far it is.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// Bars of single blobs on a terminal.
const MAX_BARS: usize = 12;

/// The listener that suits the arguments and the terminal.
pub(super) fn listener(output: OutputArgs) -> Arc<dyn Listener> {
    if output.quiet {
        Arc::new(())
    } else if output.json {
        Arc::new(Json(Mutex::new(Meter::new(JSON_INTERVAL))))
    } else if std::io::stderr().is_terminal() {
        Arc::new(Bars::new())
    } else {
        Arc::new(Plain(Mutex::new(Meter::new(PLAIN_INTERVAL))))
    }
}

/// How far it is, in bytes.
struct Meter {
    total: u64,
    present: u64,
    fetched: u64,
    started: Instant,
    last: Instant,
    interval: Duration,
}

impl Meter {
    fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self { total: 0, present: 0, fetched: 0, started: now, last: now, interval }
    }

    /// Counts; whether it is time to tell.
    fn count(&mut self, event: &Event<'_>) -> bool {
        match event {
            Event::BlobAdded { size, .. } => self.total += size,
            Event::BlobDone { size, fetched: false, .. } => self.present += size,
            Event::BlobProgress { bytes, .. } => self.fetched += bytes,
            Event::BlobRetried { lost, .. } | Event::BlobFailed { lost, .. } => {
                self.fetched = self.fetched.saturating_sub(*lost);
            }
            _ => {}
        }
        let due = matches!(event, Event::BlobProgress { .. }) && self.last.elapsed() >= self.interval;
        if due {
            self.last = Instant::now();
        }
        due
    }

    /// Bytes a second since the start.
    fn rate(&self) -> u64 {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.fetched.saturating_mul(1000) / millis
    }

    fn seconds_left(&self) -> Option<u64> {
        let left = self.total.saturating_sub(self.present + self.fetched);
        left.checked_div(self.rate())
    }
}

struct Json(Mutex<Meter>);

impl Listener for Json {
    fn on(&self, event: &Event<'_>) {
        let mut meter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if meter.count(event) {
            output::say_json(
                &json!({"event": "progress", "bytes": meter.present + meter.fetched, "total": meter.total,
                "bytes_per_second": meter.rate(), "seconds_left": meter.seconds_left()}),
            );
        }
        if !matches!(event, Event::BlobProgress { .. } | Event::BlobAdded { .. }) {
            output::say_json(event);
        }
    }
}

struct Plain(Mutex<Meter>);

impl Listener for Plain {
    fn on(&self, event: &Event<'_>) {
        let mut meter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if meter.count(event) {
            let left = meter.seconds_left().map_or(String::new(), |seconds| format!(", {seconds} s left"));
            let (done, total) = (output::bytes(meter.present + meter.fetched), output::bytes(meter.total));
            output::tell(format!("{done} of {total}, {}/s{left}", output::bytes(meter.rate())));
        }
        if let Some(line) = line(event) {
            output::tell(line);
        }
    }
}

/// What a person wants to read about an event.
fn line(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Waiting { holder } => waiting(holder),
        Event::ImageResolved { image, digest, platforms, blobs, bytes } => {
            let platforms: Vec<String> = platforms.iter().map(ToString::to_string).collect();
            let (platforms, bytes) = (platforms.join(", "), output::bytes(*bytes));
            format!("resolved {image} to {digest} ({platforms}, {blobs} blobs, {bytes})")
        }
        Event::BlobRetried { digest, reason, .. } => format!("again: {digest}: {reason}"),
        Event::Again { reason, tries, of, .. } => format!("again after try {tries} of {of}: {reason}"),
        Event::Limited { host, status, wait_seconds } => {
            format!("{host} answered {status}; nothing is asked of it for {wait_seconds:.1} s")
        }
        Event::Quota { host, words, .. } => format!("{host} says that {words} are left"),
        Event::ImageFetched { image, .. } => format!("fetched {image}"),
        Event::Bootstrapped { namespace, images, changed: true } => {
            format!("containerd's metadata names {images} images in {namespace}")
        }
        Event::Bootstrapped { namespace, images, .. } => {
            format!("containerd's metadata named all {images} images in {namespace} before")
        }
        _ => return None,
    })
}

/// Whom a command waits for.
pub(super) fn waiting(holder: &str) -> String {
    format!("waiting for {holder}, which uses the root")
}

/// Bars on a terminal: one for the whole, one for each blob that is coming.
struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    state: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    blobs: HashMap<Digest, ProgressBar>,
    /// Layers that are being unpacked.
    layers: usize,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0));
        total.set_style(style(
            "total        {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}{msg}",
        ));
        total.enable_steady_tick(Duration::from_millis(200));
        Self { all, total, state: Mutex::default() }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Listener for Bars {
    fn on(&self, event: &Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Shown { blobs, layers } = &mut *state;
        match event {
            Event::LayerStarted { .. } | Event::LayerEnded { .. } => {
                *layers = if let Event::LayerStarted { .. } = event { *layers + 1 } else { layers.saturating_sub(1) };
                self.total.set_message(if *layers > 0 { format!("  unpacking {layers}") } else { String::new() });
            }
            Event::BlobAdded { size, .. } => self.total.inc_length(*size),
            Event::BlobStarted { digest, size } if blobs.len() < MAX_BARS => {
                let bar = self.all.insert_before(&self.total, ProgressBar::new(*size));
                bar.set_style(style("{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes}"));
                bar.set_prefix(digest.hex()[..12].to_owned());
                blobs.insert((*digest).clone(), bar);
            }
            Event::BlobProgress { digest, bytes } => {
                self.total.inc(*bytes);
                if let Some(bar) = blobs.get(*digest) {
                    bar.inc(*bytes);
                }
            }
            Event::BlobRetried { digest, lost, .. } => {
                self.total.dec(*lost);
                if let Some(bar) = blobs.get(*digest) {
                    bar.reset();
                }
            }
            Event::BlobFailed { digest, lost } => {
                self.total.dec(*lost);
                if let Some(bar) = blobs.remove(*digest) {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                }
            }
            Event::BlobDone { digest, size, fetched } => {
                if !fetched {
                    self.total.inc(*size);
                }
                if let Some(bar) = blobs.remove(*digest) {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                }
            }
            _ => {}
        }
        drop(state);
        if let Some(line) = line(event) {
            let _ = self.all.println(line);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}
