//! The usual patterns.

use std::fmt;
use std::str::FromStr;

use super::{BlockMask, MaskBlock, MaskPolicy};
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

/// The usual patterns of zeros. Written and read as `dense`, `50%`, `row:50%`, `2:4`.
///
/// In N:M, N is the number of **zeros** in every M consecutive input columns, as in the paper.
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
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Unstructured(sparsity) => write!(f, "{sparsity}"),
            Self::PerRow(sparsity) => write!(f, "row:{sparsity}"),
            Self::NofM { zeros, group } => write!(f, "{zeros}:{group}"),
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
                "50%, row:50%, 2:4 (2 zeros in 4 columns) or dense",
                format!("{text:?}"),
            )
        };
        let percentage = |share: &str| {
            let number = share.strip_suffix('%').ok_or_else(malformed)?;
            let percent: f64 = number.trim().parse().map_err(|_| malformed())?;
            Sparsity::new(percent / 100.0)
                .map_err(|_| Error::setting("pattern", "from 0% to 100%", format!("{text:?}")))
        };
        let text = text.trim();
        if text == "dense" {
            return Ok(Self::Dense);
        }
        if let Some(per_row) = text.strip_prefix("row:") {
            return Ok(Self::PerRow(percentage(per_row)?));
        }
        match text.split_once(':') {
            Some((zeros, group)) => Self::n_of_m(
                zeros.parse().map_err(|_| malformed())?,
                group.parse().map_err(|_| malformed())?,
            ),
            None => Ok(Self::Unstructured(percentage(text)?)),
        }
    }
}

impl MaskPolicy for Pattern {
    fn describe(&self) -> String {
        self.to_string()
    }

    fn validate(&self, layer: &str, _rows: usize, cols: usize) -> Result<()> {
        if let Self::NofM { zeros, group } = *self {
            Self::n_of_m(zeros, group)?;
            if !cols.is_multiple_of(group) {
                return Err(Error::incompatible(
                    layer,
                    format!(
                        "pattern {self} needs groups of {group} columns, the layer has {cols} columns"
                    ),
                    "skip this layer or choose a group that divides its columns",
                ));
            }
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
        })
    }

    fn prunes(&self) -> bool {
        match self {
            Self::Dense | Self::NofM { zeros: 0, .. } => false,
            Self::Unstructured(sparsity) | Self::PerRow(sparsity) => sparsity.fraction() > 0.0,
            Self::NofM { .. } => true,
        }
    }

    fn rows_are_independent(&self) -> bool {
        !matches!(self, Self::Unstructured(_))
    }

    fn group(&self) -> usize {
        match self {
            Self::NofM { group, .. } => *group,
            _ => 1,
        }
    }
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
        ] {
            let pattern: Pattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn malformed_patterns_are_refused_with_a_hint() {
        for text in [
            "", "50", "%", "-1%", "101%", "NaN%", "5:4", "2:0", "2:", ":4", "-2:4", "row:2:4",
            "row:", "a:b", "2:4:8",
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
