//! Masks of a model as a file: in safetensors, for each layer a tensor of u8 (rows x cols, 1 = kept, 0 = pruned) under the
//! layer's name without `.weight`.
//!
//! ```
//! use sparsegpt::ndarray::arr2;
//! use sparsegpt_models::masks::{MaskFile, MaskWriter};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("masks.safetensors");
//! let kept = arr2(&[[true, false], [false, true]]);
//! let mut file = MaskWriter::create(&path, [("layer".to_owned(), [2, 2])])?;
//! file.add("layer", kept.view())?;
//! file.finish()?;
//! assert_eq!(MaskFile::open(&path)?.read("layer")?, kept);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};
use sparsegpt::mask::{BlockMask, MaskBlock, MaskPolicy};

use crate::checkpoint::{Dtype, MappedShard, ShardLayout};
use crate::resume::digest_of_files;
use crate::staging::StagedFile;
use crate::{Error, Result, TensorInfo};

/// A file of masks, mapped: a mask is read when it is needed, and takes no memory before.
#[derive(Debug)]
pub struct MaskFile {
    path: PathBuf,
    shard: MappedShard,
}

/// A layer's mask as a policy of the solver.
#[derive(Clone, Debug)]
pub struct FileMask {
    file: Arc<MaskFile>,
    name: String,
}

impl MaskFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// If it is no whole safetensors file, or has tensors that are no masks.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Self {
            path: path.to_path_buf(),
            shard: MappedShard::open(path)?,
        };
        for name in file.names() {
            file.shape(&name)?;
        }
        if file.names().is_empty() {
            return Err(Error::format(path, "holds no mask"));
        }
        Ok(file)
    }

    /// The layers, in the order of the file.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.shard.names()
    }

    fn shape(&self, name: &str) -> Result<[usize; 2]> {
        let refuse = |reason: String| Error::format(&self.path, format!("{name:?}: {reason}"));
        let info = self
            .shard
            .info(name)
            .ok_or_else(|| refuse("no such mask".to_owned()))?;
        match (info.dtype, info.shape.as_slice()) {
            (Dtype::U8, &[rows, cols]) => Ok([rows, cols]),
            _ => Err(refuse(format!("expected u8, rows x cols, found {info:?}"))),
        }
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.shard.bytes(name).unwrap_or_default()
    }

    /// A mask: `true` where a weight is kept.
    ///
    /// # Errors
    /// If there is none of that name, or a value is neither 0 nor 1.
    pub fn read(&self, name: &str) -> Result<Array2<bool>> {
        let shape = self.shape(name)?;
        let bytes = self.bytes(name);
        if let Some(other) = bytes.iter().find(|&&byte| byte > 1) {
            return Err(Error::format(
                &self.path,
                format!("{name:?}: expected 0 (pruned) or 1 (kept), found {other}"),
            ));
        }
        let kept = bytes.iter().map(|&byte| byte == 1).collect();
        Array2::from_shape_vec(shape, kept)
            .map_err(|error| Error::format(&self.path, format!("{name:?}: {error}")))
    }

    /// A mask as the solver takes it: exactly these weights are pruned.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn policy(self: &Arc<Self>, name: &str) -> Result<FileMask> {
        self.read(name)?;
        Ok(FileMask {
            file: Arc::clone(self),
            name: name.to_owned(),
        })
    }
}

impl MaskPolicy for FileMask {
    fn describe(&self) -> String {
        "given mask".to_owned()
    }

    fn validate(&self, layer: &str, rows: usize, cols: usize) -> sparsegpt::Result<()> {
        let found = self.file.shape(&self.name).unwrap_or_default();
        if found == [rows, cols] {
            return Ok(());
        }
        Err(sparsegpt::Error::Shape {
            layer: layer.to_owned(),
            what: "mask",
            expected: format!("{rows} x {cols}, as the weights"),
            found_rows: found[0],
            found_cols: found[1],
        })
    }

    fn choose(&self, block: &MaskBlock<'_>) -> sparsegpt::Result<BlockMask> {
        self.validate(block.layer, block.rows, block.cols)?;
        let bytes = self.file.bytes(&self.name);
        let width = block.original_columns.len();
        Ok(BlockMask::Fixed(Array2::from_shape_fn(
            (block.rows, width),
            |(row, at)| bytes[row * block.cols + block.original_columns[at]] == 0,
        )))
    }
}

/// A file of masks being written, which appears under its name when it is whole. Masks may come in any order.
#[derive(Debug)]
pub struct MaskWriter {
    path: PathBuf,
    staged: StagedFile,
    file: BufWriter<File>,
    /// Shape and position in the file of the masks that have not come yet.
    missing: BTreeMap<String, ([usize; 2], u64)>,
}

