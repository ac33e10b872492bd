use std::time::{Duration, Instant};

use prebake::fixture::{Content, Spec};
use prebake::testing::{Options, Registry};

const SPEC: &str = r#"
[layer.base]
files = [{ path = "bin" }, { path = "bin/hello", program = "hello" }]

[[image]]
name = "app:1"
platforms = ["linux/amd64"]
layers = ["base"]
command = ["/bin/hello"]
"#;

#[test]
fn the_client_waits_as_long_as_it_is_told() -> Result<(), Box<dyn std::error::Error>> {
    // The second request for a blob is refused; the client is to come again after a second.
    let faults = vec!["blob:2 status=429 retry-after=1".parse()?];
    let content = Content::build(&Spec::parse(SPEC)?)?;
    let registry = Registry::start(content, Options { faults, ..Options::default() })?;

    // Here the client is prebake; yours is given the same name, `127.0.0.1:PORT/app:1`.
    let name = registry.reference("app:1");
    let root = std::env::temp_dir().join(format!("fixture-test-{}", std::process::id()));
    let started = Instant::now();
    let baked = prebake::Bake::new(&root).image(name).platform("linux/amd64").run()?;
    std::fs::remove_dir_all(&root)?;

    assert!(baked.is_complete());
    assert!(started.elapsed() >= Duration::from_secs(1));
    // The config and the layer, and one of them once more.
    let asked = registry.requests();
    let blobs = asked.iter().filter(|request| request.starts_with("GET /v2/app/blobs/"));
    assert_eq!(blobs.count(), 3, "{asked:#?}");
    Ok(())
}
