//! Which layers of a model are treated, and how.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use sparsegpt::{LayerSettings, LeastTokens, ModelPlan, Pattern, Selector, Sparsity, Starved};

use super::allocation::{AllocatorChoice, percentage};
use super::recipe::read_text;
use super::{LayerFlags, on};
use crate::failure::Failure;

/// What stands for "leave the layer as it is" in rules and lists.
const SKIP: &str = "skip";

/// LAYERS in these flags is a part of a layer's name, a name with `*` for any run of characters, `block:3`,
/// `blocks:0-3`, or `layer:12` (all counted from 0).
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct PlanFlags {
    /// Leave these layers as they are (a part of the name, a glob with *, block:3, blocks:0-3, or layer:12;
    /// repeatable;
    /// decides over --rule)
    #[arg(long, value_name = "LAYERS", help_heading = "Layers")]
    pub(crate) skip: Vec<String>,

    /// Treat these layers only (as in --skip; repeatable)
    #[arg(long, value_name = "LAYERS", help_heading = "Layers")]
    pub(crate) only: Vec<String>,

    /// Leave the first N blocks as they are
    #[arg(long, value_name = "N", help_heading = "Layers")]
    pub(crate) first: Option<usize>,

    /// Leave the last N blocks as they are
    #[arg(long, value_name = "N", help_heading = "Layers")]
    pub(crate) last: Option<usize>,

    /// Calibrate the layers of a block in turn (query, key and value; the attention's output; gate and up; down), each on what
    /// the treated ones before it give: a forward pass for each of these in place of one for the block
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Calibration")]
    pub(crate) true_sequential: Option<bool>,

    /// Let layers aim at the outputs of the dense model on the inputs they have now, by so much from 0 to 1 (GPTAQ takes 0.25): a
    /// forward pass more for each block, and the dense model's hidden states in memory too [default: 0]
    #[arg(long, value_name = "STRENGTH", help_heading = "Calibration")]
    pub(crate) dense_targets: Option<f64>,

    /// Another pattern for some layers, as in '*down_proj=2:4' or 'block:0=skip' (repeatable; the last
    /// rule that matches decides)
    #[arg(long, value_name = "LAYERS=PATTERN", help_heading = "Layers")]
    pub(crate) rule: Vec<String>,

    /// One pattern for each layer in order, as in 50%,60%,skip, or a file of them (separated by commas,
    /// blanks or line ends; # starts a comment)
    #[arg(long, value_name = "LIST|FILE", help_heading = "Layers")]
    pub(crate) pattern_list: Option<String>,

    /// Divide the zeros of --pattern among the layers, exactly that many in the whole model: uniform (the same share
    /// everywhere), owl (blocks with more outliers stay denser), exact (the least sum of losses, each layer being solved at
    /// several sparsities on the dense model first), global (one magnitude threshold over all layers). Without it each
    /// layer has the sparsity of --pattern, rounded down
    #[arg(
        long,
        value_name = "ALLOCATOR",
        hide_possible_values = true,
        help_heading = "Layers"
    )]
    pub(crate) allocate: Option<AllocatorChoice>,

    /// With --allocate: no layer gets fewer zeros than this [default: 0%]
    #[arg(long, value_name = "PERCENT", help_heading = "Layers")]
    #[serde(with = "percentage")]
    pub(crate) min_sparsity: Option<Sparsity>,

    /// With --allocate: no layer gets more zeros than this [default: 100%]
    #[arg(long, value_name = "PERCENT", help_heading = "Layers")]
    #[serde(with = "percentage")]
    pub(crate) max_sparsity: Option<Sparsity>,

    /// What becomes of experts that too few calibration tokens reach: magnitude (pruned by magnitude), share (calibrated
    /// on the tokens of all experts of the block), error [default: magnitude]
    #[arg(
        long,
        value_name = "POLICY",
        hide_possible_values = true,
        help_heading = "Layers"
    )]
    pub(crate) starved_experts: Option<StarvedChoice>,

    /// How many tokens an expert must get at least: a number, or a percentage of a layer's columns [default: 1]
    #[arg(long, value_name = "N|PERCENT", help_heading = "Layers")]
    pub(crate) min_expert_tokens: Option<String>,
}

