//! Methods: which part chooses the weights to prune, and which parts set the others.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A named method: a composition of [`Parts`]. Costs are for a layer of r rows and c columns, beside the n·c² flops of its Hessian
/// from n tokens.
///
/// ```
/// use sparsegpt::solver::{MaskSource, Method, Refit};
/// assert_eq!(Method::Quality.parts().refit, Refit::ConjugateGradients { steps: 10 });
/// assert_eq!("wanda".parse::<Method>()?.parts().mask, MaskSource::Wanda);
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Method {
    /// SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, Algorithm 1 and Eq. 7): saliency w² / \[H⁻¹\]_jj on the weights as they
    /// are when their block's turn comes, and each pruned or rounded weight's error e = (w − q)/\[H⁻¹\]_jj is made good by the weights
    /// of its row that are still to come, w_k ← w_k − e·\[H⁻¹\]_jk. Without pruning and with a quantizer this is GPTQ (Frantar et al. 2022).
    ///
    /// r·c² + c³/3 flops (look-back form, one Cholesky factorization); memory for W, its errors, and H, which becomes the factor.
    /// The default: 50 % and N:M in seconds a layer, and the one to go on from.
    #[default]
    SparseGpt,
    /// Magnitude: the smallest |w| of the layer (or of the row, or of each N:M group) go; the other weights stay (Zhu & Gupta
    /// 2017, arXiv 1710.01878, of many).
    ///
    /// r·c comparisons, and memory for W and the mask. Needs no calibration, and collapses at 50 % where the others do not: a
    /// baseline, or for a few per cent of zeros.
    Magnitude,
    /// Wanda (Sun et al. 2023, arXiv 2306.11695, section 3): the smallest |w_ij|·‖x_j‖ of each row, or of each N:M group, with
    /// ‖x_j‖² from H's diagonal; the other weights stay. A sparsity of the layer is read as a sparsity of each row, as the
    /// method is defined.
    ///
    /// 2·r·c flops, and memory for W and the mask. Where weights must stay as they are (adapters trained on them, say), or as a
    /// mask for a refit.
    Wanda,
    /// RIA (Zhang et al. 2024, Eq. 5 with a = ½): the smallest (|w_ij|/Σ_i|w_ij| + |w_ij|/Σ_j|w_ij|)·√‖x_j‖ go; the other weights stay.
    ///
    /// 6·r·c flops, and memory for W and the mask. As [`Wanda`](Self::Wanda), mostly a little better, and made for N:M.
    Ria,
    /// ADMM with a gradual mask (Boža 2024, arXiv 2401.02938); the formulas stand at [`Admm`]. A sparsity of the layer is read as
    /// one of each row ([`Admm::per_row`]); V:N:M and blocks of weights are chosen whole from the start.
    ///
    /// c³ flops for an inverse and 2·r·c² for each of 20 iterations; memory for H, its inverse, and four matrices of the layer's
    /// size. [`Quality`](Self::Quality) without its refit, for those who bring their own.
    Admm,
    /// ALPS (Meng et al. 2024, arXiv 2406.07831): ADMM with the full sparsity from the start and a growing penalty, until the mask
    /// stays, then ten steps of conjugate gradients; the formulas stand at [`Admm`] and [`Refit::ConjugateGradients`].
    ///
    /// 2·r·c² flops for each of 300 iterations at most and c³ for every third; memory as [`Admm`](Self::Admm). Rarely better than
    /// [`Quality`](Self::Quality), at several times its cost: at high sparsities, for layers that matter.
    Alps,
    /// AdaPrune (Hubara et al. 2021, arXiv 2102.08124): a mask by magnitude, then 320 steps of Adam on the layer's error over the
    /// weights that it keeps; the formula stands at [`Refit::Adam`].
    ///
    /// 2·r·c² flops a step; memory for H and five matrices of the layer's size. A baseline.
    AdaPrune,
    /// The same least-squares problem solved: a mask by magnitude, then conjugate gradients until they have converged, where
    /// `exact` in their place is the closed form.
    ///
    /// 2·r·c² flops for each of 40 steps; memory as [`AdaPrune`](Self::AdaPrune). What AdaPrune aims at, in an eighth of its time.
    #[cfg_attr(feature = "serde", serde(rename = "adaprune-cg"))]
    AdaPruneCg,
    /// [`SparseGpt`](Self::SparseGpt), [`Quality`](Self::Quality) and [`Alps`](Self::Alps), each on every layer, and of their results
    /// the one of least error: on held-out data where there are some, else on the calibration data. Of this project.
    ///
    /// Costs them all together in time; memory as the largest of them, and the best weights so far. Where it is not known which suits
    /// a model, or suits each of its layers, and time does not matter; with held-out data, or the one that fits noise best wins.
    Best,
    /// ExactOBS (Frantar, Singh & Alistarh 2022, arXiv 2208.11580): weights go one at a time, of all rows the one with the least
    /// w² / \[H⁻¹\]_jj first, where H is that of the weights its row still has, and each time the rest of the row makes up for it;
    /// see [`obc_mask`](crate::rowwise::obc_mask).
    ///
    /// Up to r·c³ flops on the host in f64; memory for a matrix of c² a thread, and the order and losses of all weights. V:N:M
    /// is chosen at once by the first prices. For small layers, and as the yardstick of greedy removal.
    Obc,
    /// OBQ (same paper): where a quantizer is given, weights are rounded one at a time, the cheapest first, and each time the
    /// rest of the row makes up for it; pruned before as by [`Obc`](Self::Obc). See [`obq`](crate::rowwise::obq).
    ///
    /// 2/3·r·c³ flops on the host in f64 beside those of [`Obc`](Self::Obc), and its memory. For small layers.
    Obq,
    /// The least error for the time: ADMM with a gradual mask, ten steps of conjugate gradients on its mask (Boža 2024 with
    /// the refit of Meng et al. 2024), and where a quantizer is given, [`SparseGpt`](Self::SparseGpt)'s sweep on that mask from the
    /// weights found so.
    ///
    /// A sparsity of the layer is read as one of each row, as by [`Admm`](Self::Admm).
    ///
    /// c³ + 62·r·c² flops, some r·c² + c³/3 more with a quantizer: a whole `prune` run takes less than twice that with SparseGPT.
    /// Memory for H, its inverse, and five matrices of the layer's size. Where SparseGPT's perplexity is not good enough.
    Quality,
}

