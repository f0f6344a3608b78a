//! A Cholesky factorization in f64, of matrices that are made entry by entry.

/// L with LLᵀ = A, the lower triangle row by row. One value serves many matrices, so that its memory is made once.
#[derive(Debug, Default)]
pub(super) struct Cholesky {
    size: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// Factors the matrix with these entries on and below the diagonal: size³/3 flops.
    ///
    /// # Errors
    /// The first column whose pivot is not positive.
    pub(super) fn factor(
        &mut self,
        size: usize,
        entry: impl Fn(usize, usize) -> f64,
    ) -> Result<(), usize> {
        self.size = size;
        self.lower.clear();
        self.lower.resize(start_of(size), 0.0);
        for row in 0..size {
            let (above, below) = self.lower.split_at_mut(start_of(row));
            let current = &mut below[..=row];
            for col in 0..row {
                let other = &above[start_of(col)..=start_of(col) + col];
                let sum = entry(row, col) - dot(&current[..col], &other[..col]);
                current[col] = sum / other[col];
            }
            let pivot = entry(row, row) - dot(&current[..row], &current[..row]);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Err(row);
            }
            current[row] = pivot.sqrt();
        }
        Ok(())
    }

    /// b ← A⁻¹b: 2·size² flops.
    pub(super) fn solve(&self, b: &mut [f64]) {
        for row in 0..self.size {
            let lower = self.row(row);
            b[row] = (b[row] - dot(&b[..row], &lower[..row])) / lower[row];
        }
        for row in (0..self.size).rev() {
            let lower = self.row(row);
            b[row] /= lower[row];
            let solved = b[row];
            for (b, l) in b[..row].iter_mut().zip(lower) {
                *b -= solved * l;
            }
        }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.lower[start_of(row)..=start_of(row) + row]
    }
}

/// Where a row begins among the rows of a lower triangle.
fn start_of(row: usize) -> usize {
    row * (row + 1) / 2
}

/// In partial sums, so that a sum does not wait for itself.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_parts, a_rest) = a.as_chunks::<8>();
    let (b_parts, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a_parts.iter().zip(b_parts) {
        for at in 0..8 {
            sums[at] += a[at] * b[at];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}
