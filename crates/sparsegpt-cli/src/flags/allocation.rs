//! How zeros are divided among the layers of a model.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparsegpt::allocate::{Exact, GlobalMagnitude, Owl, Uniform};
use sparsegpt::{Allocator, Budget, Pattern, Sparsity};

use super::{LayerFlags, PlanFlags};
use crate::failure::Failure;

/// The allocators with their usual settings.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AllocatorChoice {
    /// The same sparsity in all layers, exact over the whole model.
    Uniform,
    /// Blocks with more outliers stay denser (Yin et al. 2023).
    Owl,
    /// The least sum of measured losses.
    Exact,
    /// One magnitude threshold for the whole model.
    Global,
}

/// What is divided, and how.
#[derive(Debug)]
pub(crate) struct Allocating {
    choice: AllocatorChoice,
    pub(crate) budget: Budget,
}

impl Allocating {
    pub(crate) fn allocator(&self) -> Box<dyn Allocator> {
        match self.choice {
            AllocatorChoice::Uniform => Box::new(Uniform),
            AllocatorChoice::Owl => Box::new(Owl::default()),
            AllocatorChoice::Exact => Box::new(Exact::default()),
            AllocatorChoice::Global => Box::new(GlobalMagnitude),
        }
    }

    /// How often every layer is solved to find out.
    pub(crate) fn solutions(&self) -> usize {
        match self.choice {
            AllocatorChoice::Exact => Exact::default().points,
            _ => 0,
        }
    }
}

impl PlanFlags {
    /// What `--allocate` asks for, with one of the layer's patterns.
    ///
    /// # Errors
    /// For flags that do not go with it, and a pattern without a sparsity to divide.
    pub(crate) fn allocating(
        &self,
        layer: &LayerFlags,
        pattern: Option<Pattern>,
    ) -> Result<Option<Allocating>, Failure> {
        let bounds = [
            ("--min-sparsity", self.min_sparsity),
            ("--max-sparsity", self.max_sparsity),
        ];
        let Some(choice) = self.allocate else {
            return match bounds.iter().find(|(_, given)| given.is_some()) {
                Some((flag, _)) => Err(Failure::usage(format!(
                    "{flag} bounds what --allocate gives a layer: give --allocate too"
                ))),
                None => Ok(None),
            };
        };
        let Some(pattern) = pattern else {
            return Err(Failure::usage(
                "--allocate divides the zeros that --pattern asks for: give --pattern with a percentage (50%, row:50%, block:16:50%)",
            ));
        };
        let Some(sparsity) = pattern.sparsity() else {
            return Err(Failure::usage(format!(
                "--allocate: pattern {pattern} has no sparsity to divide, each layer's zeros are fixed by it; use a percentage (50%, row:50%, block:16:50%)"
            )));
        };
        if self.pattern_list.is_some() {
            return Err(Failure::usage(
                "--allocate and --pattern-list both say what each layer gets; leave one out",
            ));
        }
        if let Some(rule) = self.rule.iter().find(|rule| !rule.ends_with("=skip")) {
            return Err(Failure::usage(format!(
                "--allocate and --rule {rule} both say what a layer gets; with --allocate rules can only skip layers"
            )));
        }
        if choice == AllocatorChoice::Exact && !layer.parts().needs_hessian() {
            return Err(Failure::usage(format!(
                "--allocate exact compares losses, and --method {} runs without the calibration that measures them; use --allocate uniform, owl or global",
                layer.method()
            )));
        }
        let budget = Budget::new(sparsity)
            .with_floor(self.min_sparsity.unwrap_or(Sparsity::NONE))
            .with_ceiling(self.max_sparsity.unwrap_or(Sparsity::ALL));
        budget.validate().map_err(|_| {
            Failure::usage(format!(
                "--pattern {pattern} is not between --min-sparsity {} and --max-sparsity {}",
                budget.floor, budget.ceiling
            ))
        })?;
        Ok(Some(Allocating { choice, budget }))
    }

    /// Whether allocation needs calibration data, whatever the method.
    pub(crate) fn allocation_needs_calibration(&self) -> bool {
        matches!(
            self.allocate,
            Some(AllocatorChoice::Owl | AllocatorChoice::Exact)
        )
    }
}

/// A sparsity as it is written on the command line, as in `30%`, in recipe files and reports too.
pub(crate) mod percentage {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use sparsegpt::Sparsity;

    pub(crate) fn serialize<S: Serializer>(
        sparsity: &Option<Sparsity>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        sparsity
            .map(|given| given.to_string())
            .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Sparsity>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sparsegpt::Method;

    use super::*;

    fn with(choice: AllocatorChoice) -> PlanFlags {
        PlanFlags {
            allocate: Some(choice),
            ..PlanFlags::default()
        }
    }

    #[test]
    fn what_does_not_go_with_allocation_is_named() {
        let layer = LayerFlags::default();
        let half = || Some("50%".parse().unwrap());
        let sparsity = |text: &str| Some(text.parse().unwrap());
        let bounded = PlanFlags {
            min_sparsity: sparsity("30%"),
            ..PlanFlags::default()
        };
        let exact = with(AllocatorChoice::Exact);
        let magnitude = LayerFlags {
            method: Some(Method::Magnitude),
            ..LayerFlags::default()
        };
        let rule = PlanFlags {
            rule: vec!["up=skip".to_owned(), "down=2:4".to_owned()],
            ..exact.clone()
        };
        let list = PlanFlags {
            pattern_list: Some("50%".to_owned()),
            ..exact.clone()
        };
        let narrow = PlanFlags {
            max_sparsity: sparsity("40%"),
            ..exact.clone()
        };
        for (flags, layer, pattern, named) in [
            (&bounded, &layer, half(), "--min-sparsity bounds"),
            (&exact, &layer, None, "give --pattern"),
            (
                &exact,
                &layer,
                Some("2:4".parse().unwrap()),
                "pattern 2:4 has no sparsity",
            ),
            (
                &exact,
                &layer,
                Some("64:6:8".parse().unwrap()),
                "pattern 64:6:8 has no sparsity",
            ),
            (&exact, &magnitude, half(), "--method magnitude"),
            (&rule, &layer, half(), "--rule down=2:4"),
            (&list, &layer, half(), "--pattern-list"),
            (&narrow, &layer, half(), "--max-sparsity 40%"),
        ] {
            let error = format!("{:?}", flags.allocating(layer, pattern).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
        let skipping = PlanFlags {
            rule: vec!["up=skip".to_owned()],
            min_sparsity: sparsity("30%"),
            ..with(AllocatorChoice::Owl)
        };
        let found = skipping.allocating(&magnitude, half()).unwrap().unwrap();
        assert_eq!(found.budget.floor.to_string(), "30%");
        assert!(
            PlanFlags::default()
                .allocating(&layer, half())
                .unwrap()
                .is_none()
        );
    }
}
