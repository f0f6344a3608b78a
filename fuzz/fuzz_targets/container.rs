//! Files of packed layers with anything in them: what is accepted must multiply, what is not must be an error.
//!
//! `cargo +nightly fuzz run container`. The first byte picks a sound file to change, or none; what follows are changes to
//! that file (a place in two bytes, and what is put there), or the whole file.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ndarray::Array2;
use sparsegpt_runtime::{Codes, Container, ContainerWriter, QuantizedLinear, SparseLinear, Width};

/// Layers above this are accepted and not multiplied, or the search would spend its time there.
const MOST_WEIGHTS: usize = 1 << 16;

fn sound() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let path = folder.path().join("layers");
        let write = |writer: ContainerWriter<'_>| {
            writer.write(&path).expect("the file can be written");
            fs::read(&path).expect("the file can be read")
        };
        let plain = |period: usize, cols| {
            let weight = Array2::from_shape_fn((19, cols), |(row, col)| {
                if (row + col) % period == 0 {
                    0.5_f32
                } else {
                    0.0
                }
            });
            SparseLinear::new(weight.view(), Some(Array2::zeros((1, 19)).row(0))).expect("a layer")
        };
        // By bits, by a pattern, and dense.
        let mut files = Vec::new();
        for layer in [plain(3, 70), plain(2, 64), plain(1, 70)] {
            let mut writer = ContainerWriter::new();
            writer.add("a", &layer).expect("a name that is free");
            files.push(write(writer));
        }
        let codes = Array2::from_shape_fn((19, 70), |(row, col)| ((row + col) % 3) as u8);
        let (scales, zeros) = (Array2::from_elem((19, 2), 0.5), Array2::zeros((19, 2)));
        let codes = Codes {
            width: Width::Four,
            codes: codes.view(),
            scales: scales.view(),
            zeros: zeros.view(),
            group: 64,
        };
        let layer = QuantizedLinear::new(&codes, None).expect("a layer");
        let mut writer = ContainerWriter::new();
        writer
            .add_quantized("a", &layer)
            .expect("a name that is free");
        files.push(write(writer));
        files
    })
}

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
    let file = match sound().get(usize::from(kind)) {
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
