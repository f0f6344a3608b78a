//! Feed-forward parts of many experts, of which each token goes to a few.

use candle_core::Tensor;
use faer::Accum;
use ndarray::{Array2, Axis};
use sparsegpt::{NoTap, Tap};

use super::block::{Position, observe};
use super::config::Activation;
use super::feed_forward::inner;
use super::linear::{Linear, outputs};
use super::product::products;
use super::scratch::{Scrap, Scratch};
use super::weights::{MLP_INPUT, MLP_OUTPUT, Weights, expert_inputs};
use crate::Result;

/// Layers of an expert: gate, up, down.
const LAYERS: usize = 3;

/// What decides which expert sees which token, and how much it counts.
#[derive(Clone, Debug)]
pub(super) struct Router {
    /// Experts x width.
    weight: Tensor,
    active: usize,
    normalized: bool,
    /// 1 x width: what weighs the expert that all tokens go to.
    shared: Option<Tensor>,
    activation: Activation,
}

/// The tokens that go to one expert, and its weights for them.
type Share = Vec<(usize, f32)>;

impl Router {
    /// The router of a block, where it has experts.
    pub(super) fn load(weights: &Weights, block: usize) -> Result<Option<Self>> {
        let config = &weights.config;
        let spec = &config.family.spec().experts;
        let (Some(experts), Some(spec)) = (config.experts_of(block), spec) else {
            return Ok(None);
        };
        let read = |part: &str, rows| {
            let name = format!("{}.weight", weights.block_name(block, part));
            weights.read(&name, &[rows, config.hidden_size])
        };
        Ok(Some(Self {
            weight: read(spec.router, experts.count)?,
            active: experts.active,
            normalized: experts.normalized,
            shared: match spec.shared {
                Some([_, gate]) => Some(read(gate, 1)?),
                None => None,
            },
            activation: config.activation,
        }))
    }

    /// Adds what the experts make of `x` (tokens x width) to `sum`, where there is one, weighed token by token. What
    /// each expert's layers read goes to `tap`, the tokens of that expert alone, or all where the tap wants them; an
    /// expert without tokens shows nothing otherwise.
    pub(super) fn add_output(
        &self,
        linears: &[Linear],
        position: &Position<'_>,
        x: &Array2<f32>,
        sequences: usize,
        tap: &mut dyn Tap,
        mut sum: Option<&mut Array2<f32>>,
    ) -> Result<()> {
        let scratch = position.scratch;
        let shared = self.shared.as_ref().map_or(0, |_| LAYERS);
        let (of_all, experts) = linears.split_at(shared);
        if let (Some(gate), [_, _, down]) = (&self.shared, of_all) {
            observe(tap, MLP_INPUT, sequences, x, position.counts);
            let inner = inner(of_all, self.activation, scratch, x)?;
            observe(tap, MLP_OUTPUT, sequences, &inner, position.counts);
            if let Some(sum) = &mut sum {
                let mut weights = scratch.matrix(x.nrows(), 1);
                let product = (&mut *weights, Accum::Replace, gate);
                products(x.view(), vec![product])?;
                let share = weights.iter().map(|&logit| 1.0 / (1.0 + (-logit).exp()));
                let share: Share = share.enumerate().collect();
                add_weighed(sum, scratch, down, &inner, &share)?;
            }
        }
        let shares = self.shares(scratch, x)?;
        for (expert, (layers, share)) in experts.chunks_exact(LAYERS).zip(&shares).enumerate() {
            let [input, output] = expert_inputs(expert);
            let wants_all = tap.wants_all(input) || tap.wants_all(output);
            if wants_all {
                observe(tap, input, sequences, x, position.counts);
                let inner = inner(layers, self.activation, scratch, x)?;
                observe(tap, output, sequences, &inner, position.counts);
            }
            if share.is_empty() || (wants_all && sum.is_none()) {
                continue;
            }
            let mut own = scratch.matrix(share.len(), x.ncols());
            for (mut row, (token, _)) in own.rows_mut().into_iter().zip(share) {
                row.assign(&x.row(*token));
            }
            let counts: Option<Vec<bool>> = position
                .counts
                .map(|counts| share.iter().map(|(token, _)| counts[*token]).collect());
            let routed: &mut dyn Tap = if wants_all { &mut NoTap } else { &mut *tap };
            observe(routed, input, sequences, &own, counts.as_deref());
            let inner = inner(layers, self.activation, scratch, &own)?;
            observe(routed, output, sequences, &inner, counts.as_deref());
            if let (Some(sum), Some(down)) = (&mut sum, layers.last()) {
                add_weighed(sum, scratch, down, &inner, share)?;
            }
        }
        Ok(())
    }

    /// Each expert's tokens: every token goes to the experts with the highest probabilities.
    fn shares(&self, scratch: &Scratch, x: &Array2<f32>) -> Result<Vec<Share>> {
        let experts = self.weight.dims2()?.0;
        let mut logits = scratch.matrix(x.nrows(), experts);
        let product = (&mut *logits, Accum::Replace, &self.weight);
        products(x.view(), vec![product])?;
        let mut shares = vec![Share::new(); experts];
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        for (token, row) in logits.axis_iter(Axis(0)).enumerate() {
            order.clear();
            order.extend(0..experts);
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let highest = row[order[0]];
            let part = |expert: usize| (row[expert] - highest).exp();
            let chosen = &order[..self.active];
            let all = match self.normalized {
                true => chosen,
                false => &order[..],
            };
            let sum: f32 = all.iter().map(|&expert| part(expert)).sum();
            for &expert in chosen {
                shares[expert].push((token, part(expert) / sum));
            }
        }
        Ok(shares)
    }
}

/// Adds what a layer makes of some tokens' rows to the sums of those tokens.
fn add_weighed(
    sum: &mut Array2<f32>,
    scratch: &Scratch,
    layer: &Linear,
    rows: &Array2<f32>,
    share: &Share,
) -> Result<()> {
    let [made]: [Scrap<'_>; 1] = outputs(scratch, rows, [layer])?;
    for (row, &(token, weight)) in made.rows().into_iter().zip(share) {
        sum.row_mut(token).scaled_add(weight, &row);
    }
    Ok(())
}
