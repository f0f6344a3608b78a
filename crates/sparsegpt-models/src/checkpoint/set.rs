//! Several copies of a checkpoint in one folder.

use std::path::{Component, Path};

use super::writer::OutputFolder;
use super::{Checkpoint, CheckpointWriter, OutputOptions, WrittenCheckpoint};
use crate::staging::{Leftovers, Staging};
use crate::{Error, Result};

/// A folder of checkpoints being written, hidden beside its final place. It gets its name when all that was
/// begun in it is complete; dropped before [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct CheckpointSet<'a> {
    source: &'a Checkpoint,
    options: OutputOptions,
    staging: Staging,
    out: OutputFolder,
    leftovers: Leftovers,
    names: Vec<String>,
}

impl<'a> CheckpointSet<'a> {
    pub(super) fn create(
        source: &'a Checkpoint,
        out: &Path,
        options: &OutputOptions,
    ) -> Result<Self> {
        let out = OutputFolder::check(out, source.path(), options.force)?;
        let leftovers = Leftovers::clear(&out.path);
        let staging = Staging::beside(&out.path)?;
        Ok(Self {
            source,
            options: *options,
            staging,
            out,
            leftovers,
            names: Vec::new(),
        })
    }

    /// The hidden folder that is removed if the set is dropped; for a signal handler that ends the process
    /// without dropping it.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging.path
    }

    /// The final place.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.out.path
    }

    /// What was found beside the folder, left by runs that were killed.
    #[must_use]
    pub fn leftovers(&self) -> &Leftovers {
        &self.leftovers
    }

    /// Starts a copy that will be the folder `name` in the set's. Its writer has to be
    /// [finished](CheckpointWriter::finish) before the set is.
    ///
    /// # Errors
    /// If `name` is no name of a folder or is taken, and as [`Checkpoint::create_output`].
    pub fn begin(&mut self, name: &str) -> Result<CheckpointWriter> {
        let mut parts = Path::new(name).components();
        let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
        if !plain || parts.next().is_some() || name.starts_with('.') {
            return Err(Error::setting("name", "the plain name of a folder", name));
        }
        if self.names.iter().any(|taken| taken == name) {
            return Err(Error::setting("name", "one for each checkpoint", name));
        }
        let folder = self.staging.path.join(name);
        let writer = CheckpointWriter::create(self.source, &folder, &self.options, None)?;
        self.names.push(name.to_owned());
        Ok(writer)
    }

    /// Gives the folder its name. `written` is what the writers' `finish` returned; it comes back with the final
    /// paths.
    ///
    /// # Errors
    /// If a checkpoint that was begun is not among them, or the folder cannot be put in place, which is then
    /// as it was before.
    pub fn finish(mut self, written: Vec<WrittenCheckpoint>) -> Result<Vec<WrittenCheckpoint>> {
        let complete = |name: &String| {
            let path = self.staging.path.join(name);
            path.is_dir() && written.iter().any(|written| written.path == path)
        };
        if let Some(missing) = self.names.iter().find(|name| !complete(name)) {
            return Err(Error::output_refused(
                self.out.path.join(missing),
                "was begun and not finished; finish every writer first",
            ));
        }
        self.out.replace_by(&self.staging.path)?;
        self.staging.renamed = true;
        let in_place = |checkpoint: WrittenCheckpoint| {
            let name = checkpoint.path.file_name().unwrap_or_default();
            WrittenCheckpoint {
                path: self.out.path.join(name),
                ..checkpoint
            }
        };
        Ok(written.into_iter().map(in_place).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use tempfile::{TempDir, tempdir};

    use super::super::fixtures::{Model, tensor};
    use super::super::{ExpectedLayer, WeightSink};
    use super::*;

    const UP: &str = "model.layers.0.mlp.up_proj.weight";

    fn source() -> (TempDir, Checkpoint) {
        let root = tempdir().unwrap();
        let folder = root.path().join("model");
        Model::new(vec![tensor(UP, &[1, 4], &[1.0, 2.0, 3.0, 4.0])]).write(&folder);
        let source = Checkpoint::open(&folder).unwrap();
        (root, source)
    }

    fn entries(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn expected(zeros: u64) -> [ExpectedLayer; 1] {
        [ExpectedLayer {
            tensor: UP.to_owned(),
            zeros,
            pattern: None,
        }]
    }

    fn replacing() -> OutputOptions {
        OutputOptions {
            dtype: None,
            force: true,
        }
    }

    #[test]
    fn all_appear_together_and_replace_what_was_there() {
        let (root, source) = source();
        let out = root.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old.txt"), "old").unwrap();
        let refused = source.create_outputs(&out, &OutputOptions::default());
        assert!(refused.unwrap_err().to_string().contains("--force"));

        let mut set = source.create_outputs(&out, &replacing()).unwrap();
        let mut written = Vec::new();
        for (name, zeros) in [("25pct", 1), ("2-4", 2)] {
            let mut writer = set.begin(name).unwrap();
            let mut values = [5.0_f32; 4];
            values[..zeros].fill(0.0);
            writer.store(UP, &values).unwrap();
            written.push(writer.finish(&expected(zeros as u64)).unwrap());
            assert_eq!(entries(&out), ["old.txt"]);
        }
        let written = set.finish(written).unwrap();
        assert_eq!(entries(root.path()), ["model", "out"]);
        assert_eq!(entries(&out), ["2-4", "25pct"]);
        assert_eq!(
            entries(&out.join("2-4")),
            ["config.json", "model.safetensors"]
        );
        let out = fs::canonicalize(&out).unwrap();
        assert_eq!(written[1].path, out.join("2-4"));
        let values = Checkpoint::open(&written[1].path)
            .unwrap()
            .tensors()
            .read_f32(UP)
            .unwrap();
        assert_eq!(values, [0.0, 0.0, 5.0, 5.0]);
    }

    #[test]
    fn nothing_is_left_of_a_set_that_is_not_complete() {
        let (root, source) = source();
        let out = root.path().join("out");
        let begin = || {
            let mut set = source.create_outputs(&out, &replacing()).unwrap();
            let first = set.begin("first").unwrap().finish(&[]).unwrap();
            let second = set.begin("second").unwrap();
            (set, first, second)
        };
        // A variant that does not hold what was reported.
        let (set, _, second) = begin();
        assert!(second.finish(&expected(1)).is_err());
        drop(set);
        assert_eq!(entries(root.path()), ["model"]);
        // One that was never finished.
        let (set, first, second) = begin();
        let error = set.finish(vec![first]).unwrap_err().to_string();
        assert!(error.contains("second"), "{error}");
        drop(second);
        assert_eq!(entries(root.path()), ["model"]);
    }

    #[test]
    fn names_are_plain_and_differ() {
        let (root, source) = source();
        let mut set = source
            .create_outputs(&root.path().join("out"), &replacing())
            .unwrap();
        let _first = set.begin("50pct").unwrap();
        for name in ["50pct", "", ".", "..", "a/b", "/a", "a/", ".hidden"] {
            assert!(set.begin(name).is_err(), "{name}");
        }
    }
}
