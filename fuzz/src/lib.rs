//! What the fuzz targets begin with. It stands apart from them so that any compiler's tests run it.

use std::fs;
use std::sync::OnceLock;

use ndarray::{Array2, ArrayView1};
use sparsegpt_runtime::half::{bf16, f16};
use sparsegpt_runtime::{
    Codes, ContainerWriter, PatternMatrix, QuantizedLinear, QuantizedMatrix, Result, SparseLinear,
    Value, Width,
};

/// More than a tile of any kernel, and no multiple of one.
const ROWS: usize = 19;

/// Containers of one layer each: of every type of weights, and of every way to store them.
///
/// # Panics
///
/// If one cannot be made, or written to a temporary folder.
pub fn sound_containers() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        // The seeds in fuzz/corpus pick files by their places here: what is new goes to the end.
        vec![
            values::<f32>(BY_BITS),
            values::<f32>(TWO_OF_FOUR),
            values::<f32>(DENSE),
            codes(Width::Four),
            values::<bf16>(BY_BITS),
            values::<bf16>(FOUR_OF_EIGHT),
            values::<bf16>(DENSE),
            values::<f16>(BY_BITS),
            values::<f16>(ONE_OF_FOUR),
            values::<f32>(TWO_OF_EIGHT),
            codes(Width::Eight),
        ]
    })
}

/// Every so many weights of a row are kept, or it has a pattern of so many zeros in so many columns.
#[derive(Clone, Copy)]
enum Kept {
    One { of: usize },
    AllBut { zeros: usize, of: usize },
}

const BY_BITS: Kept = Kept::One { of: 3 };
const DENSE: Kept = Kept::One { of: 1 };
const TWO_OF_FOUR: Kept = Kept::AllBut { zeros: 2, of: 4 };
const FOUR_OF_EIGHT: Kept = Kept::AllBut { zeros: 4, of: 8 };
const ONE_OF_FOUR: Kept = Kept::AllBut { zeros: 1, of: 4 };
const TWO_OF_EIGHT: Kept = Kept::AllBut { zeros: 2, of: 8 };

fn values<V: Value>(kept: Kept) -> Vec<u8> {
    let weights = |cols, is_kept: &dyn Fn(usize) -> bool| {
        Array2::from_shape_fn((ROWS, cols), |(row, col)| {
            V::from_f32(if is_kept(row + col) { 0.5 } else { 0.0 })
        })
    };
    let bias = vec![0.0; ROWS];
    let layer = match kept {
        Kept::One { of } => {
            let weight = weights(70, &|place| place.is_multiple_of(of));
            SparseLinear::new(weight.view(), Some(ArrayView1::from(&bias)))
        }
        Kept::AllBut { zeros, of } => {
            let weight = weights(64, &|place| place % of >= zeros);
            let packed = PatternMatrix::from_dense(weight.view(), zeros, of).expect("a shape");
            SparseLinear::pattern(packed.expect("a pattern that holds"), Some(bias))
        }
    };
    let layer = layer.expect("a layer");
    written(|writer| writer.add("a", &layer))
}

fn codes(width: Width) -> Vec<u8> {
    let codes = Array2::from_shape_fn((ROWS, 70), |(row, col)| ((row + col) % 3) as u8);
    let (scales, zeros) = (Array2::from_elem((ROWS, 2), 0.5), Array2::zeros((ROWS, 2)));
    let codes = Codes {
        width,
        codes: codes.view(),
        scales: scales.view(),
        zeros: zeros.view(),
        group: 64,
    };
    let packed = QuantizedMatrix::from_codes(&codes).expect("codes that fit their grid");
    let layer = QuantizedLinear::sparse(packed, None).expect("a layer");
    written(|writer| writer.add_quantized("a", &layer))
}

fn written<'a>(add: impl FnOnce(&mut ContainerWriter<'a>) -> Result<()>) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let path = folder.path().join("layers");
    let mut writer = ContainerWriter::new();
    add(&mut writer).expect("a layer that can be stored");
    writer.write(&path).expect("the file can be written");
    fs::read(&path).expect("the file can be read")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use sparsegpt_runtime::Container;

    use super::*;

    #[test]
    fn containers_are_sound_and_no_two_are_alike() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layers");
        let mut kinds = BTreeSet::new();
        for file in sound_containers() {
            fs::write(&path, file).unwrap();
            // SAFETY: nobody else knows of the file.
            let container = unsafe { Container::open(&path) }.unwrap();
            let layer = container.any_layer("a").unwrap();
            let y = layer
                .forward(Array2::from_elem((2, layer.cols()), 1.0).view())
                .unwrap();
            assert!(y.iter().all(|&sum| sum > 0.0));
            kinds.insert((layer.dtype(), layer.storage().to_string(), layer.bytes()));
        }
        assert_eq!(kinds.len(), sound_containers().len(), "{kinds:?}");
    }

    #[test]
    fn each_has_a_seed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/container");
        let seeds = fs::read_dir(corpus).unwrap();
        let kinds: BTreeSet<u8> = seeds
            .map(|seed| fs::read(seed.unwrap().path()).unwrap()[0])
            .collect();
        for kind in 0..sound_containers().len() {
            assert!(kinds.contains(&(kind as u8)), "no seed changes file {kind}");
        }
    }
}
