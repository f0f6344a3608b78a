//! Products in f64.

product_module!(MODULE, "gemm_double", GEMM_DOUBLE);
