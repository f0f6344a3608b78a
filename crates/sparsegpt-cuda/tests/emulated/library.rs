//! A library that factors, as cuSOLVER does.

use ptx_emulator::{DevicePointer, Memory, MemoryError};
use sparsegpt_cuda::Factorization;

/// H = LLᵀ in the lower triangle, column by column. Like libraries it only asks whether a pivot is not positive; and where one is
/// not, it leaves nothing as it was.
pub(crate) fn factor(
    memory: &mut Memory,
    factorization: &Factorization,
) -> Result<(), MemoryError> {
    let (cols, (h, leading)) = (factorization.cols, factorization.h);
    let at = |col: usize| {
        DevicePointer::from_address(h).offset((col * leading + col) * size_of::<f32>())
    };
    // From the diagonal down.
    let mut columns = (0..cols)
        .map(|col| memory.read::<f32>(at(col), cols - col))
        .collect::<Result<Vec<_>, _>>()?;
    let mut outcome = 0_u32;
    for col in 0..cols {
        let pivot = columns[col][0];
        if pivot <= 0.0 {
            outcome = col as u32 + 1;
            break;
        }
        let root = pivot.sqrt();
        let column: Vec<f32> = columns[col].iter().map(|value| value / root).collect();
        for behind in col + 1..cols {
            let below = &column[behind - col..];
            for (value, other) in columns[behind].iter_mut().zip(below) {
                *value -= below[0] * other;
            }
        }
        columns[col] = column;
    }
    for (col, values) in columns.iter().enumerate() {
        memory.write(at(col), values)?;
        if outcome > 0 {
            let all = DevicePointer::from_address(h).offset(col * leading * size_of::<f32>());
            memory.write(all, &vec![f32::NAN; cols])?;
        }
    }
    let to = DevicePointer::from_address(factorization.outcome);
    memory.write(to, &[outcome])
}
