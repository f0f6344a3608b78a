//! The proof of packed layers: unpacked again from the written file.

use super::bits::{unpack, words};
use super::{Packed, PackedFormat, PackedShape};
use crate::checkpoint::{CheckpointSource, ExpectedLayer};
use crate::{Error, Result};

impl Packed {
    /// Unpacks a layer and counts its zeros: codes that are their zero point.
    pub(in super::super) fn prove(
        &self,
        source: &dyn CheckpointSource,
        shape: &PackedShape,
        expected: Option<&ExpectedLayer>,
    ) -> Result<()> {
        let name = &shape.name;
        let zero = self.zero_weights(source, shape)?;
        let Some(expected) = expected else {
            return Ok(());
        };
        let found = zero.iter().filter(|&&zero| zero).count() as u64;
        if found != expected.zeros {
            let reason = format!(
                "expected the {} zeros reported, found {found}",
                expected.zeros
            );
            return Err(Error::tensor(name, reason));
        }
        let Some((zeros, group)) = expected.pattern else {
            return Ok(());
        };
        if group == 0 || !shape.cols.is_multiple_of(group) {
            let reason = format!(
                "pattern {zeros}:{group} does not fit {} columns",
                shape.cols
            );
            return Err(Error::tensor(name, reason));
        }
        let broken = zero
            .chunks(group)
            .position(|group| group.iter().filter(|&&zero| zero).count() < zeros);
        match broken {
            Some(at) => Err(Error::tensor(
                name,
                format!(
                    "pattern {zeros}:{group} does not hold in row {}, group {}",
                    at * group / shape.cols,
                    at * group % shape.cols / group
                ),
            )),
            None => Ok(()),
        }
    }

    /// Which weights are zero, row by row.
    fn zero_weights(
        &self,
        source: &dyn CheckpointSource,
        shape: &PackedShape,
    ) -> Result<Vec<bool>> {
        let (rows, cols, bits) = (shape.rows, shape.cols, self.scheme.bits);
        let read = |part: &str| -> Result<Vec<u32>> {
            let name = format!("{}.{part}", shape.name);
            let bytes = source
                .stored_bytes(&name)?
                .ok_or_else(|| Error::tensor(&name, "is not in the written file"))?;
            let words = bytes.as_chunks::<4>().0.iter();
            Ok(words.map(|&word| u32::from_le_bytes(word)).collect())
        };
        let groups = self.scheme.groups(cols);
        let group_of = |col: usize| self.scheme.group_size.map_or(0, |size| col / size);
        let (row_words, zero_words) = (words(cols, bits), words(rows, bits));
        let mut zero = Vec::with_capacity(rows * cols);
        let mut compare = |codes: Vec<u32>, row: usize, groups: &[usize], zeros: &[Vec<u32>]| {
            let codes = codes.into_iter().enumerate();
            zero.extend(codes.map(|(col, code)| {
                let of_group = groups.get(col).and_then(|&group| zeros.get(group));
                of_group.and_then(|zeros| zeros.get(row)) == Some(&code)
            }));
        };
        match self.scheme.format {
            PackedFormat::Gptq => {
                let (weight, zeros) = (read("qweight")?, read("qzeros")?);
                let groups: Vec<usize> = read("g_idx")?.into_iter().map(|g| g as usize).collect();
                let zeros: Vec<Vec<u32>> = zeros
                    .chunks(zero_words)
                    .map(|words| unpack(words.iter().copied(), bits, rows))
                    .map(|zeros| zeros.into_iter().map(|zero| zero + 1).collect())
                    .collect();
                for row in 0..rows {
                    let stream = (0..row_words).map(|at| weight[at * rows + row]);
                    compare(unpack(stream, bits, cols), row, &groups, &zeros);
                }
            }
            PackedFormat::CompressedTensors => {
                let weight = read("weight_packed")?;
                let zeros: Vec<Vec<u32>> = if self.scheme.symmetric {
                    vec![vec![1 << (bits - 1); rows]; groups]
                } else {
                    let packed = read("weight_zero_point")?;
                    let column = |group| {
                        let stream = (0..zero_words).map(|at| packed[at * groups + group]);
                        unpack(stream, bits, rows)
                    };
                    (0..groups).map(column).collect()
                };
                let of_column: Vec<usize> = (0..cols).map(group_of).collect();
                for row in 0..rows {
                    let stream = weight[row * row_words..(row + 1) * row_words].iter();
                    compare(unpack(stream.copied(), bits, cols), row, &of_column, &zeros);
                }
            }
        }
        Ok(zero)
    }
}
