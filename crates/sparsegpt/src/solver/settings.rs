//! What to do with a layer.

use std::sync::Arc;

use super::method::{Admm, MaskSource, Method, Parts, Refit, WeightSolver};
use super::order::ColumnOrder;
use super::own::{self, OrderColumns, OwnParts, RefitWeights, ScoreWeights, SolveWeights};
use crate::error::{Error, Result};
use crate::mask::{BlockMask, MaskBlock, MaskPolicy, Pattern};
use crate::quant::Quantizer;

/// The largest damping: λ as large as the mean diagonal of H itself, where a factorization that keeps failing is given
/// up too.
///
/// With more, H + λI is close to a multiple of the identity: weights are chosen by magnitude and none makes up for
/// another, which [`Method::Magnitude`] does without calibration and factorization; and a damping that large is most
/// likely meant in other units.
pub const MAX_DAMPING: f64 = 1.0;

/// What to do with a layer: method, pattern, quantizer and the solver's knobs.
///
/// ```
/// use sparsegpt::{LayerSettings, Pattern, quant::UniformGrid};
/// let settings = LayerSettings::new(Pattern::n_of_m(2, 4)?)
///     .with_quantizer(UniformGrid::new(4)?.with_groups(128))
///     .with_damping(0.02);
/// # let _ = settings;
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerSettings {
    /// The method.
    pub method: Method,
    /// Another mask source than the method's own.
    pub mask_source: Option<MaskSource>,
    /// Another refit than the method's own.
    pub refit: Option<Refit>,
    /// Other settings of ADMM than the method's own; an error with a method that has none, and with [`Method::Best`], whose
    /// candidates differ in them.
    pub admm: Option<Admm>,
    /// Swaps in each row at most by which the mask is refined before the weights are set on it, on the host; 0 for none. See
    /// [`swap_refine`](crate::rowwise::swap_refine). Where the solver chooses the mask, it runs once for the mask and once more for the
    /// weights. The zeros of a [given mask](crate::mask::GivenMask) move too, those that an extended one has been given do not.
    pub swaps: usize,
    /// What to prune.
    pub mask: Arc<dyn MaskPolicy>,
    /// What to round to, if anything.
    pub quantizer: Option<Arc<dyn Quantizer>>,
    /// λ as a fraction of the mean diagonal of H, from 0 to [`MAX_DAMPING`]; 0.01 as in the paper.
    pub damping: f64,
    /// Columns updated together before the rest of the layer is (paper: B = 128).
    pub block_size: usize,
    /// Columns whose mask is chosen together (paper: B_s = 128). N:M patterns choose group by group.
    pub mask_block_size: usize,
    /// The order in which a sweep goes through the columns.
    pub order: ColumnOrder,
    /// Columns (input features) in which nothing is pruned. They still take part in the compensation.
    pub protected_columns: Vec<usize>,
    /// Rows (output features) in which nothing is pruned.
    pub protected_rows: Vec<usize>,
    /// Whether to measure the reconstruction error on the result: two products of the size of one whole
    /// trailing update each.
    pub measure: bool,
    /// Whether a model driver collects a Hessian for the layer although no part of the method reads one: to measure the
    /// error of magnitude, say.
    pub measure_always: bool,
    /// How far the layer aims at the dense model's outputs on the inputs that it has now, from 0 (at its own dense weights, the
    /// default) to 1 (GPTAQ, Li et al. 2025, arXiv 2504.02692, which takes 0.25, as all of it fits the noise of the
    /// calibration data). It aims at W + strength·W·C·(H + λI)⁻¹ with C = 2/(sequences) Σ (X_d − X)ᵀX, X_d being what the dense model
    /// has in place of the inputs X; errors in the report are measured against that. It takes statistics that know of X_d
    /// ([`Hessian::update_from_dense`](crate::Hessian::update_from_dense)) and has no effect with others. An inverse and a product
    /// of cols² by cols² a Hessian, and a product of the layer's size; memory for C and two more matrices of cols², and one of the layer's size.
    pub dense_targets: f64,
    /// Parts of one's own. A mask source, a refit and an order among them are used where the fields above say `Own`; a weight solver
    /// stands in for the method's.
    pub own: OwnParts,
}

impl LayerSettings {
    /// SparseGPT with a mask policy and the paper's settings.
    pub fn new(mask: impl MaskPolicy + 'static) -> Self {
        Self::with_mask(Arc::new(mask))
    }

