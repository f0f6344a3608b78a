//! Types of weights.

use std::fmt::Debug;

use bytemuck::Pod;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::kernel::Lanes;

/// A type that weights are stored in: f32, bf16 or f16. Products widen it to f32.
pub trait Value: Pod + Lanes + Debug + PartialEq + Send + Sync {
    /// Its name, as in `bf16`.
    const NAME: &'static str;
    /// Its name in a container.
    #[doc(hidden)]
    const DTYPE: Dtype;

    /// The same number in f32.
    fn to_f32(self) -> f32;

    /// The nearest value.
    fn from_f32(value: f32) -> Self;

    /// Whether all bits are zero. -0.0 is stored like any other value, so that unpacking gives back every bit.
    fn is_absent(self) -> bool;
}

impl Value for f32 {
    const NAME: &'static str = "f32";
    const DTYPE: Dtype = Dtype::F32;

    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> Self {
        value
    }

    fn is_absent(self) -> bool {
        self.to_bits() == 0
    }
}

impl Value for bf16 {
    const NAME: &'static str = "bf16";
    const DTYPE: Dtype = Dtype::BF16;

    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn is_absent(self) -> bool {
        self.to_bits() == 0
    }
}

impl Value for f16 {
    const NAME: &'static str = "f16";
    const DTYPE: Dtype = Dtype::F16;

    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn is_absent(self) -> bool {
        self.to_bits() == 0
    }
}
