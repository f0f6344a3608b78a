//! The usual patterns.

use std::fmt;
use std::str::FromStr;

use std::sync::Arc;

use ndarray::{Array2, ArrayView2};

use super::{BlockMask, BlockScores, MaskBlock, MaskPolicy, vnm};
use crate::error::{Error, Result};

/// A fraction of zeros, 0 to 1.
///
/// ```
/// use sparsegpt::mask::Sparsity;
/// assert_eq!(Sparsity::new(0.57)?.count(100), 57);
/// assert_eq!(Sparsity::new(0.5)?.count(15), 7);
/// assert!(Sparsity::new(1.5).is_err());
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "f64", into = "f64"))]
pub struct Sparsity(f64);

impl Sparsity {
    /// No zeros.
    pub const NONE: Self = Self(0.0);
    /// Nothing but zeros.
    pub const ALL: Self = Self(1.0);

    /// A fraction of zeros.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] outside 0..=1 and for NaN.
    pub fn new(fraction: f64) -> Result<Self> {
        if (0.0..=1.0).contains(&fraction) {
            Ok(Self(fraction))
        } else {
            Err(Error::setting(
                "sparsity",
                "a fraction of zeros from 0 to 1",
                fraction,
            ))
        }
    }

    /// `zeros` of `weights`: the sparsity that [`count`](Self::count)s exactly `zeros` in that many weights.
    ///
    /// ```
    /// use sparsegpt::mask::Sparsity;
    /// assert_eq!(Sparsity::ratio(1234, 98_765)?.count(98_765), 1234);
    /// # Ok::<(), sparsegpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for more zeros than weights, and for 0 weights.
    pub fn ratio(zeros: u64, weights: u64) -> Result<Self> {
        if weights == 0 || zeros > weights {
            return Err(Error::setting(
                "sparsity",
                format!("at most {weights} zeros in {weights} weights, and at least 1 weight"),
                format!("{zeros} zeros"),
            ));
        }
        Self::new(zeros as f64 / weights as f64)
    }

    /// The fraction.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.0
    }

    /// floor(fraction · weights). A product that misses an integer only by rounding (0.57 · 100 in
    /// binary) counts as that integer.
    #[must_use]
    pub fn count(self, weights: u64) -> u64 {
        let exact = self.0 * weights as f64;
        let nearest = exact.round();
        if (exact - nearest).abs() <= nearest * 1e-12 {
            nearest as u64
        } else {
            exact as u64
        }
    }
}

impl TryFrom<f64> for Sparsity {
    type Error = Error;
    fn try_from(fraction: f64) -> Result<Self> {
        Self::new(fraction)
    }
}

impl From<Sparsity> for f64 {
    fn from(sparsity: Sparsity) -> Self {
        sparsity.0
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 0.07 · 100 is 7.000000000000001 in binary; ten digits are plenty for a percentage.
        let percent = format!("{:.10}", self.0 * 100.0);
        write!(
            f,
            "{}%",
            percent.trim_end_matches('0').trim_end_matches('.')
        )
    }
}

impl FromStr for Sparsity {
    type Err = Error;

    /// Reads a percentage, as in `50%`.
    fn from_str(text: &str) -> Result<Self> {
        let malformed =
            || Error::setting("sparsity", "a percentage, as in 50%", format!("{text:?}"));
        let number = text.trim().strip_suffix('%').ok_or_else(malformed)?;
        let percent: f64 = number.trim().parse().map_err(|_| malformed())?;
        Self::new(percent / 100.0)
            .map_err(|_| Error::setting("sparsity", "from 0% to 100%", format!("{text:?}")))
    }
}