    /// SparseGPT with a shared mask policy and the paper's settings.
    #[must_use]
    pub fn with_mask(mask: Arc<dyn MaskPolicy>) -> Self {
        Self {
            method: Method::SparseGpt,
            mask_source: None,
            refit: None,
            admm: None,
            swaps: 0,
            mask,
            quantizer: None,
            damping: 0.01,
            block_size: 128,
            mask_block_size: 128,
            order: ColumnOrder::Natural,
            protected_columns: Vec::new(),
            protected_rows: Vec::new(),
            measure: true,
            measure_always: false,
            dense_targets: 0.0,
            own: OwnParts::default(),
        }
    }

    /// Quantization alone (GPTQ).
    pub fn quantize_only(quantizer: impl Quantizer + 'static) -> Self {
        Self::new(Pattern::Dense).with_quantizer(quantizer)
    }

    /// Another method.
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Another mask source than the method's own.
    #[must_use]
    pub fn with_mask_source(mut self, source: MaskSource) -> Self {
        self.mask_source = Some(source);
        self
    }

    /// Another refit than the method's own.
    #[must_use]
    pub fn with_refit(mut self, refit: Refit) -> Self {
        self.refit = Some(refit);
        self
    }

    /// A mask source of one's own.
    #[must_use]
    pub fn with_own_mask_source(mut self, source: impl ScoreWeights + 'static) -> Self {
        self.own.mask_source = Some(Arc::new(source));
        self.with_mask_source(MaskSource::Own)
    }

    /// A weight solver of one's own; where no other mask source is given and the method's solver would choose the mask, it does.
    #[must_use]
    pub fn with_own_solver(mut self, solver: impl SolveWeights + 'static) -> Self {
        self.own.solver = Some(Arc::new(solver));
        self
    }

    /// A refit of one's own.
    #[must_use]
    pub fn with_own_refit(mut self, refit: impl RefitWeights + 'static) -> Self {
        self.own.refit = Some(Arc::new(refit));
        self.with_refit(Refit::Own)
    }

    /// An order of one's own.
    #[must_use]
    pub fn with_own_order(mut self, order: impl OrderColumns + 'static) -> Self {
        self.own.order = Some(Arc::new(order));
        self.with_order(ColumnOrder::Own)
    }

    /// Other settings of ADMM than the method's own.
    ///
    /// ```
    /// use sparsegpt::solver::{Admm, LayerSettings, Method};
    /// use sparsegpt::Pattern;
    /// let settings = LayerSettings::new(Pattern::n_of_m(2, 4)?)
    ///     .with_method(Method::Quality)
    ///     .with_admm(Admm::GRADUAL.changed("iterations=40,ramp=30")?);
    /// # let _ = settings;
    /// # Ok::<(), sparsegpt::Error>(())
    /// ```
    #[must_use]
    pub fn with_admm(mut self, admm: Admm) -> Self {
        self.admm = Some(admm);
        self
    }

    /// With swaps, so many in each row at most.
    #[must_use]
    pub fn with_swaps(mut self, swaps: usize) -> Self {
        self.swaps = swaps;
        self
    }

    /// The method's parts, with those that stand in for them.
    #[must_use]
    pub fn parts(&self) -> Parts {
        let parts = self.method.parts();
        Parts {
            mask: self.mask_source.unwrap_or(parts.mask),
            weights: match (parts.weights, self.admm) {
                _ if self.own.solver.is_some() => WeightSolver::Own,
                (WeightSolver::Admm(_), Some(admm)) => WeightSolver::Admm(admm),
                (own, _) => own,
            },
            refit: self.refit.unwrap_or(parts.refit),
            swaps: self.swaps,
            ..parts
        }
    }

    /// The method and what stands in for its parts, for reports.
    pub(super) fn describe_method(&self) -> String {
        let mut text = self.method.to_string();
        match (self.mask_source, &self.own.mask_source) {
            (Some(MaskSource::Own), Some(own)) => text += &format!(", mask by {}", own.describe()),
            (Some(source), _) => text += &format!(", mask by {source}"),
            (None, _) => {}
        }
        if let Some(own) = &self.own.solver {
            text += &format!(", weights by {}", own.describe());
        }
        if self.swaps > 0 {
            text += &format!(", at most {} swaps a row", self.swaps);
        }
        match (self.refit, &self.own.refit) {
            (Some(Refit::Own), Some(own)) => text += &format!(", refit {}", own.describe()),
            (Some(refit), _) if refit != self.method.parts().refit => {
                text += &format!(", refit {refit}");
            }
            _ => {}
        }
        if let (ColumnOrder::Own, Some(own)) = (self.order, &self.own.order) {
            text += &format!(", order {}", own.describe());
        }
        if let Some(admm) = self.admm {
            text += &format!(", ADMM {admm}");
        }
        if self.dense_targets > 0.0 {
            text += &format!(", dense targets {}", self.dense_targets);
        }
        text
    }

