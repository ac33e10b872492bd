//! What is installed beside the binary, judged by those that read it: shells, readers of man pages, dpkg, systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::run;
use crate::support::prebake::command;

const BINARY: &str = env!("CARGO_BIN_EXE_prebake");

pub fn top(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn completions(shell: &str, dir: &Path) -> PathBuf {
    let path = dir.join(format!("prebake.{shell}"));
    fs::write(&path, run(command().args(["completions", shell]))).unwrap();
    path
}

#[test]
fn bash_completes_commands_and_options() {
    let dir = tempfile::tempdir().unwrap();
    let script = completions("bash", dir.path());
    let complete = |words: &str, last: &str| {
        let program = format!(
            "source {}; complete -p prebake >/dev/null; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _prebake prebake '{last}' ''; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        run(Command::new("bash").args(["--norc", "-euc", &program]))
    };
    assert_eq!(complete("prebake boo", "boo"), "bootstrap\n");
    assert_eq!(complete("prebake bundle ke", "ke"), "keygen\n");
    assert_eq!(complete("prebake bake --discard", "--discard"), "--discard-layers\n");
    assert_eq!(complete("prebake completions ''", "").lines().filter(|line| line.ends_with("sh")).count(), 3);
}

#[test]
fn zsh_and_fish_take_their_completions() {
    let dir = tempfile::tempdir().unwrap();
    let zsh = completions("zsh", dir.path());
    run(Command::new("zsh").args(["-f", "-n"]).arg(&zsh));
    // Read where completion is on, it makes itself that of prebake.
    let program = format!("autoload -U compinit; compinit -D -u; source {}; print $_comps[prebake]", zsh.display());
    assert_eq!(run(Command::new("zsh").args(["-f", "-c", &program])), "_prebake\n");

    let fish = completions("fish", dir.path());
    let asked = |line: &str| {
        let program = format!("source {}; complete -C '{line}'", fish.display());
        let mut command = Command::new("fish");
        run(command.args(["--no-config", "-c", &program]).env("HOME", dir.path()).env("XDG_DATA_HOME", dir.path()))
    };
    run(Command::new("fish").arg("-n").arg(&fish).env("HOME", dir.path()));
    assert!(asked("prebake boo").starts_with("bootstrap\t"), "{}", asked("prebake boo"));
    assert!(asked("prebake bundle create --spl").starts_with("--split\t"));
}

#[test]
fn man_pages_are_read_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    run(command().arg("man").arg(dir.path()).env("SOURCE_DATE_EPOCH", "1700000000"));
    let pages: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.len() > 35);
    for page in &pages {
        let said = run(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(page));
        assert_eq!(said, "", "{}", page.display());
        let mut man = Command::new("man");
        man.args(["--warnings", "-l", "-Tutf8", "-P", "cat"]).arg(page);
        let output = man.env("MANWIDTH", "200").env("LC_ALL", "C.UTF-8").env("GROFF_NO_SGR", "1").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", page.display());
        // As on a terminal, where letters are struck twice to be bold.
        let mut text = String::new();
        for c in String::from_utf8(output.stdout).unwrap().chars() {
            if c == '\u{8}' {
                text.pop();
            } else {
                text.push(c);
            }
        }
        assert!(text.contains("\nEXAMPLES\n") && text.contains("2023-11-14"), "{text}");
        let name = page.file_stem().unwrap().to_str().unwrap();
        assert!(text.starts_with(&format!("{name}(1)")), "{text}");
    }
    // Each of those that help names, and no other.
    let mut wanted = vec!["prebake".to_owned()];
    let mut at = 0;
    while at < wanted.len() {
        let words: Vec<&str> = wanted[at].split(' ').skip(1).collect();
        let help = run(command().args(&words).arg("--help"));
        let list = help.split("\nCommands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap();
        let below = list.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        let below = below.filter(|name| !name.is_empty() && *name != "help");
        let below: Vec<String> = below.map(|name| format!("{} {name}", wanted[at])).collect();
        wanted.extend(below);
        at += 1;
    }
    let mut names: Vec<String> =
        pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let mut wanted: Vec<String> = wanted.iter().map(|name| format!("{}.1", name.replace(' ', "-"))).collect();
    names.sort();
    wanted.sort();
    assert_eq!(names, wanted);
    // Examples are lines, not text that is filled.
    let page = fs::read_to_string(dir.path().join("prebake-seal.1")).unwrap();
    assert!(
        page.contains("\nprebake bake \\-\\-root ./chroot \\-\\-file images.txt && prebake seal \\-\\-root ./chroot\n"),
        "{page}"
    );
}

#[test]
fn what_cannot_be_built_is_said() {
    for (target, why) in [
        ("pdp11-unknown-linux-musl", "rustc knows no such target"),
        ("x86_64-unknown-linux-gnu", "it is not linked statically"),
    ] {
        let output = Command::new(top("packaging/static")).arg(target).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said), (Some(3), format!("static: cannot build for {target}: {why}\n")));
    }
}

