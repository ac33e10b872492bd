//! The report's page in a real Chromium: what it shows is what the JSON says, and names stay text.

use std::fs;
use std::path::Path;
use std::process::Command;

use ::prebake::fixture::full;
use serde_json::Value;

use crate::support::content::build;
use crate::support::prebake::{blobs, prebake};
use crate::support::registry::{TestRegistry, respond};

/// Runs in the page, see there.
const LOOK: &str = include_str!("report.js");
const MARKUP: &str = "<img src=x onerror=alert(1)></script><b>";

/// What the page comes to: how many checks it passes, and those that it fails.
fn look(dir: &Path, page: &str) -> (u64, Vec<Value>) {
    let alarm = "<script>window.alert = () => { window.alerted = true; };</script><style>";
    let page = page.replacen("<style>", alarm, 1).replacen("</body>", &format!("<script>{LOOK}</script></body>"), 1);
    let path = dir.join("page.html");
    fs::write(&path, page).unwrap();
    let mut chromium = Command::new("timeout");
    chromium.args([
        "60",
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--hide-scrollbars",
    ]);
    chromium.args(["--enable-logging=stderr", "--window-size=1400,2400", "--dump-dom"]);
    chromium
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg(format!("file://{}", path.display()));
    let output = chromium.output().unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");
    let mut broken: Vec<Value> = log.lines().filter(|line| line.contains("CONSOLE")).map(Value::from).collect();
    let found = dom.split_once("<pre id=\"check-result\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let Some((found, _)) = found else {
        broken.push("the looking itself did not end".into());
        return (0, broken);
    };
    let found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    let result: Value = serde_json::from_str(&found).unwrap();
    broken.extend(result["broken"].as_array().unwrap().iter().cloned());
    (result["passed"].as_u64().unwrap(), broken)
}

#[test]
fn the_page_shows_what_the_report_says() {
    let layers: String = (0..20)
        .map(|n| format!("[layer.l{n}]\nfiles = [{{ path = \"f\", random = {} }}]\n", 3000 + n * 40_000))
        .collect();
    let image = |n: usize| {
        format!(
            "[[image]]\nname = \"app{n}:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l0\", \"l{}\", \"l{}\"]\n",
            n % 19 + 1,
            n * 7 % 19 + 1
        )
    };
    let content = build(&format!("{layers}{}", (0..25).map(image).collect::<String>()));
    let registry = TestRegistry::faulty(content, |request| {
        let error = serde_json::json!({"errors": [{"code": "DENIED", "message": MARKUP}]}).to_string();
        request.uri().path().contains("/app7/manifests/").then(|| respond(403, &[], full(error)))
    });
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let names: Vec<String> = (0..25).map(|n| registry.reference(&format!("app{n}:1"))).collect();
    let (page, json) = (dir.path().join("bake.html"), dir.path().join("bake.json"));
    let reports = format!("--report {} --report {}", page.display(), json.display());
    let flags = "--platform linux/amd64 --unpack-under 300kB --pin";
    prebake(&root, &format!("bake {flags} {reports} {}", names.join(" "))).expect(1);

    let said: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let sum = |rows: &Value, of: &dyn Fn(&Value) -> u64| rows.as_array().unwrap().iter().map(of).sum::<u64>();
    let kept = sum(&said["blobs"], &|blob| if blob["kept"] == true { blob["size"].as_u64().unwrap() } else { 0 });
    // All but the documents of the image that failed.
    assert_eq!(kept, blobs(&root).values().map(|blob| blob.len() as u64).sum::<u64>());
    let made = sum(&said["layers"], &|layer| layer["bytes"].as_u64().unwrap());
    assert_eq!(said["totals"]["unpacked_bytes"], made);
    assert!(made > 0 && said["totals"]["failed"] == 1 && said["ok"] == false);
    let failed = &said["images"][7];
    assert!(failed["ok"] == false && failed["error"].as_str().unwrap().contains(MARKUP), "{failed}");
    assert!(failed["remedy"].as_str().unwrap().contains("--creds-file"));
    let one = &said["images"][3];
    assert!(one["pinned"] == true && one["reason"] == "--unpack-under" && one["from"][0] == registry.name(), "{one}");
    let list = said["preloadedImagesVerificationAllowlist"].as_array().unwrap();
    assert!(list.len() == 24 && list[0] == registry.reference("app0"), "{list:?}");
    assert_eq!(said["bill_of_materials"].as_array().unwrap().len(), 24);

    let page = fs::read_to_string(&page).unwrap();
    let (passed, broken) = look(dir.path(), &page);
    assert_eq!(broken, Vec::<Value>::new());
    assert!(passed > 100, "{passed}");
    // The looking is not blind.
    for (from, to) in [
        ("showReport();\n", "showReport(); setTimeout(() => { throw new Error(\"x\"); });\n"),
        ("filter(item => item.bytes > 0);", "filter(item => item.bytes > 5000);"),
        ("typeof a === \"number\" ? a - b", "typeof a === \"number\" ? b - a"),
    ] {
        let worse = page.replacen(from, to, 1);
        assert!(worse != page && !look(dir.path(), &worse).1.is_empty(), "{from}");
    }
}
