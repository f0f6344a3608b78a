//! Which layers of a model are treated, and how.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::adapter::{BlockLayer, ModelAdapter};
use crate::error::{Error, Result};
use crate::report::AllocationReport;
use crate::solver::LayerSettings;

/// Which layers a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// Layers whose name contains this text, or matches it where it has `*` (any run of characters) in it.
    Name(String),
    /// Layers of these blocks (first ..= last, counted from 0).
    Blocks {
        /// First block.
        first: usize,
        /// Last block, included.
        last: usize,
    },
    /// The layer with this number, counted from 0 over all layers of the model in order.
    Index(usize),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(pattern) => write!(f, "the name {pattern:?}"),
            Self::Blocks { first, last } if first == last => write!(f, "block {first}"),
            Self::Blocks { first, last } => write!(f, "blocks {first} to {last}"),
            Self::Index(index) => write!(f, "layer number {index}"),
        }
    }
}

impl Selector {
    fn matches(&self, block: usize, index: usize, name: &str) -> bool {
        match self {
            Self::Name(pattern) if pattern.contains('*') => glob(pattern, name),
            Self::Name(part) => name.contains(part.as_str()),
            Self::Blocks { first, last } => (*first..=*last).contains(&block),
            Self::Index(wanted) => *wanted == index,
        }
    }
}

/// Whether `name` as a whole matches `pattern`, in which `*` stands for any run of characters.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// What applies to the selected layers: other settings, or none (the layer stays dense).
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which layers.
    pub selector: Selector,
    /// What to do with them; `None` leaves them as they are.
    pub settings: Option<LayerSettings>,
}

/// What becomes of layers whose input too few calibration tokens have reached (see
/// [`ModelAdapter::may_starve`] and [`LeastTokens`]), under a method that needs calibration. They stand in
/// [`ModelReport::starved`](crate::ModelReport::starved).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Starved {
    /// They are pruned by magnitude to the same pattern, and rounded to the nearest level where they are quantized.
    #[default]
    Magnitude,
    /// They share the tokens of the block's other experts: their Hessians are those of all its tokens, as if the model
    /// routed every one to them. That takes a second pass over the block with starved layers. Where several plans share a
    /// run, the layers share under all plans as soon as they do under one.
    Share,
    /// The run ends with an error that names the layer.
    Error,
}

/// The number of calibration tokens below which an input counts as starved.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum LeastTokens {
    /// So many.
    Count(u64),
    /// So many for each column of the layer: with fewer than 1, its Hessian has no full rank.
    PerColumn(f64),
}

impl Default for LeastTokens {
    /// One token.
    fn default() -> Self {
        Self::Count(1)
    }
}

impl LeastTokens {
    /// The number for a layer of so many columns.
    #[must_use]
    pub fn of(self, cols: usize) -> u64 {
        match self {
            Self::Count(tokens) => tokens,
            Self::PerColumn(share) => (share * cols as f64).ceil() as u64,
        }
    }
}

impl FromStr for LeastTokens {
    type Err = Error;

    /// A number (`64`), or a percentage of the columns (`50%`).
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let parsed = match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.trim_end().parse::<f64>().ok();
                let percent = percent.filter(|percent| percent.is_finite() && *percent >= 0.0);
                percent.map(|percent| Self::PerColumn(percent / 100.0))
            }
            None => text.parse().ok().map(Self::Count),
        };
        parsed.ok_or_else(|| {
            Error::setting(
                "least tokens",
                "a number (64) or a percentage of the columns (50%)",
                format!("{text:?}"),
            )
        })
    }
}

/// Which layers of a model are treated, and how.
///
/// Starts from one setting for all layers. Rules are applied in order, the last one that matches a layer
/// decides; [`only`](Self::only) and the dense first and last blocks decide over the rules.
///
/// ```
/// use sparsegpt::{LayerSettings, ModelPlan, Pattern, Selector};
/// let plan = ModelPlan::new(LayerSettings::new(Pattern::unstructured(0.5)?))
///     .with_rule(Selector::Name("down_proj".into()), LayerSettings::new(Pattern::n_of_m(2, 4)?))
///     .skipping(Selector::Name("*.0.self_attn.*".into()))
///     .with_dense_last_blocks(1);
/// # let _ = plan;
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ModelPlan {
    default: LayerSettings,
    rules: Vec<Rule>,
    only: Vec<Selector>,
    dense_first: usize,
    dense_last: usize,
    per_layer: Option<Vec<LayerSettings>>,
    held_out: usize,
    true_sequential: bool,
    allocation: Option<Arc<AllocationReport>>,
    starved: Starved,
    least_tokens: LeastTokens,
}

