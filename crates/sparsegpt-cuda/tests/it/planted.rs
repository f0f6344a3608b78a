//! Kernels with one mistake each: the suite on the emulator must catch every one of them.

#![allow(clippy::unwrap_used)]

use crate::emulated::Emulated;
use sparsegpt_cuda::{CudaBackend, CudaError};

/// A change of a kernel's text.
struct Mistake {
    module: &'static str,
    right: &'static str,
    wrong: &'static str,
}

/// The first failure of the cases whose names contain `filter`, and how many failed.
fn failures(mistake: &Mistake, filter: &str) -> Vec<String> {
    let device = Emulated::with_change(mistake.module, mistake.right, mistake.wrong);
    let make = move || Ok::<_, CudaError>(CudaBackend::new(device.clone()));
    let summary = sparsegpt_conformance::check_matching(filter, make).unwrap();
    assert!(
        !summary.failed.is_empty() || !summary.passed.is_empty(),
        "no case is called {filter}"
    );
    summary
        .failed
        .into_iter()
        .map(|(case, reason)| format!("{case}: {reason}"))
        .collect()
}

#[track_caller]
fn is_caught(mistake: &Mistake, filter: &str, said: &str) {
    let failures = failures(mistake, filter);
    assert!(
        failures.iter().any(|failure| failure.contains(said)),
        "expected {said:?} in {failures:?}"
    );
}

#[test]
fn a_missing_barrier_is_a_race() {
    for (module, right, filter) in [
        ("sweep", "    bar.sync 0;\n", "operations/update_rows/"),
        ("gemm_tensor", "\tbar.sync 0;\n", "operations/gemm/"),
        ("gram", "\tbar.sync 0;\n", "operations/gram_update/bf16"),
    ] {
        let mistake = Mistake {
            module,
            right,
            wrong: "",
        };
        is_caught(&mistake, filter, "race: ");
    }
}

/// The first warp runs ahead of those that hold the pivot, or another row of the tile.
#[test]
fn without_a_barrier_is_read_what_nobody_wrote() {
    for (module, precision) in [
        ("factor", "f32"),
        ("factor_double", "f64"),
        ("elementwise", "f32"),
    ] {
        let mistake = Mistake {
            module,
            right: "\tbar.sync 0;\n",
            wrong: "",
        };
        let filter = format!("operations/inverse_factor/{precision}/is_the_inverse");
        is_caught(&mistake, &filter, "was never written");
    }
}

#[test]
fn a_copy_that_nobody_waits_for_is_caught() {
    let mistake = Mistake {
        module: "gram",
        right: "\tcp.async.wait_all;\n",
        wrong: "",
    };
    is_caught(&mistake, "operations/gram_update/bf16", "gram.ptx failed");
}

#[test]
fn products_of_tf32_alone_are_not_exact_enough() {
    let mistake = Mistake {
        module: "gemm_tensor",
        right: "sub.rn.f32 %b_small0, %b0, %b_big0;",
        wrong: "mov.b32 %b_small0, 0;",
    };
    is_caught(&mistake, "operations/gemm/parts", "allowed is");
}

#[test]
fn a_row_too_many_is_a_store_out_of_bounds() {
    let mistake = Mistake {
        module: "grid",
        right: "WRITE:\n    setp.ge.u32 %q, %row, %end;",
        wrong: "WRITE:\n    setp.gt.u32 %q, %row, %end;",
    };
    is_caught(
        &mistake,
        "operations/fit_grid/",
        "store of 4 bytes out of bounds of global memory",
    );
}

#[test]
fn a_wrong_constant_is_a_wrong_result() {
    let mistake = Mistake {
        module: "sweep",
        right: "sub.rn.f32 %x0, 0f00000000, %x0;",
        // 1e-4
        wrong: "sub.rn.f32 %x0, 0f38D1B717, %x0;",
    };
    is_caught(&mistake, "operations/update_rows/", "allowed is");
}

#[test]
fn a_refit_that_stops_too_early_misses_the_optimum() {
    let mistake = Mistake {
        module: "iterate",
        // From 1e-14 to 1e-2.
        right: "0d3D06849B86A12B9B",
        wrong: "0d3F847AE147AE147B",
    };
    is_caught(
        &mistake,
        "operations/refit/reaches_the_optimum",
        "allowed is",
    );
}

#[test]
fn a_row_whose_progress_all_lanes_write_is_a_race() {
    let mistake = Mistake {
        module: "iterate",
        right: "\t@%p bra TURN;\n",
        wrong: "",
    };
    is_caught(&mistake, "operations/refit/same_bits_twice", "race: ");
}

#[test]
fn the_same_cases_pass_without_a_mistake() {
    for (module, filter) in [
        ("sweep", "operations/update_rows/"),
        ("grid", "operations/fit_grid/"),
        ("gemm_tensor", "operations/gemm/"),
        ("gram", "operations/gram_update/bf16"),
        ("iterate", "operations/refit/"),
        ("factor", "operations/inverse_factor/f32/is_the_inverse"),
        (
            "factor_double",
            "operations/inverse_factor/f64/is_the_inverse",
        ),
    ] {
        let nothing = Mistake {
            module,
            right: ".version 7.0",
            wrong: ".version 7.0",
        };
        let failures = failures(&nothing, filter);
        assert!(failures.is_empty(), "{failures:?}");
    }
}
