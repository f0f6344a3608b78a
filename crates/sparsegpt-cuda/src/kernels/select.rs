//! The choice of the weights to prune.

module! {
    SELECT, "select",
    SELECT_LOWEST = "select_lowest"[512](
        weights: Address,
        weights_ld: U32,
        scales: Address,
        forced: Address,
        protected: Address,
        rows: U32,
        width: U32,
        mask: Address,
        segment: U32,
        counts: Address,
        count: U32,
        state: Address,
        digit: U32,
        previous: U32,
        position_digit: U32,
    );
    SELECT_GROUPS = "select_groups"[256](
        weights: Address,
        weights_ld: U32,
        scales: Address,
        forced: Address,
        protected: Address,
        groups: U32,
        in_row: U32,
        mask: Address,
        zeros: U32,
        group: U32,
    );
}
