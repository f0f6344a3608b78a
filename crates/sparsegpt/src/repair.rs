//! Low-rank repairs of layers: what a pruned layer has lost, as far as a product of two narrow matrices can give it back.
//!
//! Eigenvalues and singular vectors are found on the host, by faer in f64, whatever backend solves the layers, on the threads
//! of the rayon pool that the caller runs in.

use faer::{Mat, Side};
use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Result};
use crate::finite::first_non_finite;
use crate::hessian::Statistics;
use crate::solver::{LayerPruner, LayerTask, PrunedLayer};

/// Part of the largest eigenvalue below which a direction of the inputs is rounding of an H in f32: nothing is known of it.
const NOTHING: f64 = 1e-7;

/// Two narrow matrices whose product, up·down (rows x cols), is added to a layer's weights: the B and A of a LoRA adapter
/// (Hu et al. 2021, arXiv 2106.09685).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LowRank {
    /// A, rank x cols: reads the layer's input.
    pub down: Array2<f32>,
    /// B, rows x rank: adds to its output.
    pub up: Array2<f32>,
}

impl LowRank {
    /// From both parts.
    ///
    /// # Errors
    /// [`Error::Shape`] if `up` has another number of columns than `down` has rows.
    pub fn new(down: Array2<f32>, up: Array2<f32>) -> Result<Self> {
        if up.ncols() != down.nrows() {
            return Err(Error::Shape {
                layer: String::new(),
                what: "the second part of a repair",
                expected: format!("rows x {}, the rank of the first part", down.nrows()),
                found_rows: up.nrows(),
                found_cols: up.ncols(),
            });
        }
        Ok(Self { down, up })
    }

    /// Columns of `up`, rows of `down`.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.up.ncols()
    }

    /// up·down, rows x cols.
    #[must_use]
    pub fn product(&self) -> Array2<f32> {
        self.up.dot(&self.down)
    }
}

/// How much each direction of a layer's inputs matters: H = QΛQᵀ, cols x cols. Made once for all layers that read one input.
#[derive(Debug)]
pub struct Metric {
    /// Q.
    directions: Mat<f64>,
    /// √λ of each column of Q; 0 where nothing is known of it.
    weights: Vec<f64>,
}

impl Metric {
    /// From a Hessian, cols x cols, undamped, of which the lower triangle is read: about 9·cols³ flops, and 8·cols² bytes that
    /// stay.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not square, [`Error::NonFinite`] if it holds NaN or infinity, and if no eigenvalues are found.
    pub fn of(hessian: ArrayView2<'_, f32>) -> Result<Self> {
        let cols = hessian.ncols();
        if hessian.nrows() != cols || cols == 0 {
            return Err(Error::Shape {
                layer: String::new(),
                what: "the Hessian",
                expected: "a square matrix with at least 1 column".to_owned(),
                found_rows: hessian.nrows(),
                found_cols: cols,
            });
        }
        check_finite("the Hessian", hessian)?;
        let h = Mat::from_fn(cols, cols, |row, col| {
            f64::from(hessian[[row.max(col), row.min(col)]])
        });
        let eigen = h
            .self_adjoint_eigen(Side::Lower)
            .map_err(|error| not_found("eigenvalues", &error))?;
        let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
        let largest = values.iter().copied().fold(0.0, f64::max);
        let weight = |value: f64| match value > NOTHING * largest {
            true => value.sqrt(),
            false => 0.0,
        };
        Ok(Self {
            weights: values.into_iter().map(weight).collect(),
            directions: eigen.U().to_owned(),
        })
    }

