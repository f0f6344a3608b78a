//! config.json: read or refused, never a panic or a huge allocation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sparsegpt_models::decoder::TransformerConfig;

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = serde_json::from_slice(data) {
        let _ = TransformerConfig::from_json(&value);
    }
});
