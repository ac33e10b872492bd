//! The library's public API is what `docs/api.txt` lists, no more and no less.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::peers::run;

/// A text without its tags.
fn plain(html: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for c in html.chars() {
        match c {
            '<' => inside = true,
            '>' => inside = false,
            c if !inside => text.push(c),
            _ => {}
        }
    }
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
    text.replace("&amp;", "&").replace("&nbsp;", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What stands between two texts, each time.
fn between<'h>(html: &'h str, start: &str, end: &str) -> Vec<&'h str> {
    html.split(start).skip(1).filter_map(|rest| Some(rest.split_once(end)?.0)).collect()
}

/// Every item with its declaration, its methods and the traits it has, as rustdoc shows them.
fn listing(doc: &Path) -> String {
    let mut out = String::new();
    let all = fs::read_to_string(doc.join("all.html")).unwrap();
    for href in between(&all, "<li><a href=\"", ".html\"") {
        let page = fs::read_to_string(doc.join(format!("{href}.html"))).unwrap();
        let mut lines = vec![href.replace('/', "::")];
        for declaration in between(&page, "<pre class=\"rust item-decl\"><code>", "</code></pre>") {
            lines.push(plain(declaration));
        }
        // What the compiler finds by itself (Send, Unpin) and what every type has is left out.
        let page = page.split("id=\"synthetic-implementations\"").next().unwrap();
        for method in between(page, "<h4 class=\"code-header\">", "</h4>") {
            let method = plain(method);
            if method.starts_with("pub ") {
                lines.push(method);
            }
        }
        for implemented in between(page, "<h3 class=\"code-header\">", "</h3>") {
            let implemented = plain(implemented);
            if implemented.contains(" for ") {
                lines.push(implemented);
            }
        }
        out += &(lines.join("\n    ") + "\n");
    }
    out
}

#[test]
fn the_public_api_is_what_is_listed() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(top).args(["doc", "--lib", "--no-deps", "--no-default-features", "--quiet"]);
    run(&mut cargo);
    let now = listing(&top.join("target/doc/prebake"));
    let path = top.join("docs/api.txt");
    if std::env::var_os("PREBAKE_API").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let listed = fs::read_to_string(&path).unwrap_or_default();
    let gone: Vec<&str> = listed.lines().filter(|line| !now.lines().any(|now| now == *line)).collect();
    let new: Vec<&str> = now.lines().filter(|line| !listed.lines().any(|listed| listed == *line)).collect();
    // Who changes it on purpose writes it anew: PREBAKE_API=1 cargo nextest run --test interop api
    assert_eq!(listed, now, "no more: {gone:#?}\nnew: {new:#?}");
}
