//! The recipe file: the flags of a command in TOML.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::failure::{Exit, Failure};

/// Fills flags that were not given from a recipe file. Its keys are the names of the flags; those that may
/// be repeated take a list. A flag that was given wins over the file, a repeatable one as a whole.
///
/// # Errors
/// If the file cannot be read, is no TOML, or has an unknown key or a value that does not fit.
pub(crate) fn with_recipe<F>(given: &F, file: Option<&Path>) -> Result<F, Failure>
where
    F: Clone + Default + Serialize + DeserializeOwned,
{
    let Some(path) = file else {
        return Ok(given.clone());
    };
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::file(path, format!("cannot read the recipe: {error}")))?;
    let recipe: Map<String, Value> =
        toml::from_str(&text).map_err(|error| Failure::file(path, error))?;
    let known = object(&F::default())?;
    for (key, value) in &recipe {
        if !known.contains_key(key) {
            let keys: Vec<&str> = known.keys().map(String::as_str).collect();
            let known = keys.join(", ");
            return Err(Failure::file(
                path,
                format!("unknown key {key:?}; the keys are the flags {known}"),
            ));
        }
        // Key by key, so that the error can name it.
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        serde_json::from_value::<F>(alone.into())
            .map_err(|error| Failure::file(path, format!("{key} = {value}: {error}")))?;
    }
    let mut merged = object(given)?;
    for (key, value) in recipe {
        if merged.get(&key).is_none_or(not_given) {
            merged.insert(key, value);
        }
    }
    serde_json::from_value(merged.into()).map_err(|error| Failure::file(path, error))
}

fn not_given(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn object(flags: &impl Serialize) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(flags).map_err(|error| Failure::new(Exit::Work, error))? {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use sparsegpt::Pattern;

    use super::*;
    use crate::commands::prune::PruneFlags;

    fn merged(given: &PruneFlags, toml: &str) -> Result<PruneFlags, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(toml.as_bytes()).unwrap();
        with_recipe(given, Some(file.path())).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn the_command_line_wins() {
        let mut given = PruneFlags::default();
        given.layer.bits = Some(3);
        given.plan.skip = vec!["q_proj".to_owned()];
        let flags = merged(
            &given,
            "pattern = '2:4'\nbits = 4\nsymmetric = true\ndamping = 0.02\nskip = ['up_proj']\nrule = ['mlp=50%']\nseed = 7\n",
        )
        .unwrap();
        assert_eq!(flags.layer.pattern, [Pattern::n_of_m(2, 4).unwrap()]);
        assert_eq!(flags.layer.bits, Some(3));
        assert_eq!(flags.layer.symmetric, Some(true));
        assert_eq!(flags.layer.damping, Some(0.02));
        assert_eq!(flags.plan.skip, ["q_proj"]);
        assert_eq!(flags.plan.rule, ["mlp=50%"]);
        assert_eq!(flags.seed, Some(7));
    }

    #[test]
    fn one_pattern_or_a_list_of_them() {
        let (half, two_of_four) = (
            Pattern::unstructured(0.5).unwrap(),
            Pattern::n_of_m(2, 4).unwrap(),
        );
        let list = "pattern = ['50%', '2:4']";
        let mut given = PruneFlags::default();
        let flags = merged(&given, list).unwrap();
        assert_eq!(flags.layer.pattern, [half, two_of_four]);
        assert_eq!(
            object(&flags).unwrap()["pattern"],
            serde_json::json!(["50%", "2:4"])
        );
        assert!(
            merged(&given, "pattern = []")
                .unwrap()
                .layer
                .pattern
                .is_empty()
        );
        given.layer.pattern = vec![two_of_four];
        let flags = merged(&given, list).unwrap();
        assert_eq!(flags.layer.pattern, [two_of_four]);
        assert_eq!(object(&flags).unwrap()["pattern"], "2:4");
    }

    #[test]
    fn allocation_is_read_as_the_flags_are() {
        let toml =
            "pattern = '50%'\nallocate = 'owl'\nmin-sparsity = '30%'\nmax-sparsity = '62.5%'\n";
        let flags = merged(&PruneFlags::default(), toml).unwrap();
        let again = object(&flags).unwrap();
        assert_eq!(again["allocate"], "owl");
        assert_eq!(again["min-sparsity"], "30%");
        let budget = flags
            .plan
            .allocating(&flags.layer, flags.layer.patterns().unwrap()[0])
            .unwrap()
            .unwrap()
            .budget;
        assert_eq!(budget.ceiling.fraction(), 0.625);
    }

    #[test]
    fn mistakes_name_the_key() {
        for (toml, named) in [
            ("patern = '50%'", "patern"),
            ("bits = 'four'", "bits"),
            ("pattern = '5:4'", "N zeros in M columns"),
            ("pattern = ['50%', '5:4']", "N zeros in M columns"),
            ("pattern = 50", "a list of them"),
            ("skip = 'x'", "skip"),
            ("bits = ", "bits"),
            ("method = 'better'", "method"),
            ("allocate = 'best'", "allocate"),
            ("min-sparsity = 'half'", "as in 50%"),
        ] {
            let error = merged(&PruneFlags::default(), toml).unwrap_err();
            assert!(error.contains(named), "{toml}: {error}");
        }
    }
}
