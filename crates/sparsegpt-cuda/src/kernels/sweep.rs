//! The fused sweep.

module! {
    SWEEP, "sweep",
    UPDATE_ROWS = "update_rows"[256](
        weights: Address,
        weights_ld: U32,
        factor: Address,
        factor_ld: U32,
        errors: Address,
        errors_ld: U32,
        losses: Address,
        rows: U32,
        width: U32,
        prune: U32,
        mask: Address,
        mask_ld: U32,
        zeros: U32,
        group: U32,
        grid: U32,
        scale: Address,
        zero: Address,
        scale_ld: U32,
        groups: Address,
        first_group: U32,
        max_code: F32,
        levels: Address,
        level_count: U32,
    );
}