/// A package of the binary under test.
pub fn package(dir: &Path) -> PathBuf {
    let mut script = Command::new(top("packaging/deb"));
    let said = run(script.arg("-o").arg(dir).arg(BINARY).env("SOURCE_DATE_EPOCH", "1700000000"));
    PathBuf::from(said.lines().last().unwrap())
}

#[test]
fn the_package_is_installed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let package = package(&dir.join("once"));
    let again = self::package(&dir.join("twice"));
    assert!(fs::read(&package).unwrap() == fs::read(again).unwrap(), "two packages of one binary differ");

    let list = run(Command::new("dpkg-deb").arg("-c").arg(&package));
    for (mode, path) in [
        ("-rwxr-xr-x root/root", "./usr/bin/prebake"),
        ("-rw-r--r-- root/root", "./usr/share/man/man1/prebake.1.gz"),
        ("-rw-r--r-- root/root", "./usr/share/man/man1/prebake-bundle-create.1.gz"),
        ("-rw-r--r-- root/root", "./usr/share/bash-completion/completions/prebake"),
        ("-rw-r--r-- root/root", "./usr/share/zsh/vendor-completions/_prebake"),
        ("-rw-r--r-- root/root", "./usr/share/fish/vendor_completions.d/prebake.fish"),
        ("-rw-r--r-- root/root", "./usr/lib/systemd/system/prebake.service"),
        ("-rw-r--r-- root/root", "./usr/share/doc/prebake/copyright"),
        ("-rw-r--r-- root/root", "./usr/share/doc/prebake/changelog.gz"),
    ] {
        assert!(list.lines().any(|line| line.starts_with(mode) && line.ends_with(path)), "{path}:\n{list}");
    }
    assert!(!list.contains("/etc/"), "{list}");

    // dpkg in a root of its own, in which there is what it needs itself.
    let root = dir.join("root");
    fs::create_dir_all(&root).unwrap();
    for part in ["layer0.tar", "layer1.tar", "layer2.tar"] {
        run(Command::new("tar").arg("-C").arg(&root).arg("-xf").arg(crate::peers::dir().join("debian").join(part)));
    }
    let before = files(&root);
    fs::copy(&package, root.join("prebake.deb")).unwrap();
    let inside = |words: &str| run(Command::new("chroot").arg(&root).args(words.split(' ')));
    inside("dpkg -i /prebake.deb");
    fs::remove_file(root.join("prebake.deb")).unwrap();
    assert_eq!(inside("prebake --version"), format!("prebake {}\n", env!("CARGO_PKG_VERSION")));
    inside("dpkg --verify prebake");
    assert!(inside("dpkg -L prebake").contains("/usr/lib/systemd/system/prebake.service"));
    let status = inside("dpkg --status prebake");
    assert!(status.contains("Status: install ok installed") && status.contains("Depends: libc6 (>= 2."), "{status}");

    // systemd's own word, about the unit where it is installed: it lacks only what the tree has no systemd for.
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").arg("--man=no").arg(format!("--root={}", root.display())).arg("prebake.service");
    let said = String::from_utf8(verify.output().unwrap().stderr).unwrap();
    let said: Vec<&str> = said.lines().filter(|line| !line.ends_with("Unit sysinit.target not found.")).collect();
    assert!(said.is_empty(), "{said:#?}");

    inside("dpkg --purge prebake");
    let gone = |files: Vec<String>| -> Vec<String> {
        files.into_iter().filter(|file| !file.contains("/var/lib/dpkg/") && !file.contains("/var/log/")).collect()
    };
    assert_eq!(gone(files(&root)), gone(before));
}

fn files(root: &Path) -> Vec<String> {
    let mut all: Vec<String> = run(Command::new("find").arg(root)).lines().map(str::to_owned).collect();
    all.sort();
    all
}
