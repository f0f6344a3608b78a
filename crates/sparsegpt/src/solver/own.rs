//! Parts of one's own, in the places of those that the enums name. They see a layer as plain arrays on the host, whatever the
//! backend; the solver holds what they return to the pattern, and measures every error itself.

use std::fmt::{self, Debug};
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};

use super::chooser::{Chooser, Chosen};
use super::job::Job;
use super::prepare::Diagonal;
use super::rows::{damp, symmetric};
use super::scores::given_scores;
use super::{Solved, in_processing_order, on_mask};
use crate::backend::{Backend, Operation};
use crate::error::{Error, Result, Stage};
use crate::finite::first_non_finite;
use crate::hessian::Hessian;

/// A mask source of one's own, by the score of each weight; in place of a [`MaskSource`](super::MaskSource).
///
/// What the pattern asks for is pruned of the least scores, exactly so many, of equal ones the earlier weights; protected weights
/// stay, and weights of dead inputs count as if their score was 0.
///
/// ```
/// use sparsegpt::solver::own::{LayerProblem, ScoreWeights};
/// use sparsegpt::{LayerSettings, Pattern, Solver, backend::Host, ndarray::{Array2, array}};
///
/// /// |w|·‖x_j‖⁴, which cares more for loud inputs than Wanda does.
/// #[derive(Debug)]
/// struct Loud;
/// impl ScoreWeights for Loud {
///     fn describe(&self) -> String {
///         "loud inputs".to_owned()
///     }
///     fn scores(&self, problem: &LayerProblem<'_>) -> sparsegpt::Result<Array2<f32>> {
///         let h = problem.hessian()?;
///         let mut scores = problem.weights().mapv(f32::abs);
///         for (col, mut column) in scores.columns_mut().into_iter().enumerate() {
///             column *= h[[col, col]].powi(2) as f32;
///         }
///         Ok(scores)
///     }
/// }
///
/// let solver = Solver::new(Host);
/// let mut hessian = solver.hessian(2)?;
/// hessian.update(array![[1.0, 10.0], [-1.0, 3.0]].view())?;
/// let settings = LayerSettings::new(Pattern::n_of_m(1, 2)?).with_own_mask_source(Loud);
/// let layer = solver.prune(array![[9.0, 1.0]].view(), &mut hessian, &settings)?;
/// assert_eq!(layer.mask, array![[false, true]]);
/// assert_eq!(layer.report.method, "sparsegpt, mask by loud inputs");
/// # Ok::<(), sparsegpt::Error>(())
/// ```
pub trait ScoreWeights: Debug + Send + Sync {
    /// A few words for reports.
    fn describe(&self) -> String;

    /// The score of each weight, rows x cols, from 0: the least go.
    ///
    /// # Errors
    /// Whatever keeps it from scoring.
    fn scores(&self, problem: &LayerProblem<'_>) -> Result<Array2<f32>>;

    /// Whether the scores need calibration. Without, a layer whose other parts need none is pruned without any.
    fn needs_hessian(&self) -> bool {
        true
    }

    /// Whether a sparsity of the layer is read as one of each row, as Wanda's is.
    fn within_rows(&self) -> bool {
        false
    }
}

/// A weight solver of one's own, in place of a [`WeightSolver`](super::WeightSolver). Where what it returns is worse in a row than the
/// dense weights under the same mask, that row gets those.
pub trait SolveWeights: Debug + Send + Sync {
    /// A few words for reports.
    fn describe(&self) -> String;

    /// The weights, rows x cols. `kept` is the mask that has been chosen (`true` = kept), where one has; what lies outside is made zero.
    /// Where none has, the solver chooses, best by [`LayerProblem::keep`], and returns zeros in place of what it pruned: what the
    /// pattern asks for is pruned of the smallest magnitudes that it returns.
    ///
    /// # Errors
    /// Whatever keeps it from solving.
    fn solve(
        &self,
        problem: &LayerProblem<'_>,
        kept: Option<ArrayView2<'_, bool>>,
    ) -> Result<Array2<f32>>;
}

/// A refit of one's own, in place of a [`Refit`](super::Refit). Kept, row by row, only where the error drops.
pub trait RefitWeights: Debug + Send + Sync {
    /// A few words for reports.
    fn describe(&self) -> String;

