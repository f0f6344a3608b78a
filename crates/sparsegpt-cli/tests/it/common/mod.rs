//! Running the command on small things.

#![allow(clippy::unwrap_used, clippy::panic)]

pub(crate) mod families;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The bundled model.
pub(crate) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/jargon")
}

pub(crate) fn calibration() -> PathBuf {
    model().join("calibration.txt")
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sparsegpt"));
    command.args(args).stdin(Stdio::null());
    command
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// stdout as one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) fn run(args: &[&str]) -> Run {
    let output = command(args).output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs what must succeed.
pub(crate) fn succeed(args: &[&str]) -> Run {
    let run = run(args);
    assert_eq!(run.code, Some(0), "{args:?}: {run:?}");
    run
}

/// Runs what must fail with this exit code, an error that contains `named`, and nothing on stdout.
pub(crate) fn fail(args: &[&str], code: i32, named: &str) -> Run {
    let run = run(args);
    assert_eq!(run.code, Some(code), "{args:?}: {run:?}");
    assert!(
        run.stderr.contains(named),
        "{args:?}: expected {named:?} in {run:?}"
    );
    assert!(run.stdout.is_empty(), "{args:?}: {run:?}");
    for word in ["panicked", "RUST_BACKTRACE"] {
        assert!(!run.stderr.contains(word), "{args:?}: {run:?}");
    }
    run
}

/// Of the beginning of the bundled model's held-out text.
pub(crate) fn perplexity(of: &Path) -> f64 {
    let held_out = model().join("heldout.txt");
    let args = [
        "eval",
        text(of),
        "--text",
        text(&held_out),
        "--limit",
        "6",
        "--json",
    ];
    succeed(&args).json()["perplexity"].as_f64().unwrap()
}

/// Names in a folder, sorted.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Type, shape and bytes of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes,
        }
    }

    pub(crate) fn bf16(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|&value| half::bf16::from_f32(value).to_le_bytes())
            .collect();
        Self {
            dtype: Dtype::BF16,
            shape: shape.to_vec(),
            bytes,
        }
    }

    pub(crate) fn u8(shape: &[usize], values: &[u8]) -> Self {
        Self {
            dtype: Dtype::U8,
            shape: shape.to_vec(),
            bytes: values.to_vec(),
        }
    }

    pub(crate) fn i32(shape: &[usize], values: &[i32]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self {
            dtype: Dtype::I32,
            shape: shape.to_vec(),
            bytes,
        }
    }

    pub(crate) fn to_f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect()
    }

    pub(crate) fn to_i32(&self) -> Vec<i32> {
        assert_eq!(self.dtype, Dtype::I32);
        self.bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| i32::from_le_bytes(bytes))
            .collect()
    }
}

pub(crate) fn save(path: &Path, tensors: &[(&str, Tensor)]) {
    let views = tensors.iter().map(|(name, tensor)| {
        (
            *name,
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn load(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap();
    SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            let tensor = Tensor {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            (name.to_owned(), tensor)
        })
        .collect()
}

/// Numbers that look random: a linear congruential generator (Knuth's MMIX constants), uniform in -1..1.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