/// What becomes of experts that too few calibration tokens reach.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StarvedChoice {
    /// Pruned by magnitude.
    #[default]
    Magnitude,
    /// Calibrated on the tokens of all experts.
    Share,
    /// The run ends.
    Error,
}

impl From<StarvedChoice> for Starved {
    fn from(choice: StarvedChoice) -> Self {
        match choice {
            StarvedChoice::Magnitude => Self::Magnitude,
            StarvedChoice::Share => Self::Share,
            StarvedChoice::Error => Self::Error,
        }
    }
}

impl PlanFlags {
    /// A flag that was given and means nothing where all blocks stay dense.
    pub(crate) fn of_single_runs(&self) -> Option<&'static str> {
        if on(self.true_sequential) {
            return Some("--true-sequential");
        }
        (self.dense_targets.unwrap_or(0.0) > 0.0).then_some("--dense-targets")
    }

    /// The plan these flags and those for a layer describe, with one of the layer's patterns.
    ///
    /// # Errors
    /// For flags that do not go together or cannot be understood, and if nothing would be done.
    pub(crate) fn plan(
        &self,
        layer: &LayerFlags,
        pattern: Option<Pattern>,
    ) -> Result<ModelPlan, Failure> {
        if self.pattern_list.is_some() && pattern.is_some() {
            return Err(Failure::usage(
                "--pattern (one for all layers) and --pattern-list (one for each) exclude each other; use --rule for exceptions",
            ));
        }
        let everywhere = treatment(layer, pattern)?;
        let dense = || layer.settings(Arc::new(Pattern::Dense));
        let mut plan = match &everywhere {
            Some(settings) => ModelPlan::new(settings.clone()),
            // Rules or a list say where something is done.
            None => ModelPlan::new(dense()?).skipping(Selector::Name("*".to_owned())),
        };
        let mut treats = everywhere.is_some();
        if let Some(list) = &self.pattern_list {
            let treatments: Vec<Option<LayerSettings>> = list_treatments(list)?
                .into_iter()
                .map(|given| treatment(layer, given))
                .collect::<Result<_, _>>()?;
            treats |= treatments.iter().any(Option::is_some);
            let settings = treatments
                .iter()
                .map(|treatment| treatment.clone().map_or_else(dense, Ok))
                .collect::<Result<_, _>>()?;
            plan = ModelPlan::new(dense()?).with_settings_per_layer(settings);
            let skipped = treatments.iter().enumerate().filter(|(_, t)| t.is_none());
            for (index, _) in skipped {
                plan = plan.skipping(Selector::Index(index));
            }
        }
        for rule in &self.rule {
            let Some((layers, pattern)) = rule.rsplit_once('=') else {
                return Err(Failure::usage(format!(
                    "--rule: expected LAYERS=PATTERN, as in '*down_proj=2:4', found {rule:?}"
                )));
            };
            let layers = selector("--rule", layers)?;
            let given = pattern_or_skip(pattern)
                .map_err(|error| Failure::usage(format!("--rule {rule}: {error}")))?;
            plan = match treatment(layer, given)? {
                Some(settings) => {
                    treats = true;
                    plan.with_rule(layers, settings)
                }
                None => plan.skipping(layers),
            };
        }
        if !treats {
            let with = pattern.map_or_else(String::new, |given| format!(" with --pattern {given}"));
            return Err(Failure::usage(format!(
                "nothing to do{with}: give --pattern (50%, row:50%, 2:4) to prune, --bits (2 to 8) to quantize, or both; or patterns by --rule or --pattern-list",
            )));
        }
        self.restricted(plan)
    }

    /// A plan that treats the layers of which there are settings, by their numbers, and leaves all others.
    ///
    /// # Errors
    /// As [`plan`](Self::plan), and for other flags that say what a layer gets.
    pub(crate) fn plan_of(
        &self,
        layer: &LayerFlags,
        settings: Vec<(usize, LayerSettings)>,
    ) -> Result<ModelPlan, Failure> {
        let others = [
            ("--rule", !self.rule.is_empty()),
            ("--pattern-list", self.pattern_list.is_some()),
            ("--allocate", self.allocate.is_some()),
        ];
        if let Some((flag, _)) = others.iter().find(|(_, given)| *given) {
            return Err(Failure::usage(format!(
                "{flag} and --masks both say what a layer gets; leave one out"
            )));
        }
        let dense = layer.settings(Arc::new(Pattern::Dense))?;
        let mut plan = ModelPlan::new(dense).skipping(Selector::Name("*".to_owned()));
        for (index, settings) in settings {
            plan = plan.with_rule(Selector::Index(index), settings);
        }
        self.restricted(plan)
    }

    /// The same plan, with what `--skip`, `--only`, `--first` and `--last` leave out.
    fn restricted(&self, mut plan: ModelPlan) -> Result<ModelPlan, Failure> {
        for layers in &self.skip {
            plan = plan.skipping(selector("--skip", layers)?);
        }
        for layers in &self.only {
            plan = plan.only(selector("--only", layers)?);
        }
        let least = match &self.min_expert_tokens {
            Some(text) => text.parse().map_err(|_| {
                Failure::usage(format!(
                    "--min-expert-tokens {text}: expected a number (64) or a percentage of the columns (50%)"
                ))
            })?,
            None => LeastTokens::default(),
        };
        Ok(plan
            .with_true_sequential(on(self.true_sequential))
            .with_dense_targets(self.dense_targets.unwrap_or(0.0))
            .with_starved(self.starved_experts.unwrap_or_default().into())
            .with_least_tokens(least)
            .with_dense_first_blocks(self.first.unwrap_or(0))
            .with_dense_last_blocks(self.last.unwrap_or(0)))
    }
}

