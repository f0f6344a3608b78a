//! Finished blocks of a run on disk, so that a run that was killed can be gone on with.
//!
//! A [`StateFolder`] lies hidden beside the output, as `.NAME.unfinished`. Each finished block becomes one file in it: under a
//! temporary name first, flushed to the disk, then renamed, so that a file that is there is whole. Every file carries the
//! [`Fingerprint`] of its run and a checksum; what is of another run or damaged is an error that names the file, never
//! a silent start from the beginning.
//!
//! A block file, numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `SGPTBLK2` |
//! | 8 + n | length and JSON of the head: fingerprint, block, blocks of the model |
//! | for each layer: 8 + n | length (at least 1) and JSON: name, variant, layer, the tokens that starved it, shape, stored type, grid, its report as the writer's own text |
//! | | weights (rows x cols in the stored type); mask (a bit each, 1 = kept, low bits first); where quantized codes (u8), scales and zeros (f32, rows x groups), the group of each column (u32) |
//! | 8 | 0 |
//! | 32 | SHA-256 of all before |

mod block;
mod folder;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use block::{BlockFile, BlockWriter, KeptLayer};
pub use folder::StateFolder;

use crate::{Error, Result};

/// Bytes read or written at a time.
const BUFFER: usize = 1 << 20;

/// What a run must have in common with the one it goes on from, by name.
///
/// ```
/// use sparsegpt_models::resume::Fingerprint;
/// let then = Fingerprint::default().with("--pattern", "50%").with("threads", 4);
/// let now = Fingerprint::default().with("--pattern", "2:4").with("threads", 4);
/// assert_eq!(then.difference(&now).as_deref(), Some("--pattern: 50% then, 2:4 now"));
/// assert_eq!(then.difference(&then.clone()), None);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(BTreeMap<String, String>);

impl Fingerprint {
    /// With one thing more.
    #[must_use]
    pub fn with(mut self, what: impl Into<String>, value: impl Display) -> Self {
        self.0.insert(what.into(), value.to_string());
        self
    }

    /// What differs from a later run, in words.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<String> {
        let names: BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let differences: Vec<String> = names
            .into_iter()
            .filter(|&name| self.0.get(name) != now.0.get(name))
            .map(|name| {
                let of = |side: &Self| side.0.get(name).map_or("none", String::as_str).to_owned();
                format!("{name}: {} then, {} now", of(self), of(now))
            })
            .collect();
        (!differences.is_empty()).then(|| differences.join("; "))
    }
}

/// SHA-256 of files: of each the name, the length and the contents. `go_on` is asked now and then, and returns `false` to
/// stop.
///
/// # Errors
/// If a file cannot be read, and [`Error::Stopped`].
pub fn digest_of_files<'a>(
    files: impl IntoIterator<Item = &'a Path>,
    go_on: &dyn Fn() -> bool,
) -> Result<String> {
    let mut digest = Sha256::new();
    // Read and not mapped: mapped pages would count as the process's own memory.
    let mut buffer = vec![0; BUFFER];
    for path in files {
        let failed = |source| Error::io("read", path, source);
        let mut file = File::open(path).map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name.as_bytes());
        digest.update(file.metadata().map_err(failed)?.len().to_le_bytes());
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                break;
            }
            digest.update(&buffer[..read]);
            if !go_on() {
                return Err(Error::Stopped);
            }
        }
    }
    Ok(hexadecimal(&digest.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
