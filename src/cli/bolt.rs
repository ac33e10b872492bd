//! `prebake bolt`.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use prebake::bolt::{Db, Error, FileStorage, FreelistForm, Lock, Seen, Tx, View, lock_holder};
use prebake::kind::{Kind, chain};
use prebake::metadata::{Shown, show, show_key};
use serde_json::json;

use super::{Failed, exit_code, output};

const STATS_EXAMPLES: &str = "\
Examples:
  prebake bolt stats meta.db
  prebake bolt stats meta.db --path v1/k8s.io/images --json";

const CHECK_EXAMPLES: &str = "\
Examples:
  prebake bolt check meta.db
  prebake bolt check /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/metadata.db --json";

const DUMP_EXAMPLES: &str = "\
Examples:
  prebake bolt dump meta.db --path v1/k8s.io/images
  prebake bolt dump meta.db --json | jq -r 'select(.key == \"digest\").value'";

const EXAMPLES: &str = "\
Examples:
  prebake bolt stats /var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db
  prebake bolt check meta.db
  prebake bolt dump meta.db --path v1/k8s.io/images
  prebake bolt dump meta.db --json | jq -r 'select(.key == \"digest\").value'
Nothing is ever written. A database that a running containerd has locked cannot be read.";
/// Bytes of a value that is no text, before it is cut off for people.
const SHOWN_BYTES: usize = 48;

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BoltArgs {
    #[command(subcommand)]
    command: BoltCommand,
}

#[derive(Subcommand)]
enum BoltCommand {
    /// Say how large a database and a bucket in it are
    #[command(after_help = STATS_EXAMPLES)]
    Stats(FileArgs),
    /// Verify every page, and name those that are wrong with their buckets; 6 when any is
    #[command(after_help = CHECK_EXAMPLES)]
    Check(FileArgs),
    /// Show buckets, keys and values, with containerd's times and numbers decoded
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(FileArgs),
}

#[derive(Args)]
struct FileArgs {
    /// A bbolt database
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only this bucket, by its keys from the root: v1/k8s.io/images
    #[arg(long, value_name = "KEYS", default_value = "", hide_default_value = true)]
    path: String,
    /// Report as JSON, one object a line
    #[arg(long)]
    json: bool,
}

impl BoltArgs {
    pub(super) fn json(&self) -> bool {
        let (BoltCommand::Stats(args) | BoltCommand::Check(args) | BoltCommand::Dump(args)) = &self.command;
        args.json
    }
}

pub(super) fn run(args: &BoltArgs) -> Result<u8, Failed> {
    match &args.command {
        BoltCommand::Stats(args) => stats(args),
        BoltCommand::Check(args) => check(args),
        BoltCommand::Dump(args) => dump(args),
    }
}

impl FileArgs {
    fn failed(&self, error: &Error) -> Failed {
        let holder = lock_holder(&self.file).filter(|_| matches!(error, Error::Locked));
        let holder = holder.map_or(String::new(), |holder| format!(": {}", holder.process));
        Failed { kind: error.into(), message: format!("{}: {}{holder}", self.file.display(), chain(error)) }
    }

    fn missing(&self) -> Failed {
        let message = format!("{} has no {:?}", self.file.display(), self.path);
        Failed { kind: Kind::NotFound, message }
    }

    fn storage(&self) -> Result<FileStorage, Failed> {
        // Databases are never opened through a link; whoever names one here means what it leads to.
        let path = self.file.canonicalize().map_err(|error| {
            let kind = if error.kind() == ErrorKind::NotFound { Kind::NotFound } else { (&error).into() };
            Failed { kind, message: format!("{}: {error}", self.file.display()) }
        })?;
        FileStorage::open(&path, Lock::Shared).map_err(|error| self.failed(&error))
    }

    fn open(&self) -> Result<Db, Failed> {
        Db::open(Box::new(self.storage()?)).map_err(|error| self.failed(&error))
    }

