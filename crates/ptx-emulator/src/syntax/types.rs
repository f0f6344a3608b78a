//! The fundamental types of PTX.

use std::fmt;

/// A fundamental type, as registers, parameters and instructions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ScalarType {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    Tf32,
    F16x2,
    Bf16x2,
    F32,
    F64,
}

use ScalarType::{
    B8, B16, B32, B64, Bf16, Bf16x2, F16, F16x2, F32, F64, Pred, S8, S16, S32, S64, Tf32, U8, U16,
    U32, U64,
};

const NAMES: [(ScalarType, &str); 20] = [
    (Pred, "pred"),
    (B8, "b8"),
    (B16, "b16"),
    (B32, "b32"),
    (B64, "b64"),
    (U8, "u8"),
    (U16, "u16"),
    (U32, "u32"),
    (U64, "u64"),
    (S8, "s8"),
    (S16, "s16"),
    (S32, "s32"),
    (S64, "s64"),
    (F16, "f16"),
    (Bf16, "bf16"),
    (Tf32, "tf32"),
    (F16x2, "f16x2"),
    (Bf16x2, "bf16x2"),
    (F32, "f32"),
    (F64, "f64"),
];

impl ScalarType {
    /// The type of this name, without the leading dot.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(ty, _)| *ty)
    }

    /// The name without the leading dot.
    pub fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(ty, _)| *ty == self)
            .map_or("?", |(_, name)| name)
    }

    /// Size in bytes; a predicate counts as one.
    pub fn bytes(self) -> usize {
        match self {
            Pred | B8 | U8 | S8 => 1,
            B16 | U16 | S16 | F16 | Bf16 => 2,
            B32 | U32 | S32 | F32 | Tf32 | F16x2 | Bf16x2 => 4,
            B64 | U64 | S64 | F64 => 8,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, S8 | S16 | S32 | S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, F16 | Bf16 | Tf32 | F16x2 | Bf16x2 | F32 | F64)
    }

    pub(crate) fn is_untyped(self) -> bool {
        matches!(self, B8 | B16 | B32 | B64)
    }

    /// All ones in the width of the type.
    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// Whether an operand of register type `register` may stand where an instruction says `self`.
    pub(crate) fn accepts(self, register: Self) -> bool {
        if self == Pred || register == Pred {
            return self == register;
        }
        if self.bytes() != register.bytes() {
            return false;
        }
        // Registers cannot be declared as these; they live in untyped ones.
        if matches!(self, Bf16 | Tf32 | Bf16x2) {
            return register.is_untyped();
        }
        self == register
            || self.is_untyped()
            || register.is_untyped()
            || (!self.is_float() && !register.is_float())
    }
}

impl fmt::Display for ScalarType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ".{}", self.name())
    }
}
