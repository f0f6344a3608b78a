//! One solved layer in a safetensors file: `weight` (rows x cols), `hessian` (cols x cols, undamped), `pruned`
//! (the solution), with quantization `scale` and `zero` (rows, or rows x groups); what was asked for is a JSON
//! object under the metadata key `case`.

use std::sync::Arc;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sparsegpt::backend::Backend;
use sparsegpt::mask::MaskPolicy;
use sparsegpt::ndarray::{Array2, Axis};
use sparsegpt::quant::Granularity;
use sparsegpt::{LayerSettings, Method, Pattern, PrunedLayer, Solver, UniformGrid};

use crate::agreement::Layer;
use crate::check::{Failure, Verdict, close, ensure};
use crate::tolerance::{Agreement, GRID, GRID_OF_CURRENT};
use crate::truth;

/// What was asked for, and what came out.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Request {
    pub(super) name: String,
    /// Unstructured fraction of zeros; 0 = none.
    pub(super) sparsity: f64,
    /// Zeros in each `m` columns; 0 = not semi-structured.
    pub(super) n: usize,
    pub(super) m: usize,
    /// 16 = no quantization.
    pub(super) bits: u32,
    pub(super) symmetric: bool,
    pub(super) mse: bool,
    /// One grid a row; else one for the layer.
    pub(super) per_channel: bool,
    /// Columns in a group with a grid of its own; 0 = no groups.
    #[serde(default)]
    pub(super) group_size: usize,
    pub(super) block_size: usize,
    pub(super) damping: f64,
    /// tr(ΔW H ΔWᵀ) on the undamped H, f64.
    pub(super) reconstruction_error: f64,
}

impl Request {
    pub(super) fn quantizes(&self) -> bool {
        self.bits < 16
    }

    pub(super) fn prunes(&self) -> bool {
        self.n > 0 || self.sparsity > 0.0
    }

    /// Settings with another policy than the pattern asked for, where one is given.
    fn settings(&self, policy: Option<Arc<dyn MaskPolicy>>) -> Verdict<LayerSettings> {
        let pattern = match () {
            () if self.n > 0 => Pattern::n_of_m(self.n, self.m)?,
            () if self.sparsity > 0.0 => Pattern::unstructured(self.sparsity)?,
            () => Pattern::Dense,
        };
        let settings = LayerSettings::with_mask(policy.unwrap_or_else(|| Arc::new(pattern)))
            .with_damping(self.damping)
            .with_block_size(self.block_size)
            .with_mask_block_size(self.block_size);
        if !self.quantizes() {
            return Ok(settings);
        }
        let granularity = match () {
            () if self.group_size > 0 => Granularity::Group {
                size: self.group_size,
                fixed: false,
            },
            () if self.per_channel => Granularity::PerRow,
            () => Granularity::PerTensor,
        };
        let grid = UniformGrid::new(self.bits)?
            .with_symmetric(self.symmetric)
            .with_mse(self.mse)
            .with_granularity(granularity);
        Ok(settings.with_quantizer(grid))
    }
}

/// A layer and its solution.
pub(super) struct Solved {
    pub(super) request: Request,
    pub(super) weight: Array2<f32>,
    pub(super) hessian: Array2<f32>,
    pub(super) pruned: Array2<f32>,
    /// Scale and zero point, rows x groups.
    pub(super) grid: Option<(Array2<f32>, Array2<f32>)>,
}

