//! A candle model whose linear layers are replaced.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor};
use half::bf16;
use ndarray::Array2;
use sparsegpt_runtime::candle::Linear;
use sparsegpt_runtime::{SparseLinear, Value};

fn weight<V: Value>(rows: usize, cols: usize) -> Array2<V> {
    Array2::from_shape_fn((rows, cols), |(row, col)| {
        let kept = (row * 31 + col * 17) % 7 < 3;
        V::from_f32(if kept {
            ((row * 13 + col * 29) % 19) as f32 / 19.0 - 0.45
        } else {
            0.0
        })
    })
}

fn sparse(weight: &Array2<f32>, bias: Vec<f32>) -> Linear {
    let layer = SparseLinear::new(weight.view(), None).unwrap();
    Linear::new(Arc::new(layer.with_bias(Some(bias)).unwrap()))
}

fn tensor(matrix: &Array2<f32>) -> Tensor {
    let values = matrix.iter().copied().collect();
    Tensor::from_vec(values, matrix.dim(), &Device::Cpu).unwrap()
}

/// Two layers with an activation between them.
fn model(up: &dyn Module, down: &dyn Module, x: &Tensor) -> Tensor {
    down.forward(&up.forward(x).unwrap().silu().unwrap())
        .unwrap()
}

/// y = x·wᵀ + b on candle's own operations.
struct Plain(Tensor, Tensor);

impl Module for Plain {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.broadcast_matmul(&self.0.t()?)?.broadcast_add(&self.1)
    }
}

#[test]
fn a_model_gives_what_it_gave_before() {
    let (up, down) = (weight::<f32>(70, 40), weight::<f32>(40, 70));
    let bias = |rows: usize| (0..rows).map(|row| row as f32 / 50.0).collect::<Vec<f32>>();
    let plain = |weight: &Array2<f32>| {
        let bias = Tensor::from_vec(bias(weight.nrows()), weight.nrows(), &Device::Cpu).unwrap();
        Plain(tensor(weight), bias)
    };
    // Batch x time x width, seen through a transposition: not contiguous.
    let x = tensor(&weight::<f32>(3 * 40, 7))
        .reshape((3, 40, 7))
        .unwrap();
    let x = x.transpose(1, 2).unwrap();
    let expected = model(&plain(&up), &plain(&down), &x);
    let found = model(&sparse(&up, bias(70)), &sparse(&down, bias(40)), &x);
    assert_eq!(found.dims(), [3, 7, 40]);
    let apart = (found - expected)
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap();
    let apart = apart.to_scalar::<f32>().unwrap();
    assert!(apart < 1e-5, "{apart}");
}

#[test]
fn activations_keep_their_type() {
    let weight = weight::<bf16>(5, 64);
    let layer = Linear::new(Arc::new(SparseLinear::new(weight.view(), None).unwrap()));
    let x = Tensor::ones((2, 64), DType::BF16, &Device::Cpu).unwrap();
    let y = layer.forward(&x).unwrap();
    assert_eq!((y.dtype(), y.dims()), (DType::BF16, &[2, 5][..]));
    let y = y.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    for (row, found) in weight.rows().into_iter().zip(&y[1]) {
        let sum: f32 = row.iter().map(|value| value.to_f32()).sum();
        assert!(
            (found - sum).abs() <= sum.abs() / 128.0 + 1e-3,
            "{found} {sum}"
        );
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let layer = sparse(&weight::<f32>(4, 6), vec![0.0; 4]);
    for (x, named) in [
        (
            Tensor::zeros((2, 5), DType::F32, &Device::Cpu),
            "expected 6 values, found 5",
        ),
        (Tensor::zeros((2, 6), DType::U32, &Device::Cpu), "found U32"),
        (Tensor::zeros((), DType::F32, &Device::Cpu), "scalar"),
    ] {
        let error = layer.forward(&x.unwrap()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
