//! What to do with a layer.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};
use sparsegpt::mask::MaskPolicy;
use sparsegpt::quant::{Granularity, UniformGrid};
use sparsegpt::solver::{Admm, ColumnOrder, MaskSource, Parts, Refit, Rounding, WeightSolver};
use sparsegpt::{LayerPruner, LayerSettings, Method, Pattern};
use sparsegpt_models::checkpoint::LeastZero;

use super::on;
use super::recipe::Flags;
use crate::backend::BackendChoice;
use crate::console::Console;
use crate::failure::Failure;
use crate::model;

/// Everything is optional here, so that "not given" can be told from a default: a recipe file may fill it in.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct LayerFlags {
    /// Zeros: 50% (of the layer), row:50% (of each row), 2:4 (2 zeros in each 4 columns), 64:6:8 (6 zeros in each 8
    /// columns, and the same 4 columns for each 64 rows), block:16:50% (16 weights of a row together); without it the
    /// weights are only quantized (repeatable: one result for each pattern, all from one pass)
    #[arg(long)]
    #[serde(with = "super::patterns")]
    pub(crate) pattern: Vec<Pattern>,

    /// How weights to prune are found and others set; `sparsegpt methods` lists them [default: sparsegpt]
    #[arg(long)]
    pub(crate) method: Option<Method>,

    /// What chooses the weights to prune, in place of the method's own way: solver, magnitude, wanda, ria or obs
    /// (w² over the diagonal of the inverse Hessian, of all columns at once)
    #[arg(long, value_name = "SOURCE", help_heading = "Method")]
    pub(crate) mask_source: Option<MaskSource>,

    /// What improves the weights on the mask that came out, in place of the method's own: none, cg:STEPS
    /// (conjugate gradients), adam:STEPS, or exact (a factorization a row, for small layers)
    #[arg(long, value_name = "REFIT", help_heading = "Method")]
    pub(crate) refit: Option<Refit>,

    /// Change settings of ADMM (methods admm, alps, quality): name=value, comma between two, of iterations, ramp (iterations over
    /// which the zeros grow), damping and penalty (in units of the Hessian's diagonal), growing (the penalty), per-row
    #[arg(long, value_name = "CHANGES", help_heading = "Method")]
    pub(crate) admm: Option<String>,

    /// Exchange zeros for kept weights where that loses less, at most so often in each row, before the weights are set; where
    /// the solver chooses the zeros, it runs twice [default: 0]
    #[arg(long, value_name = "COUNT", help_heading = "Method")]
    pub(crate) swaps: Option<usize>,

    /// Quantize to this many bits, 2 to 8
    #[arg(long, help_heading = "Quantization")]
    pub(crate) bits: Option<u32>,

    /// A scale for each group of this many columns; without it one for each row
    #[arg(long, value_name = "COLUMNS", help_heading = "Quantization")]
    pub(crate) group_size: Option<usize>,

    /// A grid symmetric about zero
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Quantization")]
    pub(crate) symmetric: Option<bool>,

    /// Search for the range of least error
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Quantization")]
    pub(crate) mse: Option<bool>,

    /// Find the groups' scales beforehand on the dense weights
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Quantization")]
    pub(crate) static_groups: Option<bool>,

    /// One scale for the whole matrix
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Quantization")]
    pub(crate) per_tensor: Option<bool>,

    /// The order in which a sweep goes through the columns: natural, descending (activation), rose, or best (all three, and
    /// the result of least error) [default: natural]
    #[arg(long, value_name = "ORDER", help_heading = "Solver")]
    pub(crate) order: Option<ColumnOrder>,

    /// The same as --order descending
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Solver")]
    pub(crate) act_order: Option<bool>,

    /// Damping as a fraction of the Hessian's mean diagonal, from 0 to 1 [default: 0.01]
    #[arg(
        long,
        value_name = "FRACTION",
        allow_negative_numbers = true,
        help_heading = "Solver"
    )]
    pub(crate) damping: Option<f64>,

    /// Columns updated together before the rest of the layer [default: 128]
    #[arg(long, value_name = "COLUMNS", help_heading = "Solver")]
    pub(crate) block_size: Option<usize>,

    /// Columns whose zeros are chosen together [default: 128]
    #[arg(long, value_name = "COLUMNS", help_heading = "Solver")]
    pub(crate) mask_block_size: Option<usize>,

    /// Round the operands of the large products (trailing updates) to bf16 and add up in f32; needs a processor with
    /// AVX-512 BF16. SPARSEGPT_EMULATE_BF16=1 makes f32 arithmetic stand in elsewhere, for measuring only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Solver")]
    pub(crate) bf16_products: Option<bool>,

    /// Where layers are solved: cpu (default), cuda (the first NVIDIA GPU), or auto (that GPU where there is one, else cpu)
    #[arg(long, hide_possible_values = true, help_heading = "Solver")]
    pub(crate) backend: Option<BackendChoice>,

    /// The flag of this name belongs to all commands.
    #[arg(skip)]
    pub(crate) threads: Option<usize>,

    /// Not a flag: whether the file format has no zero point of 0.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) least_zero: bool,

    /// Not a flag: whether flags that the method does not read are meant for others that it is compared with.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) compared: bool,
}