    /// What `path` leads to: the keys, and whether the last one is a bucket.
    fn find(&self, tx: &Tx<'_>) -> Result<(Vec<Vec<u8>>, bool), Failed> {
        let mut keys = Vec::new();
        let found = tx.view(&[], &mut |root| match root {
            Some(root) => find(&root, self.path.trim_end_matches('/').as_bytes(), &mut keys),
            None => Ok(None),
        });
        let found = found.map_err(|error| self.failed(&error))?;
        found.map(|bucket| (keys, bucket)).ok_or_else(|| self.missing())
    }
}

/// Follows keys joined by slashes, which may be in the keys as well; whether the last one is a bucket.
fn find(view: &View<'_>, rest: &[u8], keys: &mut Vec<Vec<u8>>) -> Result<Option<bool>, Error> {
    if rest.is_empty() {
        return Ok(Some(true));
    }
    let mut found = None;
    view.each(&mut |key, seen| {
        let Some(after) = rest.strip_prefix(key).filter(|_| found.is_none()) else { return Ok(()) };
        keys.push(key.to_vec());
        found = match (seen, after) {
            (Seen::Value(_), []) => Some(false),
            (Seen::Bucket(_), []) => Some(true),
            (Seen::Bucket(view), [b'/', after @ ..]) => find(&view, after, keys)?,
            _ => None,
        };
        if found.is_none() {
            keys.pop();
        }
        Ok(())
    })?;
    Ok(found)
}

