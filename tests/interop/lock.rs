//! A containerd that starts while prebake bakes waits for it, and then has the images.

use std::time::Duration;

use crate::peers::{Containerd, RELEASES};
use crate::support::content::{build, demo};
use crate::support::prebake::{Run, containerd_root, held, prebake, start};
use crate::support::registry::TestRegistry;

#[test]
fn a_containerd_that_starts_meanwhile_waits_and_has_the_images() {
    let spec = |n: usize| {
        format!(
            "[layer.l{n}]\nfiles = [{{ path = \"d{n}\", random = 200_000 }}]\n[[image]]\nname = \"i{n}:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"l{n}\"]\n"
        )
    };
    let registry = TestRegistry::slow(build(&(spec(0) + &spec(1))), 20_000, Duration::from_millis(200));
    let names = [0, 1].map(|n| registry.reference(&format!("i{n}:1")));
    for release in RELEASES {
        // Into an empty root, and into one in which that containerd has lived.
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let mut containerd = Containerd::new(release, &containerd_root(&root), &dir.path().join("c"), "none");
        for n in [0, 1] {
            let bake = start(&root, &format!("bake {}", names[n]));
            held(&root);
            std::thread::scope(|scope| {
                let start = scope.spawn(|| containerd.launch());
                let run: Run = bake.wait_with_output().unwrap().into();
                assert!(!start.is_finished(), "{release} did not wait");
                run.expect(0);
            });
            let listed = containerd.ctr("images ls -q");
            assert!(names[..=n].iter().all(|name| listed.lines().any(|line| line == name)), "{release}: {listed}");
            containerd.collect_garbage();
            containerd.stop();
            prebake(&root, "check").expect(0);
        }
    }
}

#[test]
fn a_containerd_starts_on_what_was_only_fetched() {
    let registry = TestRegistry::start(demo());
    let name = registry.reference("demo/hello:1.0");
    for release in RELEASES {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        // Leaves an empty database, as a bake does that is killed before it has written its records.
        prebake(&root, &format!("fetch {name}")).expect(0);
        let mut containerd = Containerd::start(release, &containerd_root(&root), &dir.path().join("c"));
        assert_eq!(containerd.ctr("images ls -q"), "", "{release}");
        containerd.restart();
        containerd.stop();
        prebake(&root, "bootstrap").expect(0);
        prebake(&root, "check").expect(0);
        containerd.launch();
        assert!(containerd.ctr("images ls -q").lines().any(|line| line == name), "{release}");
        containerd.collect_garbage();
        assert!(containerd.ctr("images check").contains(" complete ("), "{release}");
    }
}
