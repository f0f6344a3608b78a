//! The fit of uniform grids.

module! {
    GRID, "grid",
    FIT_RANGE = "fit_range"[256](
        weights: Address,
        weights_ld: U32,
        rows: U32,
        width: U32,
        unit_rows: U32,
        units: U32,
        ranges: Address,
    );
    FIT_ERRORS = "fit_errors"[320](
        weights: Address,
        weights_ld: U32,
        rows: U32,
        width: U32,
        unit_rows: U32,
        units: U32,
        ranges: Address,
        range_step: U32,
        candidates: U32,
        symmetric: U32,
        middle: F32,
        max_code: F32,
        results: Address,
    );
    FIT_CHOICE = "fit_choice"[256](
        results: Address,
        units: U32,
        candidates: U32,
        warp_units: U32,
        warp_rows: U32,
        rows: U32,
        scale: Address,
        scale_ld: U32,
        zero: Address,
        zero_ld: U32,
    );
}
