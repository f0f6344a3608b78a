//! Products in f32 on the tensor cores.

product_module!(MODULE, "gemm_tensor", GEMM_TENSOR);
