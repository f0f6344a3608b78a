//! Tests of the state of a run.
#![allow(clippy::unwrap_used)]

use std::fs;

use ndarray::{Array2, arr2};
use sha2::{Digest, Sha256};
use sparsegpt::backend::Host;
use sparsegpt::{
    Error as SolverError, FinishedLayer, LayerSettings, Method, Pattern, Solver, UniformGrid,
};
use tempfile::tempdir;

use super::*;
use crate::checkpoint::Dtype;

/// A layer of 5 x 6, pruned, and quantized where `bits` says so.
fn finished(layer: usize, bits: Option<u32>) -> FinishedLayer {
    let solver = Solver::new(Host);
    let mut hessian = solver.hessian(6).unwrap();
    let tokens = Array2::from_shape_fn((24, 6), |(t, c)| ((t * 7 + c * 5) % 13) as f32 - 6.0);
    hessian.update(tokens.view()).unwrap();
    let weights = Array2::from_shape_fn((5, 6), |(r, c)| ((r * 11 + c * 3) % 7) as f32 - 2.75);
    let mut settings = LayerSettings::new(Pattern::n_of_m(1, 2).unwrap());
    if let Some(bits) = bits {
        settings = settings.with_quantizer(UniformGrid::new(bits).unwrap().with_groups(3));
    } else {
        settings = settings.with_method(Method::Magnitude);
    }
    let pruned = solver
        .prune(weights.view(), &mut hessian, &settings)
        .unwrap();
    FinishedLayer::new(0, 2, layer, (layer == 1).then_some(3), pruned)
}

fn fingerprint() -> Fingerprint {
    Fingerprint::default().with("recipe", "50%")
}

/// A folder with blocks 0 to 2 of 4, one layer or two in each.
fn kept(out: &Path) -> StateFolder {
    let mut state = StateFolder::open(out, false).unwrap();
    assert_eq!(state.go_on(fingerprint(), 4).unwrap(), 0);
    for block in 0..3 {
        let mut writer = state.begin(block).unwrap();
        writer
            .add(&finished(0, None), "first".to_owned(), Dtype::F16)
            .unwrap();
        writer
            .add(&finished(1, Some(4)), "second".to_owned(), Dtype::F32)
            .unwrap();
        writer.commit().unwrap();
        state.committed();
    }
    state
}

#[test]
fn layers_come_back_as_they_were_kept() {
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    drop(kept(&out));
    let mut state = StateFolder::open(&out, false).unwrap();
    assert_eq!(state.go_on(fingerprint(), 4).unwrap(), 3);
    assert!(state.block(3).unwrap().is_none());
    let mut file = state.block(1).unwrap().unwrap();
    let first = file.next_layer().unwrap().unwrap();
    let second = file.next_layer().unwrap().unwrap();
    assert!(file.next_layer().unwrap().is_none());

    let dense = finished(0, None).pruned;
    assert_eq!((first.variant, first.layer, first.starved), (0, 0, None));
    assert_eq!(
        (first.report.as_str(), second.report.as_str()),
        ("first", "second")
    );
    // The weights are quarters, which f16 holds.
    assert_eq!(first.weights, dense.weights);
    assert_eq!(first.mask, dense.mask);
    assert!(first.quantized.is_none());
    assert_eq!(second.starved, Some(3));
    let pruned = finished(1, Some(4)).pruned;
    assert_eq!(second.weights, pruned.weights);
    assert_eq!(second.mask, pruned.mask);
    let (found, expected) = (second.quantized.unwrap(), pruned.quantized.unwrap());
    assert_eq!(found.codes, expected.codes);
    assert_eq!(found.scale, expected.scale);
    assert_eq!(found.zero, expected.zero);
    assert_eq!(found.group_of_column, expected.group_of_column);
    assert_eq!(found.levels, expected.levels);
    state.remove().unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn every_changed_or_missing_byte_is_noticed() {
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    drop(kept(&out));
    let path = StateFolder::place(&out).join("00001.block");
    let whole = fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = StateFolder::open(&out, false)
            .unwrap()
            .go_on(fingerprint(), 4)
            .map(drop);
        fs::write(&path, &whole).unwrap();
        error
    };
    open(&whole).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        let error = open(&changed).unwrap_err().to_string();
        assert!(
            error.contains("00001.block") && error.contains("--fresh"),
            "{at}: {error}"
        );
    }
    for len in (0..whole.len()).step_by(7) {
        let error = open(&whole[..len]).unwrap_err().to_string();
        assert!(error.contains("00001.block"), "{len}: {error}");
    }
    // A file that is gone is a block to be done again, with those behind it.
    fs::remove_file(&path).unwrap();
    let mut state = StateFolder::open(&out, false).unwrap();
    assert_eq!(state.go_on(fingerprint(), 4).unwrap(), 1);
    assert!(state.block(2).unwrap().is_none());
}

