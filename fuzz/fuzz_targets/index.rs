//! A model folder: the index, and a shard whose header is the second half of the input; then the same as a packed folder.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sparsegpt_models::checkpoint::Checkpoint;

fuzz_target!(|data: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let (index, shard) = match data.iter().position(|&byte| byte == 0xff) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &data[..0]),
    };
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).is_ok();
    if !write("config.json", b"{}")
        || !write("model.safetensors.index.json", index)
        || !write("a.safetensors", shard)
    {
        return;
    }
    let read = || {
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            let tensors = checkpoint.tensors();
            for name in tensors.names() {
                let _ = tensors.read_f32(&name);
            }
        }
    };
    read();
    if write("packed.safetensors.index.json", index)
        && write("packed.safetensors", shard)
        && write("dense.safetensors", shard)
    {
        read();
    }
});
