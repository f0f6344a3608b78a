//! Between rows of tokens and tokens of rows.

/// Rows and columns that are transposed at a time: lines are read and written whole. Rows as far from each other as those of a matrix
/// often are fall to the same places of a cache, which holds only some of them.
const SIDE: usize = 16;

/// Whose rows are gone along, square by square: those that are in pages of their own, which cost more to find than to read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Along {
    From,
    To,
}

/// to[col][row] = from[row][col], for all of `from`, whose rows are as long as there are rows in `to`.
pub(super) fn transpose(from: &[&[f32]], to: &mut [&mut [f32]], along: Along) {
    match along {
        Along::From => {
            for (group, from) in from.chunks(SIDE).enumerate() {
                for (square, to) in to.chunks_mut(SIDE).enumerate() {
                    transpose_square(from, square * SIDE, to, group * SIDE);
                }
            }
        }
        Along::To => {
            for (group, to) in to.chunks_mut(SIDE).enumerate() {
                for (square, from) in from.chunks(SIDE).enumerate() {
                    transpose_square(from, group * SIDE, to, square * SIDE);
                }
            }
        }
    }
}

/// to[col][row + i] = from[i][col + j] for at most [`SIDE`] i and j.
fn transpose_square(from: &[&[f32]], col: usize, to: &mut [&mut [f32]], row: usize) {
    let mut turned = [[0.0; SIDE]; SIDE];
    for (row, from) in from.iter().enumerate() {
        for (turned, value) in turned.iter_mut().zip(&from[col..]) {
            turned[row] = *value;
        }
    }
    for (to, turned) in to.iter_mut().zip(&turned) {
        for (to, value) in to[row..row + from.len()].iter_mut().zip(turned) {
            *to = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_shape() {
        for (rows, cols) in [(1, 1), (1, 40), (15, 17), (16, 16), (33, 5), (48, 64)] {
            for along in [Along::From, Along::To] {
                holds(rows, cols, along);
            }
        }
    }

    fn holds(rows: usize, cols: usize, along: Along) {
        let from: Vec<Vec<f32>> = (0..rows)
            .map(|row| (0..cols).map(|col| (row * cols + col) as f32).collect())
            .collect();
        let mut to = vec![vec![-1.0; rows + 1]; cols];
        transpose(
            &from.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            &mut to.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
            along,
        );
        for (col, to) in to.iter().enumerate() {
            let column: Vec<f32> = from.iter().map(|row| row[col]).collect();
            let case = format!("column {col} of {rows} x {cols}, {along:?}");
            assert_eq!(to[..rows], column, "{case}");
            assert_eq!(to[rows], -1.0, "behind {case}");
        }
    }
}
