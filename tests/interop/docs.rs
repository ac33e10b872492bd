//! The commands of the documentation do what it says: each page is run, in order, in a world of its own (`world.sh`).
//!
//! What a page can say, all of it visible to its reader but for the last:
//!
//! - A block behind a line that ends with a file's name in backquotes and a colon (``Then `bake.toml`:``) is that file,
//!   unless it is a `console` block.
//! - A `sh` block is run as it is; nothing it says is compared.
//! - In a `console` block, lines with `$ ` are commands, and what follows one is what it says, `…` standing for anything in a line,
//!   and for any lines where it is all of one. Where nothing follows, nothing is compared. Lines with `> ` go on with
//!   a command.
//! - `<!-- not run: REASON -->` above a block keeps it from being run; `NOT_RUN` has all of these.
//! - A block of another language than these has no commands of prebake's; each has a language, `text` where it is none.
//!
//! A page is one script in one shell: what one block sets, leaves behind or starts, the next one has.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::{self, Registry};
use crate::support::content::build;

/// Images that the registries of a page's world have.
const IMAGES: &str = include_str!("../../fixtures/docs.toml");

/// Pages, and why a block of theirs is not run.
const NOT_RUN: &[(&str, &str)] = &[
    ("CONTRIBUTING.md", "these are the tests themselves"),
    ("README.md", "the demo needs a build, and the tests are what runs this page"),
    ("README.md", "needs a containerd that runs on this machine, as tests/interop/live.rs starts one"),
    ("docs/mirrors.md", "needs a cluster of machines on which Spegel runs"),
    ("docs/mirrors.md", "needs Dragonfly's manager, schedulers and agents"),
    ("docs/ci.md", "needs a mounted image; tests/interop/snippets.rs runs the script"),
    ("docs/ci.md", "starts a virtual machine; tests/interop/snippets.rs validates the template and runs its script"),
];

macro_rules! pages {
    ($($name:ident: $page:literal,)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(#[test] fn $name() { holds($page); })*
    };
}

pages! {
    air_gap: "docs/air-gap.md",
    bake_toml: "docs/bake-toml.md",
    bundles: "docs/bundles.md",
    cache: "docs/cache.md",
    ci: "docs/ci.md",
    ci_fixtures: "docs/ci-fixtures.md",
    events: "docs/events.md",
    mirror: "docs/mirror.md",
    mirrors: "docs/mirrors.md",
    node_image: "docs/node-image.md",
    report: "docs/report.md",
    readme: "README.md",
    serve: "docs/serve.md",
    sharding: "docs/sharding.md",
}

/// What is to be done for a page.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    File { name: String, text: String },
    Command { line: usize, text: String, says: Vec<String> },
    NotRun { reason: String },
}

/// A page's steps, and the lines of blocks that are none and call `prebake`, or do not say what they are.
#[derive(Debug, Default)]
struct Page {
    steps: Vec<Step>,
    strays: Vec<usize>,
}

