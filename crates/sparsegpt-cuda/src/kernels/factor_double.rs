//! Leaves of a factorization in f64.

module! {
    MODULE, "factor_double",
    FACTOR_LEAF_DOUBLE = "factor_leaf_double"[256](
        h: Address,
        h_ld: U32,
        starts: Address,
        inverse: Address,
        first: U32,
        cols: U32,
        status: Address,
    );
}
