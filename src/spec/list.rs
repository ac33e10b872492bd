//! Lists of images, and telling them from a `bake.toml`.

use super::file::{Image, Spec};
use super::{Named, Place, SpecError, Wrong};

/// Reads a `bake.toml`, or a plain list: an image a line, as [`Named`] reads it; `#` starts a comment.
///
/// # Errors
/// [`SpecError`] with everything that is wrong.
pub fn parse(text: &str, place: &str) -> Result<Spec, SpecError> {
    // `NAME=PLACE` has no blank around its sign, and no name of an image is a key of ours.
    let is_place = |text: &str| Place::parse(text) != Ok(None);
    let is_key = |line: &str| line.split_once('=').is_some_and(|(_, value)| !is_place(line) && !is_place(value));
    let is_toml = |line: &str| is_key(line) || line.starts_with('[') && line.ends_with(']');
    if lines(text).any(|(_, line)| is_toml(line)) {
        return Spec::parse(text, place);
    }
    let mut wrong = Vec::new();
    let mut images = Vec::new();
    for (number, line) in lines(text) {
        match Named::parse(line) {
            Ok(named) => images.push(Image::new(named)),
            Err(error) => wrong.push(Wrong { line: Some(number), column: None, what: error.to_string() }),
        }
    }
    if wrong.is_empty() {
        Ok(Spec { images, ..Spec::default() })
    } else {
        Err(SpecError { place: place.to_owned(), wrong })
    }
}

/// Lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let without_comment = |line: &str| -> usize {
        match line.find('#') {
            Some(0) => 0,
            _ => line.find(" #").unwrap_or(line.len()),
        }
    };
    text.lines()
        .enumerate()
        .map(move |(i, line)| {
            let line = line.trim();
            (i + 1, line[..without_comment(line)].trim_end())
        })
        .filter(|(_, line)| !line.is_empty())
}

/// A `bake.toml` that names these images, and asks nothing of them.
pub fn to_toml(images: &[Image]) -> String {
    let line = |image: &Image| {
        let named = &image.named;
        if image.platforms.is_empty() {
            return format!("    \"{named}\",\n");
        }
        let platforms: Vec<String> = image.platforms.iter().map(|platform| format!("\"{platform}\"")).collect();
        format!("    {{ ref = \"{named}\", platforms = [{}] }},\n", platforms.join(", "))
    };
    format!("images = [\n{}]\n", images.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_specs() {
        let list = parse("# comment\n\nnginx   # why\n[::1]:5000/a:1\na=oci:b\nbundle:c=d\n", "list").expect("a list");
        let names: Vec<String> = list.images.iter().map(|image| image.named.to_string()).collect();
        assert_eq!(
            names,
            ["docker.io/library/nginx:latest", "[::1]:5000/a:1", "docker.io/library/a:latest=oci:b", "bundle:c=d"]
        );
        assert_eq!(parse("[target] # there\n[[images]]\nref = 'a'", "x").expect("a spec").images.len(), 1);
        assert_eq!(parse("images = ['a']", "x").expect("a spec").images.len(), 1);
        assert_eq!(parse(" \n# nothing\n", "x").expect("an empty list"), Spec::default());
        let error = parse("good\nBad:\n a b\n", "list").expect_err("two are bad").to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("list:2: bad reference") && lines[1].starts_with("list:3: "));
        let again = parse(&to_toml(&list.images), "x").expect("what was written is read");
        assert_eq!(again.images, list.images);
    }
}