fn stats(args: &FileArgs) -> Result<u8, Failed> {
    let mut db = args.open()?;
    let info = db.info().map_err(|error| args.failed(&error))?;
    let tx = db.begin().map_err(|error| args.failed(&error))?;
    let (keys, bucket) = args.find(&tx)?;
    if !bucket {
        return Err(Failed::usage(format!("{:?} is a value, not a bucket", args.path)));
    }
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let stats = tx.stats(&keys).map_err(|error| args.failed(&error))?.ok_or_else(|| args.missing())?;
    let freelist = match info.freelist {
        FreelistForm::Persisted => "persisted",
        FreelistForm::Rebuilt => "rebuilt when opened",
    };
    if args.json {
        output::say_json(&json!({"file_bytes": info.len, "page_size": info.page_size, "pages": info.pages,
            "free_pages": info.free_pages, "txid": info.txid, "freelist": freelist,
            "path": keys.iter().map(|key| show_key(b"", key)).collect::<Vec<_>>(),
            "buckets": stats.buckets, "inline_buckets": stats.inline_buckets, "keys": stats.keys, "bytes": stats.bytes,
            "branch_pages": stats.branch_pages, "leaf_pages": stats.leaf_pages,
            "overflow_pages": stats.overflow_pages, "depth": stats.depth}));
        return Ok(0);
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let used = stats.branch_pages + stats.leaf_pages + stats.overflow_pages;
    output::table(&[
        row("file", output::bytes(info.len)),
        row("pages", format!("{} of {}, {} free", info.pages, output::bytes(info.page_size as u64), info.free_pages)),
        row("freelist", freelist.to_owned()),
        row("transactions", info.txid.to_string()),
        row("bucket", if args.path.is_empty() { "(all)".to_owned() } else { args.path.clone() }),
        row("  buckets", format!("{}, {} inline", stats.buckets, stats.inline_buckets)),
        row("  keys", format!("{}, {} with their values", stats.keys, output::bytes(stats.bytes))),
        row(
            "  pages",
            format!(
                "{used}: {} branch, {} leaf, {} overflow; at most {} deep",
                stats.branch_pages, stats.leaf_pages, stats.overflow_pages, stats.depth
            ),
        ),
    ]);
    Ok(0)
}

fn check(args: &FileArgs) -> Result<u8, Failed> {
    let report = Db::check(&args.storage()?).map_err(|error| args.failed(&error))?;
    let keys = |bucket: &[Vec<u8>]| bucket.iter().map(|key| show_key(b"", key)).collect::<Vec<_>>();
    // What is wrong above a bucket concerns it, and so does what is in no bucket.
    let wanted = args.path.trim_end_matches('/');
    let within = |inner: &str, outer: &str| {
        outer.is_empty() || inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let concerned = |bucket: &str| within(bucket, wanted) || within(wanted, bucket);
    let found: Vec<_> = report.findings.iter().filter(|finding| concerned(&keys(&finding.bucket).join("/"))).collect();
    if found.is_empty() && !report.is_fatal() {
        args.find(&args.open()?.begin().map_err(|error| args.failed(&error))?)?;
    }
    if args.json {
        output::say_json_lines(found.iter().map(|finding| {
            json!({"problem": finding.problem.to_string(), "bucket": keys(&finding.bucket),
                "fatal": finding.problem.is_fatal()})
        }));
    } else {
        let more = (report.more > 0).then(|| format!("and {} more", report.more));
        let lines = found.iter().map(ToString::to_string).chain(more).collect::<Vec<_>>();
        output::say(if lines.is_empty() { "sound".to_owned() } else { lines.join("\n") });
    }
    Ok(if found.is_empty() { 0 } else { exit_code(Kind::Corrupt) })
}

fn dump(args: &FileArgs) -> Result<u8, Failed> {
    let mut db = args.open()?;
    let tx = db.begin().map_err(|error| args.failed(&error))?;
    let (mut keys, bucket) = args.find(&tx)?;
    let mut out = Printer { out: BufWriter::new(std::io::stdout().lock()), json: args.json };
    let result = if bucket {
        let path: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        tx.view(&path, &mut |view| match view {
            Some(view) => out.bucket(&view, &mut path.iter().map(|key| key.to_vec()).collect(), 0),
            None => Ok(()),
        })
    } else {
        let last = keys.pop().unwrap_or_default();
        let path: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        tx.get(&path, &last).map(|value| out.value(&keys, &last, &value.unwrap_or_default(), 0))
    };
    result.map(|()| 0).map_err(|error| args.failed(&error))
}

struct Printer<W> {
    out: W,
    json: bool,
}

impl<W: Write> Printer<W> {
    /// A reader that went away is nobody's error.
    fn line(&mut self, depth: usize, text: impl std::fmt::Display) {
        let _ = writeln!(self.out, "{:1$}{text}", "", depth * 2);
    }

    fn bucket(&mut self, view: &View<'_>, path: &mut Vec<Vec<u8>>, depth: usize) -> Result<(), Error> {
        view.each(&mut |key, seen| match seen {
            Seen::Value(value) => {
                self.value(path, key, value, depth);
                Ok(())
            }
            Seen::Bucket(view) => {
                let name = show_key(path.last().map_or(&[], Vec::as_slice), key);
                match (self.json, view.sequence()) {
                    (true, sequence) => {
                        self.line(0, json!({"path": texts(path), "bucket": name, "sequence": sequence}));
                    }
                    (false, 0) => self.line(depth, format_args!("{name}/")),
                    (false, sequence) => self.line(depth, format_args!("{name}/ (sequence {sequence})")),
                }
                path.push(key.to_vec());
                self.bucket(&view, path, depth + 1)?;
                path.pop();
                Ok(())
            }
        })
    }

    fn value(&mut self, path: &[Vec<u8>], key: &[u8], value: &[u8], depth: usize) {
        let bucket = path.last().map_or(&[][..], Vec::as_slice);
        let (name, shown) = (show_key(bucket, key), show(bucket, key, value));
        if self.json {
            let text = match &shown {
                Shown::Number(n) => json!(n),
                other => json!(other.to_string()),
            };
            self.line(0, json!({"path": texts(path), "key": name, "kind": shown.kind(), "value": text}));
            return;
        }
        match shown {
            Shown::Bytes(bytes) if bytes.len() > SHOWN_BYTES => {
                let start = Shown::Bytes(&bytes[..SHOWN_BYTES]);
                self.line(depth, format_args!("{name} = {start}… ({} bytes)", bytes.len()));
            }
            shown => self.line(depth, format_args!("{name} = {shown}")),
        }
    }
}

fn texts(path: &[Vec<u8>]) -> Vec<String> {
    path.iter().map(|key| show_key(b"", key)).collect()
}
