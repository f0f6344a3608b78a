//! Leaves of a factorization in f32.

leaf_module!(MODULE, "factor", FACTOR_LEAF = "factor_leaf");