impl Flags for LayerFlags {
    fn layer_mut(&mut self) -> &mut LayerFlags {
        self
    }
}

impl LayerFlags {
    /// Sets up the threads that were asked for, for forward passes too, and tells how many.
    ///
    /// # Errors
    /// As [`use_threads`](model::use_threads).
    pub(crate) fn start_threads(&self) -> Result<usize, Failure> {
        let threads = self.threads.unwrap_or(0);
        model::use_threads(threads)?;
        Ok(threads)
    }

    /// Says which flags about the choice of zeros were given for nothing: because masks are given that nothing extends, or because
    /// nothing is pruned.
    pub(crate) fn tell_no_choice(&self, masks_given: bool, console: &Console) {
        let reason = match masks_given {
            true => "the mask is given, and kept as it is",
            false => "nothing is pruned",
        };
        let swaps = !masks_given && self.swaps.is_some_and(|swaps| swaps > 0);
        let flags = [
            ("--mask-source", self.mask_source.is_some()),
            ("--mask-block-size", self.mask_block_size.is_some()),
            ("--swaps", swaps),
            // Of what would be pruned.
            (
                "--order rose",
                !masks_given && self.order == Some(ColumnOrder::Rose),
            ),
            (
                "--refit",
                !masks_given && self.refit.is_some_and(|refit| refit != Refit::None),
            ),
            ("--admm", !masks_given && self.admm.is_some()),
        ];
        console.none_read(&flags, reason);
    }

    pub(crate) fn method(&self) -> Method {
        self.method.unwrap_or_default()
    }

    /// The solver on the device that was asked for.
    ///
    /// # Errors
    /// As [`BackendChoice::solver`].
    pub(crate) fn solver(
        &self,
        threads: usize,
        console: &Console,
    ) -> Result<Box<dyn LayerPruner>, Failure> {
        let backend = self.backend.unwrap_or_default();
        backend.solver(threads, on(self.bf16_products), console)
    }

    /// The variants to make: one for each pattern, or one without any.
    ///
    /// # Errors
    /// If a pattern is given twice.
    pub(crate) fn patterns(&self) -> Result<Vec<Option<Pattern>>, Failure> {
        // Told apart as they are written, as the results are named after that.
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.pattern.iter().find(|p| !seen.insert(p.to_string())) {
            return Err(Failure::usage(format!(
                "--pattern {twice} is given twice; give each pattern once"
            )));
        }
        if self.pattern.is_empty() {
            return Ok(vec![None]);
        }
        Ok(self.pattern.iter().copied().map(Some).collect())
    }

    /// These flags for one of several methods that are compared. What any of them reads is no mistake.
    pub(crate) fn of_method(&self, method: Method, compared: &[Method]) -> Self {
        let of = |method: Method| Self {
            method: Some(method),
            ..self.clone()
        };
        let reads_all = |&method: &Method| {
            let flags = of(method);
            let settings = flags.with_parts(Arc::new(Pattern::Dense));
            flags.admm().is_ok() && flags.check_solving(&settings).is_ok()
        };
        Self {
            compared: compared.iter().any(reads_all),
            ..of(method)
        }
    }

    fn order(&self) -> ColumnOrder {
        match self.order {
            Some(order) => order,
            None if on(self.act_order) => ColumnOrder::Descending,
            None => ColumnOrder::Natural,
        }
    }

    /// Whether grids of groups are found in the order of processing, which then is not that of the columns.
    pub(crate) fn groups_are_permuted(&self) -> bool {
        self.order() != ColumnOrder::Natural && self.group_size.is_some() && !on(self.static_groups)
    }

    /// What the method is made of, with what stands in for its parts.
    pub(crate) fn parts(&self) -> Parts {
        self.with_parts(Arc::new(Pattern::Dense)).parts()
    }

