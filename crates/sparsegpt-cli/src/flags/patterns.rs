//! One pattern or several: in a recipe file, and as names of folders.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sparsegpt::Pattern;

/// The name of a pattern's folder, in characters that are safe everywhere: `50pct`, `row-50pct`, `2-4`, `64-6-8`.
pub(crate) fn folder_name(pattern: Pattern) -> String {
    pattern.to_string().replace('%', "pct").replace(':', "-")
}

/// One pattern as itself, several as a list, none as nothing.
pub(super) fn serialize<S: Serializer>(
    patterns: &[Pattern],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match patterns {
        [] => serializer.serialize_none(),
        [one] => one.serialize(serializer),
        several => several.serialize(serializer),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Pattern>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a pattern, as in '50%', or a list of them"
    )]
    enum Given {
        One(String),
        Several(Vec<String>),
    }
    let texts = match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Given::One(text)) => vec![text],
        Some(Given::Several(texts)) => texts,
    };
    let read = |text: String| text.parse().map_err(D::Error::custom);
    texts.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn folders_are_named_after_patterns_in_safe_characters() {
        for (pattern, folder) in [
            ("50%", "50pct"),
            ("62.5%", "62.5pct"),
            ("row:50%", "row-50pct"),
            ("2:4", "2-4"),
            ("64:6:8", "64-6-8"),
            ("block:16:50%", "block-16-50pct"),
            ("dense", "dense"),
        ] {
            assert_eq!(folder_name(pattern.parse().unwrap()), folder);
        }
    }
}
