//! For every byte of a mask, where its eight columns' values are.

/// Entries in a cache line or two of their own.
#[repr(C, align(32))]
pub(super) struct Table<T>(pub(super) [T; 256]);

/// For two times four f32 values, those of the first four columns and those of the others: the bytes that make lane i the
/// value of column i, or zero.
pub(super) static QUARTERS: Table<[u8; 32]> = Table(quarters());

/// For two copies of eight 16-bit values, one in each half of a vector: the bytes that make lane i the f32 whose upper
/// half is the value of column i, or zero.
pub(super) static WIDEN: Table<[u8; 32]> = Table(widen());

/// For eight 16-bit values: the bytes that make word i the value of column i, or zero.
pub(super) static SPREAD: Table<[u8; 16]> = Table(spread());

/// For eight codes and the f32 2²³ + zero behind them, in each half of a vector: the bytes that make lane i the f32 2²³ + the
/// code of column i, or 2²³ + zero.
pub(super) static CODES: Table<[u8; 32]> = Table(codes());

/// A byte shuffle writes zero there.
const ZERO: u8 = 0x80;

const fn quarters() -> [[u8; 32]; 256] {
    let mut table = [[ZERO; 32]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut column, mut value) = (0, 0);
        while column < 8 {
            // Shuffles do not cross the middle of a vector.
            if column == 4 {
                value = 0;
            }
            if byte >> column & 1 == 1 {
                let mut part = 0;
                while part < 4 {
                    table[byte][4 * column + part] = (4 * value + part) as u8;
                    part += 1;
                }
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

const fn codes() -> [[u8; 32]; 256] {
    /// Where the f32 is.
    const BASE: u8 = 8;
    let mut table = [[0; 32]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut column, mut value) = (0, 0);
        while column < 8 {
            // The lowest byte of a fraction that has place for a code.
            table[byte][4 * column] = BASE;
            if byte >> column & 1 == 1 {
                table[byte][4 * column] = value;
                value += 1;
            }
            let mut part = 1;
            while part < 4 {
                table[byte][4 * column + part] = BASE + part as u8;
                part += 1;
            }
            column += 1;
        }
        byte += 1;
    }
    table
}
