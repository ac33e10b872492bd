//! Lists of images, and telling them from a `bake.toml`.

use super::file::{Image, Spec};
use super::{SpecError, Wrong};
use crate::oci::Reference;

/// Reads a `bake.toml`, or a plain list: a reference a line, `#` starts a comment.
///
/// # Errors
/// [`SpecError`] with everything that is wrong.
pub fn parse(text: &str, place: &str) -> Result<Spec, SpecError> {
    let is_toml = |line: &str| line.contains('=') || line.starts_with('[') && line.ends_with(']');
    if lines(text).any(|(_, line)| is_toml(line)) {
        return Spec::parse(text, place);
    }
    let mut wrong = Vec::new();
    let mut images = Vec::new();
    for (number, line) in lines(text) {
        match line.parse::<Reference>() {
            Ok(reference) => images.push(Image::new(reference)),
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
        let reference = &image.reference;
        if image.platforms.is_empty() {
            return format!("    \"{reference}\",\n");
        }
        let platforms: Vec<String> = image.platforms.iter().map(|platform| format!("\"{platform}\"")).collect();
        format!("    {{ ref = \"{reference}\", platforms = [{}] }},\n", platforms.join(", "))
    };
    format!("images = [\n{}]\n", images.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_specs() {
        let list = parse("# comment\n\nnginx   # why\n[::1]:5000/a:1\n", "list").expect("a list");
        let names: Vec<String> = list.images.iter().map(|image| image.reference.to_string()).collect();
        assert_eq!(names, ["docker.io/library/nginx:latest", "[::1]:5000/a:1"]);
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
