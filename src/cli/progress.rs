//! Three ways to show a bake: a view on a terminal, plain lines elsewhere, NDJSON for programs.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use prebake::bake::{EVENTS_VERSION, Event, Listener};
use prebake::oci::Digest;
use serde_json::json;

use super::board::{Board, Counts, Moving};
use super::output::{self, OutputArgs};

/// How often each way tells how far it is.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
const JSON_INTERVAL: Duration = Duration::from_secs(1);
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
/// Blobs that a terminal shows, of those that are coming.
const MAX_BARS: usize = 8;
/// Names that a terminal shows of the images that wait.
const WAITING_SHOWN: usize = 2;
/// Characters of an image's name before a blob's bar.
const NAME_WIDTH: usize = 40;

/// The listener that suits the arguments and the terminal.
pub(super) fn listener(output: OutputArgs) -> Arc<dyn Listener> {
    if output.quiet {
        Arc::new(())
    } else if output.json {
        Arc::new(Shown::new(Json::begin(), JSON_INTERVAL))
    } else if std::io::stderr().is_terminal() {
        Arc::new(Shown::new(Terminal::new(), TERMINAL_INTERVAL))
    } else {
        Arc::new(Shown::new(Plain, PLAIN_INTERVAL))
    }
}

/// A way to show a bake.
trait View: Send + 'static {
    /// Something happened.
    fn on(&mut self, event: &Event<'_>);
    /// Time went by, whether or not anything happened.
    fn tick(&mut self, board: &Board);
    /// It is over.
    fn end(&mut self) {}
}

/// A view, with what it shows, and a clock.
struct Shown<V: View> {
    state: Arc<Mutex<(Board, V)>>,
    clock: Option<(Sender<()>, JoinHandle<()>)>,
}

impl<V: View> Shown<V> {
    fn new(view: V, interval: Duration) -> Self {
        let state = Arc::new(Mutex::new((Board::new(), view)));
        let shown = state.clone();
        let (stop, stopped) = channel::<()>();
        let tick = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let (board, view) = &mut *shown.lock().unwrap_or_else(PoisonError::into_inner);
                view.tick(board);
            }
        };
        Self { state, clock: Some((stop, std::thread::spawn(tick))) }
    }
}

impl<V: View> Listener for Shown<V> {
    fn on(&self, event: &Event<'_>) {
        let (board, view) = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        board.on(event);
        view.on(event);
    }
}

impl<V: View> Drop for Shown<V> {
    fn drop(&mut self) {
        if let Some((stop, clock)) = self.clock.take() {
            drop(stop);
            // It has nothing to tell.
            let _ = clock.join();
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.end();
    }
}

struct Json;

impl Json {
    fn begin() -> Self {
        output::say_json(&json!({"event": "begin", "version": EVENTS_VERSION, "prebake": env!("CARGO_PKG_VERSION")}));
        Self
    }
}

impl View for Json {
    fn on(&mut self, event: &Event<'_>) {
        if !matches!(event, Event::BlobProgress { .. }) {
            output::say_json(event);
        }
    }

    fn tick(&mut self, board: &Board) {
        let Counts { images, done, failed, moving, waiting } = board.counts();
        output::say_json(&json!({"event": "progress", "images": images, "done": done, "failed": failed,
            "moving": moving, "waiting": waiting, "layers_unpacking": board.layers, "bytes": board.fetched,
            "total": board.to_fetch, "bytes_per_second": board.rate(), "seconds_left": board.seconds_left()}));
    }
}

struct Plain;

impl View for Plain {
    fn on(&mut self, event: &Event<'_>) {
        if let Some(line) = line(event) {
            output::tell(line);
        }
    }

    fn tick(&mut self, board: &Board) {
        let parts: Vec<String> = board.images(0).into_iter().chain(board.bytes()).collect();
        if !parts.is_empty() {
            output::tell(parts.join("; "));
        }
    }
}

/// What a person wants to read about an event.
fn line(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::ImageResolved { image, digest, platforms, blobs, bytes } => {
            let platforms: Vec<String> = platforms.iter().map(ToString::to_string).collect();
            let platforms = if platforms.is_empty() { "all platforms".to_owned() } else { platforms.join(", ") };
            let bytes = output::bytes(*bytes);
            format!("resolved {image} to {digest} ({platforms}, {blobs} blobs, {bytes})")
        }
        Event::ImageFetched { image, .. } => format!("fetched {image}"),
        Event::ImageLeft { image } => format!("left to other shards: {image}"),
        Event::ImageCopied { image, to, changed: true, .. } => format!("copied {image} to {to}"),
        Event::ImageCopied { to, .. } => format!("up to date: {to}"),
        Event::Bootstrapped { namespace, images, changed: true } => {
            format!("containerd's metadata names {images} images in {namespace}")
        }
        Event::Bootstrapped { namespace, images, .. } => {
            format!("containerd's metadata named all {images} images in {namespace} before")
        }
        event => return trouble(event),
    })
}

