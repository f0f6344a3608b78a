//! What to do with a layer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mask::{MaskPolicy, Pattern};
use crate::quant::Quantizer;

/// The largest damping: λ as large as the mean diagonal of H itself, where a factorization that keeps failing is given
/// up too.
///
/// With more, H + λI is close to a multiple of the identity: weights are chosen by magnitude and none makes up for
/// another, which [`Method::Magnitude`] does without calibration and factorization; and a damping that large is most
/// likely meant in other units.
pub const MAX_DAMPING: f64 = 1.0;

/// How the weights to prune are found and what happens to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Method {
    /// SparseGPT (Frantar & Alistarh 2023): saliency w² / \[H⁻¹\]_jj, and the other weights of the row make
    /// up for every pruned or rounded one. Without pruning and with a quantizer this is GPTQ.
    #[default]
    SparseGpt,
    /// Magnitude: the smallest |w| of the layer (or of the row, or of each N:M group); the other weights
    /// stay. Needs no calibration.
    Magnitude,
    /// Wanda (Sun et al. 2023): the smallest |w|·‖x_j‖ of each row, or of each N:M group; the other weights
    /// stay. A sparsity of the layer is read as a sparsity of each row, as the method is defined.
    Wanda,
}

impl Method {
    /// Whether the method reads the Hessian.
    #[must_use]
    pub fn needs_hessian(self) -> bool {
        !matches!(self, Self::Magnitude)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SparseGpt => "sparsegpt",
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
        })
    }
}

impl FromStr for Method {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sparsegpt" => Ok(Self::SparseGpt),
            "magnitude" => Ok(Self::Magnitude),
            "wanda" => Ok(Self::Wanda),
            _ => Err(Error::setting(
                "method",
                "sparsegpt, magnitude or wanda",
                text,
            )),
        }
    }
}

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
    /// Process columns in the order of descending diagonal of H (GPTQ's act-order); for N:M patterns whole
    /// groups are ordered, and columns within each.
    pub act_order: bool,
    /// Columns (input features) in which nothing is pruned. They still take part in the compensation.
    pub protected_columns: Vec<usize>,
    /// Rows (output features) in which nothing is pruned.
    pub protected_rows: Vec<usize>,
    /// Whether to measure the reconstruction error on the result: two products of the size of one whole
    /// trailing update each.
    pub measure: bool,
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
            mask,
            quantizer: None,
            damping: 0.01,
            block_size: 128,
            mask_block_size: 128,
            act_order: false,
            protected_columns: Vec::new(),
            protected_rows: Vec::new(),
            measure: true,
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

    /// Columns in the order of descending diagonal.
    #[must_use]
    pub fn with_act_order(mut self, act_order: bool) -> Self {
        self.act_order = act_order;
        self
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
        self.mask.validate(layer, rows, cols)?;
        if let Some(quantizer) = &self.quantizer {
            quantizer.validate()?;
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
