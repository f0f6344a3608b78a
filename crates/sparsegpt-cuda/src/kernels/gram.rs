//! Hessians of 16-bit activations.

module! {
    MODULE, "gram",
    GRAM_16 = "gram_16"[256](
        x: Address,
        x_ld: U32,
        h: Address,
        h_ld: U32,
        cols: U32,
        tokens: U32,
        alpha: F32,
        beta: F32,
        brain: U32,
    );
}