    /// `weights` (rows x cols) improved where `kept` has them; what lies outside is made zero.
    ///
    /// # Errors
    /// Whatever keeps it from improving them.
    fn refit(
        &self,
        problem: &LayerProblem<'_>,
        weights: ArrayView2<'_, f32>,
        kept: ArrayView2<'_, bool>,
    ) -> Result<Array2<f32>>;
}

/// An order of one's own for the sweep, in place of a [`ColumnOrder`](super::ColumnOrder).
pub trait OrderColumns: Debug + Send + Sync {
    /// A few words for reports.
    fn describe(&self) -> String;

    /// The column of each place, each once, from the dense weights (rows x cols) and H's diagonal (the squared norms of the inputs, up to
    /// a factor). The columns of each group of `group` stay in one group of places, as an N:M pattern needs; 1 where there are no groups.
    ///
    /// # Errors
    /// Whatever keeps it from deciding.
    fn order(
        &self,
        weights: ArrayView2<'_, f32>,
        diagonal: &[f32],
        group: usize,
    ) -> Result<Vec<usize>>;
}

/// The parts of one's own that a layer's settings hold; see [`LayerSettings::with_own_mask_source`](super::LayerSettings) and the other
/// `with_own_` methods there.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OwnParts {
    /// For [`MaskSource::Own`](super::MaskSource::Own).
    pub mask_source: Option<Arc<dyn ScoreWeights>>,
    /// For [`WeightSolver::Own`](super::WeightSolver::Own).
    pub solver: Option<Arc<dyn SolveWeights>>,
    /// For [`Refit::Own`](super::Refit::Own).
    pub refit: Option<Arc<dyn RefitWeights>>,
    /// For [`ColumnOrder::Own`](super::ColumnOrder::Own).
    pub order: Option<Arc<dyn OrderColumns>>,
}

/// A part that settings speak of.
pub(super) fn given<'p, T: ?Sized>(
    part: Option<&'p Arc<T>>,
    layer: &str,
    what: &str,
) -> Result<&'p T> {
    part.map(|part| &**part).ok_or_else(|| {
        Error::incompatible(
            layer,
            format!("{what} of one's own is asked for and none is given"),
            "give one by the with_own_ method of LayerSettings, or take another",
        )
    })
}

/// Whom errors of [`LayerProblem::keep`] speak of.
const PART: &str = "a part of one's own";

type Keep<'a> = dyn Fn(ArrayView2<'_, f32>) -> Result<Array2<bool>> + 'a;

/// A layer as its parts see it.
pub struct LayerProblem<'a> {
    layer: &'a str,
    weights: ArrayView2<'a, f32>,
    hessian: Option<(Array2<f64>, &'a Diagonal)>,
    damping: f64,
    keep: &'a Keep<'a>,
}

impl Debug for LayerProblem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerProblem")
            .field("layer", &self.layer)
            .field("dim", &self.weights.dim())
            .field("damping", &self.damping)
            .finish_non_exhaustive()
    }
}

impl LayerProblem<'_> {
    /// The layer's name; empty where it has none.
    #[must_use]
    pub fn layer(&self) -> &str {
        self.layer
    }

    /// The dense weights, rows x cols; those of dead inputs are zero, but for protected ones.
    #[must_use]
    pub fn weights(&self) -> ArrayView2<'_, f32> {
        self.weights
    }

    /// H, cols x cols, both triangles, without damping.
    ///
    /// # Errors
    /// If the layer is pruned without calibration.
    pub fn hessian(&self) -> Result<ArrayView2<'_, f64>> {
        Ok(self.known()?.0.view())
    }

    /// H with the settings' damping on its diagonal, and the mean diagonal in place of dead inputs' zeros, as the solver itself factors
    /// it; what [`rowwise`](crate::rowwise) takes.
    ///
    /// # Errors
    /// As [`hessian`](Self::hessian).
    pub fn damped_hessian(&self) -> Result<Array2<f64>> {
        let (hessian, diagonal) = self.known()?;
        let mut damped = hessian.clone();
        damp(&mut damped, diagonal, self.damping);
        Ok(damped)
    }

    /// The mask (rows x cols, `true` = kept) that prunes what the pattern asks for of the least `scores`; where a mask has been chosen,
    /// that one.
    ///
    /// # Errors
    /// If the scores have another shape, or are not numbers from 0; if the backend fails.
    pub fn keep(&self, scores: ArrayView2<'_, f32>) -> Result<Array2<bool>> {
        (self.keep)(scores)
    }

    fn known(&self) -> Result<&(Array2<f64>, &Diagonal)> {
        self.hessian.as_ref().ok_or_else(|| {
            Error::incompatible(
                self.layer,
                "a part of one's own asks for the Hessian, and there is none",
                "accumulate a Hessian for this layer and prune with it",
            )
        })
    }
}

