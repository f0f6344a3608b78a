//! A small model that writes down every call.

use std::ops::ControlFlow;

use ndarray::{Array2, s};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::{Batch, BlockLayer, LayerSettings, ModelAdapter, Pattern, ProgressEvent, Tap};

pub(crate) const WIDTH: usize = 8;

#[derive(Debug, thiserror::Error)]
#[error("broken on purpose")]
pub(crate) struct Broken;

/// Blocks of two layers `a`, `b` that read the same input and one `c` that reads relu(a + b).
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) blocks: Vec<[Array2<f32>; 3]>,
    pub(crate) calls: Vec<String>,
    pub(crate) fail_at: Option<usize>,
    pub(crate) poison: bool,
    /// In this block, layer `c` is an expert, and so many tokens of each sequence go to it. What the block passes on is
    /// half of what it reads.
    pub(crate) starve: Option<(usize, usize)>,
}

impl Model {
    pub(crate) fn new(blocks: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut matrix =
            || Array2::from_shape_fn((WIDTH, WIDTH), |_| random.random_range(-1.0_f32..1.0));
        let blocks = (0..blocks)
            .map(|_| [matrix(), matrix(), matrix()])
            .collect();
        Self {
            blocks,
            calls: Vec::new(),
            fail_at: None,
            poison: false,
            starve: None,
        }
    }
}

pub(crate) fn sequences(count: usize) -> Vec<Array2<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(99);
    (0..count)
        .map(|_| Array2::from_shape_fn((20, WIDTH), |_| random.random_range(-1.0_f32..1.0)))
        .collect()
}

impl ModelAdapter for Model {
    type Sequence = Array2<f32>;
    type Hidden = Array2<f32>;
    type Error = Broken;

    fn blocks(&self) -> usize {
        self.blocks.len()
    }
    fn layers(&self, block: usize) -> Result<Vec<BlockLayer>, Broken> {
        let layer = |part: &str, input| BlockLayer {
            name: format!("block.{block}.{part}"),
            rows: WIDTH,
            cols: WIDTH,
            input,
        };
        Ok(vec![layer("a", 0), layer("b", 0), layer("c", 1)])
    }
    fn may_starve(&self, block: usize, input: usize) -> bool {
        input == 1 && self.starve.is_some_and(|(starved, _)| starved == block)
    }
    fn embed(&mut self, sequence: &Array2<f32>) -> Result<Array2<f32>, Broken> {
        self.calls.push("embed".into());
        Ok(sequence.clone())
    }
    fn begin_block(&mut self, block: usize) -> Result<(), Broken> {
        self.calls.push(format!("begin {block}"));
        Ok(())
    }
    fn end_block(&mut self, block: usize) -> Result<(), Broken> {
        self.calls.push(format!("end {block}"));
        Ok(())
    }
    fn run_block(
        &mut self,
        block: usize,
        hidden: &Array2<f32>,
        tap: &mut dyn Tap,
    ) -> Result<Array2<f32>, Broken> {
        if self.fail_at == Some(block) {
            return Err(Broken);
        }
        let tapped = if tap.wants(0) || tap.wants(1) {
            "tap"
        } else {
            "run"
        };
        self.calls.push(format!("{tapped} {block}"));
        let [a, b, c] = &self.blocks[block];
        tap.observe(0, hidden.view().into());
        let mut inner = (hidden.dot(&a.t()) + hidden.dot(&b.t())).mapv(|x| x.max(0.0));
        if self.poison && block == 1 {
            inner[[3, 2]] = f32::NAN;
        }
        if let Some((_, tokens)) = self.starve.filter(|(starved, _)| *starved == block) {
            let shown = if tap.wants_all(1) {
                inner.nrows()
            } else {
                tokens
            };
            if shown > 0 {
                tap.observe(1, Batch::new(inner.slice(s![..shown, ..])));
            }
            return Ok(hidden * 0.5);
        }
        tap.observe(1, Batch::new(inner.view()));
        Ok(hidden + &inner.dot(&c.t()))
    }
    fn weight(&self, block: usize, layer: usize) -> Result<Array2<f32>, Broken> {
        Ok(self.blocks[block][layer].clone())
    }
    fn replace_weight(
        &mut self,
        block: usize,
        layer: usize,
        weight: Array2<f32>,
    ) -> Result<(), Broken> {
        self.calls.push(format!("replace {block}.{layer}"));
        self.blocks[block][layer] = weight;
        Ok(())
    }
}

pub(crate) fn half() -> LayerSettings {
    LayerSettings::new(Pattern::unstructured(0.5).unwrap())
}

pub(crate) fn go_on(_: &ProgressEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
