//! Layers through files, and files that are damaged.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use ndarray::Array2;
use sparsegpt_runtime::half::{bf16, f16};
use sparsegpt_runtime::{
    Codes, Container, ContainerWriter, DenseMatrix, PackedMatrix, QuantizedDense, QuantizedLinear,
    SparseLinear, Storage, Value, Width,
};

fn weight<V: Value>() -> Array2<V> {
    Array2::from_shape_fn((37, 130), |(row, col)| {
        let kept = (row * 31 + col * 17) % 7 < 3;
        V::from_f32(if kept {
            (row as f32) - (col as f32) / 8.0
        } else {
            0.0
        })
    })
}

fn sparse<V: Value>() -> SparseLinear<V> {
    let bias = (0..37).map(|row| row as f32).collect();
    SparseLinear::sparse(PackedMatrix::from_dense(weight().view()), Some(bias)).unwrap()
}

/// The file that has one layer, named `a`.
fn bytes_of<V: Value>(layer: &SparseLinear<V>) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layers");
    let mut writer = ContainerWriter::new();
    writer.add("a", layer).unwrap();
    writer.write(&path).unwrap();
    fs::read(path).unwrap()
}

/// A file of these bytes; gone with the folder.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layers");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn bytes_in_memory_are_a_container_wherever_they_begin() {
    let layer = sparse::<bf16>();
    let bytes = bytes_of(&layer);
    for shift in 0..9 {
        let mut memory = vec![0; shift];
        memory.extend(&bytes);
        let container = Container::from_bytes("embedded", &memory[shift..]).unwrap();
        let found = container.layer::<bf16>("a").unwrap();
        assert_eq!(found.unpack(), layer.unpack());
        drop((memory, container));
        // A layer outlives both.
        assert_eq!(found.clone().unpack(), layer.unpack());
        assert_eq!(found.bias(), layer.bias());
    }
    for cut in [0, 7, 8, 100, bytes.len() - 1] {
        let error = Container::from_bytes("embedded", &bytes[..cut]).unwrap_err();
        assert!(error.to_string().contains("embedded"), "{error}");
    }
}

#[test]
fn layers_come_back_as_they_were() {
    let dense =
        SparseLinear::dense(DenseMatrix::from_dense(weight::<bf16>().view()), None).unwrap();
    let (single, half) = (sparse::<f32>(), sparse::<f16>());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layers");
    let mut writer = ContainerWriter::new();
    writer.add("model.single", &single).unwrap();
    writer.add("dense", &dense).unwrap();
    writer.add("half", &half).unwrap();
    let taken = writer.add("half", &half).unwrap_err().to_string();
    assert!(taken.contains("found half"), "{taken}");
    writer.write(&path).unwrap();

    // SAFETY: nothing else knows of the file.
    let container = unsafe { Container::open(&path) }.unwrap();
    assert_eq!(container.names(), ["dense", "half", "model.single"]);
    assert_eq!(container.dtype("half").as_deref(), Some("f16"));
    assert_eq!(container.dtype("dense").as_deref(), Some("bf16"));
    assert_eq!(container.dtype("other"), None);
    let x = Array2::from_shape_fn((9, 130), |(token, col)| (token + col) as f32 / 64.0);
    let read = container.layer::<f32>("model.single").unwrap();
    assert_eq!(read.unpack(), single.unpack());
    assert_eq!(read.bias(), single.bias());
    assert_eq!(
        read.forward(x.view()).unwrap(),
        single.forward(x.view()).unwrap()
    );
    assert_eq!(
        container.layer::<f16>("half").unwrap().unpack(),
        half.unpack()
    );
    let read = container.layer::<bf16>("dense").unwrap();
    assert_eq!(read.unpack(), dense.unpack());
    assert_eq!(read.storage(), dense.storage());
    assert_eq!(
        read.forward(x.view()).unwrap(),
        dense.forward(x.view()).unwrap()
    );
    for (name, dtype) in [("model.single", "f32"), ("dense", "bf16"), ("half", "f16")] {
        let any = container.any_layer(name).unwrap();
        assert_eq!(any.dtype(), dtype);
        let bytes: Vec<u8> = match dtype {
            "f32" => bytemuck::cast_slice(single.unpack().as_slice().unwrap()).to_vec(),
            "bf16" => bytemuck::cast_slice(dense.unpack().as_slice().unwrap()).to_vec(),
            _ => bytemuck::cast_slice(half.unpack().as_slice().unwrap()).to_vec(),
        };
        assert_eq!(any.unpack_bytes(false), bytes);
        let width = bytes.len() / (37 * 130);
        for (row, values) in bytes.chunks(130 * width).enumerate() {
            let found = any.row(row).unwrap();
            assert_eq!(found.len() * width, values.len());
            // The same in a column of the transposed bytes.
            let turned = any.unpack_bytes(true);
            let column = turned
                .chunks(37 * width)
                .flat_map(|column| &column[row * width..(row + 1) * width]);
            assert!(column.eq(values));
        }
        assert!(
            any.row(37)
                .unwrap_err()
                .to_string()
                .contains("row 37 of 37")
        );
    }
    let refused = container.any_layer("other").unwrap_err().to_string();
    assert!(
        refused.contains("layer other: the file has no such layer"),
        "{refused}"
    );
    for (error, named) in [
        (
            container.layer::<f32>("half").unwrap_err(),
            "expected values of F32, found F16",
        ),
        (
            container.layer::<f32>("other").unwrap_err(),
            "layer other: the file has no such layer",
        ),
    ] {
        assert!(error.to_string().contains(named), "{error}");
    }
}