impl Page {
    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut above = "";
        let mut lines = text.lines().zip(1..);
        while let Some((line, number)) = lines.next() {
            if let Some(kind) = line.strip_prefix("```") {
                let block: Vec<&str> = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```").collect();
                page.block(kind, above, &block, number);
            } else if line.starts_with("    ") && line.contains("prebake ") {
                page.strays.push(number);
            }
            if !line.trim().is_empty() {
                above = line;
            }
        }
        page
    }

    fn block(&mut self, kind: &str, above: &str, block: &[&str], number: usize) {
        let reason = above.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
        let file = above.strip_suffix("`:").and_then(|rest| rest.rsplit('`').next()).filter(|_| kind != "console");
        if let Some(reason) = reason {
            self.steps.push(Step::NotRun { reason: reason.to_owned() });
        } else if let Some(name) = file {
            self.steps.push(Step::File { name: name.to_owned(), text: block.join("\n") + "\n" });
        } else if kind == "sh" {
            self.steps.push(Step::Command { line: number + 1, text: block.join("\n"), says: Vec::new() });
        } else if kind == "console" {
            self.console(block, number + 1);
        } else if kind.is_empty() || block.iter().any(|line| line.contains("prebake ")) {
            self.strays.push(number);
        }
    }

    fn console(&mut self, block: &[&str], first: usize) {
        let mut lines = block.iter().zip(first..).peekable();
        while let Some((line, number)) = lines.next() {
            let Some(command) = line.strip_prefix("$ ") else {
                self.strays.push(number);
                continue;
            };
            let mut text = command.to_owned();
            while let Some((more, _)) = lines.next_if(|(line, _)| line.starts_with("> ")) {
                write!(text, "\n{}", &more[2..]).unwrap();
            }
            let mut says = Vec::new();
            while let Some((said, _)) = lines.next_if(|(line, _)| !line.starts_with("$ ")) {
                says.push((*said).to_owned());
            }
            self.steps.push(Step::Command { line: number, text, says });
        }
    }

    /// One script of all steps; each says what it says into a file of its own, by its number.
    fn script(&self) -> String {
        let mut script = "set -eo pipefail\n".to_owned();
        for (number, step) in self.steps.iter().enumerate() {
            match step {
                Step::File { name, .. } => {
                    writeln!(script, "mkdir -p \"$(dirname '{name}')\"\ncp /srv/files/{number} '{name}'").unwrap();
                }
                Step::Command { text, .. } => {
                    // `-e` overlooks what fails in `a && b`, and `! a`.
                    let check = "[ $? = 0 ] || exit 1";
                    writeln!(script, "exec >/srv/output/{number} 2>&1 </dev/null\n{text}\n{check}").unwrap();
                }
                Step::NotRun { .. } => {}
            }
        }
        script
    }

    /// What is wrong with what the steps said, and with how the last of them ended.
    fn judge(&self, world: &Path, success: bool) -> Vec<String> {
        let commands = self.steps.iter().enumerate().filter_map(|(number, step)| match step {
            Step::Command { line, text, says } => Some((line, text, says, world.join(format!("output/{number}")))),
            _ => None,
        });
        let run: Vec<_> = commands.filter(|(.., output)| output.exists()).collect();
        let mut wrong = Vec::new();
        for (at, (line, text, says, output)) in run.iter().enumerate() {
            let output = String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned();
            let said: Vec<&str> = output.lines().map(str::trim_end).collect();
            let wanted: Vec<&str> = says.iter().map(|line| line.trim_end()).collect();
            // Shown where the test fails.
            eprintln!("{line}: $ {text}\n{output}");
            if !success && at + 1 == run.len() {
                wrong.push(format!("line {line}: {text}\nfailed:\n{output}"));
            } else if !says.is_empty() && !lines_fit(&wanted, &said) {
                wrong.push(format!("line {line}: {text}\nsays, not what the page has:\n{output}"));
            }
        }
        wrong
    }
}

fn lines_fit(wanted: &[&str], said: &[&str]) -> bool {
    match wanted.split_first() {
        None => said.is_empty(),
        Some((&"…", rest)) => (0..=said.len()).any(|some| lines_fit(rest, &said[some..])),
        Some((line, rest)) => {
            said.split_first().is_some_and(|(first, more)| line_fits(line, first) && lines_fit(rest, more))
        }
    }
}

fn line_fits(wanted: &str, said: &str) -> bool {
    let Some((start, rest)) = wanted.split_once('…') else { return wanted == said };
    said.strip_prefix(start).is_some_and(|said| {
        let ends = said.char_indices().map(|(at, _)| at).chain([said.len()]);
        ends.into_iter().any(|at| line_fits(rest, &said[at..]))
    })
}

fn read(page: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap()
}

/// Fills what the registries of worlds hold.
fn fill(dir: &Path) -> PathBuf {
    let store = dir.join("store");
    Registry::serve(dir, &store, "", "").push(&build(IMAGES));
    store
}

/// Runs a page in a world of its own; what is wrong.
fn run(page: &Page, store: &Path) -> Vec<String> {
    let world = tempfile::tempdir().unwrap();
    let world = world.path();
    let of = |name: &str| world.join(name);
    for dir in ["bin", "files"] {
        fs::create_dir(of(dir)).unwrap();
    }
    // What tests/setup had it make.
    let debootstrap = "#!/bin/sh\nset -e\nfor root; do :; done\nmkdir \"$root\"\ntar -C \"$root\" -xf \"/srv/peers/debootstrap/$*.tar\"\n";
    fs::write(of("bin/debootstrap"), debootstrap).unwrap();
    fs::set_permissions(of("bin/debootstrap"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(of("page.sh"), page.script()).unwrap();
    for (number, step) in page.steps.iter().enumerate() {
        if let Step::File { text, .. } = step {
            fs::write(of("files").join(number.to_string()), text).unwrap();
        }
    }
    let log = fs::File::create(of("log")).unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop/world.sh"))
        .args([world, store, &peers::dir().canonicalize().unwrap(), Path::new(env!("CARGO_BIN_EXE_prebake"))])
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .status()
        .unwrap();
    let mut wrong = page.judge(world, status.success());
    if !status.success() && wrong.is_empty() {
        wrong.push(format!("no world: {}", fs::read_to_string(of("log")).unwrap()));
    }
    wrong
}

fn holds(page: &str) {
    let dir = tempfile::tempdir().unwrap();
    let wrong = run(&Page::parse(&read(page)), &fill(dir.path()));
    assert!(wrong.is_empty(), "{page}\n{}", wrong.join("\n"));
}

#[test]
fn every_block_is_run_or_says_why_not() {
    let docs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    let names = docs.map(|path| format!("docs/{}", path.file_name().unwrap().to_str().unwrap()));
    let mut not_run = Vec::new();
    let mut wrong = Vec::new();
    let others = PAGES.iter().chain(&["CONTRIBUTING.md", "benches/README.md"]);
    for name in names.chain(others.map(|&page| page.to_owned())) {
        let page = Page::parse(&read(&name));
        wrong.extend(page.strays.iter().map(|line| format!("{name}:{line} is neither run nor says why not")));
        let listed = PAGES.contains(&name.as_str());
        for step in page.steps {
            match step {
                Step::NotRun { reason } => not_run.push((name.clone(), reason)),
                Step::Command { line, .. } if !listed => {
                    wrong.push(format!("{name}:{line}: not one of the pages that are run"));
                }
                _ => {}
            }
        }
    }
    not_run.sort();
    not_run.dedup();
    let mut allowed: Vec<_> = NOT_RUN.iter().map(|(page, why)| ((*page).to_owned(), (*why).to_owned())).collect();
    allowed.sort();
    assert_eq!(not_run, allowed);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const SMALL: &str = "Here is `a/b.txt`:

```
one
two
```

```console
$ cat a/b.txt |
>   tail -1
two
$ there=$(wc -l <a/b.txt); echo \"$there lines\"
… lines
```

<!-- not run: no reason -->
```sh
false
```

```sh
[ \"$there\" = 2 ]
```
";

#[test]
fn what_a_page_says_is_understood() {
    let page = Page::parse(SMALL);
    let command = |line, text: &str, says: &[&str]| Step::Command {
        line,
        text: text.to_owned(),
        says: says.iter().map(|&line| line.to_owned()).collect(),
    };
    let wanted = [
        Step::File { name: "a/b.txt".to_owned(), text: "one\ntwo\n".to_owned() },
        command(9, "cat a/b.txt |\n  tail -1", &["two"]),
        command(12, "there=$(wc -l <a/b.txt); echo \"$there lines\"", &["… lines"]),
        Step::NotRun { reason: "no reason".to_owned() },
        command(22, "[ \"$there\" = 2 ]", &[]),
    ];
    assert_eq!(page.steps, wanted);
    assert_eq!(page.strays, [0; 0]);
    for stray in [
        "```\nprebake demo\n```\n",
        "```\nmake\n```\n",
        "```toml\n$ prebake demo\n```\n",
        "text\n\n    prebake demo\n",
        "```console\nwhat?\n```\n",
    ] {
        assert_eq!(Page::parse(stray).strays.len(), 1, "{stray}");
    }
    for (wanted, said, fits) in [
        ("a…c", "a b c", true),
        ("a…c", "ac", true),
        ("a…c", "a c d", false),
        ("…", "", true),
        ("…\nb", "a\na\nb", true),
        ("…\nb", "a\nb\nc", false),
        ("a", "a\n", true),
        ("a\nb", "a", false),
    ] {
        let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
        assert_eq!(lines_fit(&lines(wanted), &lines(said)), fits, "{wanted:?} {said:?}");
    }
}

#[test]
fn a_page_that_does_not_hold_is_told_of() {
    let store = tempfile::tempdir().unwrap();
    let run = |text: &str| run(&Page::parse(text), store.path());
    assert_eq!(run(SMALL), [""; 0]);
    let other = run(&SMALL.replace("\ntwo\n$", "\nthree\n$"));
    assert!(
        other.len() == 1 && other[0].starts_with("line 9: cat a/b.txt") && other[0].ends_with("\ntwo\n"),
        "{other:?}"
    );
    for fails in ["[ \"$there\" = 3 ]", "! true", "false && true", "false | cat"] {
        let failing = run(&SMALL.replace("[ \"$there\" = 2 ]", fails));
        assert!(
            failing.len() == 1 && failing[0].starts_with("line 22: ") && failing[0].contains("\nfailed:\n"),
            "{failing:?}"
        );
    }
    // Nothing of the machine can be written but in layers that go with the world.
    let outside = "```console\n$ touch /usr/mark /mark || mkdir /home/mark || touch /etc/mark /var/lib/mark\n…\n…Read-only…\n…Read-only…\n…Read-only…\n```\n";
    assert_eq!(run(outside), [""; 0]);
    assert!(!["/etc/mark", "/var/lib/mark", "/usr/mark", "/home/mark"].iter().any(|path| Path::new(path).exists()));
}
