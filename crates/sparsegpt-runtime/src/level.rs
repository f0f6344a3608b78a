//! Instruction sets.

use std::fmt;

/// The instruction set that a product runs on.
///
/// ```
/// use sparsegpt_runtime::Level;
/// assert!(Level::available().any(|level| level == Level::detect()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Level {
    /// Plain loops, on any processor.
    Portable,
    /// AVX2 with FMA, F16C, BMI and POPCNT: x86-64 processors from 2013 on.
    Avx2,
    /// AVX-512 F and BW beside what AVX2 names. Quantized layers with few tokens run on AVX2's kernels.
    Avx512,
    /// VBMI and VBMI2 beside those.
    Avx512Vbmi2,
}

impl Level {
    const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vbmi2];

    /// The widest that this processor has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// All that this processor has, the narrowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_available())
    }

    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vbmi2 => {
                Self::Avx512.is_available()
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Vbmi2 => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Vbmi2 => "AVX-512 VBMI2",
        })
    }
}
