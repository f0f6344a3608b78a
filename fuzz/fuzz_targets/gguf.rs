//! A GGUF file, its tensors and its tokenizer.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sparsegpt_models::checkpoint::Checkpoint;

fuzz_target!(|data: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let path = folder.path().join("model.gguf");
    if fs::write(&path, data).is_err() {
        return;
    }
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        let tensors = checkpoint.tensors();
        for name in tensors.names() {
            let _ = tensors.read_f32(&name);
        }
        let _ = checkpoint.tokenizer();
    }
});
