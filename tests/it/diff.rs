//! What differs between roots and locks is told: images, layers, files.

use std::fs;

use serde_json::{Value, json};

use crate::support::content::build;
use crate::support::prebake::{command, prebake};
use crate::support::registry::TestRegistry;

/// An image of two layers, one of which is another one in each version.
fn content(second: &str) -> String {
    format!(
        "[layer.base]\nfiles = [{{ path = \"etc/os\", text = \"base\" }}, {{ path = \"etc/old\", text = \"old\" }}, {{ path = \"dir/in\", text = \"in\" }}]\n\
         [layer.top]\nfiles = [{second}]\n\
         [[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"base\", \"top\"]\n\
         [[image]]\nname = \"same:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"base\"]\n"
    )
}

fn diff(arguments: &[&std::path::Path], options: &str) -> (i32, String) {
    let output = command().arg("diff").args(options.split_whitespace()).args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn images_layers_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let first =
        "{ path = \"etc/os\", text = \"first\" }, { path = \"gone\", text = \"x\" }, { path = \"mode\", text = \"m\" }";
    let second = "{ path = \"etc/os\", text = \"second\" }, { path = \"etc/.wh.old\", text = \"\" }, { path = \"mode\", text = \"m\", mode = 448 }, { path = \"dir/.wh..wh..opq\", text = \"\" }, { path = \"dir/new\", text = \"n\" }";
    let address = |name: &str, registry: &TestRegistry| registry.reference(name);
    let registry = TestRegistry::start(build(&content(first)));
    let names = ["app:1", "same:1"].map(|name| address(name, &registry));
    prebake(&a, &format!("bake --platform linux/amd64 {}", names.join(" "))).expect(0);
    let other = TestRegistry::start(build(&content(second)));
    let from = ["app:1", "same:1"].map(|name| address(name, &other));
    prebake(&b, &format!("bake --platform linux/amd64 {} {}", from[0], from[1])).expect(0);
    // The same names, from the other registry.
    let hosts = dir.path().join("certs.d");
    let host = hosts.join(registry.name().replace(':', "_") + "_");
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("hosts.toml"), format!("[host.\"http://{}\"]\n", other.name())).unwrap();
    let c = dir.path().join("c");
    prebake(&c, &format!("bake --platform linux/amd64 --hosts-dir {} {}", hosts.display(), names.join(" "))).expect(0);

    assert_eq!(diff(&[&a, &a], ""), (0, "2 images are the same\n".to_owned()));
    let (code, told) = diff(&[&a, &b], "--json");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (code, told["only_first"].as_array().unwrap().len(), told["only_second"].as_array().unwrap().len()),
        (1, 2, 2)
    );

    let (code, told) = diff(&[&a, &c], "--files --json");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, told["same"].as_u64()), (1, Some(1)));
    let changed = &told["changed"].as_array().unwrap()[0];
    assert_eq!(changed["name"], names[0]);
    assert_eq!(changed["layers_gone"].as_array().unwrap().len(), 1);
    assert_eq!(changed["layers_new"].as_array().unwrap().len(), 1);
    let expected = json!([
        {"path": "dir/in", "what": "gone"},
        {"path": "dir/new", "what": "new"},
        {"path": "etc/old", "what": "gone"},
        {"path": "etc/os", "what": "contents"},
        {"path": "gone", "what": "gone"},
        {"path": "mode", "what": "mode"},
    ]);
    assert_eq!(changed["files"], expected);
    let (_, words) = diff(&[&a, &c], "--files");
    assert!(words.contains("    ~ /etc/os: contents\n") && words.contains("    + /dir/new\n"), "{words}");
    // Without its layers, a side has no files to compare.
    let (_, told) = diff(&[&a, &c], "--json");
    assert!(!told.contains("\"files\""), "{told}");
}

#[test]
fn a_root_against_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(build(&content("{ path = \"x\", text = \"x\" }")));
    let spec = dir.path().join("bake.toml");
    let names = ["app:1", "same:1"].map(|name| registry.reference(name));
    let root = dir.path().join("root");
    fs::write(&spec, format!("images = [\"{}\"]\n[target]\nroot = \"root\"\nplatform = \"linux/amd64\"\n", names[0]))
        .unwrap();
    for arguments in ["lock", "bake --locked"] {
        let mut words = arguments.split(' ');
        let output = command().arg(words.next().unwrap()).args(words).arg("-f").arg(&spec).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let lock = dir.path().join("bake.lock");
    assert_eq!(diff(&[&lock, &root], "").0, 0);
    prebake(&root, &format!("bake --platform linux/amd64 {}", names[1])).expect(0);
    let (code, told) = diff(&[&lock, &root], "");
    assert_eq!(code, 1);
    assert!(told.starts_with(&format!("+ {} sha256:", names[1])), "{told}");
    let nothing = dir.path().join("nothing");
    assert_eq!(diff(&[&lock, &nothing], "").0, 3);
}