    /// The L = BA of this rank that leaves the least tr((D − L)H(D − L)ᵀ) of a difference D, rows x cols, between a layer's
    /// dense and its pruned weights (EoRA: Liu et al. 2024, arXiv 2410.21271; the same problem in 3BASiL, arXiv 2603.01376, as
    /// "rank regression").
    ///
    /// With H = QΛQᵀ that is the truncated singular value decomposition U_rΣ_rV_rᵀ of DQΛ^½, taken back: B = U_rΣ_r,
    /// A = V_rᵀΛ^-½Qᵀ. Directions of the inputs in which H says nothing get nothing. A rank above the lesser of rows
    /// and cols is that one. 2·rows·cols² flops and a singular value decomposition of rows x cols: about as many
    /// again, times ten. Memory for three matrices of rows x cols in f64. Where a pruned layer loses more than it may and an adapter beside
    /// it costs less than more weights.
    ///
    /// ```
    /// use sparsegpt::ndarray::array;
    /// use sparsegpt::repair::Metric;
    /// // Both inputs have lost as much, but the second one is ten times as loud.
    /// let metric = Metric::of(array![[1.0, 0.0], [0.0, 100.0]].view())?;
    /// let repair = metric.repair(array![[1.0, 0.0], [0.0, 1.0]].view(), 1)?;
    /// let product = repair.product();
    /// assert!(product[[0, 0]].abs() < 1e-6 && (product[[1, 1]] - 1.0).abs() < 1e-6);
    /// # Ok::<(), sparsegpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if the difference has another number of columns than H, [`Error::NonFinite`] if it holds NaN or
    /// infinity, [`Error::InvalidSetting`] for a rank of 0, and if no singular values are found.
    pub fn repair(&self, difference: ArrayView2<'_, f32>, rank: usize) -> Result<LowRank> {
        const WHAT: &str = "the difference to repair";
        self.check_columns(WHAT, difference)?;
        if rank == 0 {
            return Err(Error::setting("rank of a repair", "at least 1", rank));
        }
        check_finite(WHAT, difference)?;
        let (rows, cols) = difference.dim();
        let turned = self.turned(difference);
        let weighed = Mat::from_fn(rows, cols, |row, at| turned[(row, at)] * self.weights[at]);
        let svd = weighed
            .thin_svd()
            .map_err(|error| not_found("singular values", &error))?;
        let rank = rank.min(rows).min(cols);
        let (left, sizes, right) = (svd.U(), svd.S().column_vector(), svd.V());
        let unweighed = Mat::from_fn(cols, rank, |at, which| {
            let weight = self.weights[at];
            if weight > 0.0 {
                right[(at, which)] / weight
            } else {
                0.0
            }
        });
        let down = &self.directions * &unweighed;
        Ok(LowRank {
            down: Array2::from_shape_fn((rank, cols), |(which, col)| down[(col, which)] as f32),
            up: Array2::from_shape_fn((rows, rank), |(row, which)| {
                (left[(row, which)] * sizes[which]) as f32
            }),
        })
    }

    /// tr(DHDᵀ) of a difference D, rows x cols.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has another number of columns than H.
    pub fn energy(&self, difference: ArrayView2<'_, f32>) -> Result<f64> {
        self.check_columns("the difference to measure", difference)?;
        let (rows, cols) = difference.dim();
        let turned = self.turned(difference);
        let squares = |at: usize| {
            let column = (0..rows).map(|row| turned[(row, at)].powi(2));
            column.sum::<f64>() * self.weights[at].powi(2)
        };
        Ok((0..cols).map(squares).sum())
    }

    fn check_columns(&self, what: &'static str, difference: ArrayView2<'_, f32>) -> Result<()> {
        let (found_rows, found_cols) = difference.dim();
        if found_cols == self.weights.len() {
            return Ok(());
        }
        Err(Error::Shape {
            layer: String::new(),
            what,
            expected: format!("{} columns, as the Hessian", self.weights.len()),
            found_rows,
            found_cols,
        })
    }

    /// DQ.
    fn turned(&self, difference: ArrayView2<'_, f32>) -> Mat<f64> {
        let (rows, cols) = difference.dim();
        let lost = Mat::from_fn(rows, cols, |row, col| f64::from(difference[[row, col]]));
        &lost * &self.directions
    }
}

/// A layer as the sum of sparse weights and a low-rank part.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SparseLowRank {
    /// The sparse part. Its report is of this part alone, with the dense weights less the low-rank part as what it should be.
    pub sparse: PrunedLayer,
    /// The other part.
    pub low_rank: LowRank,
    /// What both together leave of tr(WHWᵀ), as a part of it.
    pub relative_error: f64,
    /// The round that left it, counted from 1.
    pub round: usize,
}