/// What a method is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub struct Parts {
    /// What chooses the weights to prune.
    pub mask: MaskSource,
    /// What sets the others.
    pub weights: WeightSolver,
    /// What improves them on the mask that came out.
    pub refit: Refit,
    /// Swaps in each row at most by which a mask that is chosen beforehand is refined; see
    /// [`swap_refine`](crate::rowwise::swap_refine).
    pub swaps: usize,
    /// What rounds them, where a quantizer is given and something has set or is to set them.
    pub rounding: Rounding,
}

/// What rounds weights to the grid of a quantizer. Methods that leave all weights as they are round to nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Rounding {
    /// The sweep over the columns: GPTQ.
    Sweep,
    /// OBQ: of each row the weight that costs least comes next. See [`obq`](crate::rowwise::obq), on the host and in f64:
    /// 2/3·rows·cols³ flops.
    Greedy,
}

/// What chooses the weights to prune. A given mask is not among these, but a
/// [policy](crate::mask::GivenMask) that leaves no choice.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum MaskSource {
    /// The weight solver chooses as it goes: the sweep by the paper's saliency on current weights, ADMM by its
    /// iterates.
    Solver,
    /// |w|. r·c comparisons; where there is no calibration.
    Magnitude,
    /// |w|·‖x_j‖, within each row (Sun et al. 2023, section 3). 2·r·c flops; the mask to set weights on by a refit.
    Wanda,
    /// (|w_ij|/Σ_i|w_ij| + |w_ij|/Σ_j|w_ij|)·‖x_j‖^½ (Zhang et al. 2024, Eq. 5, a = ½). 6·r·c flops; as Wanda, for N:M.
    Ria,
    /// w² / \[(H + λI)⁻¹\]_jj on the dense weights, all of the layer at once: the saliency of the optimal brain surgeon (Hassibi & Stork
    /// 1993, Eq. 5; SparseGPT, Eq. 3), which [`Solver`](Self::Solver) with a sweep takes a block at a time on weights that have been made
    /// good already. c³ flops for the inverse.
    Obs,
    /// Of one's own: [`OwnParts::mask_source`](super::own::OwnParts::mask_source).
    Own,
}