/// Every other weight is zero.
fn two_of_four() -> SparseLinear<f32> {
    let weight = Array2::from_shape_fn((37, 128), |(row, col)| match (row + col) % 2 {
        0 => (row as f32) - (col as f32) / 8.0 + 0.01,
        _ => 0.0,
    });
    let layer = SparseLinear::new(weight.view(), None).unwrap();
    assert!(
        matches!(layer.storage(), Storage::Pattern { .. }),
        "{}",
        layer.storage()
    );
    layer
}

fn quantized(dense: bool) -> QuantizedLinear {
    let codes = Array2::from_shape_fn((37, 130), |(row, col)| {
        ((row * 31 + col * 17) % 16) as u8 / 8 * 7
    });
    let scales = Array2::from_shape_fn((37, 3), |(row, group)| (row + group) as f32 / 16.0);
    let zeros = Array2::zeros((37, 3));
    let codes = Codes {
        width: Width::Four,
        codes: codes.view(),
        scales: scales.view(),
        zeros: zeros.view(),
        group: 64,
    };
    let bias = Some((0..37).map(|row| row as f32).collect());
    match dense {
        false => QuantizedLinear::new(&codes, bias).unwrap(),
        true => QuantizedLinear::dense(QuantizedDense::from_codes(&codes).unwrap(), bias).unwrap(),
    }
}

fn bytes_of_quantized() -> Vec<u8> {
    let layer = quantized(false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layers");
    let mut writer = ContainerWriter::new();
    writer.add_quantized("a", &layer).unwrap();
    writer.write(&path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn patterns_and_codes_come_back_as_they_were() {
    let (pattern, codes) = (two_of_four(), quantized(false));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layers");
    let mut writer = ContainerWriter::new();
    writer.add("pattern", &pattern).unwrap();
    writer.add_quantized("codes", &codes).unwrap();
    assert!(writer.add_quantized("codes", &codes).is_err());
    let dense = quantized(true);
    let refused = writer
        .add_quantized("dense", &dense)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("stored sparse, found dense"), "{refused}");
    writer.write(&path).unwrap();

    // SAFETY: nothing else knows of the file.
    let container = unsafe { Container::open(&path) }.unwrap();
    assert_eq!(container.names(), ["codes", "pattern"]);
    let read = container.layer::<f32>("pattern").unwrap();
    assert_eq!(
        (read.storage(), read.unpack()),
        (pattern.storage(), pattern.unpack())
    );
    let any = container.any_layer("codes").unwrap();
    assert_eq!((any.dtype(), any.storage()), ("f32", codes.storage()));
    let x = Array2::from_shape_fn((9, 130), |(token, col)| (token + col) as f32 / 64.0);
    assert_eq!(
        any.forward(x.view()).unwrap(),
        codes.forward(x.view()).unwrap()
    );
    let read = container.quantized_layer("codes").unwrap();
    assert_eq!((read.unpack(), read.bias()), (codes.unpack(), codes.bias()));
    for row in [0, 17, 36] {
        assert_eq!(any.row(row).unwrap(), codes.unpack().row(row).to_vec());
        assert_eq!(dense.unpack().row(row), codes.unpack().row(row));
    }
    let error = container
        .quantized_layer("pattern")
        .unwrap_err()
        .to_string();
    assert!(error.contains("its grid are missing"), "{error}");
}

#[test]
fn empty_layers_are_layers() {
    for shape in [(0, 0), (0, 5), (5, 0)] {
        let layer = SparseLinear::new(Array2::<f32>::zeros(shape).view(), None).unwrap();
        let (_folder, path) = file(&bytes_of(&layer));
        let read = Container::read(&path).unwrap().layer::<f32>("a").unwrap();
        assert_eq!((read.rows(), read.cols()), shape);
        assert_eq!(
            read.forward(Array2::zeros((1, shape.1)).view())
                .unwrap()
                .dim(),
            (1, shape.0)
        );
    }
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let (first, second) = (sparse::<f32>(), sparse::<bf16>());
    let write = || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layers");
        let mut writer = ContainerWriter::new();
        writer.add("first", &first).unwrap();
        writer.add("second", &second).unwrap();
        writer.write(&path).unwrap();
        fs::read(path).unwrap()
    };
    let bytes = write();
    assert!((0..4).all(|_| write() == bytes));
}

#[test]
fn truncated_files_are_refused() {
    let bytes = bytes_of(&sparse::<f32>());
    for len in 0..bytes.len() {
        let (_folder, path) = file(&bytes[..len]);
        let error = Container::read(&path).unwrap_err().to_string();
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    }
    let (_folder, path) = file(&[bytes.as_slice(), &[0]].concat());
    assert!(Container::read(&path).is_err());
}

#[test]
fn no_flipped_bit_gets_past_the_checks_into_a_kernel() {
    for (bytes, masks) in [
        (bytes_of(&sparse::<f32>()), (37 * 3 + 4) * 8),
        (bytes_of(&two_of_four()), 0),
        (bytes_of_quantized(), 0),
    ] {
        let header =
            8 + usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
        for byte in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 1 << (byte % 8);
            let (_folder, path) = file(&damaged);
            let read = Container::read(&path).and_then(|container| container.any_layer("a"));
            // Values may be anything, a name or a bias may change, and the last block has room for more columns; what
            // is accepted must multiply.
            if let Ok(layer) = &read {
                for tokens in [1, 5, 40] {
                    let x = Array2::from_elem((tokens, layer.cols()), 1.0);
                    assert_eq!(layer.forward(x.view()).unwrap().dim(), (tokens, 37));
                }
            }
            // The wider types come first: masks, offsets.
            let structure = header..header + masks;
            assert!(!structure.contains(&byte) || read.is_err(), "byte {byte}");
        }
    }
}

