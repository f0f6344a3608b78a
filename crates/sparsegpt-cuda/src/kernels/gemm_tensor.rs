//! Products in f32 on the tensor cores.

module! {
    MODULE, "gemm_tensor",
    GEMM_TENSOR = "gemm_tensor"[256](
        a: Address,
        a_row: U32,
        a_depth: U32,
        b: Address,
        b_depth: U32,
        b_col: U32,
        source: Address,
        source_ld: U32,
        c: Address,
        c_ld: U32,
        rows: U32,
        cols: U32,
        depth: U32,
        alpha: F32,
        beta: F32,
        a_form: U32,
        b_form: U32,
        b_shift: U32,
        c_form: U32,
    );
}
