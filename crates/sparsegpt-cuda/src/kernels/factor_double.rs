//! Leaves of a factorization in f64.

leaf_module!(
    MODULE,
    "factor_double",
    FACTOR_LEAF_DOUBLE = "factor_leaf_double"
);