/// What sets the weights that are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WeightSolver {
    /// They stay as they are.
    Keep,
    /// The sweep over the columns (paper, Algorithm 1): each column's loss is made good by those behind it. r·c² + c³/3 flops.
    Sweep,
    /// Alternating directions.
    Admm(Admm),
    /// They are the best on the mask, up to damping; where the solver chooses, weights go one at a time, each the
    /// cheapest at its time. See [`obc_mask`](crate::rowwise::obc_mask) and [`exact_refit`](crate::rowwise::exact_refit),
    /// on the host and in f64: up to rows·cols³ flops.
    Obc,
    /// Of one's own: [`OwnParts::solver`](super::own::OwnParts::solver).
    Own,
}

/// ADMM on min ½ tr((W − D)H(W − D)ᵀ) over the W with the asked-for zeros (Boža 2024; ALPS: Meng et al. 2024). Written as
/// `iterations=20,ramp=15,damping=0.1,penalty=1,growing=false,per-row=true`.
///
/// In coordinates in which H has a unit diagonal, with W the iterate, Z its projection on the mask and U the scaled
/// multipliers: W ← D + ρ(Z − U − D)(H + (δ + ρ)I)⁻¹; Z ← P(W + U), which prunes the smallest |W + U|;
/// U ← U + W − Z. One inverse, and one product of the layer's size an iteration: 2·rows·cols² flops.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Admm {
    /// Iterations at most.
    pub iterations: usize,
    /// Iterations over which the zeros grow to their full number, s_t = s(1 − (1 − t/ramp)³); the mask is chosen anew
    /// in each of them. 0 means the full number from the start.
    pub ramp: usize,
    /// δ, added to the unit diagonal.
    pub damping: f64,
    /// The penalty ρ.
    pub penalty: f64,
    /// Whether the penalty grows, every third iteration, by how much the mask has changed since (ALPS, section 3.2):
    /// 1.3 times where a tenth of its zeros moved, 1.2 where a two-hundredth did, else 1.1; and when none has moved
    /// the iterations end. Each growth costs an inverse.
    pub growing: bool,
    /// Whether a sparsity of the layer is read as one of each row.
    pub per_row: bool,
}

impl Admm {
    /// As Boža publishes it: 20 iterations, the mask chosen in the first 15.
    pub const GRADUAL: Self = Self {
        iterations: 20,
        ramp: 15,
        damping: 0.1,
        penalty: 1.0,
        growing: false,
        per_row: true,
    };
    /// As ALPS publishes it.
    pub const ALPS: Self = Self {
        iterations: 300,
        ramp: 0,
        damping: 0.01,
        penalty: 0.1,
        growing: true,
        per_row: false,
    };

    /// These settings, changed where `changes` says so: `name=value` as they are written, comma between two.
    ///
    /// ```
    /// use sparsegpt::solver::Admm;
    /// let patient = Admm::GRADUAL.changed("iterations=40,ramp=30")?;
    /// assert_eq!((patient.iterations, patient.ramp, patient.penalty), (40, 30, Admm::GRADUAL.penalty));
    /// # Ok::<(), sparsegpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// For an unknown name, a value that cannot be read, a name given twice, or as [`validate`](Self::validate).
    pub fn changed(mut self, changes: &str) -> Result<Self> {
        fn read<T: FromStr>(to: &mut T, (name, value): (&str, &str), wanted: &str) -> Result<()> {
            let unreadable = |_| Error::setting("ADMM", format!("{wanted} for {name}"), value);
            *to = value.parse().map_err(unreadable)?;
            Ok(())
        }
        const COUNT: &str = "a whole number";
        const NUMBER: &str = "a number";
        const CHOICE: &str = "true or false";
        let mut seen = Vec::new();
        for change in changes.split(',') {
            let (name, value) = change.split_once('=').unwrap_or((change, ""));
            let given = (name.trim(), value.trim());
            match given.0 {
                "iterations" => read(&mut self.iterations, given, COUNT)?,
                "ramp" => read(&mut self.ramp, given, COUNT)?,
                "damping" => read(&mut self.damping, given, NUMBER)?,
                "penalty" => read(&mut self.penalty, given, NUMBER)?,
                "growing" => read(&mut self.growing, given, CHOICE)?,
                "per-row" => read(&mut self.per_row, given, CHOICE)?,
                _ => {
                    return Err(Error::setting(
                        "ADMM",
                        "name=value, of iterations, ramp, damping, penalty, growing and per-row, each once",
                        change,
                    ));
                }
            }
            if seen.contains(&given.0) {
                return Err(Error::setting("ADMM", "each setting once", changes));
            }
            seen.push(given.0);
        }
        self.validate()?;
        Ok(self)
    }

