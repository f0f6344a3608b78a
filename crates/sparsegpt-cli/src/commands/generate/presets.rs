//! What `--preset` stands for.

/// A kind of text: how it is begun or asked for, and how tokens are drawn for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    /// Stands in for `{topic}` where no other is given.
    pub(super) topic: &'static str,
    /// The beginning that a model continues.
    pub(super) opening: &'static str,
    /// What a model with a chat template is asked.
    pub(super) request: &'static str,
    pub(super) max_new_tokens: usize,
    pub(super) temperature: f64,
    pub(super) min_p: f64,
    pub(super) repetition_penalty: f64,
}

pub(super) const PRESETS: [Preset; 5] = [
    Preset {
        name: "poem",
        topic: "the sea at night",
        opening: "A short poem about {topic}:\n\n",
        request: "Write a short poem about {topic}.",
        max_new_tokens: 120,
        temperature: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.1,
    },
    Preset {
        name: "story",
        topic: "a lighthouse keeper and a fox",
        opening: "A short story about {topic}.\n\nOnce upon a time,",
        request: "Write a short story about {topic}.",
        max_new_tokens: 250,
        temperature: 0.8,
        min_p: 0.05,
        repetition_penalty: 1.1,
    },
    Preset {
        name: "code",
        topic: "reverses a list",
        opening: "# A Python function that {topic}.\ndef",
        request: "Write a Python function that {topic}.",
        max_new_tokens: 150,
        temperature: 0.2,
        min_p: 0.1,
        repetition_penalty: 1.0,
    },
    Preset {
        name: "definition",
        topic: "hacker",
        opening: "In a dictionary, the word \"{topic}\" is defined as follows:",
        request: "Define the word \"{topic}\" in one or two sentences.",
        max_new_tokens: 80,
        temperature: 0.3,
        min_p: 0.1,
        repetition_penalty: 1.1,
    },
    Preset {
        name: "dialogue",
        topic: "whether a machine can be creative",
        opening: "Anna and Ben talk about {topic}.\n\nAnna:",
        request: "Write a conversation between Anna and Ben about {topic}.",
        max_new_tokens: 200,
        temperature: 0.8,
        min_p: 0.05,
        repetition_penalty: 1.1,
    },
];

/// What the flag takes.
pub(super) fn names() -> [&'static str; PRESETS.len()] {
    PRESETS.map(|preset| preset.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sparsegpt_models::generate::GenerateOptions;

    use super::*;

    #[test]
    fn each_preset_has_its_name_a_place_for_the_topic_and_settings_in_range() {
        assert_eq!(BTreeSet::from(names()).len(), PRESETS.len());
        for preset in PRESETS {
            for text in [preset.opening, preset.request] {
                assert_eq!(text.matches("{topic}").count(), 1, "{preset:?}");
            }
            let options = GenerateOptions {
                temperature: preset.temperature,
                min_p: Some(preset.min_p),
                repetition_penalty: preset.repetition_penalty,
                ..GenerateOptions::default()
            };
            assert!(options.validate().is_ok(), "{preset:?}");
            assert!(preset.temperature > 0.0, "{preset:?}: all samples were one");
        }
    }
}