impl Solved {
    /// Reads a file and checks that it belongs together.
    pub(super) fn read(bytes: &[u8]) -> Verdict<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let request = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get("case"))
            .ok_or_else(|| Failure::Wrong("no metadata entry \"case\"".to_owned()))?;
        let request: Request = serde_json::from_str(request)?;
        let tensors = SafeTensors::deserialize(bytes)?;
        let matrix = |name: &str| -> Verdict<Array2<f32>> {
            let view = tensors.tensor(name)?;
            ensure!(
                view.dtype() == safetensors::Dtype::F32,
                "{name} is {:?}",
                view.dtype()
            );
            let shape = match *view.shape() {
                [rows] => (rows, 1),
                [rows, cols] => (rows, cols),
                ref shape => {
                    return Err(Failure::Wrong(format!("{name} has the shape {shape:?}")));
                }
            };
            let values = view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes));
            Ok(Array2::from_shape_vec(shape, values.collect())?)
        };
        let (weight, hessian, pruned) = (matrix("weight")?, matrix("hessian")?, matrix("pruned")?);
        let grid = match request.quantizes() {
            true => Some((matrix("scale")?, matrix("zero")?)),
            false => None,
        };
        ensure!(
            hessian.dim() == (weight.ncols(), weight.ncols()) && pruned.dim() == weight.dim(),
            "shapes do not match: weight {:?}, hessian {:?}, pruned {:?}",
            weight.dim(),
            hessian.dim(),
            pruned.dim()
        );
        let solved = Self {
            request,
            weight,
            hessian,
            pruned,
            grid,
        };
        let layer = Layer {
            dense: &solved.weight,
            hessian: &solved.symmetric(),
        };
        let (found, expected) = (
            layer.error(&solved.pruned),
            solved.request.reconstruction_error,
        );
        ensure!(
            (found - expected).abs() <= 1e-5 * expected,
            "the stored solution has the error {found:e}, the metadata say {expected:e}"
        );
        Ok(solved)
    }

    fn symmetric(&self) -> Array2<f64> {
        truth::symmetric(self.hessian.view(), &self.hessian.diag().to_vec())
    }

    /// Solves the layer anew and compares scales and zero points.
    pub(super) fn solve<B: Backend>(
        &self,
        solver: &Solver<B>,
        policy: Option<Arc<dyn MaskPolicy>>,
    ) -> Verdict<PrunedLayer> {
        let settings = self.request.settings(policy)?;
        let mut hessian = solver.hessian_from(self.hessian.view())?;
        let ours = solver.prune(self.weight.view(), &mut hessian, &settings)?;
        self.check_grid(&ours)?;
        Ok(ours)
    }

    /// The error of another method with the same request, of the stored solution's.
    pub(super) fn error_ratio<B: Backend>(
        &self,
        solver: &Solver<B>,
        method: Method,
    ) -> Verdict<f64> {
        let settings = self.request.settings(None)?.with_method(method);
        let mut hessian = solver.hessian_from(self.hessian.view())?;
        let ours = solver.prune(self.weight.view(), &mut hessian, &settings)?;
        let layer = Layer {
            dense: &self.weight,
            hessian: &self.symmetric(),
        };
        Ok(layer.error(&ours.weights) / self.request.reconstruction_error)
    }

    /// Compares some rows of a solution; `spare` as in [`Layer::ensure_agreement`].
    pub(super) fn compare(
        &self,
        ours: &PrunedLayer,
        rows: &[usize],
        spare: usize,
        limits: &Agreement,
    ) -> Verdict {
        let select = |matrix: &Array2<f32>| matrix.select(Axis(0), rows);
        let (dense, hessian) = (select(&self.weight), self.symmetric());
        Layer {
            dense: &dense,
            hessian: &hessian,
        }
        .ensure_agreement(
            &self.request.name,
            &select(&ours.weights),
            &select(&self.pruned),
            spare,
            limits,
        )
    }

    pub(super) fn all_rows(&self) -> Vec<usize> {
        (0..self.weight.nrows()).collect()
    }

    fn check_grid(&self, ours: &PrunedLayer) -> Verdict {
        let Some((scale, zero)) = &self.grid else {
            return Ok(());
        };
        let Some(found) = &ours.quantized else {
            return Err(Failure::Wrong("no quantized form in the result".to_owned()));
        };
        ensure!(
            found.scale.dim() == scale.dim(),
            "scales are {:?}, expected {:?}",
            found.scale.dim(),
            scale.dim()
        );
        // Grids of groups are fitted to weights that carry the rounding of the sweeps before.
        let tolerance = if scale.ncols() > 1 {
            &GRID_OF_CURRENT
        } else {
            &GRID
        };
        for ((at, &scale), &zero) in scale.indexed_iter().zip(zero) {
            let (found_scale, found_zero) = (found.scale[at], found.zero[at]);
            let scale = f64::from(scale);
            close(
                format_args!("{}: scale at {at:?}", self.request.name),
                f64::from(found_scale),
                scale,
                scale,
                tolerance,
            )?;
            ensure!(
                found_zero == zero,
                "{}: zero point at {at:?} is {found_zero}, expected {zero}",
                self.request.name
            );
        }
        Ok(())
    }
}