/// The file with a checksum that holds.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - 32);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

#[test]
fn lies_with_a_good_checksum_are_errors() {
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    drop(kept(&out));
    let path = StateFolder::place(&out).join("00000.block");
    let whole = fs::read(&path).unwrap();
    let read = |bytes: Vec<u8>| -> Result<usize> {
        fs::write(&path, bytes).unwrap();
        let mut file = BlockFile::open(&path)?;
        let mut layers = 0;
        while file.next_layer()?.is_some() {
            layers += 1;
        }
        Ok(layers)
    };
    assert_eq!(read(whole.clone()).unwrap(), 2);
    let text = |from: &str, to: &str| {
        let at = whole
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        sealed(bytes)
    };
    for (from, to) in [
        (r#""rows":5"#, r#""rows":9"#),
        (r#""rows":5"#, r#""rows":0"#),
        (r#""dtype":"F16""#, r#""dtype":"F32""#),
        (r#""dtype":"F16""#, r#""dtype":"I16""#),
        (r#""groups":2"#, r#""groups":3"#),
        (r#""affine":15"#, r#""affine":01"#),
        (r#""cols":6"#, r#""cols":x"#),
    ] {
        let error = read(text(from, to)).unwrap_err().to_string();
        assert!(error.contains("00000.block"), "{from}: {error}");
    }
    let error = read(text("SGPTBLK2", "SGPTBLK1")).unwrap_err().to_string();
    assert!(
        error.contains("another version") && error.contains("--fresh"),
        "{error}"
    );
    // Any other change is read or refused, and never more.
    for at in 0..whole.len() - 32 {
        let mut bytes = whole.clone();
        bytes[at] = bytes[at].wrapping_add(0x41);
        if let Ok(layers) = read(sealed(bytes)) {
            assert!(layers <= 2, "{at}");
        }
    }
}

#[test]
fn another_run_is_told_apart_and_told_how() {
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    drop(kept(&out));
    let mut state = StateFolder::open(&out, false).unwrap();
    let other = Fingerprint::default().with("recipe", "2:4");
    let error = state.go_on(other, 4).unwrap_err().to_string();
    for named in ["recipe: 50% then, 2:4 now", "00000.block", "--fresh"] {
        assert!(error.contains(named), "{error}");
    }
    let error = state.go_on(fingerprint(), 3).unwrap_err().to_string();
    assert!(error.contains("of 4"), "{error}");
    drop(state);
    let mut state = StateFolder::open(&out, true).unwrap();
    assert_eq!(state.go_on(fingerprint(), 3).unwrap(), 0);
    drop(state);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn what_was_begun_goes_and_two_runs_do_not_share() {
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    let mut state = StateFolder::open(&out, false).unwrap();
    state.go_on(fingerprint(), 4).unwrap();
    let mut writer = state.begin(0).unwrap();
    writer
        .add(&finished(0, None), String::new(), Dtype::BF16)
        .unwrap();
    let error = StateFolder::open(&out, false).unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
    let place = StateFolder::place(&out);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    drop(writer);
    drop(state);
    assert!(!place.exists());

    // One that had begun before there was a folder keeps its hands off, too.
    let mut early = StateFolder::open(&out, false).unwrap();
    let mut state = StateFolder::open(&out, false).unwrap();
    state.go_on(fingerprint(), 4).unwrap();
    let writer = state.begin(0).unwrap();
    let error = early.go_on(fingerprint(), 4).unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
    assert!(early.begin(0).is_err());
    drop(early);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    drop((writer, state));

    // As after a kill.
    fs::create_dir(&place).unwrap();
    fs::write(place.join("00000.tmp"), "half").unwrap();
    let mut state = StateFolder::open(&out, false).unwrap();
    assert_eq!(state.go_on(fingerprint(), 4).unwrap(), 0);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
}

#[test]
fn weights_that_do_not_fit_their_type_are_named() {
    let root = tempdir().unwrap();
    let mut state = StateFolder::open(&root.path().join("out"), false).unwrap();
    let mut writer = state.begin(0).unwrap();
    let mut layer = finished(0, None);
    layer.pruned.weights = arr2(&[[1e30_f32]]);
    let error = writer
        .add(&layer, String::new(), Dtype::F16)
        .unwrap_err()
        .to_string();
    assert!(error.contains("overflows"), "{error}");
    assert!(matches!(
        sparsegpt::quant::QuantizedLayer::from_parts(
            arr2(&[[9_u8]]),
            arr2(&[[1.0]]),
            arr2(&[[0.0]]),
            vec![0],
            sparsegpt::quant::GridLevels::Affine { max_code: 7 },
        ),
        Err(SolverError::InvalidSetting { .. })
    ));
}
