//! The files that fuzz targets change are sound before they are changed.

use std::collections::BTreeSet;
use std::fs;

use ndarray::Array2;
use sparsegpt_fuzz::sound_containers;
use sparsegpt_runtime::Container;

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
