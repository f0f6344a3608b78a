//! The code of `docs/writing-a-model-adapter.md` is the one that is compiled and run.

#[test]
fn the_guide_shows_the_compiled_adapter() {
    let guide = include_str!("../../../docs/writing-a-model-adapter.md");
    let compiled = include_str!("../../../examples/custom_adapter.rs");
    let parts: Vec<&str> = guide
        .split("```rust\n")
        .skip(1)
        .filter_map(|part| part.split_once("```\n"))
        .map(|(code, _)| code)
        .collect();
    assert_eq!(
        parts.join("\n"),
        compiled,
        "the Rust parts of docs/writing-a-model-adapter.md, with an empty line between them, must be \
         examples/custom_adapter.rs"
    );
}
