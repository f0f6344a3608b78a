//! The attention part of a block: from normalized activations to the mixed values of all heads.

use ndarray::Array2;
use rayon::prelude::*;

use super::attention::{Mixer, RelativeBias, alibi_slopes, by_sequence};
use super::block::Position;
use super::config::Positions;
use super::elementwise::rotate;
use super::family::Qkv;
use super::kept::Kept;
use super::linear::{Linear, outputs};
use super::norm::Norm;
use super::scratch::{Scrap, Scratch};
use super::weights::Weights;
use crate::{Error, Result};

/// Keys and values of the tokens seen so far, each batch x tokens x kv_heads·head_dim.
pub(super) type BlockCache = Option<[Kept; 2]>;

/// Everything of a block's attention but its linear layers.
#[derive(Clone, Debug)]
pub(super) struct SelfAttention {
    qkv: Qkv,
    /// Of the heads of queries and of keys.
    norms: Option<[Norm; 2]>,
    /// Width of queries, keys and values.
    widths: [usize; 3],
    head_dim: usize,
    causal: bool,
    window: Option<usize>,
    scale: f32,
    slopes: Vec<f32>,
    relative: Option<RelativeBias>,
    softcap: Option<f32>,
}

impl SelfAttention {
    pub(super) fn load(weights: &Weights, block: usize) -> Result<Self> {
        let config = &weights.config;
        let names = config.names_of(block);
        let head_dim = config.head_dim;
        let kv = config.kv_heads * head_dim;
        Ok(Self {
            qkv: names.qkv,
            norms: weights.head_norms(block)?,
            widths: [config.heads * head_dim, kv, kv],
            head_dim,
            causal: config.causal(block),
            window: config.sliding_windows[block],
            scale: config.score_scales[block] as f32,
            slopes: match config.positions {
                Positions::Alibi => alibi_slopes(config.heads),
                _ => Vec::new(),
            },
            relative: relative_bias(weights, block)?,
            softcap: config.score_softcap.map(|cap| cap as f32),
        })
    }

    /// How many linear layers make queries, keys and values.
    pub(super) fn layers(&self) -> usize {
        match self.qkv {
            Qkv::Split(_) => 3,
            Qkv::Fused { .. } => 1,
        }
    }

    /// What the attention's output layer reads: batch·time x heads·head_dim. `linears` are the layers of query, key
    /// and value.
    pub(super) fn mixed<'s>(
        &self,
        linears: &[Linear],
        x: &Array2<f32>,
        batch: usize,
        position: &Position<'s>,
        cache: Option<&mut BlockCache>,
    ) -> Result<Scrap<'s>> {
        let scratch = position.scratch;
        let [mut queries, mut keys, values] = self.project(linears, x, scratch)?;
        if let Some([of_queries, of_keys]) = &self.norms {
            queries = of_queries.apply(scratch, &queries);
            keys = of_keys.apply(scratch, &keys);
        }
        if let Some(tables) = position.rotary {
            let tables = tables.of(self.window.is_some());
            rotate(&mut queries, self.head_dim, tables);
            rotate(&mut keys, self.head_dim, tables);
        }
        let mixer = Mixer {
            past: position.past,
            causal: self.causal,
            window: self.window,
            // Padding stands behind the tokens of a decoder, where none sees it.
            counts: position.counts.filter(|_| !self.causal),
            head_dim: self.head_dim,
            scale: self.scale,
            slopes: &self.slopes,
            relative: self.relative.as_ref(),
            softcap: self.softcap,
        };
        let mut mixed = scratch.matrix(queries.nrows(), queries.ncols());
        let new = [by_sequence(&keys, batch)?, by_sequence(&values, batch)?];
        match cache {
            None => {
                let [keys, values] = new;
                mixer.attend(&queries, keys, values, &mut mixed);
            }
            Some(cache) => {
                let [keys, values] = match cache {
                    Some(kept) => {
                        let pairs = kept.iter_mut().zip(new);
                        pairs.for_each(|(kept, new)| kept.push(new));
                        kept
                    }
                    None => cache.insert(new.map(|new| new.to_owned().into())),
                };
                mixer.attend(&queries, keys.view(), values.view(), &mut mixed);
            }
        }
        Ok(mixed)
    }

    fn project<'s>(
        &self,
        linears: &[Linear],
        x: &Array2<f32>,
        scratch: &'s Scratch,
    ) -> Result<[Scrap<'s>; 3]> {
        match (self.qkv, linears) {
            (Qkv::Split(_), [q, k, v]) => outputs(scratch, x, [q, k, v]),
            (Qkv::Fused { by_head, .. }, [fused]) => {
                let [fused] = outputs(scratch, x, [fused])?;
                // Whole parts after each other, or a head's width of each part in turn.
                let pieces = match by_head {
                    true => [self.head_dim; 3],
                    false => self.widths,
                };
                Ok(std::array::from_fn(|part| {
                    let mut own = scratch.matrix(fused.nrows(), self.widths[part]);
                    take_part(&fused, &mut own, pieces, part);
                    own
                }))
            }
            _ => Err(Error::tensor(
                "(query, key and value)",
                format!("{} layers do not fit {:?}", linears.len(), self.qkv),
            )),
        }
    }
}

/// The biases by relative position of a block's stack, where it has some.
fn relative_bias(weights: &Weights, block: usize) -> Result<Option<RelativeBias>> {
    let config = &weights.config;
    let (Some((name, shape)), Positions::Relative { max_distance, .. }) =
        (weights.relative_bias(block), &config.positions)
    else {
        return Ok(None);
    };
    Ok(Some(RelativeBias {
        table: weights.read(&name, &shape)?.flatten_all()?.to_vec1()?,
        heads: config.heads,
        max_distance: *max_distance,
        both_ways: !config.causal(block),
    }))
}

/// From rows that are pieces of three parts in turn, the pieces of one part.
fn take_part(fused: &Array2<f32>, own: &mut Array2<f32>, pieces: [usize; 3], part: usize) {
    let (from, to) = (fused.ncols(), own.ncols());
    let before: usize = pieces[..part].iter().sum();
    let all: usize = pieces.iter().sum();
    if let (Some(fused), Some(own)) = (fused.as_slice(), own.as_slice_mut()) {
        own.par_chunks_mut(to)
            .zip(fused.par_chunks(from))
            .for_each(|(own, fused)| {
                let pairs = own.chunks_mut(pieces[part]).zip(fused.chunks(all));
                pairs.for_each(|(own, fused)| own.copy_from_slice(&fused[before..][..own.len()]));
            });
    }
}