/// What is done to a layer with this pattern (`None`: skip); nothing where it is neither pruned nor
/// quantized.
fn treatment(
    layer: &LayerFlags,
    pattern: impl Into<Treatment>,
) -> Result<Option<LayerSettings>, Failure> {
    match pattern.into() {
        Treatment::Skip => Ok(None),
        Treatment::With(Pattern::Dense) if layer.bits.is_none() => Ok(None),
        Treatment::With(pattern) => layer.settings(Arc::new(pattern)).map(Some),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Treatment {
    Skip,
    With(Pattern),
}

impl From<Option<Pattern>> for Treatment {
    /// No pattern given: quantization alone.
    fn from(pattern: Option<Pattern>) -> Self {
        Self::With(pattern.unwrap_or(Pattern::Dense))
    }
}

fn pattern_or_skip(text: &str) -> sparsegpt::Result<Treatment> {
    if text.trim() == SKIP {
        return Ok(Treatment::Skip);
    }
    Ok(Treatment::With(Pattern::from_str(text)?))
}

/// What a list given in place or in a file says of each layer.
fn list_treatments(list: &str) -> Result<Vec<Treatment>, Failure> {
    let place = match Path::new(list).is_file() {
        true => format!("--pattern-list {list}"),
        false => "--pattern-list".to_owned(),
    };
    let entries = list_entries(list)?;
    let treatments = entries.iter().zip(1..).map(|(entry, number)| {
        pattern_or_skip(entry)
            .map_err(|error| Failure::usage(format!("{place}: entry {number}: {error}")))
    });
    treatments.collect()
}

/// The entries of a list given in place or in a file.
fn list_entries(list: &str) -> Result<Vec<String>, Failure> {
    let path = Path::new(list);
    let text = if path.is_file() {
        read_text(path, "the pattern list")?
    } else {
        list.to_owned()
    };
    let entries: Vec<String> = text
        .lines()
        .map(|line| line.split_once('#').map_or(line, |(before, _)| before))
        .flat_map(|line| line.split([',', ' ', '\t', '\r']))
        .filter(|entry| !entry.is_empty())
        .map(str::to_owned)
        .collect();
    if entries.is_empty() {
        return Err(Failure::usage(format!(
            "--pattern-list: no pattern in {list:?}"
        )));
    }
    Ok(entries)
}

/// The layers that `flag` names.
pub(crate) fn selector(flag: &str, text: &str) -> Result<Selector, Failure> {
    let malformed = || {
        Failure::usage(format!(
            "{flag} {text:?}: expected a part of a name, a glob with *, block:3, blocks:0-3 or layer:12"
        ))
    };
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| malformed());
    if text.is_empty() {
        return Err(malformed());
    }
    if let Some(index) = text.strip_prefix("layer:") {
        return Ok(Selector::Index(number(index)?));
    }
    if let Some(blocks) = text
        .strip_prefix("blocks:")
        .or_else(|| text.strip_prefix("block:"))
    {
        let (first, last) = blocks.split_once('-').unwrap_or((blocks, blocks));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(malformed());
        }
        return Ok(Selector::Blocks { first, last });
    }
    Ok(Selector::Name(text.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[test]
    fn selectors_are_read() {
        assert_eq!(
            selector("--skip", "down_proj").unwrap(),
            Selector::Name("down_proj".to_owned())
        );
        assert_eq!(selector("--skip", "layer:12").unwrap(), Selector::Index(12));
        assert_eq!(
            selector("--skip", "block:3").unwrap(),
            Selector::Blocks { first: 3, last: 3 }
        );
        assert_eq!(
            selector("--skip", "blocks:0-3").unwrap(),
            Selector::Blocks { first: 0, last: 3 }
        );
        for bad in ["", "layer:x", "blocks:3-1", "block:"] {
            assert!(selector("--skip", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(
            list_entries("50%,2:4, skip").unwrap(),
            ["50%", "2:4", "skip"]
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "50% # first\n\n2:4,row:30%\r\n").unwrap();
        assert_eq!(
            list_entries(file.path().to_str().unwrap()).unwrap(),
            ["50%", "2:4", "row:30%"]
        );
        assert!(list_entries(" ,").is_err());
        let told = |list: &str| list_treatments(list).unwrap_err().message();
        assert!(told("50%,5:4").starts_with("--pattern-list: entry 2: "));
        fs::write(file.path(), "\u{feff}50%\n150%").unwrap();
        let list = file.path().to_str().unwrap();
        assert_eq!(list_entries(list).unwrap(), ["50%", "150%"]);
        assert!(told(list).starts_with(&format!("--pattern-list {list}: entry 2: ")));
    }

    #[test]
    fn a_plan_needs_something_to_do() {
        let nothing = LayerFlags::default();
        assert!(PlanFlags::default().plan(&nothing, None).is_err());
        let skipping = PlanFlags {
            rule: vec!["mlp=skip".to_owned()],
            ..PlanFlags::default()
        };
        assert!(skipping.plan(&nothing, None).is_err());
        let rule = PlanFlags {
            rule: vec!["mlp=2:4".to_owned()],
            ..PlanFlags::default()
        };
        assert!(rule.plan(&nothing, None).is_ok());
        let bits = LayerFlags {
            bits: Some(4),
            ..LayerFlags::default()
        };
        assert!(PlanFlags::default().plan(&bits, None).is_ok());
        let list = PlanFlags {
            pattern_list: Some("50%".to_owned()),
            ..PlanFlags::default()
        };
        assert!(list.plan(&bits, Some(Pattern::Dense)).is_err());
    }
}
