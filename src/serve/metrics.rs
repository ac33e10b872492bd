//! Figures in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Classes of status that are answered with.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// What was done since the start.
#[derive(Default)]
pub(super) struct Metrics {
    requests: [AtomicU64; CLASSES.len()],
    sent: AtomicU64,
    accepted: AtomicU64,
    closed: AtomicU64,
}

/// A connection that is open.
pub(super) struct Open(Arc<Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Relaxed);
    }
}

impl Metrics {
    pub(super) fn connection(self: &Arc<Self>) -> Open {
        self.accepted.fetch_add(1, Relaxed);
        Open(self.clone())
    }

    pub(super) fn request(&self, status: u16) {
        if let Some(count) = usize::from(status / 100).checked_sub(2).and_then(|class| self.requests.get(class)) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
            let _ = writeln!(text, "# HELP prebake_serve_{name} {help}\n# TYPE prebake_serve_{name} {kind}");
            for (label, value) in values {
                let _ = writeln!(text, "prebake_serve_{name}{label} {value}");
            }
        };
        let one = |value| [(String::new(), value)];
        let requests: Vec<_> = CLASSES
            .iter()
            .zip(&self.requests)
            .map(|(class, count)| (format!("{{class=\"{class}\"}}"), count.load(Relaxed)))
            .collect();
        // A connection that closes between the two loads is not to count as a negative one.
        let closed = self.closed.load(Relaxed);
        let accepted = self.accepted.load(Relaxed);
        family("requests_total", "counter", "Requests that were answered, by class of status.", &requests);
        family("sent_bytes_total", "counter", "Bytes of bodies that were sent.", &one(self.sent.load(Relaxed)));
        family("connections_total", "counter", "Connections that were accepted.", &one(accepted));
        family("connections", "gauge", "Connections that are open.", &one(accepted.saturating_sub(closed)));
        text
    }
}
