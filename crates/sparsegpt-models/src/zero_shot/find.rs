//! Which file of a folder is a task's.

use std::fs;
use std::path::{Path, PathBuf};

use super::Task;
use crate::{Error, Result};

/// Folders within the given one that are looked into.
const DEPTH: usize = 2;
const ENDINGS: [&str; 6] = ["jsonl", "json", "ndjson", "parquet", "csv", "txt"];

/// Finds a task's file in a folder or up to two folders deeper: the one whose path below that folder has the task's name in
/// it, as in `piqa/valid.jsonl` or `ARC-Easy/test-00000-of-00001.parquet`. Of several it is the one of the split that is
/// evaluated (validation or test), by its name. `None` if there is none.
///
/// # Errors
/// If the folder cannot be read, or more than one file is left.
pub fn task_file(folder: &Path, task: Task) -> Result<Option<PathBuf>> {
    let mut files = Vec::new();
    collect(folder, DEPTH, &mut files)?;
    files.sort();
    let spec = task.spec();
    let has = |text: &str, words: &[&str]| words.iter().any(|word| text.contains(word));
    files.retain(|file| {
        has(
            &written(file.strip_prefix(folder).unwrap_or(file)),
            spec.keys,
        )
    });
    if files.len() > 1 {
        let name = |file: &PathBuf| written(Path::new(file.file_name().unwrap_or_default()));
        let of_split: Vec<PathBuf> = files
            .iter()
            .filter(|file| has(&name(file), spec.splits))
            .cloned()
            .collect();
        if !of_split.is_empty() {
            files = of_split;
        }
    }
    match files.as_slice() {
        [] => Ok(None),
        [file] => Ok(Some(file.clone())),
        [first, second, ..] => Err(Error::format(
            folder,
            format!(
                "expected one file of the task {task}, found {}, among them {} and {}; name the one that is meant",
                files.len(),
                first.display(),
                second.display()
            ),
        )),
    }
}

/// A path's letters as the keys have them.
fn written(path: &Path) -> String {
    path.to_string_lossy()
        .to_lowercase()
        .replace(['-', ' '], "_")
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |source| Error::io("read", folder, source);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_dir() {
            if depth > 0 {
                collect(&path, depth - 1, files)?;
            }
        } else if ending.is_some_and(|ending| ENDINGS.contains(&ending.to_lowercase().as_str())) {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_and_splits_tell_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "piqa/valid.jsonl",
            "piqa/valid-labels.lst",
            "arc/arc_easy_test.jsonl",
            "arc/arc_challenge_test.jsonl",
            "ai2/Winogrande/train-00000-of-00001.parquet",
            "ai2/Winogrande/validation-00000-of-00001.parquet",
            "cloze_test_val__winter2018 - 1.csv",
            "boolq_val_a.jsonl",
            "boolq_val_b.jsonl",
            "too/far/down/lambada_test.jsonl",
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        for (task, name) in [
            (Task::Piqa, "piqa/valid.jsonl"),
            (Task::ArcEasy, "arc/arc_easy_test.jsonl"),
            (Task::ArcChallenge, "arc/arc_challenge_test.jsonl"),
            (
                Task::WinoGrande,
                "ai2/Winogrande/validation-00000-of-00001.parquet",
            ),
            (Task::StoryCloze, "cloze_test_val__winter2018 - 1.csv"),
        ] {
            let found = task_file(folder.path(), task).unwrap();
            assert_eq!(found.unwrap(), folder.path().join(name));
        }
        assert_eq!(task_file(folder.path(), Task::Lambada).unwrap(), None);
        let error = task_file(folder.path(), Task::BoolQ)
            .unwrap_err()
            .to_string();
        for name in ["boolq_val_a.jsonl", "boolq_val_b.jsonl"] {
            assert!(error.contains(name), "{error}");
        }
        assert!(task_file(&folder.path().join("missing"), Task::Piqa).is_err());
    }
}
