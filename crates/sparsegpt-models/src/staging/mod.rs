//! Hidden folders in which results are made, beside their final places.
//!
//! A checkpoint is such a folder itself, a [`StagedFile`] lies in one.

mod file;

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

pub use file::StagedFile;

/// In a staging folder: the folder that stood in the final place, while it is being replaced.
const OLD: &str = "old";
/// The same once the new one is in place.
const REPLACED: &str = "replaced";

/// A hidden folder that is removed when dropped, unless it has been renamed.
///
/// It is locked as long as its process lives, however that ends, so that a later run can tell a folder
/// in use from one that a killed run left behind.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) path: PathBuf,
    pub(crate) renamed: bool,
    /// `None` where the file system cannot lock a folder; such a folder is never taken for a left-over.
    _lock: Option<File>,
}

/// What runs that were killed left beside an output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leftovers {
    /// Folders that were removed.
    pub removed: Vec<PathBuf>,
    /// Folders that were found in the output's place and set aside to be replaced when their run was killed:
    /// the only copy, so they stay where they are.
    pub set_aside: Vec<PathBuf>,
}

impl Staging {
    /// In the folder of `out`, so that a rename needs no copy.
    pub(crate) fn beside(out: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let prefix = prefix(out);
        loop {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = out.with_file_name(format!("{prefix}{}-{count}.tmp", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Left by a process of the same number that was killed.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io("create", path, error)),
            }
            let folder = File::open(&path).ok();
            let locked = folder.as_ref().map(File::try_lock_shared);
            // A run beside this one may have taken it for a left-over before it was locked.
            let taken = matches!(locked, Some(Err(TryLockError::WouldBlock))) || !path.is_dir();
            if !taken {
                return Ok(Self {
                    path,
                    renamed: false,
                    _lock: folder,
                });
            }
        }
    }

    /// Takes in the folder that is to be replaced.
    pub(crate) fn set_aside(&self, folder: &Path) -> Result<()> {
        rename(folder, &self.path.join(OLD))
    }

    /// Puts that folder back, or else leaves it where it is.
    pub(crate) fn put_back(mut self, folder: &Path) {
        self.renamed = rename(&self.path.join(OLD), folder).is_err();
    }

    /// Removes that folder, as another stands in its place.
    pub(crate) fn replaced(self) {
        // The name says so, should this process be killed halfway.
        let _ = fs::rename(self.path.join(OLD), self.path.join(REPLACED));
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing can be reported from here; a left-over is hidden and named as temporary.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Leftovers {
    /// Removes the staging folders beside `out` whose process is gone.
    pub(crate) fn clear(out: &Path) -> Self {
        let mut found = Self::default();
        let prefix = prefix(out);
        let entries = out.parent().and_then(|parent| fs::read_dir(parent).ok());
        for entry in entries.into_iter().flatten().flatten() {
            // Of the entry itself: a link is none of ours.
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_folder || !is_staging_name(&entry.file_name(), &prefix) {
                continue;
            }
            let path = entry.path();
            // Held until the folder is gone, so that nobody begins to use it.
            let Some(_lock) = File::open(&path)
                .ok()
                .filter(|folder| folder.try_lock().is_ok())
            else {
                continue;
            };
            let old = path.join(OLD);
            if old.is_dir() {
                found.set_aside.push(old);
            } else if fs::remove_dir_all(&path).is_ok() {
                found.removed.push(path);
            }
        }
        found
    }
}

fn prefix(out: &Path) -> String {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.")
}

/// Whether a name is `.{out}.{process}-{count}.tmp`.
fn is_staging_name(name: &OsStr, prefix: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.to_string_lossy()
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_suffix(".tmp"))
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(process, count)| is_number(process) && is_number(count))
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .map_err(|source| Error::io(format!("rename to {}", to.display()), from, source))
}

pub(crate) fn canonical(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|source| Error::io("resolve", path, source))
}

/// The folder that a path's last name stands in.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Waits until the names in a folder are on the disk, where the operating system can tell.
pub(crate) fn sync_names(folder: &Path) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| Error::io("flush", folder, source))
}

/// Folders that had to be made for the output. Those that are still empty are removed when dropped.
#[derive(Debug, Default)]
pub(crate) struct MadeParents(Vec<PathBuf>);

impl MadeParents {
    /// Makes a folder and all above it that are missing.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        let missing = folder
            .ancestors()
            .take_while(|above| !above.as_os_str().is_empty() && !above.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        Ok(made)
    }
}

impl Drop for MadeParents {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Fails where something is in it.
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn leftovers_go_and_everything_else_stays() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let used = Staging::beside(&out).unwrap();
        let stale = root.path().join(".out.4194304-7.tmp");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join("model.safetensors"), "half").unwrap();
        let aside = root.path().join(".out.4194304-8.tmp");
        fs::create_dir_all(aside.join(OLD)).unwrap();
        let garbage = root.path().join(".out.4194304-9.tmp");
        fs::create_dir_all(garbage.join(REPLACED)).unwrap();
        for other in [
            ".out.mine.tmp",
            ".out.1-x.tmp",
            ".other.1-0.tmp",
            ".out.1-0",
        ] {
            fs::create_dir(root.path().join(other)).unwrap();
        }
        fs::write(root.path().join(".out.5-0.tmp"), "a file").unwrap();
        let target = root.path().join("target");
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, root.path().join(".out.6-0.tmp")).unwrap();

        let before = names(root.path()).len();
        let mut found = Leftovers::clear(&out);
        found.removed.sort();
        assert_eq!(found.removed, [stale, garbage]);
        assert_eq!(found.set_aside, [aside.join(OLD)]);
        assert_eq!(names(root.path()).len(), before - 2);
        assert!(used.path.is_dir() && target.is_dir());

        // The lock ends with the folder's owner.
        let path = used.path.clone();
        drop(used);
        assert!(!path.exists());
    }

    #[test]
    fn a_staging_folder_is_used_until_its_owner_ends() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let mut staging = Staging::beside(&out).unwrap();
        assert_eq!(Leftovers::clear(&out), Leftovers::default());
        // As after a kill: the lock is gone, the folder is not.
        staging.renamed = true;
        let path = staging.path.clone();
        drop(staging);
        assert_eq!(Leftovers::clear(&out).removed, [path]);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn parents_that_stay_empty_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("there");
        fs::create_dir(&kept).unwrap();
        drop(MadeParents::make(&kept.join("a/b")).unwrap());
        assert!(kept.is_dir() && names(&kept).is_empty());
        let made = MadeParents::make(&kept.join("a/b")).unwrap();
        fs::write(kept.join("a/file"), "").unwrap();
        drop(made);
        assert_eq!(names(&kept.join("a")), ["file"]);
    }
}
