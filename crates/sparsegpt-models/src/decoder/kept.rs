//! Keys or values of the tokens seen so far.

use ndarray::{Array3, ArrayView3, Axis, s};

/// Sequences x tokens x width, with room for tokens to come: one is written when it comes, and seldom again.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    room: Array3<f32>,
    tokens: usize,
}

impl Kept {
    /// Those of each sequence are together in memory.
    pub(super) fn view(&self) -> ArrayView3<'_, f32> {
        self.room.slice(s![.., ..self.tokens, ..])
    }

    /// Puts as many new tokens behind those of each sequence. The room doubles when it is full.
    pub(super) fn push(&mut self, new: ArrayView3<'_, f32>) {
        let tokens = self.tokens + new.len_of(Axis(1));
        let (sequences, room, width) = self.room.dim();
        if tokens > room {
            let mut larger = Array3::zeros((sequences, tokens.max(2 * self.tokens), width));
            larger
                .slice_mut(s![.., ..self.tokens, ..])
                .assign(&self.view());
            self.room = larger;
        }
        let mut place = self.room.slice_mut(s![.., self.tokens..tokens, ..]);
        place.assign(&new);
        self.tokens = tokens;
    }
}

impl From<Array3<f32>> for Kept {
    fn from(room: Array3<f32>) -> Self {
        let tokens = room.len_of(Axis(1));
        Self { room, tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_where_they_are_until_the_room_is_full() {
        let all = Array3::from_shape_fn((2, 40, 3), |(sequence, token, at)| {
            (100 * sequence + 10 * token + at) as f32
        });
        let mut kept = Kept::from(all.slice(s![.., ..5, ..]).to_owned());
        let mut moved = 0;
        for token in 5..40 {
            let before = kept.view().as_ptr();
            kept.push(all.slice(s![.., token..=token, ..]));
            moved += usize::from(kept.view().as_ptr() != before);
            assert_eq!(kept.view(), all.slice(s![.., ..=token, ..]));
            for sequence in kept.view().outer_iter() {
                assert!(sequence.to_slice().is_some());
            }
        }
        // From 5 to 10, 20 and 40.
        assert_eq!(moved, 3);
        kept.push(all.slice(s![.., ..0, ..]));
        assert_eq!(kept.view(), all);
    }
}
