//! What is done to matrices value by value, and reordering.

module! {
    MODULE, "elementwise",
    COMBINE = "combine"[256](
        target: Address,
        target_ld: U32,
        other: Address,
        other_ld: U32,
        rows: U32,
        cols: U32,
        alpha: F32,
        beta: F32,
    );
    READ_DIAGONAL = "read_diagonal"[256](
        matrix: Address,
        matrix_ld: U32,
        values: Address,
        count: U32,
    );
    WRITE_DIAGONAL = "write_diagonal"[256](
        matrix: Address,
        matrix_ld: U32,
        values: Address,
        count: U32,
    );
    PERMUTE = "permute"[256](
        h: Address,
        h_ld: U32,
        order: Address,
        to: Address,
        to_ld: U32,
        count: U32,
    );
    MIRROR = "mirror"[256](
        h: Address,
        h_ld: U32,
        count: U32,
    );
    MIRROR_DOUBLE = "mirror_double"[256](
        h: Address,
        h_ld: U32,
        diagonal: Address,
        to: Address,
        to_ld: U32,
        count: U32,
    );
    NARROW_UPPER = "narrow_upper"[256](
        from: Address,
        from_ld: U32,
        to: Address,
        to_ld: U32,
        count: U32,
    );
    TURN = "turn"[256](
        h: Address,
        h_ld: U32,
        to: Address,
        to_ld: U32,
        count: U32,
    );
    REFLECT = "reflect"[256](
        from: Address,
        from_ld: U32,
        h: Address,
        h_ld: U32,
        count: U32,
    );
    ADD_ENERGIES = "add_energies"[256](
        w: Address,
        w_ld: U32,
        product: Address,
        product_ld: U32,
        diagonal: Address,
        energies: Address,
        rows: U32,
        cols: U32,
    );
    PACK_MASK = "pack_mask"[256](
        mask: Address,
        words: Address,
        count: U32,
        last: U32,
    );
}