    /// With a quantizer.
    #[must_use]
    pub fn with_quantizer(mut self, quantizer: impl Quantizer + 'static) -> Self {
        self.quantizer = Some(Arc::new(quantizer));
        self
    }

    /// Another damping, as a fraction of the mean diagonal of H, from 0 to [`MAX_DAMPING`].
    #[must_use]
    pub fn with_damping(mut self, damping: f64) -> Self {
        self.damping = damping;
        self
    }

    /// Another block size.
    #[must_use]
    pub fn with_block_size(mut self, block_size: usize) -> Self {
        self.block_size = block_size;
        self
    }

    /// Another mask block size.
    #[must_use]
    pub fn with_mask_block_size(mut self, mask_block_size: usize) -> Self {
        self.mask_block_size = mask_block_size;
        self
    }

    /// Columns in another order.
    #[must_use]
    pub fn with_order(mut self, order: ColumnOrder) -> Self {
        self.order = order;
        self
    }

    /// Columns in the order of descending diagonal of H (GPTQ's act-order), or in the natural one.
    #[must_use]
    pub fn with_act_order(self, act_order: bool) -> Self {
        self.with_order(match act_order {
            true => ColumnOrder::Descending,
            false => ColumnOrder::Natural,
        })
    }

    /// Columns in which nothing is pruned.
    #[must_use]
    pub fn with_protected_columns(mut self, columns: Vec<usize>) -> Self {
        self.protected_columns = columns;
        self
    }

    /// Rows in which nothing is pruned.
    #[must_use]
    pub fn with_protected_rows(mut self, rows: Vec<usize>) -> Self {
        self.protected_rows = rows;
        self
    }

    /// Whether to measure the reconstruction error.
    #[must_use]
    pub fn with_measure(mut self, measure: bool) -> Self {
        self.measure = measure;
        self
    }

    /// A Hessian even for methods that read none, to measure their error.
    #[must_use]
    pub fn with_measure_always(mut self, measure_always: bool) -> Self {
        self.measure_always = measure_always;
        self
    }

    /// Aiming at the dense model's outputs, by so much.
    #[must_use]
    pub fn with_dense_targets(mut self, strength: f64) -> Self {
        self.dense_targets = strength;
        self
    }

    /// Another method as it is by itself, without parts and settings that were meant for the one before.
    #[must_use]
    pub(crate) fn replaced_by(self, method: Method) -> Self {
        Self {
            method,
            mask_source: None,
            refit: None,
            admm: None,
            swaps: 0,
            order: ColumnOrder::Natural,
            dense_targets: 0.0,
            own: OwnParts::default(),
            ..self
        }
    }

    /// Whether a driver must collect a Hessian for a layer with these settings.
    #[must_use]
    pub fn needs_hessian(&self) -> bool {
        self.measure_always || self.reads_hessian()
    }

    /// Whether a part reads the Hessian.
    pub(super) fn reads_hessian(&self) -> bool {
        let mut parts = self.parts();
        if parts.mask == MaskSource::Own
            && let Some(own) = &self.own.mask_source
            && !own.needs_hessian()
        {
            parts.mask = MaskSource::Magnitude;
        }
        parts.needs_hessian()
    }

    /// Whether a sparsity of the layer is read as one of each row.
    pub(crate) fn compares_within_rows(&self) -> bool {
        let parts = self.parts();
        match (parts.mask, &self.own.mask_source) {
            (MaskSource::Own, Some(own)) => own.within_rows(),
            _ => parts.compares_within_rows(),
        }
    }

    /// Checks that there is what the parts speak of.
    fn check_parts(&self, layer: &str) -> Result<()> {
        let (parts, own) = (self.parts(), &self.own);
        if parts.mask == MaskSource::Own {
            own::given(own.mask_source.as_ref(), layer, "a mask source")?;
        }
        if parts.refit == Refit::Own {
            own::given(own.refit.as_ref(), layer, "a refit")?;
        }
        if self.order == ColumnOrder::Own {
            own::given(own.order.as_ref(), layer, "a column order")?;
        }
        Ok(())
    }

