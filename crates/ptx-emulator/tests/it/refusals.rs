//! Texts that are refused, and what is said of them.

#![allow(clippy::expect_used)]

use ptx_emulator::{Module, ScalarType};

use crate::support;

/// What is said of a body's only line that is wrong, which is the text's line 7.
fn refused(body: &str) -> String {
    let error = Module::parse(&support::text("", body)).expect_err(body);
    assert_eq!(error.line, 7, "{error}");
    error.to_string()
}

#[test]
fn refusals_name_the_line_and_what_stands_there() {
    let table = [
        // Outside the subset.
        ("frobnicate.f32 %f1, %f2;", "instruction `frobnicate.f32`"),
        ("ex2.f32 %f1, %f2;", "instruction `ex2.f32`"),
        (
            "wgmma.fence.sync.aligned;",
            "instruction `wgmma.fence.sync.aligned`",
        ),
        ("add.sat.s32 %r1, %r1, %r2;", "`.sat` in `add.sat.s32`"),
        // Results that differ between devices, or from run to run.
        ("sqrt.approx.f32 %f1, %f2;", "no `.approx`"),
        ("add.rn.ftz.f32 %f1, %f2, %f3;", "no `.ftz`"),
        ("div.full.f32 %f1, %f2, %f3;", "no `.full`"),
        ("atom.global.add.f32 %f1, [%rd0], %f2;", "no float atomic"),
        ("red.shared.add.f64 [%rd0], %d1;", "no float atomic"),
        ("red.global.add.noftz.f16x2 [%rd0], %r1;", "no float atomic"),
        ("fma.f32 %f1, %f2, %f3, %f4;", "expected `.rn`"),
        ("shfl.idx.b32 %r1, %r2, 0, 31;", "`.sync`"),
        // Operands.
        ("add.u32 %r1, %r2;", "the end of `add.u32`"),
        (
            "add.u32 %r1, %r2, %r3, %r4;",
            "`%r4` in `add.u32`, expected no further operand",
        ),
        ("add.u32 %r1, %r2, %rd3;", "`%rd3` is declared .b64"),
        (
            "add.rn.f32 %f1, %f2, %nosuch;",
            "a declared register or variable",
        ),
        ("add.u32 %r99, %r2, 1;", "`%r99`"),
        ("add.rn.f64 %d1, %d2, %f3;", "`%f3` is declared .f32"),
        ("add.rn.f32 %f1, %f2, 1;", "a .f32 value"),
        ("add.u16 %h1, %h2, 65536;", "a .u16 value"),
        ("mov.u32 %tid, 1;", "register to write"),
        ("ld.global.f32 %f1, [%r1];", "a 64-bit address"),
        (
            "ld.global.v4.f64 {%d1,%d2,%d3,%d4}, [%rd0];",
            "at most 16 bytes",
        ),
        ("ld.global.v2.f32 {%f1,%f2,%f3}, [%rd0];", "a vector of 2"),
        ("ld.param.u64 %rd1, [nosuch];", "a parameter of this kernel"),
        (
            "ld.param.u64 %rd1, [out+8];",
            "8 bytes inside the 8 bytes of `out`",
        ),
        (
            "cp.async.cg.shared.global [%r1], [%rd0], 8;",
            "a size among [16]",
        ),
        ("bra NOWHERE;", "a branch to `NOWHERE`"),
        ("@%p9 mov.u32 %r1, 1;", "`%p9`"),
        ("L: L: ret;", "a second label `L`"),
        (".reg .b32 %r1;", "a second `%r1`"),
        (".reg .bf16 %b1;", "registers of type .bf16"),
        (".local .b32 x[4];", "`.local`"),
        ("call helper;", "instruction `call`"),
        ("mov.u32 %r1 %r2;", "found `%r2`, expected `;`"),
        (
            "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r1}, {%f1};",
            "m8n8k4",
        ),
    ];
    for (body, said) in table {
        let error = refused(body);
        assert!(error.contains(said), "{body}: {error}");
    }
}

#[test]
fn a_module_begins_with_its_version_and_target() {
    let error = Module::parse("\n.target sm_80").unwrap_err();
    assert_eq!(
        error.to_string(),
        "PTX line 2: found `.target`, expected `.version`"
    );
    let error = Module::parse(".version 7.0 .target sm_80 .address_size 32").unwrap_err();
    assert_eq!(error.expected, "`64`");
    let error = Module::parse(".version 7.0 .target sm_80 .address_size 64 .func f() { ret; }")
        .unwrap_err();
    assert_eq!(error.found, "`.func`");
    let error =
        Module::parse(".version 7.0 .target sm_80 .address_size 64 .entry k() { ret;").unwrap_err();
    assert_eq!(error.found, "the end of the text");
}

#[test]
fn what_a_module_tells_of_itself() {
    let module = Module::parse(
        ".version 7.1 .target sm_80 .address_size 64
         .shared .align 8 .b8 unused[4096];
         .visible .entry first(.param .u64 .ptr .global .align 16 x, .param .align 8 .b8 pair[16], .param .f32 scale)
         .reqntid 128, 1, 1 { .shared .b32 box[3]; .reg .f32 %f<3>; .reg .b32 %r<2>; mov.u32 %r0, box;
             ld.param.f32 %f0, [scale];
             mul.f32 %f1, %f0, %f0; add.rn.f32 %f2, %f1, %f0;
         }
         .visible .entry second() .maxntid 64, 2 .minnctapersm 2 { ret; }",
    )
    .unwrap();
    assert_eq!((module.version(), module.target()), ((7, 1), "sm_80"));
    let first = module.kernel("first").unwrap();
    let parameters: Vec<_> = first
        .parameters()
        .iter()
        .map(|p| (p.name.as_str(), p.ty, p.bytes))
        .collect();
    assert_eq!(
        parameters,
        [
            ("x", ScalarType::U64, 8),
            ("pair", ScalarType::B8, 16),
            ("scale", ScalarType::F32, 4)
        ]
    );
    assert_eq!(
        (first.shared_bytes(), first.uses_dynamic_shared()),
        (12, false)
    );
    assert_eq!(
        (first.required_threads(), first.max_threads()),
        (Some([128, 1, 1]), None)
    );
    // The product may be contracted with the sum, as it has no rounding.
    assert_eq!(first.contractible_lines(), [6]);
    assert_eq!(module.kernels()[1].max_threads(), Some([64, 2, 1]));
    assert!(module.kernel("third").is_none());
}