/// The dense weights, what is known of their inputs, and the mask (`true` = kept), where one has been chosen.
type Given<'g, B> = (
    ArrayView2<'g, f32>,
    Option<(&'g Diagonal, &'g Hessian<B>)>,
    Option<ArrayView2<'g, bool>>,
);

/// Shows the problem to a part and checks the shape of what it returns, and that it is finite.
pub(super) fn ask<B: Backend>(
    job: &mut Job<'_, B>,
    (part, operation): (&str, Operation),
    (dense, statistics, chosen): Given<'_, B>,
    answer: impl FnOnce(&LayerProblem<'_>) -> Result<Array2<f32>>,
) -> Result<Array2<f32>> {
    job.host_operation(operation);
    job.uses(Operation::Select);
    let start = in_processing_order(job, dense);
    let hessian = statistics
        .map(|(diagonal, hessian)| Ok::<_, Error>((symmetric(hessian)?, diagonal)))
        .transpose()?;
    let found = answer(&LayerProblem {
        layer: job.layer,
        weights: start.view(),
        hessian,
        damping: job.settings.damping,
        keep: &|scores| match chosen {
            Some(kept) => check(job, PART, scores).map(|()| kept.to_owned()),
            None => keep(job, scores),
        },
    })
    .map_err(|error| error.for_layer(job.layer))?;
    check(job, part, found.view())?;
    Ok(found)
}

fn check<B: Backend>(job: &Job<'_, B>, part: &str, found: ArrayView2<'_, f32>) -> Result<()> {
    let expected = (job.rows, job.cols);
    if found.dim() != expected {
        return Err(Error::incompatible(
            job.layer,
            format!(
                "{part} returned {:?} values for {expected:?} weights",
                found.dim()
            ),
            "return one value for each weight, rows x cols",
        ));
    }
    match first_non_finite(found) {
        None => Ok(()),
        Some(at) => Err(Error::incompatible(
            job.layer,
            format!("{part} returned {} for weight {at:?}", found[at]),
            "return finite numbers",
        )),
    }
}

/// See [`LayerProblem::keep`].
fn keep<B: Backend>(job: &Job<'_, B>, scores: ArrayView2<'_, f32>) -> Result<Array2<bool>> {
    check(job, PART, scores)?;
    let (weights, scales) = given_scores(job, scores.to_owned())?;
    let mut job = job.of_rows(0..job.rows);
    let columns = 0..job.cols;
    let chosen = Chooser::new(&job).choose(&mut job, &weights, &scales, columns, false)?;
    Ok(match chosen {
        Chosen::Mask(pruned) => job.download_mask(&pruned)?.mapv(|pruned| !pruned),
        _ => Array2::from_elem((job.rows, job.cols), true),
    })
}

/// Solves one layer by a [`SolveWeights`], on the given mask where the job's policy is one.
pub(super) fn solve<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &Hessian<B>,
) -> Result<Solved> {
    let solver = given(
        job.settings.own.solver.as_ref(),
        job.layer,
        "a weight solver",
    )?;
    let diagonal = Diagonal::of(hessian, job.layer)?;
    job.dead.clone_from(&diagonal.dead);
    let chosen = match job.mask_is_given()? {
        true => Some(keep(job, dense.mapv(f32::abs).view())?),
        false => None,
    };
    let mut weights = job.timed(Stage::UpdateRows, |job| {
        let part = solver.describe();
        ask(
            job,
            (&part, Operation::UpdateRows),
            (dense, Some((&diagonal, hessian)), None),
            |problem| solver.solve(problem, chosen.as_ref().map(|kept| kept.view())),
        )
    })?;
    let mask = match chosen {
        Some(kept) => kept,
        None => keep(job, weights.mapv(f32::abs).view())?,
    };
    on_mask(&mut weights, mask.view());
    Ok(Solved {
        weights,
        mask,
        ..Solved::nothing()
    })
}
