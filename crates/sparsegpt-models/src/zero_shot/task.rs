//! The tasks and what the harness knows of each.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A zero-shot task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Task {
    /// The last word of a passage (Paperno et al. 2016), in OpenAI's form.
    Lambada,
    /// Which of two solutions reaches a goal (Bisk et al. 2020).
    Piqa,
    /// Grade-school science, the easy part (Clark et al. 2018).
    ArcEasy,
    /// Grade-school science, the hard part.
    ArcChallenge,
    /// Which of four endings goes on with a scene (Zellers et al. 2019).
    #[serde(rename = "hellaswag")]
    HellaSwag,
    /// Whom a pronoun means (Sakaguchi et al. 2020).
    #[serde(rename = "winogrande")]
    WinoGrande,
    /// Yes or no to a question on a passage (Clark et al. 2019).
    #[serde(rename = "boolq")]
    BoolQ,
    /// Elementary science with a fact to be known (Mihaylov et al. 2018); without the fact.
    #[serde(rename = "openbookqa")]
    OpenBookQa,
    /// Which of two endings a story has (Mostafazadeh et al. 2016).
    #[serde(rename = "storycloze")]
    StoryCloze,
}

/// What is known of a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    name: &'static str,
    /// What the path of its file has in it, in lower case, `-` and spaces written `_`.
    pub(super) keys: &'static [&'static str],
    /// What the name of the split that is evaluated may have in it.
    pub(super) splits: &'static [&'static str],
    /// Whether choices are compared by log-likelihood a character, too.
    pub(super) normalized: bool,
}

const TEST: &[&str] = &["test"];
const VALIDATION: &[&str] = &["val", "dev"];

impl Task {
    /// Every task.
    pub const ALL: [Self; 9] = [
        Self::Lambada,
        Self::Piqa,
        Self::ArcEasy,
        Self::ArcChallenge,
        Self::HellaSwag,
        Self::WinoGrande,
        Self::BoolQ,
        Self::OpenBookQa,
        Self::StoryCloze,
    ];

    pub(super) const fn spec(self) -> Spec {
        let (name, keys, splits, normalized): (_, &'static [&'static str], _, _) = match self {
            Self::Lambada => ("lambada", &["lambada"], TEST, false),
            Self::Piqa => ("piqa", &["piqa"], VALIDATION, true),
            Self::ArcEasy => ("arc_easy", &["arc_easy"], TEST, true),
            Self::ArcChallenge => ("arc_challenge", &["arc_challenge"], TEST, true),
            Self::HellaSwag => ("hellaswag", &["hellaswag"], VALIDATION, true),
            Self::WinoGrande => ("winogrande", &["winogrande"], VALIDATION, false),
            Self::BoolQ => ("boolq", &["boolq"], VALIDATION, false),
            Self::OpenBookQa => ("openbookqa", &["openbookqa", "openbook_qa"], TEST, true),
            Self::StoryCloze => (
                "storycloze",
                &["storycloze", "story_cloze", "cloze_test"],
                VALIDATION,
                false,
            ),
        };
        Spec {
            name,
            keys,
            splits,
            normalized,
        }
    }

    /// The task's name, lm-evaluation-harness's as far as it has one (`lambada` is its `lambada_openai`, `storycloze` its
    /// `storycloze_2018`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// Whether choices are compared by log-likelihood a character, too ([`TaskResult::acc_norm`](super::TaskResult)).
    #[must_use]
    pub const fn is_normalized(self) -> bool {
        self.spec().normalized
    }
}

impl Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|task| task.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::setting("task", format!("one of {names}"), format!("{name:?}"))
        })
    }
}

/// How a question becomes tokens, and which score is the one to be quoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PromptRecipe {
    /// As lm-evaluation-harness: context and continuation are encoded as one text, with the tokenizer's own first
    /// token, and parted behind the tokens of the context; blanks at the context's end belong to the continuation.
    /// The accuracy is quoted.
    #[default]
    Harness,
    /// As the SparseGPT and GPTQ papers, on the harness of 2022: context and continuation are encoded each by itself,
    /// without a first token; LAMBADA passages begin with a line end and have plain quotation marks. For PIQA and
    /// ARC the normalized accuracy is quoted.
    Paper,
}

impl PromptRecipe {
    /// Every recipe.
    pub const ALL: [Self; 2] = [Self::Harness, Self::Paper];

    /// The recipe's name on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Harness => "harness",
            Self::Paper => "paper",
        }
    }

    /// Whether the normalized accuracy is the one that is quoted.
    #[must_use]
    pub const fn quotes_normalized(self, task: Task) -> bool {
        match (self, task) {
            (Self::Paper, Task::Piqa | Task::ArcEasy | Task::ArcChallenge) => true,
            (Self::Paper | Self::Harness, _) => false,
        }
    }
}

impl Display for PromptRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PromptRecipe {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|recipe| recipe.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::setting(
                "recipe of tasks",
                format!("one of {names}"),
                format!("{name:?}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_are_those_that_are_written_and_read() {
        for task in Task::ALL {
            assert_eq!(task.name().parse::<Task>().unwrap(), task);
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
        }
        for recipe in PromptRecipe::ALL {
            assert_eq!(recipe.name().parse::<PromptRecipe>().unwrap(), recipe);
            assert_eq!(serde_json::to_value(recipe).unwrap(), recipe.name());
        }
        let unknown = "arc".parse::<Task>().unwrap_err().to_string();
        assert!(
            unknown.contains("arc_easy") && unknown.contains("\"arc\""),
            "{unknown}"
        );
    }
}