    /// Checks that something can choose the mask, and that swaps can leave the pattern whole.
    fn check_choice(&self, layer: &str, rows: usize, cols: usize) -> Result<()> {
        let parts = self.parts();
        let nobody = parts.mask == MaskSource::Solver && parts.weights == WeightSolver::Keep;
        if !self.mask.prunes() || !(nobody || parts.swaps > 0) {
            return Ok(());
        }
        let original: Vec<usize> = (0..cols).collect();
        match self
            .mask
            .choose(&MaskBlock::whole(layer, rows, &original))?
        {
            // Nothing to choose.
            BlockMask::Fixed(_) => Ok(()),
            _ if nobody => Err(Error::incompatible(
                layer,
                format!(
                    "method {} leaves weights as they are, so there is no solver that could choose the mask",
                    self.method
                ),
                "give another mask source (magnitude, wanda, ria), or none",
            )),
            // Of what a policy chooses by scores itself only the mask tells.
            BlockMask::LowestRuns { .. } if parts.swaps > 0 => Err(no_swaps(layer, &*self.mask)),
            _ => Ok(()),
        }
    }

    /// Checks the settings, alone and against a layer (rows x cols).
    ///
    /// # Errors
    /// The first setting that is out of range or does not fit.
    pub fn validate(&self, layer: &str, rows: usize, cols: usize) -> Result<()> {
        if !(0.0..=MAX_DAMPING).contains(&self.damping) {
            return Err(Error::setting(
                "damping",
                format!("a fraction of the Hessian's mean diagonal, from 0 to {MAX_DAMPING}"),
                self.damping,
            ));
        }
        if !(0.0..=1.0).contains(&self.dense_targets) {
            return Err(Error::setting(
                "dense targets",
                "a strength from 0 to 1",
                self.dense_targets,
            ));
        }
        if self.block_size == 0 {
            return Err(Error::setting("block size", "at least 1 column", 0));
        }
        if self.mask_block_size == 0 {
            return Err(Error::setting("mask block size", "at least 1 column", 0));
        }
        for (name, positions, limit) in [
            ("protected column", &self.protected_columns, cols),
            ("protected row", &self.protected_rows, rows),
        ] {
            if let Some(beyond) = positions.iter().find(|&&position| position >= limit) {
                return Err(Error::setting(
                    name,
                    format!("below {limit} (layer {layer:?})"),
                    beyond,
                ));
            }
        }
        if let Some(admm) = &self.admm {
            admm.validate()?;
            let has_one = matches!(self.method.parts().weights, WeightSolver::Admm(_));
            if !has_one || self.method == Method::Best {
                return Err(Error::incompatible(
                    layer,
                    match has_one {
                        true => format!(
                            "the candidates of method {} have ADMM settings of their own",
                            self.method
                        ),
                        false => format!(
                            "settings of ADMM are given, and method {} has none",
                            self.method
                        ),
                    },
                    "give method admm, alps or quality, or no settings of ADMM",
                ));
            }
        }
        if self.own.solver.is_some() && (self.method == Method::Best || self.admm.is_some()) {
            return Err(Error::incompatible(
                layer,
                format!(
                    "a weight solver of one's own takes the place of those of method {}",
                    self.method
                ),
                "give another method, without settings of ADMM",
            ));
        }
        self.check_parts(layer)?;
        self.mask.validate(layer, rows, cols)?;
        self.check_choice(layer, rows, cols)?;
        if let Some(quantizer) = &self.quantizer {
            quantizer.validate()?;
            quantizer.granularity().validate()?;
            if self.mask.prunes() && !quantizer.represents_zero() {
                return Err(Error::incompatible(
                    layer,
                    format!("zero is not a level of the grid ({})", quantizer.describe()),
                    "prune without this quantizer, or quantize without pruning",
                ));
            }
        }
        Ok(())
    }
}

/// A pattern that swaps would break.
pub(super) fn no_swaps(layer: &str, mask: &dyn MaskPolicy) -> Error {
    Error::incompatible(
        layer,
        format!(
            "pattern {} is more than a number of zeros in each row or group, and swaps would break it",
            mask.describe()
        ),
        "leave out the swaps, or take another pattern",
    )
}
