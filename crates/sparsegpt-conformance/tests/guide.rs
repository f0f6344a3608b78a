//! The code that the guides show is the one that is compiled and run.

/// The Rust parts of a guide.
fn shown(guide: &str) -> String {
    let parts: Vec<&str> = guide
        .split("```rust\n")
        .skip(1)
        .filter_map(|part| part.split_once("```\n"))
        .map(|(code, _)| code)
        .collect();
    parts.join("\n")
}

#[test]
fn the_guide_shows_the_compiled_backend() {
    assert_eq!(
        shown(include_str!("../../../docs/writing-a-backend.md")),
        include_str!("../../../examples/minimal_backend.rs"),
        "the Rust parts of docs/writing-a-backend.md, with an empty line between them, must be \
         examples/minimal_backend.rs"
    );
}

#[test]
fn the_guide_shows_the_compiled_adapter() {
    assert_eq!(
        shown(include_str!("../../../docs/writing-a-model-adapter.md")),
        include_str!("../../../examples/custom_adapter.rs"),
        "the Rust parts of docs/writing-a-model-adapter.md, with an empty line between them, must be \
         examples/custom_adapter.rs"
    );
}
