//! tokenizer.json, and a text through what it makes.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sparsegpt_models::tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    if fs::write(folder.path().join("tokenizer.json"), data).is_err() {
        return;
    }
    if let Ok(tokenizer) = Tokenizer::from_folder(folder.path())
        && let Ok(ids) = tokenizer.encode("A hacker is 12 years old.\n")
    {
        let _ = tokenizer.decode(&ids);
    }
});
