//! Files of packed layers with anything in them: what is accepted must multiply, what is not must be an error.
//!
//! `cargo +nightly fuzz run container`. The first byte picks a sound file to change, or none; what follows are changes to
//! that file (a place in two bytes, and what is put there), or the whole file.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ndarray::Array2;
use sparsegpt_fuzz::sound_containers;
use sparsegpt_runtime::Container;

/// Layers above this are accepted and not multiplied, or the search would spend its time there.
const MOST_WEIGHTS: usize = 1 << 16;

fn use_layers(path: &Path) {
    // SAFETY: nobody else knows of the file.
    let Ok(container) = (unsafe { Container::open(path) }) else {
        return;
    };
    for name in container.names() {
        let Ok(layer) = container.any_layer(&name) else {
            continue;
        };
        if layer.rows().saturating_mul(layer.cols()) > MOST_WEIGHTS {
            continue;
        }
        // One, a few, and many: each has kernels of its own.
        for tokens in [1, 5, 33] {
            let x = Array2::from_elem((tokens, layer.cols()), 1.0);
            let y = layer.forward(x.view()).expect("the shapes fit");
            assert_eq!(y.dim(), (tokens, layer.rows()));
        }
        assert_eq!(layer.unpack_bytes(false).len(), layer.unpacked_bytes());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    let file = match sound_containers().get(usize::from(kind)) {
        None => rest.to_vec(),
        Some(file) => {
            let mut file = file.clone();
            let length = file.len();
            for change in rest.chunks_exact(3) {
                let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
                file[place % length] = change[2];
            }
            file
        }
    };
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let path = folder.path().join("layers");
    fs::write(&path, file).expect("the file can be written");
    use_layers(&path);
});
