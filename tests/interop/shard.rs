//! Shares of the work, by the schedulers that docs/sharding.md names: GNU parallel, and what a Job and a matrix run, to real registries.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::install::{package, top};
use crate::peers::{self, Containerd, Registry, run};
use crate::support::content::build;
use crate::support::prebake::{command, containerd_root};

/// Images with layers that are shared, and of different sizes.
const IMAGES: usize = 10;

fn images() -> String {
    let mut spec = "[layer.base]\nfiles = [{ path = \"base\", random = 400000 }]\n".to_owned();
    for n in 0..IMAGES {
        let _ = write!(
            spec,
            "[layer.l{n}]\nfiles = [{{ path = \"l{n}\", random = {} }}]\n[[image]]\nname = \"team/app{n}:1\"\n\
             platforms = [\"linux/amd64\"]\nlayers = [\"base\", \"l{n}\"]\n",
            30_000 * (n + 1)
        );
    }
    spec
}

/// Two registries, and a folder with a `mirror.toml` from the one to the other.
fn world(dir: &Path) -> (Registry, Registry) {
    let (from, to) = (Registry::start(&dir.join("from")), Registry::start(&dir.join("to")));
    let names: Vec<String> = from.push(&build(&images())).iter().map(|name| format!("{name:?}")).collect();
    let text = format!("images = [{}]\n[target]\nregistry = \"{}/hub\"\n", names.join(", "), to.name());
    fs::write(dir.join("mirror.toml"), text).unwrap();
    (from, to)
}

/// Writes `mirror.lock`.
fn lock(dir: &Path) {
    run(command().current_dir(dir).args(["mirror", "-f", "mirror.toml", "--lock"]));
}

/// Every image is there, by the word of skopeo; the first one, by that of containerd.
fn is_whole(dir: &Path, registry: &Registry) {
    for n in 0..IMAGES {
        let out = dir.join(format!("whole{n}"));
        let name = format!("{}/hub/team/app{n}:1", registry.name());
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--all", "--preserve-digests", "--src-tls-verify=false"])
            .args([format!("docker://{name}"), format!("dir:{}", out.display())]));
    }
    let containerd = Containerd::start("2.1.9", &containerd_root(&dir.join("peer")), &dir.join("work"));
    let name = format!("{}/hub/team/app0:1", registry.name());
    containerd.ctr(&format!("images pull --plain-http --platform linux/amd64 {name}"));
    assert!(containerd.ctr("images check").contains("complete"));
}

/// Blobs of layers and configs that a registry gave.
fn given(registry: &Registry) -> Vec<String> {
    let log = registry.log();
    let got = log.lines().filter_map(|line| line.split("\"GET /v2/").nth(1)).filter_map(|rest| rest.split(' ').next());
    let mut blobs: Vec<String> =
        got.filter_map(|path| path.split_once("/blobs/")).map(|(_, digest)| digest.to_owned()).collect();
    blobs.sort();
    blobs
}

fn path() -> String {
    let bin = Path::new(env!("CARGO_BIN_EXE_prebake")).parent().unwrap().display().to_string();
    let parallel = peers::dir().join("parallel/usr/bin");
    format!("{bin}:{}:{}", parallel.display(), std::env::var("PATH").unwrap())
}

#[test]
fn parallel_mirrors_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = world(dir.path());
    lock(dir.path());
    let before = given(&from).len();
    let mut parallel = Command::new("parallel");
    parallel.env("PATH", path()).env("HOME", dir.path()).env("DOCKER_CONFIG", "/nonexistent").current_dir(dir.path());
    run(parallel.args([
        "-j4",
        "prebake",
        "mirror",
        "-f",
        "mirror.toml",
        "--locked",
        "--quiet",
        "--shard",
        "{}/4",
        ":::",
        "1",
        "2",
        "3",
        "4",
    ]));
    let mut came = given(&from).split_off(before);
    let count = came.len();
    came.dedup();
    assert_eq!((count, came.len()), (2 * IMAGES + 1, 2 * IMAGES + 1), "each blob once: {came:?}");
    is_whole(dir.path(), &to);
    let mut again = command();
    let said = run(again.current_dir(dir.path()).args(["mirror", "-f", "mirror.toml"]));
    assert!(said.starts_with("up to date: 10 images"), "{said}");
}

/// The documents of a YAML file.
fn documents(file: &str) -> Vec<Value> {
    let program =
        "import json, sys, yaml; json.dump(list(yaml.load_all(open(sys.argv[1]), yaml.BaseLoader)), sys.stdout)";
    serde_json::from_str(&run(Command::new("python3").args(["-c", program]).arg(top(file)))).unwrap()
}

/// Holds the documents of a YAML file against the strict schemas of a release; what is wrong.
const VALIDATE: &str = r##"
import json, os, sys, yaml, jsonschema
folder, changes = sys.argv[2], json.loads(sys.argv[3])
def schema(name):
    # Definitions are in a file beside it.
    return json.loads(open(os.path.join(folder, name)).read().replace("/api/_definitions.json#/", "#/"))
