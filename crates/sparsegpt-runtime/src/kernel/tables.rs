//! For every byte of a mask, where its eight columns' values are.

/// Entries in a cache line or two of their own.
#[repr(C, align(32))]
pub(super) struct Table<T>(pub(super) [T; 256]);

/// In lane i: which of the byte's values is that of column i, with the sign bit set; 0 where there is none. A permutation
/// reads the number, a blend the sign bit.
pub(super) static PLACES: Table<[u32; 8]> = Table(places());

/// For two copies of eight 16-bit values, one in each half of a vector: the bytes that make lane i the f32 whose upper
/// half is the value of column i, or zero.
pub(super) static WIDEN: Table<[u8; 32]> = Table(widen());

/// For eight 16-bit values: the bytes that make word i the value of column i, or zero.
pub(super) static SPREAD: Table<[u8; 16]> = Table(spread());

/// A byte shuffle writes zero there.
const ZERO: u8 = 0x80;

const fn places() -> [[u32; 8]; 256] {
    let mut table = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut column, mut value) = (0, 0_u32);
        while column < 8 {
            if byte >> column & 1 == 1 {
                table[byte][column] = 1 << 31 | value;
                value += 1;
            }
            column += 1;
        }
        byte += 1;
    }
    table
}

const fn widen() -> [[u8; 32]; 256] {
    let mut table = [[ZERO; 32]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut column, mut value) = (0, 0);
        while column < 8 {
            if byte >> column & 1 == 1 {
                table[byte][4 * column + 2] = 2 * value;
                table[byte][4 * column + 3] = 2 * value + 1;
                value += 1;
            }
            column += 1;
        }
        byte += 1;
    }
    table
}

const fn spread() -> [[u8; 16]; 256] {
    let mut table = [[ZERO; 16]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut column, mut value) = (0, 0);
        while column < 8 {
            if byte >> column & 1 == 1 {
                table[byte][2 * column] = 2 * value;
                table[byte][2 * column + 1] = 2 * value + 1;
                value += 1;
            }
            column += 1;
        }
        byte += 1;
    }
    table
}
