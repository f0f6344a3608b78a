//! Copies in pieces that fit a staging buffer.

use std::ops::Range;

/// Rows of a matrix on the host, one behind the other, and on the device, `pitch` bytes apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) total: usize,
    pub(super) row_bytes: usize,
    pub(super) pitch: usize,
}

/// A part of a copy: whole rows, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes on the host.
    pub(super) host: Range<usize>,
    /// Bytes from the first row's beginning on the device.
    pub(super) device: usize,
    /// Bytes of each row.
    pub(super) width: usize,
    /// Rows.
    pub(super) height: usize,
}

impl Rows {
    /// The copy in pieces of at most `largest` bytes, in order.
    pub(super) fn pieces(self, largest: usize) -> Vec<Piece> {
        if self.total == 0 || self.row_bytes == 0 {
            return Vec::new();
        }
        // Rows without space between them are one long row.
        let (row_bytes, pitch) = if self.pitch == self.row_bytes {
            (self.total, self.total)
        } else {
            (self.row_bytes, self.pitch)
        };
        let rows = self.total / row_bytes;
        let at_a_time = largest / row_bytes;
        let mut pieces = Vec::new();
        if at_a_time > 0 {
            for first in (0..rows).step_by(at_a_time) {
                let height = at_a_time.min(rows - first);
                pieces.push(Piece {
                    host: first * row_bytes..(first + height) * row_bytes,
                    device: first * pitch,
                    width: row_bytes,
                    height,
                });
            }
            return pieces;
        }
        for row in 0..rows {
            for first in (0..row_bytes).step_by(largest) {
                let width = largest.min(row_bytes - first);
                let start = row * row_bytes + first;
                pieces.push(Piece {
                    host: start..start + width,
                    device: row * pitch + first,
                    width,
                    height: 1,
                });
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies through the pieces, as a device would.
    fn copied(rows: Rows, largest: usize) -> (Vec<u8>, Vec<u8>) {
        let host: Vec<u8> = (0..rows.total).map(|at| (at % 251) as u8 + 1).collect();
        let height = rows.total / rows.row_bytes;
        let mut found = vec![0; height * rows.pitch];
        let mut expected = found.clone();
        for row in 0..height {
            expected[row * rows.pitch..][..rows.row_bytes]
                .copy_from_slice(&host[row * rows.row_bytes..][..rows.row_bytes]);
        }
        for piece in rows.pieces(largest) {
            assert!(piece.width * piece.height <= largest);
            assert_eq!(piece.host.len(), piece.width * piece.height);
            for row in 0..piece.height {
                found[piece.device + row * rows.pitch..][..piece.width]
                    .copy_from_slice(&host[piece.host.start + row * piece.width..][..piece.width]);
            }
        }
        (found, expected)
    }

    #[test]
    fn every_byte_is_copied_once_to_its_place() {
        for (height, row_bytes, pitch) in [
            (1, 1, 1),
            (1, 100, 100),
            (7, 20, 20),
            (7, 20, 32),
            (5, 300, 304),
            (64, 4, 4),
        ] {
            let rows = Rows {
                total: height * row_bytes,
                row_bytes,
                pitch,
            };
            for largest in [1, 3, 19, 20, 64, 1000, 10_000] {
                let (found, expected) = copied(rows, largest);
                assert_eq!(found, expected, "{rows:?} in pieces of {largest}");
                let bytes: usize = rows
                    .pieces(largest)
                    .iter()
                    .map(|piece| piece.host.len())
                    .sum();
                assert_eq!(bytes, rows.total, "{rows:?} in pieces of {largest}");
            }
        }
    }

    #[test]
    fn nothing_is_no_piece() {
        let nothing = Rows {
            total: 0,
            row_bytes: 0,
            pitch: 16,
        };
        assert!(nothing.pieces(64).is_empty());
    }
}
