//! docs/snippets, run: what a workflow's steps and an image's build do with prebake, from a real registry.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::install::{package, top};
use crate::peers::{Registry, run};
use crate::support::content::demo;
use crate::support::prebake::{command, prebake};

/// A folder with what a repository has: a bake.toml of the registry's images, its lock, prebake's package.
fn repository(dir: &Path, registry: &Registry) {
    fs::create_dir_all(dir).unwrap();
    let images: Vec<String> = registry.push(&demo()).iter().map(|name| format!("{name:?}")).collect();
    fs::write(dir.join("bake.toml"), format!("images = [{}]\n", images.join(", "))).unwrap();
    let mut lock = command();
    run(lock.current_dir(dir).args(["lock", "-f", "bake.toml", "--platform", "linux/amd64"]));
    package(dir);
}

#[test]
fn the_workflow_does_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (work, temp) = (dir.path().join("work"), dir.path().join("temp"));
    let registry = Registry::start(dir.path());
    repository(&work, &registry);
    fs::create_dir_all(&temp).unwrap();
    let yaml = fs::read_to_string(top("docs/snippets/github-actions.yml")).unwrap();
    let program = "import json, sys, yaml; json.dump(yaml.load(sys.stdin, yaml.BaseLoader), sys.stdout)";
    let mut python = Command::new("python3");
    let workflow =
        run(python.args(["-c", program]).stdin(fs::File::open(top("docs/snippets/github-actions.yml")).unwrap()));
    let workflow: Value = serde_json::from_str(&workflow).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&workflow), ["jobs", "name", "on"], "{yaml}");
    let steps = workflow["jobs"]["bake"]["steps"].as_array().unwrap();

    let [path, summary] = ["path", "summary"].map(|name| temp.join(name));
    fs::write(&path, "").unwrap();
    let mut runs = 0;
    for step in steps {
        // As documented: a step either uses an action or runs something.
        assert!(keys(step).iter().all(|key| ["name", "if", "run", "uses", "with"].contains(&&**key)), "{step}");
        assert_ne!(step["run"].is_string(), step["uses"].is_string(), "{step}");
        let Some(script) = step["run"].as_str() else { continue };
        runs += 1;
        // What the runner does: bash -e, and what was put into GITHUB_PATH first in the next step's PATH.
        let added: String = fs::read_to_string(&path).unwrap().lines().map(|line| format!("{line}:")).collect();
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script]).current_dir(&work);
        bash.env("PATH", format!("{added}{}", std::env::var("PATH").unwrap())).env("HOME", &temp);
        run(bash.env("GITHUB_PATH", &path).env("GITHUB_STEP_SUMMARY", &summary).env("RUNNER_TEMP", &temp));
    }
    assert!(runs > 6);
    let kept = steps.last().unwrap()["with"]["path"].as_str().unwrap();
    for file in kept.lines() {
        assert!(fs::metadata(work.join(file)).unwrap().len() > 0, "{file}");
    }
    assert!(fs::read_to_string(summary).unwrap().contains("demo/hello:1.0"));

    let unpacked = dir.path().join("unpacked");
    fs::create_dir_all(&unpacked).unwrap();
    run(Command::new("tar").arg("-C").arg(&unpacked).arg("-xf").arg(work.join("images.tar")));
    let containerd = crate::peers::Containerd::start(
        "2.1.9",
        &crate::support::prebake::containerd_root(&unpacked),
        &dir.path().join("containerd"),
    );
    assert!(containerd.ctr("images ls -q").contains("demo/hello:1.0"));
}

#[test]
fn the_machine_image_gets_its_images() {
    let dir = tempfile::tempdir().unwrap();
    let (work, root, bin) = (dir.path().join("work"), dir.path().join("root"), dir.path().join("bin"));
    let registry = Registry::start(dir.path());
    repository(&work, &registry);
    let snippets = top("docs/snippets");
    for file in ["packer.pkr.hcl", "bake-node.sh"] {
        fs::copy(snippets.join(file), work.join(file)).unwrap();
    }
    // The real packer reads it; the script is what it would run in the machine.
    fs::write(work.join("base.qcow2"), "").unwrap();
    let mut packer = Command::new("packer");
    packer.current_dir(&work).env("HOME", dir.path()).env("CHECKPOINT_DISABLE", "1");
    packer.args(["validate", "-var", "base=base.qcow2", "-var"]);
    run(packer
        .arg("checksum=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        .arg("packer.pkr.hcl"));

    // A machine without prebake has its package installed first.
    fs::create_dir_all(&bin).unwrap();
    let dpkg = bin.join("dpkg");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --install ] && dpkg-deb --extract \"$2\" {0}/x && ln -s x/usr/bin/prebake {0}/prebake\n",
        bin.display()
    );
    fs::write(&dpkg, text).unwrap();
    fs::set_permissions(&dpkg, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(&root).unwrap();
    let mut script = Command::new(work.join("bake-node.sh"));
    script.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())).env("HOME", dir.path());
    let said = run(script.env("SOURCE", &work).env("ROOT", &root));
    assert!(said.contains("demo/hello:1.0") && said.contains(" unpack "), "{said}");
    prebake(&root, "check --snapshots").expect(0);
}