/// What a person has to read about an event, however much happens.
fn trouble(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Waiting { holder } => waiting(holder),
        Event::BlobRetried { digest, reason, .. } => format!("again: {digest}: {reason}"),
        Event::Again { reason, tries, of, .. } => format!("again after try {tries} of {of}: {reason}"),
        Event::Limited { host, status, wait_seconds } => {
            format!("{host} answered {status}; nothing is asked of it for {wait_seconds:.1} s")
        }
        Event::Quota { host, words, .. } => format!("{host} says that {words} are left"),
        Event::Cache { words, .. } => (*words).to_owned(),
        _ => return None,
    })
}

/// Whom a command waits for.
pub(super) fn waiting(holder: &str) -> String {
    format!("waiting for {holder}, which uses the root")
}

/// On a terminal: a bar for each of a few blobs that are coming, then a line and a bar for the whole.
struct Terminal {
    all: MultiProgress,
    images: ProgressBar,
    total: ProgressBar,
    blobs: Vec<(Digest, ProgressBar)>,
}

impl Terminal {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let images = all.add(ProgressBar::new(0).with_style(style("{wide_msg}")));
        let total = all.add(ProgressBar::new(0).with_style(style("{wide_bar} {msg}")));
        Self { all, images, total, blobs: Vec::new() }
    }

    fn remove(all: &MultiProgress, bar: &ProgressBar) {
        bar.finish_and_clear();
        all.remove(bar);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The end of a name, where images of one registry differ.
fn short(name: &str) -> String {
    match name.char_indices().nth_back(NAME_WIDTH - 2) {
        Some((at, _)) if at > 1 => format!("…{}", &name[at..]),
        _ => format!("{name:NAME_WIDTH$}"),
    }
}

impl View for Terminal {
    fn on(&mut self, event: &Event<'_>) {
        let line = match event {
            Event::ImageFailed { image, error, .. } => Some(format!("failed: {image}: {error}")),
            event => trouble(event),
        };
        if let Some(line) = line {
            let _ = self.all.println(line);
        }
    }

    fn tick(&mut self, board: &Board) {
        let shown = &board.moving[..board.moving.len().min(MAX_BARS)];
        self.blobs.retain(|(digest, bar)| {
            let stays = shown.iter().any(|blob| blob.digest == *digest);
            if !stays {
                Self::remove(&self.all, bar);
            }
            stays
        });
        for Moving { digest, image, size, came } in shown {
            let known = self.blobs.iter().position(|(known, _)| known == digest);
            let at = known.unwrap_or_else(|| {
                let bar = ProgressBar::new(*size).with_style(style("{prefix} {wide_bar} {bytes:>10}/{total_bytes:10}"));
                bar.set_prefix(format!("{} {}", short(image), &digest.hex()[..8]));
                self.blobs.push((digest.clone(), self.all.insert_before(&self.images, bar)));
                self.blobs.len() - 1
            });
            self.blobs[at].1.set_position(*came);
        }
        if let Some(line) = board.images(WAITING_SHOWN) {
            self.images.set_message(line);
        }
        if let Some(line) = board.bytes() {
            self.total.set_length(board.to_fetch.unwrap_or(0));
            self.total.set_position(board.fetched);
            self.total.set_message(line);
        }
    }

    fn end(&mut self) {
        self.blobs.iter().for_each(|(_, bar)| Self::remove(&self.all, bar));
        let _ = self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_their_beginning() {
        assert_eq!(short("nginx:1").len(), NAME_WIDTH);
        let long = "registry.example/a/very/long/repository/of/some/team/app:1.27";
        let cut = short(long);
        assert_eq!(cut.chars().count(), NAME_WIDTH);
        assert!(cut.starts_with('…') && long.ends_with(cut.trim_start_matches('…')));
        for len in NAME_WIDTH - 2..NAME_WIDTH + 3 {
            assert_eq!(short(&"é".repeat(len)).chars().count(), NAME_WIDTH, "{len}");
        }
    }
}
