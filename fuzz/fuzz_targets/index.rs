//! A model folder: the index, and a shard whose header is the second half of the input; then the same as folders whose layers are
//! codes, in the layouts of GPTQ and compressed-tensors, and as a packed folder.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sparsegpt_models::checkpoint::Checkpoint;

const GPTQ: &[u8] =
    br#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": false,
    "desc_act": true, "checkpoint_format": "gptq"}}"#;
const COMPRESSED_TENSORS: &[u8] = br#"{"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true,
    "strategy": "group", "group_size": 8}}}}}"#;

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
    for quantized in [GPTQ, COMPRESSED_TENSORS] {
        if write("config.json", quantized) {
            read();
        }
    }
    if write("config.json", b"{}")
        && write("packed.safetensors.index.json", index)
        && write("packed.safetensors", shard)
        && write("dense.safetensors", shard)
    {
        read();
    }
});