/// The usual patterns of zeros. Written and read as `dense`, `50%`, `row:50%`, `block:16:50%`, `2:4`, `64:6:8`.
///
/// In N:M and V:N:M, N is the number of **zeros** in every M consecutive input columns, as in the paper.
///
/// ```
/// use sparsegpt::Pattern;
/// let pattern: Pattern = "2:4".parse()?;
/// assert_eq!(pattern, Pattern::n_of_m(2, 4)?);
/// assert_eq!(Pattern::unstructured(0.5)?.to_string(), "50%");
/// assert!("5:4".parse::<Pattern>().is_err());
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
#[non_exhaustive]
pub enum Pattern {
    /// No zeros asked for.
    Dense,
    /// floor(p·rows·cols) zeros in the layer, chosen a mask block at a time over all rows.
    Unstructured(Sparsity),
    /// floor(p·cols) zeros in each row, chosen a mask block at a time.
    PerRow(Sparsity),
    /// `zeros` in each `group` consecutive columns of each row.
    NofM {
        /// Zeros in a group.
        zeros: usize,
        /// Columns in a group.
        group: usize,
    },
    /// V:N:M (VENOM, Castro et al. 2023), with N **zeros**: `zeros` in each `group` consecutive columns of each row, and
    /// whatever is left in `rows` consecutive rows stands in the same 2·(M − N) of the M columns.
    ///
    /// The columns that survive are those of the largest total saliency over the rows of the block; then each row
    /// keeps the M − N most salient weights of those 2·(M − N). With M − N = 2 that is 2:4 inside the surviving
    /// columns, which sparse tensor cores multiply: VENOM's 64:2:8 (2 weights left in 8) is `64:6:8` here. Chosen on the
    /// host, a mask block at a time.
    VNofM {
        /// V: rows that share the columns of their weights.
        rows: usize,
        /// N: zeros in a group.
        zeros: usize,
        /// M: columns in a group.
        group: usize,
    },
    /// Runs of `size` consecutive weights of a row become zero together or not at all: floor(p·rows·cols / size)
    /// runs in the layer, those of the smallest sum of saliencies, chosen a mask block at a time over all rows (on the
    /// host). Runs begin at multiples of `size`.
    Blocks {
        /// Weights in a run.
        size: usize,
        /// Runs of zeros over all runs.
        sparsity: Sparsity,
    },
}

impl Pattern {
    /// floor(fraction·rows·cols) zeros in the layer.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a fraction outside 0..=1.
    pub fn unstructured(fraction: f64) -> Result<Self> {
        Ok(Self::Unstructured(Sparsity::new(fraction)?))
    }

    /// floor(fraction·cols) zeros in each row.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a fraction outside 0..=1.
    pub fn per_row(fraction: f64) -> Result<Self> {
        Ok(Self::PerRow(Sparsity::new(fraction)?))
    }

    /// `zeros` zeros in each `group` consecutive columns.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if `group` is 0 or `zeros` is larger than `group`.
    pub fn n_of_m(zeros: usize, group: usize) -> Result<Self> {
        if group == 0 || zeros > group {
            return Err(Error::setting(
                "N:M pattern",
                "N zeros in M columns with M at least 1 and N at most M",
                format!("{zeros}:{group}"),
            ));
        }
        Ok(Self::NofM { zeros, group })
    }

    /// V:N:M: `zeros` zeros in each `group` consecutive columns, and the same 2·(M − N) columns for each `rows`
    /// consecutive rows; see [`Pattern::VNofM`].
    ///
    /// ```
    /// use sparsegpt::Pattern;
    /// assert_eq!("64:6:8".parse::<Pattern>()?, Pattern::v_n_of_m(64, 6, 8)?);
    /// assert!(Pattern::v_n_of_m(64, 2, 8).is_err()); // more than M columns would have to survive
    /// # Ok::<(), sparsegpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] unless V is at least 1, and N less than M but at least half of it.
    pub fn v_n_of_m(rows: usize, zeros: usize, group: usize) -> Result<Self> {
        if rows == 0 || zeros >= group || zeros < group - zeros {
            return Err(Error::setting(
                "V:N:M pattern",
                "N zeros in M columns, N less than M and at least half of it, V at least 1 (VENOM's 64:2:8, which \
                 counts what is left, is 64:6:8 here)",
                format!("{rows}:{zeros}:{group}"),
            ));
        }
        Ok(Self::VNofM { rows, zeros, group })
    }

    /// floor(fraction·rows·cols / size) runs of `size` consecutive zeros in the layer; see [`Pattern::Blocks`].
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a size of 0 and a fraction outside 0..=1.
    pub fn blocks(size: usize, fraction: f64) -> Result<Self> {
        if size == 0 {
            return Err(Error::setting("block of weights", "at least 1", size));
        }
        Ok(Self::Blocks {
            size,
            sparsity: Sparsity::new(fraction)?,
        })
    }