    /// Checks that the iterations can be made.
    ///
    /// # Errors
    /// The first setting out of range: no iteration, a ramp beyond the iterations, a negative damping, a penalty that is not
    /// positive.
    pub fn validate(&self) -> Result<()> {
        if self.iterations == 0 {
            return Err(Error::setting("ADMM iterations", "at least 1", 0));
        }
        if self.ramp > self.iterations {
            let most = format!("at most the iterations, {}", self.iterations);
            return Err(Error::setting("ADMM ramp", most, self.ramp));
        }
        if !(0.0..=Self::MOST).contains(&self.damping) {
            let range = format!("from 0 to {}", Self::MOST);
            return Err(Error::setting("ADMM damping", range, self.damping));
        }
        if !(self.penalty > 0.0 && self.penalty <= Self::MOST) {
            let range = format!("above 0, at most {}", Self::MOST);
            return Err(Error::setting("ADMM penalty", range, self.penalty));
        }
        Ok(())
    }

    /// Of damping and penalty, in units of H's diagonal: with more, no weight makes up for another in f32.
    const MOST: f64 = 1e3;
}

impl fmt::Display for Admm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            iterations,
            ramp,
            damping,
            penalty,
            growing,
            per_row,
        } = self;
        write!(
            f,
            "iterations={iterations},ramp={ramp},damping={damping},penalty={penalty},growing={growing},per-row={per_row}"
        )
    }
}

/// What improves the weights on the mask that came out. Kept, row by row, only where the error drops. Written and read
/// as `none`, `cg:10`, `adam:320`, `exact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
#[non_exhaustive]
pub enum Refit {
    /// Nothing.
    None,
    /// Conjugate gradients on the damped H, with its diagonal as the preconditioner, projected on the mask (Meng et al. 2024,
    /// arXiv 2406.07831, Algorithm 2): with the gradient R = (W − Q)H on the kept weights and Z = R·diag(H)⁻¹, each row goes along
    /// P ← Z + βP by α = ⟨R, Z⟩/⟨P, PH⟩, β the ratio of two ⟨R, Z⟩ that follow each other.
    ///
    /// One product of the layer's size a step, 2·rows·cols² flops, and five matrices of that size beside H. Ten steps take
    /// most of what there is to gain on any mask; forty come within a per cent of [`Exact`](Self::Exact).
    ConjugateGradients {
        /// Steps.
        steps: usize,
    },
    /// Adam on tr((W − Q)H(W − Q)ᵀ)/tr(WHWᵀ) over the weights Q that the mask keeps, with H undamped and a learning rate of
    /// [`ADAM_RATE`], as AdaPrune is published (Hubara et al. 2021, arXiv 2102.08124, section 4; loss and numbers from the
    /// implementation that SparseGPT's authors compared with). There each step sees 32 of the calibration samples; here, where only H is
    /// known, all of them, so that the gradient −2(W − Q)H is that of a whole pass and nothing is drawn at random. One
    /// product of the layer's size a step, 2·rows·cols² flops, and five matrices of that size; see
    /// [`Adam`](crate::backend::Adam). A baseline: conjugate gradients get further in a tenth of the steps.
    Adam {
        /// Steps; 320 are the ten passes over 1024 samples of the publication.
        steps: usize,
    },
    /// The least error there is on the mask, up to damping: a Cholesky factorization a row, on the host and in f64. For
    /// small layers; see [`exact_refit`](crate::rowwise::exact_refit).
    Exact,
    /// Of one's own: [`OwnParts::refit`](super::own::OwnParts::refit). Has no name to be read by.
    Own,
}