    fn with_parts(&self, mask: Arc<dyn MaskPolicy>) -> LayerSettings {
        let mut settings = LayerSettings::with_mask(mask)
            .with_method(self.method())
            .with_order(self.order());
        settings.mask_source = self.mask_source;
        settings.refit = self.refit;
        settings.swaps = self.swaps.unwrap_or_default();
        settings
    }

    /// Settings with this mask policy.
    ///
    /// # Errors
    /// For flags that do not go together, or out of range.
    pub(crate) fn settings(&self, mask: Arc<dyn MaskPolicy>) -> Result<LayerSettings, Failure> {
        self.check_conflicts()?;
        let mut settings = self.with_parts(mask);
        settings.admm = self.admm()?;
        self.check_solving(&settings)?;
        if let Some(damping) = self.damping {
            settings = settings.with_damping(damping);
        }
        if let Some(columns) = self.block_size {
            settings = settings.with_block_size(columns);
        }
        if let Some(columns) = self.mask_block_size {
            settings = settings.with_mask_block_size(columns);
        }
        if let Some(quantizer) = self.quantizer()? {
            settings = match self.least_zero && !on(self.symmetric) {
                true => settings.with_quantizer(LeastZero::new(quantizer)),
                false => settings.with_quantizer(quantizer),
            };
        }
        Ok(settings)
    }

    /// The method's ADMM with what is changed in it.
    fn admm(&self) -> Result<Option<Admm>, Failure> {
        let Some(changes) = &self.admm else {
            return Ok(None);
        };
        match self.method().parts().weights {
            WeightSolver::Admm(own) if self.method() != Method::Best => {
                Ok(Some(own.changed(changes).map_err(|error| {
                    Failure::usage(format!("--admm: {error}"))
                })?))
            }
            _ if self.compared => Ok(None),
            _ => Err(Failure::usage(format!(
                "--admm has no effect with --method {}: give --method admm, alps or quality",
                self.method()
            ))),
        }
    }

    fn quantizer(&self) -> Result<Option<UniformGrid>, Failure> {
        let Some(bits) = self.bits else {
            return Ok(None);
        };
        let granularity = match self.group_size {
            Some(size) => Granularity::Group {
                size,
                fixed: on(self.static_groups),
            },
            None if on(self.per_tensor) => Granularity::PerTensor,
            None => Granularity::PerRow,
        };
        let grid = UniformGrid::new(bits)?
            .with_granularity(granularity)
            .with_symmetric(on(self.symmetric))
            .with_mse(on(self.mse));
        Ok(Some(grid))
    }

    fn check_conflicts(&self) -> Result<(), Failure> {
        let quantizing = [
            ("--group-size", self.group_size.is_some()),
            ("--symmetric", on(self.symmetric)),
            ("--mse", on(self.mse)),
            ("--static-groups", on(self.static_groups)),
            ("--per-tensor", on(self.per_tensor)),
        ];
        if self.bits.is_none()
            && let Some(flag) = first(&quantizing)
        {
            return Err(Failure::usage(format!(
                "{flag} is about quantization: give --bits too"
            )));
        }
        if self.order.is_some() && on(self.act_order) {
            return Err(Failure::usage(
                "--act-order is --order descending: give one of the two",
            ));
        }
        if self.group_size.is_some() && on(self.per_tensor) {
            return Err(Failure::usage(
                "--group-size (a scale for each group) and --per-tensor (one for all) exclude each other",
            ));
        }
        if on(self.static_groups) && self.group_size.is_none() {
            return Err(Failure::usage(
                "--static-groups is about groups: give --group-size too",
            ));
        }
        Ok(())
    }