/// Looks for sparse weights S and an L of this rank that together leave the least tr((W − S − L)H(W − S − L)ᵀ), by turns
/// (HASSLE-free: Makni et al. 2025, arXiv 2502.00899; OATS: Zhang & Papyan 2024, arXiv 2409.13652, for a diagonal H).
///
/// Each round solves W − L for S by the settings, and W − S for L by [`Metric::repair`]. The best round is kept: with one it is a
/// repair of the pruned layer, and more never leave more. H is decomposed once and, where the method is the sweep, factored in each round:
/// 9·cols³ flops, and in each round those of the method and of a repair. Memory beside the method's: Q and Λ of H in f64, and four
/// matrices of the layer's size. Where an adapter of that rank is affordable at run time; a repair alone is most of the gain.
///
/// `statistics` are those of the layer's input.
///
/// # Errors
/// As [`LayerPruner::prune_layers`] and [`Metric::repair`], and [`Error::InvalidSetting`] for no rounds.
pub fn sparse_plus_low_rank(
    pruner: &dyn LayerPruner,
    task: &LayerTask<'_>,
    statistics: &mut dyn Statistics,
    (rank, rounds): (usize, usize),
) -> Result<SparseLowRank> {
    let LayerTask {
        name,
        weights,
        settings,
    } = *task;
    let metric =
        Metric::of(statistics.to_array()?.view()).map_err(|error| error.for_layer(name))?;
    let mut target = weights.to_owned();
    let mut best: Option<SparseLowRank> = None;
    for round in 1..=rounds {
        let residual = LayerTask {
            name,
            weights: target.view(),
            settings,
        };
        let mut solved = None;
        pruner.prune_layers(Some(statistics), &[residual], &mut |_, layer| {
            solved = Some(layer);
            Ok(())
        })?;
        let Some(sparse) = solved else { continue };
        let lost = &weights - &sparse.weights;
        let low_rank = metric
            .repair(lost.view(), rank)
            .map_err(|error| error.for_layer(name))?;
        let product = low_rank.product();
        target = &weights - &product;
        let (error, total) = (
            metric.energy((&lost - &product).view())?,
            metric.energy(weights)?,
        );
        let relative_error = if total > 0.0 { error / total } else { 0.0 };
        if best
            .as_ref()
            .is_none_or(|best| relative_error < best.relative_error)
        {
            best = Some(SparseLowRank {
                sparse,
                low_rank,
                relative_error,
                round,
            });
        }
    }
    best.ok_or_else(|| Error::setting("rounds", "at least 1", rounds).for_layer(name))
}

fn check_finite(what: &'static str, matrix: ArrayView2<'_, f32>) -> Result<()> {
    match first_non_finite(matrix) {
        None => Ok(()),
        Some((row, col)) => Err(Error::NonFinite {
            layer: String::new(),
            what,
            value: matrix[[row, col]],
            row,
            col,
        }),
    }
}