/// One layer of a model and what the plan says about it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// The layer.
    pub layer: BlockLayer,
    /// What to do; `None` leaves it as it is.
    pub settings: Option<LayerSettings>,
    /// What to do if too few calibration tokens reach it.
    pub starved: Starved,
    /// The stage of its block in which it is calibrated and treated; 0 where all layers of a block are at once.
    pub stage: usize,
    /// Calibration tokens below which that are too few, where its input may starve.
    pub least_tokens: u64,
}

impl ModelPlan {
    /// The same settings for all layers.
    pub fn new(settings: LayerSettings) -> Self {
        Self {
            default: settings,
            rules: Vec::new(),
            only: Vec::new(),
            dense_first: 0,
            dense_last: 0,
            per_layer: None,
            held_out: 0,
            true_sequential: false,
            allocation: None,
            starved: Starved::default(),
            least_tokens: LeastTokens::default(),
        }
    }

    /// Other settings for some layers.
    pub fn with_rule(mut self, selector: Selector, settings: LayerSettings) -> Self {
        self.rules.push(Rule {
            selector,
            settings: Some(settings),
        });
        self
    }

    /// Leaves some layers dense.
    pub fn skipping(mut self, selector: Selector) -> Self {
        self.rules.push(Rule {
            selector,
            settings: None,
        });
        self
    }

    /// Leaves all layers dense that no selector given here matches; may be called several times.
    pub fn only(mut self, selector: Selector) -> Self {
        self.only.push(selector);
        self
    }

    /// What becomes of layers that too few calibration tokens reach; by default they are pruned by magnitude.
    pub fn with_starved(mut self, starved: Starved) -> Self {
        self.starved = starved;
        self
    }

    /// How many calibration tokens are too few; by default none at all.
    pub fn with_least_tokens(mut self, least: LeastTokens) -> Self {
        self.least_tokens = least;
        self
    }

    /// Leaves the first `blocks` blocks dense.
    pub fn with_dense_first_blocks(mut self, blocks: usize) -> Self {
        self.dense_first = blocks;
        self
    }

    /// Leaves the last `blocks` blocks dense.
    pub fn with_dense_last_blocks(mut self, blocks: usize) -> Self {
        self.dense_last = blocks;
        self
    }

    /// One setting for each layer of the model, in order (a sparsity list). Rules still apply on top.
    pub fn with_settings_per_layer(mut self, settings: Vec<LayerSettings>) -> Self {
        self.per_layer = Some(settings);
        self
    }

    /// Measures the error of every layer, of methods that need no Hessian too.
    pub fn measuring_all(mut self) -> Self {
        for settings in self.all_settings() {
            settings.measure_always = true;
        }
        self
    }

    /// Keeps the last `sequences` of the calibration set out of all Hessians; every layer's error on them stands in
    /// its report, and [`Method::Best`](crate::Method::Best) goes by it. Where plans share a run, the largest number counts.
    pub fn with_held_out(mut self, sequences: usize) -> Self {
        self.held_out = sequences;
        self
    }

    /// Calibration sequences that are held out.
    #[must_use]
    pub fn held_out(&self) -> usize {
        self.held_out
    }

    /// Calibrates the layers of a block stage by stage, each on the outputs of the treated layers before it in the block, so
    /// that they make up for those layers' errors too (`--true-sequential` of GPTQ's code, Frantar et al. 2022, arXiv
    /// 2210.17323): query, key and value; the attention's output; gate and up; down. A stage is what
    /// [`ModelAdapter::stage`] says. Costs a forward pass over the calibration set for each stage in place of one for the
    /// block. Without effect where all blocks stay dense, as under [`prune_model_variants`](super::prune_model_variants).
    pub fn with_true_sequential(mut self, true_sequential: bool) -> Self {
        self.true_sequential = true_sequential;
        self
    }

    /// Makes every layer aim at the dense model's outputs by so much, from 0 to 1; see
    /// [`LayerSettings::dense_targets`]. The dense model's hidden states are kept beside the others and run through each block
    /// before it is treated: twice the memory for them, and a forward pass more a block. Without effect where all blocks
    /// stay dense, and not together with [`with_true_sequential`](Self::with_true_sequential). Inputs that may starve, those of
    /// experts, are left out: which tokens they see differs between the two models.
    pub fn with_dense_targets(mut self, strength: f64) -> Self {
        for settings in self.all_settings() {
            settings.dense_targets = strength;
        }
        self
    }

    fn all_settings(&mut self) -> impl Iterator<Item = &mut LayerSettings> {
        let of_rules = self
            .rules
            .iter_mut()
            .filter_map(|rule| rule.settings.as_mut());
        let of_layers = self.per_layer.iter_mut().flatten();
        of_rules.chain(of_layers).chain([&mut self.default])
    }

    /// Whether layers are calibrated stage by stage.
    #[must_use]
    pub fn true_sequential(&self) -> bool {
        self.true_sequential
    }