#[test]
fn other_files_are_refused_by_name() {
    let bytes = bytes_of(&sparse::<f32>());
    let refused = |from: &str, to: &str, named: &str| {
        assert_eq!(from.len(), to.len());
        let place = bytes
            .windows(from.len())
            .position(|part| part == from.as_bytes())
            .unwrap();
        let mut changed = bytes.clone();
        changed[place..place + to.len()].copy_from_slice(to.as_bytes());
        let (_folder, path) = file(&changed);
        let read = Container::read(&path).and_then(|container| container.layer::<f32>("a"));
        let error = read.unwrap_err().to_string();
        assert!(error.contains(named), "{error}: expected {named:?}");
    };
    refused(
        "sparsegpt-packed",
        "sparsegpt-locked",
        "no container of packed layers",
    );
    refused(
        "\"sparsegpt-packed\":\"1\"",
        "\"sparsegpt-packed\":\"2\"",
        "expected version 1",
    );
    refused("a.masks", "a.maske", "its masks are missing");
    refused("a.offsets", "a.offsett", "its offsets are missing");
    refused("a.values", "a.valuet", "its values are missing");
    refused("a.shape", "a.shapf", "the file has no such layer");
    let (_folder, path) = file(b"");
    assert!(
        Container::read(&path)
            .unwrap_err()
            .to_string()
            .contains("empty")
    );
    let missing = path.with_file_name("missing");
    assert!(
        Container::read(&missing)
            .unwrap_err()
            .to_string()
            .starts_with("cannot open")
    );
}

#[cfg(unix)]
#[test]
fn a_written_file_is_as_readable_as_any_other() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let [container, other] = ["container", "other"].map(|name| folder.path().join(name));
    fs::write(&container, "what was there before").unwrap();
    fs::write(&other, "").unwrap();
    let layer = sparse::<f32>();
    let mut writer = ContainerWriter::new();
    writer.add("a", &layer).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode();
    let fresh = folder.path().join("fresh");
    for path in [&container, &fresh] {
        writer.write(path).unwrap();
        assert_eq!(mode(path), mode(&other));
        Container::read(path).unwrap();
    }
}

#[test]
fn weights_behind_the_last_row_are_refused() {
    let weight = Array2::from_elem((37, 3), 1.0_f32);
    let layer = SparseLinear::dense(DenseMatrix::from_dense(weight.view()), None).unwrap();
    let bytes = bytes_of(&layer);
    // The shape is the one place with these eight bytes.
    let rows = 37_u64.to_le_bytes();
    let place = bytes.windows(8).position(|part| part == rows).unwrap();
    for (rows, accepted) in [(36_u8, false), (33, false), (37, true), (49, false)] {
        let mut changed = bytes.clone();
        changed[place] = rows;
        let (_folder, path) = file(&changed);
        let read = Container::read(&path).and_then(|container| container.layer::<f32>("a"));
        assert_eq!(read.is_ok(), accepted, "{rows} rows");
    }
}
