//! Products in f32.

product_module!(MODULE, "gemm", GEMM);