/// The learning rate of [`Refit::Adam`].
pub const ADAM_RATE: f64 = 1e-3;

impl Method {
    /// All of them, in the order of their cost.
    pub const ALL: [Self; 12] = [
        Self::Magnitude,
        Self::Wanda,
        Self::Ria,
        Self::SparseGpt,
        Self::Admm,
        Self::Quality,
        Self::AdaPruneCg,
        Self::AdaPrune,
        Self::Alps,
        Self::Best,
        Self::Obc,
        Self::Obq,
    ];
    /// What [`Best`](Self::Best) tries.
    pub(super) const CANDIDATES: [Self; 3] = [Self::SparseGpt, Self::Quality, Self::Alps];

    /// What it is made of.
    #[must_use]
    pub const fn parts(self) -> Parts {
        const CG: Refit = Refit::ConjugateGradients { steps: 10 };
        const TO_THE_END: Refit = Refit::ConjugateGradients { steps: 40 };
        const ADAM: Refit = Refit::Adam { steps: 320 };
        let gradual = WeightSolver::Admm(Admm::GRADUAL);
        let (mask, weights, refit) = match self {
            Self::SparseGpt => (MaskSource::Solver, WeightSolver::Sweep, Refit::None),
            Self::Magnitude => (MaskSource::Magnitude, WeightSolver::Keep, Refit::None),
            Self::Wanda => (MaskSource::Wanda, WeightSolver::Keep, Refit::None),
            Self::Ria => (MaskSource::Ria, WeightSolver::Keep, Refit::None),
            Self::Admm => (MaskSource::Solver, gradual, Refit::None),
            Self::Quality | Self::Best => (MaskSource::Solver, gradual, CG),
            Self::AdaPrune => (MaskSource::Magnitude, WeightSolver::Keep, ADAM),
            Self::AdaPruneCg => (MaskSource::Magnitude, WeightSolver::Keep, TO_THE_END),
            Self::Alps => (MaskSource::Solver, WeightSolver::Admm(Admm::ALPS), CG),
            Self::Obc | Self::Obq => (MaskSource::Solver, WeightSolver::Obc, Refit::None),
        };
        let rounding = match self {
            Self::Obq => Rounding::Greedy,
            _ => Rounding::Sweep,
        };
        Parts {
            mask,
            weights,
            refit,
            swaps: 0,
            rounding,
        }
    }

