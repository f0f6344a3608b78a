//! The file of a finished block. The checksum is made to hold, as the fuzzer would never find one that does.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use sparsegpt_models::resume::BlockFile;

fuzz_target!(|data: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let path = folder.path().join("00000.block");
    let mut bytes = data.to_vec();
    bytes.extend_from_slice(&Sha256::digest(data));
    if fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(mut file) = BlockFile::open(&path) {
        while let Ok(Some(layer)) = file.next_layer() {
            assert_eq!(layer.weights.dim(), layer.mask.dim());
        }
    }
});
