//! Work on the rows of a layer on the host: on all threads of the rayon pool that the caller runs in, where there is rayon.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, Axis};
#[cfg(feature = "rayon")]
use rayon::prelude::*;

/// Values that one thread takes at a time in passes that memory bounds: small against a layer, large against the cost of
/// handing them out.
const VALUES: usize = 1 << 17;

/// Rows of a matrix that one thread takes at a time.
fn rows_at_a_time(cols: usize) -> usize {
    VALUES.div_ceil(cols.max(1))
}

/// What `step` makes of each row, in order. Rows that one thread treats share a scratch.
pub(crate) fn map_rows<S: Send, T: Send>(
    rows: usize,
    scratch: impl Fn() -> S + Send + Sync,
    step: impl Fn(&mut S, usize) -> T + Send + Sync,
) -> Vec<T> {
    #[cfg(feature = "rayon")]
    {
        (0..rows).into_par_iter().map_init(scratch, step).collect()
    }
    #[cfg(not(feature = "rayon"))]
    {
        let mut scratch = scratch();
        (0..rows).map(|row| step(&mut scratch, row)).collect()
    }
}

/// What `step` makes of ranges of rows that together are all rows, in order.
pub(crate) fn map_ranges<T: Send>(
    (rows, cols): (usize, usize),
    step: impl Fn(Range<usize>) -> T + Send + Sync,
) -> Vec<T> {
    let size = rows_at_a_time(cols);
    let range = |at: usize| at * size..((at + 1) * size).min(rows);
    match rows.div_ceil(size) {
        1 => vec![step(0..rows)],
        count => map_rows(count, || (), |(), at| step(range(at))),
    }
}

/// Hands all rows of a matrix to `step`, some at a time, with the number of the first.
pub(crate) fn for_ranges<T: Send>(
    matrix: &mut Array2<T>,
    step: impl Fn(usize, ArrayViewMut2<'_, T>) + Send + Sync,
) {
    let size = rows_at_a_time(matrix.ncols());
    let parts: Vec<_> = matrix.axis_chunks_iter_mut(Axis(0), size).collect();
    #[cfg(feature = "rayon")]
    let parts = parts.into_par_iter();
    #[cfg(not(feature = "rayon"))]
    let parts = parts.into_iter();
    parts
        .enumerate()
        .for_each(|(at, part)| step(at * size, part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_taken_once_and_in_order() {
        for (rows, cols) in [(0, 5), (1, 1), (7, 3), (1000, 1024), (3, 1 << 20), (5, 0)] {
            let ranges = map_ranges((rows, cols), |range| range);
            let taken: Vec<usize> = ranges.into_iter().flatten().collect();
            assert_eq!(taken, (0..rows).collect::<Vec<_>>(), "{rows} x {cols}");
            let mut found = Array2::<usize>::zeros((rows, cols));
            for_ranges(&mut found, |first, mut part| {
                for (at, mut row) in part.rows_mut().into_iter().enumerate() {
                    row += first + at + 1;
                }
            });
            let expected = Array2::from_shape_fn((rows, cols), |(row, _)| row + 1);
            assert_eq!(found, expected, "{rows} x {cols}");
        }
    }
}
