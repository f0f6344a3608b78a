//! Inverses of triangles on a matrix's diagonal.

module! {
    MODULE, "invert",
    INVERT_TRIANGLES = "invert_triangles"[128](
        h: Address,
        h_ld: U32,
        bounds: Address,
    );
}