    /// What it does, in one line.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::SparseGpt => {
                "one sweep over the columns; those behind make up for each (GPTQ where nothing is pruned)"
            }
            Self::Magnitude => "the smallest weights go; no calibration, no update",
            Self::Wanda => "the smallest weight times input norm of each row goes; no update",
            Self::Ria => "the smallest relative importance times input norm goes; no update",
            Self::Admm => "ADMM, 20 iterations, the mask grows over the first 15",
            Self::Quality => {
                "admm, then conjugate gradients on its mask; with bits, a sweep from there"
            }
            Self::AdaPrune => {
                "the smallest weights go; Adam, 320 steps, on the error of the layer sets the others"
            }
            Self::AdaPruneCg => {
                "as adaprune, but conjugate gradients to convergence in place of Adam"
            }
            Self::Best => {
                "sparsegpt, quality and alps; of each layer what loses least, on held-out data where there are some"
            }
            Self::Alps => {
                "ADMM with a growing penalty until the mask stays, then conjugate gradients"
            }
            Self::Obc => {
                "weights go one at a time, the rest of the row makes up for each; for small layers"
            }
            Self::Obq => {
                "as obc, and with bits weights are rounded one at a time too; for small layers"
            }
        }
    }

    /// Where it comes from.
    #[must_use]
    pub const fn paper(self) -> &'static str {
        match self {
            Self::SparseGpt => "Frantar & Alistarh 2023, arXiv 2301.00774",
            Self::Magnitude => "Zhu & Gupta 2017, arXiv 1710.01878",
            Self::Wanda => "Sun et al. 2023, arXiv 2306.11695",
            Self::Ria => "Zhang et al. 2024, ICLR 2024",
            Self::Admm => "Boža 2024, arXiv 2401.02938",
            Self::Quality => "Boža 2024 with the refit of Meng et al. 2024",
            Self::Alps => "Meng et al. 2024, arXiv 2406.07831",
            Self::Best => "of this project",
            Self::AdaPrune => "Hubara et al. 2021, arXiv 2102.08124",
            Self::AdaPruneCg => "Hubara et al. 2021 with the refit of Meng et al. 2024",
            Self::Obc | Self::Obq => "Frantar, Singh & Alistarh 2022, arXiv 2208.11580",
        }
    }

    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SparseGpt => "sparsegpt",
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
            Self::Ria => "ria",
            Self::Admm => "admm",
            Self::Alps => "alps",
            Self::AdaPrune => "adaprune",
            Self::AdaPruneCg => "adaprune-cg",
            Self::Obc => "obc",
            Self::Obq => "obq",
            Self::Quality => "quality",
            Self::Best => "best",
        }
    }

    /// Whether the method reads the Hessian.
    #[must_use]
    pub fn needs_hessian(self) -> bool {
        self.parts().needs_hessian()
    }
}

impl Parts {
    /// Whether a sparsity of the layer is read as one of each row, by parts that are not one's own.
    #[must_use]
    pub(super) fn compares_within_rows(&self) -> bool {
        let by_admm = matches!(self.weights, WeightSolver::Admm(Admm { per_row: true, .. }));
        match self.mask {
            MaskSource::Wanda => true,
            MaskSource::Solver => by_admm,
            MaskSource::Magnitude | MaskSource::Ria | MaskSource::Obs | MaskSource::Own => false,
        }
    }

    /// Whether any part reads the Hessian.
    #[must_use]
    pub fn needs_hessian(&self) -> bool {
        self.mask != MaskSource::Magnitude
            || self.weights != WeightSolver::Keep
            || self.refit != Refit::None
            || self.swaps > 0
    }
}

impl MaskSource {
    const fn name(self) -> &'static str {
        match self {
            Self::Solver => "solver",
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
            Self::Ria => "ria",
            Self::Obs => "obs",
            Self::Own => "own",
        }
    }
}

impl fmt::Display for MaskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Refit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::ConjugateGradients { steps } => write!(f, "cg:{steps}"),
            Self::Adam { steps } => write!(f, "adam:{steps}"),
            Self::Exact => f.write_str("exact"),
            Self::Own => f.write_str("own"),
        }
    }
}

impl FromStr for MaskSource {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let all = [
            Self::Solver,
            Self::Magnitude,
            Self::Wanda,
            Self::Ria,
            Self::Obs,
        ];
        all.into_iter()
            .find(|source| source.name() == text)
            .ok_or_else(|| {
                Error::setting("mask source", "solver, magnitude, wanda, ria or obs", text)
            })
    }
}

impl FromStr for Refit {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let steps = |prefix| {
            let steps = text.strip_prefix(prefix)?.parse().ok();
            steps.filter(|&steps: &usize| steps > 0)
        };
        if let Some(steps) = steps("cg:") {
            return Ok(Self::ConjugateGradients { steps });
        }
        if let Some(steps) = steps("adam:") {
            return Ok(Self::Adam { steps });
        }
        match text {
            "none" => Ok(Self::None),
            "exact" => Ok(Self::Exact),
            _ => Err(Error::setting(
                "refit",
                "none, exact, or cg: or adam: and a number of steps from 1",
                text,
            )),
        }
    }
}

impl TryFrom<String> for Refit {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Refit> for String {
    fn from(refit: Refit) -> Self {
        refit.to_string()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|method| method.name() == text);
        known.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|method| method.name()).collect();
            Error::setting("method", format!("one of {}", names.join(", ")), text)
        })
    }
}