impl MaskWriter {
    /// Begins a file for masks of these names and shapes.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(
        path: &Path,
        shapes: impl IntoIterator<Item = (String, [usize; 2])>,
    ) -> Result<Self> {
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let info = TensorInfo {
                dtype: Dtype::U8,
                shape: shape.to_vec(),
            };
            (name, info)
        });
        let layout = ShardLayout {
            file_name: String::new(),
            metadata: None,
            tensors: tensors.collect(),
        };
        let plan = layout.plan(path)?;
        let mut staged = StagedFile::create(path)?;
        staged.append(&plan.prefix)?;
        let mut file = staged.random_access()?;
        file.set_len(plan.file_len)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .map_err(|e| Error::io("write", path, e))?;
        let missing = plan.places.into_iter().map(|(name, info, position)| {
            let shape = [info.shape[0], info.shape[1]];
            (name, (shape, position))
        });
        Ok(Self {
            path: path.to_path_buf(),
            staged,
            file: BufWriter::new(file),
            missing: missing.collect(),
        })
    }

    /// Writes a layer's mask.
    ///
    /// # Errors
    /// If none of that name and shape is expected, or the write fails.
    pub fn add(&mut self, name: &str, kept: ArrayView2<'_, bool>) -> Result<()> {
        let expected = self.missing.remove(name);
        let found = [kept.nrows(), kept.ncols()];
        let Some((_, position)) = expected.filter(|(shape, _)| *shape == found) else {
            let reason = format!("a mask of {found:?}, expected {expected:?}");
            return Err(Error::tensor(name, reason));
        };
        let bytes: Vec<u8> = kept.iter().map(|&kept| u8::from(kept)).collect();
        self.file
            .seek(SeekFrom::Start(position))
            .and_then(|_| self.file.write_all(&bytes))
            .map_err(|e| Error::io("write", &self.path, e))
    }

    /// Whether a file of that name is there and holds these masks, byte for byte, all of which have been [added](Self::add).
    ///
    /// # Errors
    /// If either cannot be read, or these not be written.
    pub fn equals_existing(&mut self) -> Result<bool> {
        self.file
            .flush()
            .map_err(|e| Error::io("write", &self.path, e))?;
        let digest = |path: &Path| digest_of_files([path], &|| true);
        Ok(self.missing.is_empty()
            && self.path.exists()
            && digest(self.staged.inside())? == digest(&self.path)?)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If a mask has not come, or the write fails.
    pub fn finish(mut self) -> Result<()> {
        if let Some(name) = self.missing.keys().next() {
            return Err(Error::tensor(name, "its mask was never written"));
        }
        self.file
            .flush()
            .map_err(|e| Error::io("write", &self.path, e))?;
        drop(self.file);
        self.staged.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use ndarray::arr2;
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn masks_come_back_in_whatever_order_they_were_written() {
        let root = tempdir().unwrap();
        let path = root.path().join("masks.safetensors");
        let (first, second) = (arr2(&[[true, false, true]]), arr2(&[[false], [true]]));
        let shapes = [("first".to_owned(), [1, 3]), ("second".to_owned(), [2, 1])];
        let mut file = MaskWriter::create(&path, shapes).unwrap();
        file.add("second", second.view()).unwrap();
        assert!(file.add("second", second.view()).is_err());
        assert!(!path.exists());
        file.add("first", first.view()).unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);

        let file = Arc::new(MaskFile::open(&path).unwrap());
        assert_eq!(file.read("first").unwrap(), first);
        assert_eq!(file.read("second").unwrap(), second);
        assert!(file.read("third").is_err());
        let policy = file.policy("first").unwrap();
        policy.validate("", 1, 3).unwrap();
        assert!(policy.validate("", 3, 1).is_err());

        let bytes = fs::read(&path).unwrap();
        let mut changed = bytes;
        *changed.last_mut().unwrap() = 2;
        fs::write(&path, changed).unwrap();
        let names = ["first", "second"];
        let broken = names.map(|name| MaskFile::open(&path).unwrap().read(name).is_err());
        assert_eq!(broken.iter().filter(|&&broken| broken).count(), 1);
    }

    #[test]
    fn a_mask_that_never_came_leaves_no_file() {
        let root = tempdir().unwrap();
        let path = root.path().join("masks.safetensors");
        let file = MaskWriter::create(&path, [("layer".to_owned(), [1, 1])]).unwrap();
        assert!(file.finish().unwrap_err().to_string().contains("layer"));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