    /// Refuses flags for parts that the method does not have.
    fn check_solving(&self, settings: &LayerSettings) -> Result<(), Failure> {
        let parts = settings.parts();
        // Rounding to nearest only where nothing else moves the weights.
        let updates = parts.weights != WeightSolver::Keep || parts.refit != Refit::None;
        let best = settings.method == Method::Best;
        // One of the candidates of `best` is SparseGPT.
        let sweeps = parts.weights == WeightSolver::Sweep
            || best
            || (updates && self.bits.is_some() && parts.rounding == Rounding::Sweep);
        let damps = sweeps
            || parts.weights == WeightSolver::Obc
            || parts.mask == MaskSource::Obs
            || matches!(parts.refit, Refit::ConjugateGradients { .. } | Refit::Exact);
        let multiplies = sweeps
            || matches!(parts.weights, WeightSolver::Admm(_))
            || matches!(
                parts.refit,
                Refit::ConjugateGradients { .. } | Refit::Adam { .. }
            );
        let chooses_in_sweep =
            (parts.weights == WeightSolver::Sweep || best) && parts.mask == MaskSource::Solver;
        let given = [
            (
                if on(self.act_order) {
                    "--act-order"
                } else {
                    "--order"
                },
                self.order() != ColumnOrder::Natural && !sweeps,
                "no part of it goes through the columns one by one",
            ),
            (
                "--block-size",
                self.block_size.is_some() && !sweeps,
                "no part of it goes through the columns in blocks",
            ),
            (
                "--mask-block-size",
                self.mask_block_size.is_some() && !chooses_in_sweep,
                "its mask is not chosen a block at a time",
            ),
            (
                "--damping",
                self.damping.is_some() && !damps,
                "it does not damp the Hessian by a fraction of its diagonal",
            ),
            (
                "--bf16-products",
                on(self.bf16_products) && !multiplies,
                "it has no large products",
            ),
        ];
        match given.iter().find(|(_, useless, _)| *useless) {
            _ if self.compared => Ok(()),
            None => Ok(()),
            Some((flag, _, reason)) => Err(Failure::usage(format!(
                "{flag} has no effect with --method {}: {reason}; leave it out",
                self.method()
            ))),
        }
    }
}

fn first(flags: &[(&'static str, bool)]) -> Option<&'static str> {
    flags
        .iter()
        .find(|(_, given)| *given)
        .map(|(flag, _)| *flag)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn settings(flags: LayerFlags) -> Result<LayerSettings, String> {
        flags
            .settings(Arc::new(Pattern::Dense))
            .map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn flags_reach_the_settings() {
        let made = settings(LayerFlags {
            bits: Some(4),
            group_size: Some(32),
            symmetric: Some(true),
            static_groups: Some(true),
            act_order: Some(true),
            damping: Some(0.05),
            block_size: Some(64),
            mask_block_size: Some(16),
            ..LayerFlags::default()
        })
        .unwrap();
        let swapped = LayerFlags {
            method: Some(Method::Magnitude),
            refit: Some(Refit::Exact),
            swaps: Some(4),
            ..LayerFlags::default()
        };
        assert_eq!(swapped.parts().swaps, 4);
        assert!(swapped.parts().needs_hessian() && !Method::Magnitude.needs_hessian());
        assert_eq!(
            made.quantizer.unwrap().describe(),
            "4 bit symmetric, static groups of 32"
        );
        assert_eq!(made.order, ColumnOrder::Descending);
        assert_eq!(
            (made.damping, made.block_size, made.mask_block_size),
            (0.05, 64, 16)
        );
    }

    #[test]
    fn flags_that_do_not_go_together_are_named() {
        let bits = LayerFlags {
            bits: Some(4),
            ..LayerFlags::default()
        };
        for (flags, named) in [
            (
                LayerFlags {
                    mse: Some(true),
                    ..LayerFlags::default()
                },
                "--mse",
            ),
            (
                LayerFlags {
                    group_size: Some(8),
                    per_tensor: Some(true),
                    ..bits.clone()
                },
                "--per-tensor",
            ),
            (
                LayerFlags {
                    static_groups: Some(true),
                    ..bits
                },
                "--group-size",
            ),
            (
                LayerFlags {
                    method: Some(Method::Wanda),
                    damping: Some(0.1),
                    ..LayerFlags::default()
                },
                "--damping",
            ),
            (
                LayerFlags {
                    method: Some(Method::Best),
                    admm: Some("iterations=40".to_owned()),
                    ..LayerFlags::default()
                },
                "--admm has no effect with --method best",
            ),
            (
                LayerFlags {
                    method: Some(Method::Quality),
                    admm: Some("iterations=0,ramp=0".to_owned()),
                    ..LayerFlags::default()
                },
                "--admm: ADMM iterations",
            ),
            (
                LayerFlags {
                    bits: Some(9),
                    ..LayerFlags::default()
                },
                "--bits: expected 2 to 8",
            ),
        ] {
            let error = settings(flags).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        // What one of its candidates reads.
        let best = settings(LayerFlags {
            method: Some(Method::Best),
            order: Some(ColumnOrder::Rose),
            block_size: Some(64),
            mask_block_size: Some(32),
            ..LayerFlags::default()
        })
        .unwrap();
        assert_eq!((best.order, best.block_size), (ColumnOrder::Rose, 64));
        let off = LayerFlags {
            mse: Some(false),
            ..LayerFlags::default()
        };
        assert!(settings(off).is_ok());
    }
}
