//! docs/bake.schema.json and the reader of `bake.toml` agree, by the word of a real validator.

use std::process::Command;

use ::prebake::spec::Spec;

const ALL: &str = include_str!("../../fixtures/bake.toml");

/// Prints a line for each file: `good` or `bad`; then the properties of the schema that the first one does not have.
const VALIDATE: &str = r#"
import json, sys, tomllib, jsonschema
schema = json.load(open(sys.argv[1]))
validator = jsonschema.Draft202012Validator(schema)
validator.check_schema(schema)
for path in sys.argv[2:]:
    print("good" if validator.is_valid(tomllib.load(open(path, "rb"))) else "bad")
def keys(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)
def properties(value):
    if isinstance(value, dict):
        yield from value.get("properties", {}) if isinstance(value.get("properties"), dict) else ()
        for inner in value.values():
            yield from properties(inner)
has = set(keys(tomllib.load(open(sys.argv[2], "rb"))))
print(sorted(set(properties(schema)) - has - {"under", "unpacked-over"}))
"#;

#[test]
fn the_schema_and_the_reader_agree() {
    let bad = [
        "images = 5",
        "imges = []",
        "images = [{pin = true}]",
        "images = [{ref = 'a', policy = 'unpck'}]",
        "images = [{ref = 'a', pined = true}]",
        "images = [{ref = 'a', labels = {a = 1}}]",
        "images = [{ref = 'a', platforms = ['amd64']}]",
        "images = [{ref = 'a', verify-keys = 'one'}]",
        "[[rules]]\nover = 'big'",
        "[[rules]]\nover = -1",
        "[[rules]]\nnam = 'a'",
        "[defaults]\npolicy = 1",
        "[target]\nrot = 'x'",
        "[target]\nfurther-snapshotters = 'x'",
        "[registries]\nconcurrency = 'many'",
        "[registries]\nhosts_dir = 'x'",
    ];
    let good = [
        ALL,
        "",
        "images = ['a', {ref = 'b'}]",
        "[[rules]]\nunder = 4096\nunpacked-over = '1.5G'\npin = true",
        "[registries]\nbandwidth = '.5 kB'",
        "[[images]]\nref = 'a@sha256:0000000000000000000000000000000000000000000000000000000000000000'",
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut validate = Command::new("/usr/bin/python3");
    validate.args(["-c", VALIDATE]).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bake.schema.json"));
    for (i, text) in good.iter().chain(&bad).enumerate() {
        let path = dir.path().join(format!("{i}.toml"));
        std::fs::write(&path, text).unwrap();
        validate.arg(path);
    }
    let output = validate.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let mut said = said.lines();
    for (i, text) in good.iter().chain(&bad).enumerate() {
        let expected = i < good.len();
        assert_eq!(Spec::parse(text, "bake.toml").is_ok(), expected, "{text}");
        assert_eq!(said.next() == Some("good"), expected, "the schema: {text}");
    }
    assert_eq!(said.next(), Some("[]"), "fixtures/bake.toml has every key");
}
