//! The dot products of AVX-512 BF16. This file has been compiled and its instructions read, but where it was written no
//! processor could run it; the tests do wherever they find one.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
use std::mem::transmute;

use pulp::x86::V4;
use pulp::{f32x16, u32x16};

use super::kernel::{Block, LaneProduct};

/// Proof that the processor has the instruction.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx512Bf16(V4);

impl Avx512Bf16 {
    pub(super) fn detect(level: V4) -> Option<Self> {
        is_x86_feature_detected!("avx512bf16").then_some(Self(level))
    }

    #[allow(unsafe_code, reason = "an instruction set found at run time")]
    pub(super) fn add(self, block: Block<'_>) {
        // SAFETY: `V4` is proof of all features but the last, and `detect` has found that one.
        unsafe { add(self, block) }
    }
}

#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt,avx512bf16"
)]
fn add(processor: Avx512Bf16, block: Block<'_>) {
    block.add(processor.0, processor);
}

impl LaneProduct<V4> for Avx512Bf16 {
    #[inline(always)]
    #[allow(unsafe_code, reason = "an instruction that is found at run time")]
    fn add(self, _: V4, sums: f32x16, a: u32x16, b: u32x16) -> f32x16 {
        // SAFETY: `self` is proof that the processor has the instruction; all types are 64 bytes without invalid values.
        unsafe {
            transmute::<__m512, f32x16>(_mm512_dpbf16_ps(
                transmute::<f32x16, __m512>(sums),
                transmute::<u32x16, __m512bh>(a),
                transmute::<u32x16, __m512bh>(b),
            ))
        }
    }
}

/// The features of these that the processor lacks.
pub(super) fn missing() -> String {
    let features = [
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512cd", is_x86_feature_detected!("avx512cd")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    let missing: Vec<&str> = features
        .into_iter()
        .filter_map(|(feature, has)| (!has).then_some(feature))
        .collect();
    if missing.is_empty() {
        return "avx512bf16 at the SIMD level in use".to_owned();
    }
    missing.join(", ")
}