for document in yaml.safe_load_all(open(sys.argv[1])):
    if document["kind"] in changes:
        document["spec"].update(changes[document["kind"]])
    group = document["apiVersion"].replace("/", "-")
    own = {**schema(document["kind"].lower() + "-" + group + ".json"), "$defs": schema("_definitions.json")["$defs"]}
    for error in jsonschema.Draft202012Validator(own).iter_errors(document):
        print(document["kind"], list(error.absolute_path), error.message)
"##;

fn judged(release: &str, changes: &Value) -> String {
    let schemas: PathBuf = peers::dir().canonicalize().unwrap().join(format!("kubernetes/{release}-local-strict"));
    let mut python = Command::new("python3");
    python.env("PYTHONWARNINGS", "ignore").args(["-c", VALIDATE]).arg(top("docs/snippets/shards-job.yaml"));
    run(python.arg(schemas).arg(changes.to_string()))
}

#[test]
fn the_job_is_one_by_the_published_schemas() {
    for release in ["v1.33.0", "v1.37.0"] {
        assert_eq!(judged(release, &json!({})), "", "{release}");
        for wrong in [json!({"Job": {"completons": 8}}), json!({"Job": {"parallelism": "4"}})] {
            assert!(judged(release, &wrong).starts_with("Job "), "{release} {wrong}");
        }
    }
}

#[test]
fn the_job_s_pods_do_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_from, to) = world(dir.path());
    let all = documents("docs/snippets/shards-job.yaml");
    let [secret, job] = &all[..] else { panic!("{all:?}") };
    lock(dir.path());
    let spec = &job["spec"];
    let container = &spec["template"]["spec"]["containers"][0];
    let env = |name: &str| -> String {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|variable| variable["name"] == name).unwrap()["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(spec["completions"], env("JOB_COMPLETIONS"));
    assert_eq!(spec["completionMode"], "Indexed");
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mounted =
        |name: &str| mounts.iter().find(|mount| mount["name"] == name).unwrap()["mountPath"].as_str().unwrap();
    assert_eq!(mounted("credentials"), env("DOCKER_CONFIG"));
    // What the pod finds there can be read.
    fs::create_dir(dir.path().join("docker")).unwrap();
    fs::write(dir.path().join("docker/config.json"), secret["stringData"][".dockerconfigjson"].as_str().unwrap())
        .unwrap();
    let file = format!("{}/mirror.toml", mounted("mirror"));
    let ours = dir.path().join("mirror.toml");
    let completions: usize = env("JOB_COMPLETIONS").parse().unwrap();
    for index in (0..completions).rev() {
        let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
        let args = args.map(|arg| if arg == file { ours.to_str().unwrap() } else { arg });
        let mut pod = command();
        pod.args(args).env("JOB_COMPLETION_INDEX", index.to_string()).env("JOB_COMPLETIONS", completions.to_string());
        run(pod.env("DOCKER_CONFIG", dir.path().join("docker")));
    }
    is_whole(dir.path(), &to);
    let mut example = command();
    example.current_dir(dir.path()).env("DOCKER_CONFIG", dir.path().join("docker"));
    example.args(["registry", "explain", "registry.site:5000/hub/pause:3.10"]);
    assert!(run(&mut example).contains("mirror"));
}

#[test]
fn the_matrix_does_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_from, to) = world(dir.path());
    package(dir.path());
    let all = documents("docs/snippets/shards-actions.yml");
    let jobs = &all[0]["jobs"];
    // What the artifact takes along is in the folder that all jobs have here.
    let step = |step: &Value, shard: &str| {
        assert_ne!(step["run"].is_string(), step["uses"].is_string(), "{step}");
        let Some(script) = step["run"].as_str() else { return };
        let script = script.replace("${{ matrix.shard }}", shard);
        assert!(!script.contains("${{"), "{script}");
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", &script]).current_dir(dir.path());
        run(bash.env("HOME", dir.path()));
    };
    let steps = |job: &str| jobs[job]["steps"].as_array().unwrap().clone();
    for one in steps("lock") {
        step(&one, "");
    }
    let uploaded = steps("lock").iter().find_map(|step| step["with"]["path"].as_str().map(str::to_owned)).unwrap();
    assert!(uploaded.lines().all(|path| dir.path().join(path).exists()), "{uploaded}");
    assert_eq!(jobs["mirror"]["needs"], "lock");
    let shards = jobs["mirror"]["strategy"]["matrix"]["shard"].as_array().unwrap();
    assert_eq!(shards.len(), 4);
    for shard in shards.iter().map(|shard| shard.as_str().unwrap()) {
        for one in steps("mirror") {
            step(&one, shard);
        }
    }
    is_whole(dir.path(), &to);
}