    /// The sparsity, where it is a free choice of the pattern: not in `dense`, N:M and V:N:M.
    #[must_use]
    pub fn sparsity(&self) -> Option<Sparsity> {
        match self {
            Self::Unstructured(sparsity)
            | Self::PerRow(sparsity)
            | Self::Blocks { sparsity, .. } => Some(*sparsity),
            Self::Dense | Self::NofM { .. } | Self::VNofM { .. } => None,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Unstructured(sparsity) => write!(f, "{sparsity}"),
            Self::PerRow(sparsity) => write!(f, "row:{sparsity}"),
            Self::NofM { zeros, group } => write!(f, "{zeros}:{group}"),
            Self::VNofM { rows, zeros, group } => write!(f, "{rows}:{zeros}:{group}"),
            Self::Blocks { size, sparsity } => write!(f, "block:{size}:{sparsity}"),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<String> for Pattern {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || {
            Error::setting(
                "pattern",
                "50%, row:50%, block:16:50% (16 weights in a row together), 2:4 (2 zeros in 4 columns), 64:6:8 (the \
                 same columns for 64 rows) or dense",
                format!("{text:?}"),
            )
        };
        let percentage = |share: &str| {
            if !share.ends_with('%') {
                return Err(malformed());
            }
            share.parse::<Sparsity>()
        };
        let text = text.trim();
        if text == "dense" {
            return Ok(Self::Dense);
        }
        if let Some(per_row) = text.strip_prefix("row:") {
            return Ok(Self::PerRow(percentage(per_row)?));
        }
        let number = |text: &str| text.parse::<usize>().map_err(|_| malformed());
        match *text.split(':').collect::<Vec<_>>() {
            [share] => Ok(Self::Unstructured(percentage(share)?)),
            [zeros, group] => Self::n_of_m(number(zeros)?, number(group)?),
            ["block", size, share] => Self::blocks(number(size)?, percentage(share)?.fraction()),
            [rows, zeros, group] => Self::v_n_of_m(number(rows)?, number(zeros)?, number(group)?),
            _ => Err(malformed()),
        }
    }
}

impl MaskPolicy for Pattern {
    fn describe(&self) -> String {
        self.to_string()
    }

    fn validate(&self, layer: &str, rows: usize, cols: usize) -> Result<()> {
        match *self {
            Self::NofM { zeros, group } => drop(Self::n_of_m(zeros, group)?),
            Self::VNofM { rows, zeros, group } => drop(Self::v_n_of_m(rows, zeros, group)?),
            Self::Blocks { size, sparsity } => drop(Self::blocks(size, sparsity.fraction())?),
            Self::Dense | Self::Unstructured(_) | Self::PerRow(_) => {}
        }
        let group = self.group();
        if !cols.is_multiple_of(group) {
            return Err(Error::incompatible(
                layer,
                format!(
                    "pattern {self} needs groups of {group} columns, the layer has {cols} columns"
                ),
                format!(
                    "skip this layer or choose a group that divides its columns, {} at most",
                    largest_divisor(cols, group)
                ),
            ));
        }
        if let Self::VNofM { rows: block, .. } = *self
            && !rows.is_multiple_of(block)
        {
            return Err(Error::incompatible(
                layer,
                format!("pattern {self} needs blocks of {block} rows, the layer has {rows} rows"),
                format!(
                    "skip this layer or choose a V that divides its rows, {} at most",
                    largest_divisor(rows, block)
                ),
            ));
        }
        Ok(())
    }

    fn choose(&self, block: &MaskBlock<'_>) -> Result<BlockMask> {
        let (rows, cols, end) = (
            block.rows as u64,
            block.cols as u64,
            block.columns.end as u64,
        );
        Ok(match *self {
            Self::Dense => BlockMask::Keep,
            Self::Unstructured(sparsity) => BlockMask::Lowest {
                target: sparsity.count(rows * end),
                total: sparsity.count(rows * cols),
            },
            Self::PerRow(sparsity) => BlockMask::LowestPerRow {
                target: sparsity.count(end) as usize,
                total: sparsity.count(cols) as usize,
            },
            Self::NofM { zeros, group } => BlockMask::NofM { zeros, group },
            Self::VNofM { .. } => BlockMask::ByScores,
            Self::Blocks { size, sparsity } => {
                let run = size as u64;
                BlockMask::LowestRuns {
                    run: size,
                    target: sparsity.count(rows * end / run) * run,
                    total: sparsity.count(rows * cols / run) * run,
                }
            }
        })
    }

    fn choose_by_scores(
        &self,
        block: &MaskBlock<'_>,
        scores: &BlockScores<'_>,
    ) -> Result<Array2<bool>> {
        match *self {
            Self::VNofM { rows, zeros, group } => {
                vnm::choose(block.layer, scores, (rows, zeros, group))
            }
            // The others answer with rules.
            _ => Ok(Array2::from_elem(scores.weights.dim(), false)),
        }
    }

    fn prunes(&self) -> bool {
        match self {
            Self::Dense | Self::NofM { zeros: 0, .. } => false,
            Self::NofM { .. } | Self::VNofM { .. } => true,
            Self::Unstructured(sparsity)
            | Self::PerRow(sparsity)
            | Self::Blocks { sparsity, .. } => sparsity.fraction() > 0.0,
        }
    }

    fn rows_are_independent(&self) -> bool {
        matches!(self, Self::Dense | Self::PerRow(_) | Self::NofM { .. })
    }

    fn group(&self) -> usize {
        match self {
            Self::NofM { group, .. } | Self::VNofM { group, .. } => *group,
            Self::Blocks { size, .. } => *size,
            Self::Dense | Self::Unstructured(_) | Self::PerRow(_) => 1,
        }
    }

    fn chosen_by_group(&self) -> bool {
        matches!(self, Self::NofM { .. })
    }

    fn fixed_zeros(&self, pruned: ArrayView2<'_, bool>) -> Option<Array2<bool>> {
        match *self {
            Self::VNofM { rows, group, .. } => Some(vnm::outside_survivors(pruned, (rows, group))),
            _ => None,
        }
    }

    fn zeros_step(&self, rows: usize, _cols: usize) -> Option<u64> {
        match self {
            Self::Unstructured(_) => Some(1),
            Self::PerRow(_) => Some(rows as u64),
            Self::Blocks { size, .. } => Some(*size as u64),
            Self::Dense | Self::NofM { .. } | Self::VNofM { .. } => None,
        }
    }

    fn with_zeros(&self, zeros: u64, rows: usize, cols: usize) -> Option<Arc<dyn MaskPolicy>> {
        let share = Sparsity::ratio(zeros, rows as u64 * cols as u64).ok()?;
        let pattern = match *self {
            Self::Unstructured(_) => Self::Unstructured(share),
            Self::PerRow(_) => Self::PerRow(share),
            Self::Blocks { size, .. } => Self::Blocks {
                size,
                sparsity: share,
            },
            Self::Dense | Self::NofM { .. } | Self::VNofM { .. } => return None,
        };
        Some(Arc::new(pattern))
    }
}

/// The largest divisor of `number` that is not above `limit`.
fn largest_divisor(number: usize, limit: usize) -> usize {
    (1..=limit.min(number))
        .rev()
        .find(|&divisor| number.is_multiple_of(divisor))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_survive_being_written_and_read() {
        for text in [
            "dense",
            "50%",
            "row:62.5%",
            "2:4",
            "3:7",
            "0%",
            "100%",
            "57%",
            "7%",
            "0.1%",
            "block:16:50%",
            "64:6:8",
            "1:2:4",
        ] {
            let pattern: Pattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn malformed_patterns_are_refused_with_a_hint() {
        for text in [
            "",
            "50",
            "%",
            "-1%",
            "101%",
            "NaN%",
            "5:4",
            "2:0",
            "2:",
            ":4",
            "-2:4",
            "row:2:4",
            "row:",
            "a:b",
            "64:2:8",
            "0:6:8",
            "64:8:8",
            "block:16",
            "block:0:50%",
            "block:4:2:4",
            "1:2:4:8",
            "block:4:101%",
        ] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(
                matches!(error, Error::InvalidSetting { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn counts_are_exact_where_binary_fractions_are_not() {
        for percent in 0..=100_u64 {
            let sparsity = Sparsity::new(percent as f64 / 100.0).unwrap();
            for weights in [1, 7, 100, 12_300, 4096 * 4096, 49_152 * 12_288] {
                assert_eq!(
                    sparsity.count(weights),
                    percent * weights / 100,
                    "{percent} % of {weights}"
                );
            }
        }
    }
}
