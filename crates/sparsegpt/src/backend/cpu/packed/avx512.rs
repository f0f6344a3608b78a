//! The dot products of AVX-512 BF16. The tests run them wherever they find a processor that has them.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{__cpuid, __m512, __m512bh, _mm512_dpbf16_ps};
use std::mem::transmute;
use std::sync::LazyLock;

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

    /// Whether it multiplies faster than f32 arithmetic. On Intel's servers the instruction starts every second cycle, where two of f32
    /// start in each: half the rate (measured on Sapphire Rapids). On AMD's, by published timings, it starts as often as
    /// f32's and does twice as much.
    pub(super) fn is_faster_than_f32(self) -> bool {
        static IS_AMD: LazyLock<bool> = LazyLock::new(|| {
            #[allow(unsafe_code, unused_unsafe, reason = "safe from Rust 1.94 on alone")]
            // SAFETY: every x86-64 processor has the instruction and its first leaf.
            let vendor = unsafe { __cpuid(0) };
            let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
            name.as_flattened() == b"AuthenticAMD"
        });
        *IS_AMD
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
