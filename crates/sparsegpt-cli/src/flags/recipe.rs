//! The recipe file: the flags of a command in TOML.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::LayerFlags;
use crate::failure::{Exit, Failure};

/// Keys that hold a path. It is relative to the recipe file.
const PATHS: [&str; 2] = ["calibration", "masks"];
/// The key that holds a list, or the path of one.
const LIST_OR_PATH: &str = "pattern-list";

/// Flags that a recipe file can give.
pub(crate) trait Flags: Clone + Default + Serialize + DeserializeOwned {
    /// Those for a layer among them.
    fn layer_mut(&mut self) -> &mut LayerFlags;
}

/// Which flags a recipe file has given.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    file: PathBuf,
    keys: Vec<String>,
}

impl Origin {
    /// The failure, and where the flags that it names come from.
    pub(crate) fn tell(&self, failure: Failure) -> Failure {
        let message = failure.message();
        let flags = self.keys.iter().map(|key| format!("--{key}"));
        let named: Vec<String> = flags.filter(|flag| names(&message, flag)).collect();
        match failure.exit() == Exit::Usage && !named.is_empty() {
            true => failure.placed(&format!(
                "{} from {}",
                named.join(" and "),
                self.file.display()
            )),
            false => failure,
        }
    }
}

/// Whether a flag stands in a text, and not as the beginning of another.
fn names(text: &str, flag: &str) -> bool {
    text.match_indices(flag).any(|(at, _)| {
        let behind = text[at + flag.len()..].chars().next();
        !behind.is_some_and(|next| next == '-' || next.is_alphanumeric())
    })
}

/// A text file of the user's, without a byte order mark.
pub(super) fn read_text(path: &Path, what: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::file(path, format!("cannot read {what}: {error}")))?;
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Ok(rest.to_owned()),
        None => Ok(text),
    }
}

/// Fills flags that were not given from a recipe file. Its keys are the names of the flags; those that may
/// be repeated take a list. A flag that was given wins over the file, a repeatable one as a whole. Paths in it are relative to it.
///
/// # Errors
/// If the file cannot be read, is no TOML, or has an unknown key or a value that does not fit.
pub(crate) fn with_recipe<F: Flags>(
    given: &F,
    threads: Option<usize>,
    file: Option<&Path>,
) -> Result<(F, Origin), Failure> {
    let mut given = given.clone();
    given.layer_mut().threads = threads;
    let Some(path) = file else {
        return Ok((given, Origin::default()));
    };
    let text = read_text(path, "the recipe")?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| Failure::file(path, error))?;
    if let Some((key, value)) = table.iter().find(|(_, value)| has_no_number(value)) {
        // JSON, which the flags are read from, would have it for a value that was not given.
        return Err(Failure::file(
            path,
            format!("{key} = {value}: expected a finite number"),
        ));
    }
    let recipe: Map<String, Value> = table
        .try_into()
        .map_err(|error| Failure::file(path, error))?;
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
    let mut merged = object(&given)?;
    let mut keys = Vec::new();
    for (key, value) in recipe {
        if merged.get(&key).is_none_or(not_given) {
            merged.insert(key.clone(), from_folder_of(path, &key, value));
            keys.push(key);
        }
    }
    let flags =
        serde_json::from_value(merged.into()).map_err(|error| Failure::file(path, error))?;
    let file = path.to_path_buf();
    Ok((flags, Origin { file, keys }))
}

/// Whether there is a number in it that is infinite or none.
fn has_no_number(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(number) => !number.is_finite(),
        toml::Value::Array(values) => values.iter().any(has_no_number),
        toml::Value::Table(table) => table.values().any(has_no_number),
        _ => false,
    }
}

/// A value of a recipe: a path in it taken from the recipe's folder.
fn from_folder_of(recipe: &Path, key: &str, value: Value) -> Value {
    let path = match (&value, recipe.parent()) {
        (Value::String(text), Some(folder)) => folder.join(text),
        _ => return value,
    };
    match PATHS.contains(&key) || (key == LIST_OR_PATH && path.is_file()) {
        true => path.to_str().map_or(value, Value::from),
        false => value,
    }
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
        with_recipe(given, None, Some(file.path()))
            .map(|(flags, _)| flags)
            .map_err(|failure| format!("{failure:?}"))
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
    fn a_layer_takes_recipes_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        fs::write(&path, "\u{feff}pattern = '50%'\nthreads = 3\n").unwrap();
        let given = LayerFlags::default();
        let (flags, _) = with_recipe(&given, None, Some(&path)).unwrap();
        assert_eq!(flags.threads, Some(3));
        assert_eq!(flags.pattern, [Pattern::unstructured(0.5).unwrap()]);
        let (flags, _) = with_recipe(&given, Some(2), Some(&path)).unwrap();
        assert_eq!(flags.threads, Some(2));
        fs::write(&path, "skip = ['x']").unwrap();
        let error = with_recipe(&given, None, Some(&path)).unwrap_err();
        assert!(error.message().contains("unknown key \"skip\""));
    }

    #[test]
    fn paths_are_relative_to_the_recipe() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("recipe.toml");
        let text = "calibration = 'text.txt'\nmasks = '/masks'\npattern-list = 'list'\n";
        fs::write(&recipe, text).unwrap();
        let read = |given: &PruneFlags| with_recipe(given, None, Some(&recipe)).unwrap().0;
        let flags = read(&PruneFlags::default());
        assert_eq!(flags.calibration, Some(folder.path().join("text.txt")));
        assert_eq!(flags.masks, Some("/masks".into()));
        // No such file: a list.
        assert_eq!(flags.plan.pattern_list.unwrap(), "list");
        let list = folder.path().join("list");
        fs::write(&list, "50%").unwrap();
        let given = PruneFlags {
            calibration: Some("mine.txt".into()),
            ..PruneFlags::default()
        };
        let flags = read(&given);
        assert_eq!(flags.calibration, given.calibration);
        assert_eq!(flags.plan.pattern_list.unwrap(), list.to_str().unwrap());
    }

    #[test]
    fn failures_name_the_recipe_that_their_flag_is_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        fs::write(&path, "rule = ['mlp=5:4']\npattern = '50%'\nbits = 4\n").unwrap();
        let mut given = PruneFlags::default();
        given.layer.bits = Some(3);
        let (_, origin) = with_recipe(&given, None, Some(&path)).unwrap();
        let told = |message: &str| origin.tell(Failure::usage(message)).message();
        let place = format!(" (--rule from {})", path.display());
        assert_eq!(
            told("--rule mlp=5:4: no"),
            format!("--rule mlp=5:4: no{place}")
        );
        // Of another flag, and of one that the command line has set.
        for other in ["--pattern-list: no", "--bits: no", "no flag"] {
            assert_eq!(told(other), other);
        }
        let other = Failure::new(Exit::Input, "--rule");
        assert_eq!(origin.tell(other).message(), "--rule");
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