fn not_found(what: &str, error: &impl std::fmt::Debug) -> Error {
    Error::incompatible(
        "",
        format!("the {what} were not found ({error:?})"),
        "look for values in the weights or the calibration data that are too large",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::{Array2, s};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::backend::Host;
    use crate::rowwise::inverse;
    use crate::{LayerSettings, Pattern, Solver};

    fn layer(rows: usize, cols: usize, seed: u64) -> (Array2<f32>, Array2<f64>) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut matrix = |rows, cols| {
            Array2::from_shape_fn((rows, cols), |_| random.random_range(-1.0..1.0_f64))
        };
        let weights = matrix(rows, cols).mapv(|weight| weight as f32);
        let inputs = matrix(4 * cols, cols).dot(&(matrix(cols, cols) + 0.5));
        // What the code sees is an H in f32.
        let h = inputs
            .t()
            .dot(&inputs)
            .mapv(|entry| f64::from(entry as f32));
        (weights, h)
    }

    fn metric(h: &Array2<f64>) -> Metric {
        Metric::of(h.mapv(|entry| entry as f32).view()).unwrap()
    }

    fn energy(difference: &Array2<f64>, h: &Array2<f64>) -> f64 {
        (&difference.dot(h) * difference).sum()
    }

    fn wide(matrix: &Array2<f32>) -> Array2<f64> {
        matrix.mapv(f64::from)
    }

    /// The least error of a rank by alternating least squares: each factor solved for with the other one fixed.
    fn alternating(difference: &Array2<f64>, h: &Array2<f64>, rank: usize) -> f64 {
        let mut down = difference.slice(s![..rank, ..]).to_owned();
        let mut up = Array2::zeros((difference.nrows(), rank));
        for _ in 0..2000 {
            let gram = down.dot(h).dot(&down.t());
            up = difference
                .dot(h)
                .dot(&down.t())
                .dot(&inverse(gram.view()).unwrap());
            let gram = up.t().dot(&up);
            down = inverse(gram.view()).unwrap().dot(&up.t()).dot(difference);
        }
        energy(&(difference - &up.dot(&down)), h)
    }

    #[test]
    fn no_product_of_the_rank_leaves_less() {
        for (rows, cols, seed) in [(6, 10, 1), (10, 6, 2), (8, 8, 3)] {
            let (difference, h) = layer(rows, cols, seed);
            for rank in 1..4 {
                let repair = metric(&h).repair(difference.view(), rank).unwrap();
                assert_eq!((repair.rank(), repair.down.dim()), (rank, (rank, cols)));
                let left = wide(&difference) - wide(&repair.up).dot(&wide(&repair.down));
                let (found, expected) =
                    (energy(&left, &h), alternating(&wide(&difference), &h, rank));
                assert!(
                    (found / expected - 1.0).abs() < 1e-3,
                    "{rows} x {cols}, rank {rank}: {found:e}, by turns {expected:e}"
                );
            }
        }
    }

    #[test]
    fn a_full_rank_gives_everything_back_and_energies_are_those_of_h() {
        let (difference, h) = layer(5, 9, 10);
        let metric = metric(&h);
        let repair = metric.repair(difference.view(), 100).unwrap();
        assert_eq!(repair.rank(), 5);
        let off = (repair.product() - &difference).mapv(f32::abs);
        assert!(off.iter().all(|&off| off < 1e-3), "{off}");
        let (found, expected) = (
            metric.energy(difference.view()).unwrap(),
            energy(&wide(&difference), &h),
        );
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
    }

    #[test]
    fn inputs_that_never_came_get_nothing() {
        let (difference, mut h) = layer(4, 6, 11);
        h.slice_mut(s![2, ..]).fill(0.0);
        h.slice_mut(s![.., 2]).fill(0.0);
        let repair = metric(&h).repair(difference.view(), 3).unwrap();
        for value in repair.down.column(2) {
            assert!(value.abs() < 1e-6, "{value}");
        }
    }

    #[test]
    fn rounds_never_leave_more() {
        let (weights, h) = layer(8, 16, 12);
        let solver = Solver::new(Host);
        let h32 = h.mapv(|entry| entry as f32);
        let mut hessian = solver.hessian_from(h32.view()).unwrap();
        let settings = LayerSettings::new(Pattern::n_of_m(2, 4).unwrap());
        let task = LayerTask {
            name: "layer",
            weights: weights.view(),
            settings: &settings,
        };
        let mut solve =
            |rounds| sparse_plus_low_rank(&solver, &task, &mut hessian, (2, rounds)).unwrap();
        let (once, often) = (solve(1), solve(6));
        assert_eq!((once.round, once.sparse.report.pruned), (1, 64));
        assert!(often.relative_error < once.relative_error);
        assert!(once.relative_error < once.sparse.report.relative_error.unwrap());
        for solved in [once, often] {
            let both = wide(&solved.sparse.weights) + wide(&solved.low_rank.product());
            let left = energy(&(wide(&weights) - both), &h) / energy(&wide(&weights), &h);
            assert!((solved.relative_error / left - 1.0).abs() < 1e-3);
            assert_eq!(solved.sparse.report.zeros, 64);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (difference, h) = layer(4, 6, 13);
        let metric = metric(&h);
        assert!(matches!(
            metric.repair(difference.view(), 0).unwrap_err(),
            Error::InvalidSetting { .. }
        ));
        assert!(matches!(
            metric.repair(difference.slice(s![.., ..5]), 1).unwrap_err(),
            Error::Shape { .. }
        ));
        let mut broken = difference;
        broken[[1, 2]] = f32::NAN;
        assert!(matches!(
            metric.repair(broken.view(), 1).unwrap_err(),
            Error::NonFinite { row: 1, col: 2, .. }
        ));
        let solver = Solver::new(Host);
        let mut hessian = solver
            .hessian_from(h.mapv(|entry| entry as f32).view())
            .unwrap();
        let settings = LayerSettings::new(Pattern::Dense);
        let weights = Array2::zeros((2, 6));
        let task = LayerTask {
            name: "layer",
            weights: weights.view(),
            settings: &settings,
        };
        let none = sparse_plus_low_rank(&solver, &task, &mut hessian, (1, 0));
        assert!(matches!(none.unwrap_err(), Error::InvalidSetting { .. }));
    }
}
