//! A bake's figures for Prometheus: a file as the node exporter collects them.

use std::fmt::Write as _;
use std::time::SystemTime;

use prebake::bake::Report;

pub(super) fn text(report: &Report) -> String {
    let failed = report.images.iter().filter(|image| image.failure.is_some()).count();
    let totals = &report.totals;
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, values: &[(&str, String)]| {
        let _ = writeln!(text, "# HELP prebake_{name} {help}\n# TYPE prebake_{name} gauge");
        for (label, value) in values {
            let _ = writeln!(text, "prebake_{name}{label} {value}");
        }
    };
    let one = |n: u64| [("", n.to_string())];
    let by_result =
        [("{result=\"ok\"}", (report.images.len() - failed).to_string()), ("{result=\"failed\"}", failed.to_string())];
    gauge("images", "Images of the last bake.", &by_result);
    gauge("fetched_blobs", "Blobs that came over the network.", &one(totals.fetched_blobs));
    gauge("fetched_bytes", "Bytes that came over the network.", &one(totals.fetched_bytes));
    gauge("present_blobs", "Blobs that were there before.", &one(totals.present_blobs));
    gauge("present_bytes", "Bytes that were there before.", &one(totals.present_bytes));
    gauge("unpacked_layers", "Layers that were unpacked.", &one(totals.unpacked_layers));
    gauge("unpacked_bytes", "Bytes on disk of layers that were unpacked.", &one(totals.unpacked_bytes));
    gauge("bake_duration_seconds", "How long the last bake took.", &[("", report.elapsed.as_secs_f64().to_string())]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    gauge("bake_timestamp_seconds", "When the last bake ended.", &one(now.as_secs()));
    text
}
