//! A single file that is made in a hidden folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Leftovers, Staging, canonical, parent_of, rename, sync_names};
use crate::{Error, Result};

/// A file being written in a hidden folder beside its final place, where it appears when it is whole. Dropped before
/// [`finish`](Self::finish), it leaves nothing behind.
///
/// ```
/// use sparsegpt_models::staging::StagedFile;
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("result.bin");
/// let mut file = StagedFile::create(&out)?;
/// file.append(b"half")?;
/// assert!(!out.exists());
/// file.append(b" and half")?;
/// file.finish()?;
/// assert_eq!(std::fs::read(&out)?, b"half and half");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StagedFile {
    out: PathBuf,
    inside: PathBuf,
    /// Closed before its folder goes.
    writer: BufWriter<File>,
    staging: Staging,
    leftovers: Leftovers,
}

impl StagedFile {
    /// Begins a file to be named `out`, and removes what killed runs to the same place had left.
    ///
    /// # Errors
    /// If `out` has no name or is something else than a file, or its folder cannot be written to.
    pub fn create(out: &Path) -> Result<Self> {
        let Some(name) = out.file_name() else {
            return Err(Error::output_refused(out, "expected the name of a file"));
        };
        let out = canonical(parent_of(out))?.join(name);
        if let Ok(there) = std::fs::metadata(&out)
            && !there.is_file()
        {
            let found = if there.is_dir() {
                "a folder"
            } else {
                "a device or a pipe"
            };
            return Err(Error::output_refused(
                &out,
                format!("expected the name of a new file, or of one to replace, found {found}"),
            ));
        }
        let leftovers = Leftovers::clear(&out);
        let staging = Staging::beside(&out)?;
        let inside = staging.path.join(name);
        let file = File::create_new(&inside).map_err(|e| Error::io("create", &inside, e))?;
        Ok(Self {
            out,
            inside,
            writer: BufWriter::new(file),
            staging,
            leftovers,
        })
    }

    /// The final place.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.out
    }

    /// Where the file is until it is finished, under the name that it will have.
    pub(crate) fn inside(&self) -> &Path {
        &self.inside
    }

    /// The hidden folder that is removed if the file is dropped; for a signal handler that ends the process
    /// without dropping it.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging.path
    }

    /// What runs that were killed had left beside the file.
    #[must_use]
    pub fn leftovers(&self) -> &Leftovers {
        &self.leftovers
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// If the write fails, as on a full disk.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer
            .write_all(bytes)
            .map_err(|e| Error::io("write", &self.out, e))
    }

    /// A second handle on the file, to write anywhere in it; what was appended has been written before.
    pub(crate) fn random_access(&mut self) -> Result<File> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().try_clone())
            .map_err(|e| Error::io("write", &self.out, e))
    }

    /// Gives the file its name, once it is on the disk. A file that has that name already is replaced.
    ///
    /// # Errors
    /// If a write or the renaming fails. The final place is then as it was before.
    pub fn finish(mut self) -> Result<()> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().sync_all())
            .map_err(|e| Error::io("write", &self.out, e))?;
        let Self {
            out,
            inside,
            writer,
            staging: _staging,
            ..
        } = self;
        // Not every system renames a file that is open.
        drop(writer);
        rename(&inside, &out)?;
        sync_names(parent_of(&out))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let refused = StagedFile::create(root.path()).unwrap_err().to_string();
        assert!(refused.contains("found a folder"), "{refused}");
        #[cfg(unix)]
        {
            let refused = StagedFile::create(Path::new("/dev/null")).unwrap_err();
            assert!(refused.to_string().contains("device"), "{refused}");
        }
        assert_eq!(names(root.path()).len(), 0);
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs::write(&out, "before").unwrap();
        let mut dropped = StagedFile::create(&out).unwrap();
        dropped.append(b"half").unwrap();
        assert!(dropped.staging().is_dir());
        drop(dropped);
        assert_eq!(names(root.path()), ["out"]);
        assert_eq!(fs::read(&out).unwrap(), b"before");

        let mut file = StagedFile::create(&out).unwrap();
        file.append(b"after").unwrap();
        assert_eq!(fs::read(&out).unwrap(), b"before");
        file.finish().unwrap();
        assert_eq!(names(root.path()), ["out"]);
        assert_eq!(fs::read(&out).unwrap(), b"after");
        assert!(StagedFile::create(&root.path().join("absent/out")).is_err());
        assert!(StagedFile::create(Path::new("..")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn what_a_killed_run_left_goes_and_what_is_in_use_stays() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let used = StagedFile::create(&out).unwrap();
        let left = root.path().join(".out.4194304-3.tmp");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("out"), "half").unwrap();
        let file = StagedFile::create(&out).unwrap();
        let left = fs::canonicalize(root.path())
            .unwrap()
            .join(".out.4194304-3.tmp");
        assert_eq!(file.leftovers().removed, [left]);
        assert!(used.staging().is_dir() && !file.leftovers().removed[0].exists());
        file.finish().unwrap();
        used.finish().unwrap();
        assert_eq!(names(root.path()), ["out"]);
    }
}
