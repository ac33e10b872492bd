//! Images the tests share.

use ::prebake::fixture::{Content, DEMO, Spec};

/// The demo's images.
pub fn demo() -> Content {
    Content::build(&Spec::parse(DEMO).unwrap()).unwrap()
}

/// Images of a spec.
pub fn build(spec: &str) -> Content {
    Content::build(&Spec::parse(spec).unwrap()).unwrap()
}
