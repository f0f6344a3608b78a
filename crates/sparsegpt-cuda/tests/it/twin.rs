//! The comparison of a device with the emulator, with the emulator in the device's place.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use sparsegpt_cuda::{CudaBackend, CudaError, Device};

use crate::emulated::Emulated;
use crate::emulated::twin::{Twin, agree};

/// What fails of some cases, and how many bytes were compared.
fn failures(device: Emulated, filter: &str) -> (Vec<(String, String)>, usize) {
    let twin = Twin::new(device);
    let compared = twin.compared();
    let make = move || Ok::<_, CudaError>(CudaBackend::new(twin.fork()?));
    let summary = sparsegpt_conformance::check_matching(filter, make).unwrap();
    assert!(
        !summary.failed.is_empty() || !summary.passed.is_empty(),
        "no case is called {filter}"
    );
    (summary.failed, compared.load(Ordering::Relaxed))
}

#[test]
fn two_that_are_alike_agree() {
    for filter in ["operations/fit_grid/", "operations/select/"] {
        let (failures, compared) = failures(Emulated::new(), filter);
        assert!(failures.is_empty(), "{failures:?}");
        assert!(compared > 10_000, "{compared} bytes");
    }
}

#[test]
fn only_the_sign_of_a_nan_is_open() {
    let halves = |x: f64| (x.to_bits() >> 32) as u32;
    let same = |a: u32, b: u32| agree(&a.to_le_bytes(), &b.to_le_bytes());
    let nan = f32::NAN.to_bits();
    assert!(same(nan, nan ^ (1 << 31)));
    assert!(same(halves(f64::NAN), halves(f64::NAN) ^ (1 << 31)));
    assert!(!same(nan, nan | 1), "another NaN");
    assert!(!same(nan, f32::INFINITY.to_bits()));
    assert!(!same(0.0_f32.to_bits(), (-0.0_f32).to_bits()));
    assert!(!same(halves(f64::INFINITY), halves(f64::NEG_INFINITY)));
    assert!(!same(1.0_f32.to_bits(), 1.0_f32.to_bits() + 1));
}

/// A last bit, which no tolerance of the suite's would tell.
#[test]
fn one_that_rounds_otherwise_is_named() {
    let other = Emulated::with_change(
        "elementwise",
        "fma.rn.f32 %t, %alpha, %t, %o;",
        "mul.rn.f32 %t, %alpha, %t;\n\tadd.rn.f32 %t, %t, %o;",
    );
    let (failures, _) = failures(other, "operations/combine/");
    let named = |(_, reason): &(String, String)| {
        reason.contains("combine failed") && reason.contains("in the emulator")
    };
    assert!(failures.iter().any(named), "{failures:?}");
}
