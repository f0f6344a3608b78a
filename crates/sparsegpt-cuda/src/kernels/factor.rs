//! Leaves of a factorization in f32.

module! {
    MODULE, "factor",
    FACTOR_LEAF = "factor_leaf"[256](
        h: Address,
        h_ld: U32,
        starts: Address,
        inverse: Address,
        first: U32,
        cols: U32,
        status: Address,
    );
}
