//! The folder of the blocks that a run has finished.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::Fingerprint;
use super::block::{BlockFile, BlockWriter, Head};
use crate::{Error, Result};

const ENDING: &str = "block";
const TEMPORARY: &str = "tmp";

/// Finished blocks of a run, in a hidden folder beside its output. It is made with the first block, and locked as long as its
/// process lives, so that no two runs write to it.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    fingerprint: Fingerprint,
    blocks: usize,
    /// Blocks from the first on that are finished.
    finished: usize,
    /// `None` as long as there is no folder, or where the file system cannot lock one.
    lock: Option<File>,
}

impl StateFolder {
    /// Where the state of a run to `out` lies.
    #[must_use]
    pub fn place(out: &Path) -> PathBuf {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        out.with_file_name(format!(".{name}.unfinished"))
    }

    /// Takes what an earlier run to `out` has left, or, with `fresh`, removes it. A folder is made with the first block that
    /// is begun.
    ///
    /// # Errors
    /// If another run is at it, or the folder cannot be read or removed.
    pub fn open(out: &Path, fresh: bool) -> Result<Self> {
        let mut state = Self {
            path: Self::place(out),
            fingerprint: Fingerprint::default(),
            blocks: 0,
            finished: 0,
            lock: None,
        };
        if state.path.is_dir() {
            state.lock()?;
            if fresh {
                fs::remove_dir_all(&state.path).map_err(|e| Error::io("remove", &state.path, e))?;
                state.lock = None;
            }
        }
        Ok(state)
    }

    /// Holds what is there against this run, and returns how many blocks of the model's `blocks`, from the first on, are
    /// finished. Every file is read once as a whole, to check it.
    ///
    /// # Errors
    /// If a file is damaged, or of another run: the error names it, and what differs.
    pub fn go_on(&mut self, fingerprint: Fingerprint, blocks: usize) -> Result<usize> {
        self.fingerprint = fingerprint;
        self.blocks = blocks;
        self.finished = 0;
        if !self.path.is_dir() {
            return Ok(0);
        }
        if self.lock.is_none() {
            // It may have come since, with another run.
            self.lock()?;
        }
        self.remove_temporary()?;
        while self.finished < blocks {
            if !self.file(self.finished).exists() {
                break;
            }
            self.checked(self.finished)?;
            self.finished += 1;
        }
        Ok(self.finished)
    }

    /// Blocks from the first on that are finished.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A finished block; `None` for one that is not.
    ///
    /// # Errors
    /// As [`go_on`](Self::go_on).
    pub fn block(&self, block: usize) -> Result<Option<BlockFile>> {
        (block < self.finished)
            .then(|| self.checked(block))
            .transpose()
    }

    /// Begins the file of a block. After [`BlockWriter::commit`], tell [`committed`](Self::committed).
    ///
    /// # Errors
    /// If folder or file cannot be made, or another run has taken the folder.
    pub fn begin(&mut self, block: usize) -> Result<BlockWriter> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", &self.path, error));
            }
            _ if self.lock.is_none() => self.lock()?,
            _ => {}
        }
        let path = self.file(block);
        let head = Head {
            fingerprint: self.fingerprint.clone(),
            block,
            blocks: self.blocks,
        };
        let temporary = path.with_extension(TEMPORARY);
        BlockWriter::create(path, temporary, &head)
    }

    /// Notes that the block that comes next is there.
    pub fn committed(&mut self) {
        self.finished += 1;
    }

    /// Removes it all: the run is complete.
    ///
    /// # Errors
    /// If that fails.
    pub fn remove(self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, block: usize) -> PathBuf {
        self.path.join(format!("{block:05}.{ENDING}"))
    }

    fn lock(&mut self) -> Result<()> {
        let folder = File::open(&self.path).ok();
        let locked = folder.as_ref().map(File::try_lock);
        if matches!(locked, Some(Err(TryLockError::WouldBlock))) || !self.path.is_dir() {
            return Err(Error::output_refused(
                &self.path,
                "another run to the same place is keeping its finished blocks here; wait for it, or choose another output",
            ));
        }
        self.lock = folder;
        Ok(())
    }

    /// What a killed run had begun to write.
    fn remove_temporary(&self) -> Result<()> {
        let failed = |source| Error::io("list", &self.path, source);
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|ending| ending == TEMPORARY) {
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }

    fn checked(&self, block: usize) -> Result<BlockFile> {
        let path = self.file(block);
        let file = BlockFile::open(&path)?;
        let refuse = |reason: String| {
            Err(Error::output_refused(
                &path,
                format!(
                    "kept by a run that differs from this one ({reason}); repeat that command to go on with it, or start over (--fresh)"
                ),
            ))
        };
        if let Some(difference) = file.fingerprint().difference(&self.fingerprint) {
            return refuse(difference);
        }
        let (found, of) = (file.block(), file.blocks());
        if (found, of) != (block, self.blocks) {
            return refuse(format!(
                "it holds block {found} of {of}, expected {block} of {}",
                self.blocks
            ));
        }
        Ok(file)
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // A folder with a block in it stays.
            let _ = fs::remove_dir(&self.path);
        }
    }
}