    /// Calibrates as another plan does, with other settings for the layers.
    pub(crate) fn calibrated_as(mut self, other: &Self) -> Self {
        self.held_out = other.held_out;
        self.true_sequential = other.true_sequential;
        self.starving_as(other)
    }

    /// Does as another plan does where too few tokens come.
    pub(crate) fn starving_as(mut self, other: &Self) -> Self {
        self.starved = other.starved;
        self.least_tokens = other.least_tokens;
        self
    }

    /// Says where the settings of the layers come from, for the run's report.
    pub(crate) fn with_allocation(mut self, allocation: Arc<AllocationReport>) -> Self {
        self.allocation = Some(allocation);
        self
    }

    /// How zeros were divided among the layers, where [`allocate`](crate::allocate::allocate) made this plan.
    #[must_use]
    pub fn allocation(&self) -> Option<&Arc<AllocationReport>> {
        self.allocation.as_ref()
    }

    /// The plan for a model's layers, block by block, checked against their shapes.
    ///
    /// # Errors
    /// If settings do not fit a layer, a selector matches no layer, the list has another length than the
    /// model has layers, or no layer is left to treat.
    pub fn resolve<A: ModelAdapter>(&self, adapter: &A) -> Result<Vec<Vec<PlannedLayer>>> {
        let blocks = adapter.blocks();
        let mut planned = Vec::with_capacity(blocks);
        let mut used = vec![false; self.rules.len() + self.only.len()];
        let mut index = 0;
        for block in 0..blocks {
            let layers = adapter.layers(block).map_err(|e| Error::Adapter {
                block,
                action: "cannot list the layers".to_owned(),
                source: Box::new(e),
            })?;
            let mut of_block = Vec::with_capacity(layers.len());
            for layer in layers {
                let mut settings = match &self.per_layer {
                    None => Some(&self.default),
                    Some(list) => Some(list.get(index).unwrap_or(&self.default)),
                };
                for (at, rule) in self.rules.iter().enumerate() {
                    if rule.selector.matches(block, index, &layer.name) {
                        settings = rule.settings.as_ref();
                        used[at] = true;
                    }
                }
                let mut selected = self.only.is_empty();
                for (at, selector) in self.only.iter().enumerate() {
                    if selector.matches(block, index, &layer.name) {
                        selected = true;
                        used[self.rules.len() + at] = true;
                    }
                }
                let dense_block =
                    block < self.dense_first || block >= blocks.saturating_sub(self.dense_last);
                let settings = settings.filter(|_| selected && !dense_block).cloned();
                if let Some(settings) = &settings {
                    settings.validate(&layer.name, layer.rows, layer.cols)?;
                }
                of_block.push(PlannedLayer {
                    stage: match self.true_sequential {
                        true => adapter.stage(block, layer.input),
                        false => 0,
                    },
                    least_tokens: self.least_tokens.of(layer.cols),
                    layer,
                    settings,
                    starved: self.starved,
                });
                index += 1;
            }
            planned.push(of_block);
        }
        if let Some(list) = &self.per_layer
            && list.len() != index
        {
            return Err(Error::setting(
                "settings per layer",
                format!("{index}, one for each layer of the model"),
                list.len(),
            ));
        }
        let selectors = self
            .rules
            .iter()
            .map(|rule| &rule.selector)
            .chain(&self.only);
        if let Some((selector, _)) = selectors.zip(&used).find(|(_, used)| !**used) {
            return Err(Error::NothingToPrune {
                reason: format!(
                    "{selector} matches none of the model's {index} layers; check the name or number"
                ),
            });
        }
        if planned
            .iter()
            .flatten()
            .all(|layer| layer.settings.is_none())
        {
            return Err(Error::NothingToPrune {
                reason: format!(
                    "the rules leave all {index} layers of the model's {blocks} blocks dense; relax skip, only, first or last"
                ),
            });
        }
        Ok(planned)
    }
}

#[cfg(test)]
mod tests {
    use super::{LeastTokens, glob};

    #[test]
    fn least_tokens_are_a_number_or_a_share_of_the_columns() {
        let of = |text: &str| text.parse().map(|least: LeastTokens| least.of(30));
        assert_eq!(of("64").ok(), Some(64));
        assert_eq!(of("50%").ok(), Some(15));
        assert_eq!(of("101 %").ok(), Some(31));
        for wrong in ["", "-1", "%", "-5%", "NaN%", "few"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn globs_match_whole_names() {
        let name = "model.layers.3.mlp.down_proj";
        for pattern in [
            "*",
            "*down_proj",
            "model.*",
            "model.*.mlp.*",
            "*.3.*proj",
            "model.layers.3.mlp.down_proj*",
        ] {
            assert!(glob(pattern, name), "{pattern}");
        }
        for pattern in ["*up_proj", "layers.*", "model.*.attn.*", "*.mlp", "down*"] {
            assert!(!glob(pattern, name), "{pattern}");
        }
    }
}
