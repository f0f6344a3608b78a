//! config.json: read or refused, never a panic or a huge allocation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sparsegpt_models::decoder::LlamaConfig;

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = serde_json::from_slice(data) {
        let _ = LlamaConfig::from_json(&value);
    }
});
