//! Several prebakes on one root: each waits for its turn, and the work of all is there.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use prebake::fixture::Content;

use crate::support::content::build;
use crate::support::prebake::{Run, held, meta_db, prebake, start};
use crate::support::registry::TestRegistry;

/// As many images as asked for, each of its own.
fn images(count: usize) -> Content {
    let image = |n: usize| {
        format!(
            "[layer.l{n}]\nfiles = [{{ path = \"d{n}\", random = 200_000 }}]\n[[image]]\nname = \"i{n}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l{n}\"]\n"
        )
    };
    let all: Vec<String> = (0..count).map(image).collect();
    // Layers come before images in a spec.
    build(&all.concat())
}

/// A registry whose layers take four seconds: enough for what is to happen meanwhile on a busy machine.
fn slow_registry(count: usize) -> TestRegistry {
    TestRegistry::slow(images(count), 20_000, Duration::from_millis(400))
}

fn end(child: Child) -> Run {
    child.wait_with_output().unwrap().into()
}

fn names(root: &Path) -> Vec<String> {
    prebake(root, "images --json").expect(0).stdout.lines().map(str::to_owned).collect()
}

#[test]
fn the_second_waits_for_the_first() {
    let registry = slow_registry(2);
    let root = tempfile::tempdir().unwrap();
    let bake = |n: usize| format!("bake --platform linux/amd64 {}", registry.reference(&format!("i{n}:1")));
    let first = start(root.path(), &bake(0));
    held(root.path());
    let pid = format!("waiting for prebake (pid {})", first.id());
    // Impatient ones, and those that only read.
    for arguments in [bake(1), "bootstrap".to_owned(), "images".to_owned(), "check".to_owned()] {
        let started = Instant::now();
        let run = prebake(root.path(), &format!("{arguments} --lock-timeout 0")).expect(5);
        assert!(run.stderr.contains(&format!("is locked by prebake (pid {}); waited 0 s", first.id())), "{run:?}");
        assert!(!run.stderr.contains("waiting for") && started.elapsed() < Duration::from_secs(1), "{run:?}");
    }
    let second = start(root.path(), &bake(1));
    let reader = start(root.path(), "images --lock-timeout 30");
    let second = end(second).expect(0);
    assert!(second.stderr.contains(&pid), "{second:?}");
    assert!(end(reader).expect(0).stderr.contains("waiting for prebake (pid "));
    end(first).expect(0);
    assert_eq!(names(root.path()).len(), 6);
    prebake(root.path(), "check").expect(0);
}

#[test]
fn who_waited_in_vain_says_for_how_long() {
    let registry = slow_registry(1);
    let root = tempfile::tempdir().unwrap();
    let first = start(root.path(), &format!("bake --platform linux/amd64 {}", registry.reference("i0:1")));
    held(root.path());
    let started = Instant::now();
    let run = prebake(root.path(), "bootstrap --lock-timeout 1").expect(5);
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(run.stderr.contains(&format!("prebake (pid {}); waited 1 s for it", first.id())), "{run:?}");
    end(first).expect(0);
}

#[test]
fn waiting_can_be_stopped() {
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), "bake localhost:1/a --quiet").expect(1);
    let lock = File::open(root.path().join("var/lib/prebake/lock")).unwrap();
    lock.lock().unwrap();
    let mut child = start(root.path(), "bake localhost:1/a --json");
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.as_mut().unwrap());
    while !said.contains("waiting") {
        assert_ne!(stdout.read_line(&mut said).unwrap(), 0, "{said}");
    }
    assert!(
        std::process::Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success()
    );
    let started = Instant::now();
    let run = end(child).expect(130);
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(run.stdout.contains("stopped before it was complete"), "{run:?}");
}

#[test]
fn readers_of_the_database_are_waited_for() {
    let registry = TestRegistry::start(images(1));
    let root = tempfile::tempdir().unwrap();
    let bake = format!("bake --platform linux/amd64 {}", registry.reference("i0:1"));
    prebake(root.path(), &bake).expect(0);
    // As bbolt's own tools read.
    let file = File::open(meta_db(root.path())).unwrap();
    file.lock_shared().unwrap();
    prebake(root.path(), "images").expect(0);
    let mut child = start(root.path(), &bake);
    let mut said = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("waiting for ") && said.contains(&format!("(pid {})", std::process::id())), "{said}");
    drop(file);
    end(child).expect(0);
}

#[test]
fn sixteen_at_once() {
    let registry = TestRegistry::start(images(16));
    let root = tempfile::tempdir().unwrap();
    let all: Vec<Child> = (0..16)
        .map(|n| {
            let reference = registry.reference(&format!("i{n}:1"));
            start(root.path(), &format!("bake --platform linux/amd64 {reference}"))
        })
        .collect();
    for child in all {
        end(child).expect(0);
    }
    assert_eq!(names(root.path()).len(), 48);
    prebake(root.path(), "check").expect(0);
}
