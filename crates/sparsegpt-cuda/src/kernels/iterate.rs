//! Between the products of the iterative methods.

module! {
    MODULE, "iterate",
    PROJECT = "project"[256](
        sums: Address,
        sums_ld: U32,
        duals: Address,
        duals_ld: U32,
        dense: Address,
        dense_ld: U32,
        mask: Address,
        mask_ld: U32,
        weights: Address,
        rows: U32,
        cols: U32,
    );
    REFIT_BEGIN = "refit_begin"[256](
        residual: Address,
        residual_ld: U32,
        direction: Address,
        direction_ld: U32,
        inverse: Address,
        mask: Address,
        mask_ld: U32,
        progress: Address,
        rows: U32,
        cols: U32,
    );
    REFIT_STEP = "refit_step"[256](
        weights: Address,
        weights_ld: U32,
        residual: Address,
        residual_ld: U32,
        direction: Address,
        direction_ld: U32,
        product: Address,
        product_ld: U32,
        inverse: Address,
        mask: Address,
        mask_ld: U32,
        progress: Address,
        rows: U32,
        cols: U32,
    );
}
