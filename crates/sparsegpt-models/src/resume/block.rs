//! The file of one finished block.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sparsegpt::FinishedLayer;
use sparsegpt::quant::{GridLevels, QuantizedLayer};

use super::{BUFFER, Fingerprint};
use crate::checkpoint::{Dtype, decode, encode};
use crate::staging::{rename, sync_names};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"SGPTBLK2";
const DIGEST_BYTES: u64 = 32;
/// Heads and reports are a few kilobytes.
const MOST_JSON: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) fingerprint: Fingerprint,
    pub(super) block: usize,
    pub(super) blocks: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct LayerHead {
    name: String,
    variant: usize,
    layer: usize,
    starved: Option<u64>,
    rows: usize,
    cols: usize,
    dtype: Dtype,
    grid: Option<GridHead>,
    report: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct GridHead {
    groups: usize,
    levels: LevelsHead,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LevelsHead {
    /// The largest code.
    Affine(u32),
    /// The bits of each level, as JSON has no f32.
    Codebook(Vec<u32>),
}

/// A layer as it was kept.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeptLayer {
    /// Its name in the checkpoint, without `.weight`.
    pub name: String,
    /// The plan it was treated under.
    pub variant: usize,
    /// The layer's number in its block.
    pub layer: usize,
    /// The calibration tokens that had reached it where they were too few.
    pub starved: Option<u64>,
    /// Rounded to the type in which they are stored, rows x cols.
    pub weights: Array2<f32>,
    /// `true` where a weight was kept, rows x cols.
    pub mask: Array2<bool>,
    /// Codes and grids, where there are any.
    pub quantized: Option<QuantizedLayer>,
    /// The report, as the writer had put it.
    pub report: String,
}

/// Writes through a digest.
#[derive(Debug)]
struct Digested<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// A block file being written, under a temporary name. Dropped before [`commit`](Self::commit), it leaves nothing behind.
#[derive(Debug)]
pub struct BlockWriter {
    temporary: PathBuf,
    path: PathBuf,
    out: Digested<BufWriter<File>>,
}

impl BlockWriter {
    pub(super) fn create(path: PathBuf, temporary: PathBuf, head: &Head) -> Result<Self> {
        let file = File::create(&temporary).map_err(|e| Error::io("create", &temporary, e))?;
        let mut writer = Self {
            temporary,
            path,
            out: Digested {
                inner: BufWriter::with_capacity(BUFFER, file),
                digest: Sha256::new(),
            },
        };
        writer.write(&MAGIC)?;
        writer.write_json(head)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|e| Error::io("write", &self.temporary, e))
    }

    fn write_json(&mut self, value: &impl Serialize) -> Result<()> {
        let text =
            serde_json::to_vec(value).map_err(|e| Error::format(&self.temporary, e.to_string()))?;
        self.write(&(text.len() as u64).to_le_bytes())?;
        self.write(&text)
    }

    /// Adds a layer, its weights in the type `dtype` in which the result stores them. `report` comes back as it is.
    ///
    /// # Errors
    /// If a weight does not fit into the type, or the write fails, as on a full disk.
    pub fn add(&mut self, layer: &FinishedLayer, report: String, dtype: Dtype) -> Result<()> {
        let pruned = &layer.pruned;
        let (rows, cols) = pruned.weights.dim();
        let name = pruned.report.layer.clone();
        let grid = match &pruned.quantized {
            None => None,
            Some(quantized) => Some(GridHead {
                groups: quantized.scale.ncols(),
                levels: match &quantized.levels {
                    GridLevels::Affine { max_code } => LevelsHead::Affine(*max_code),
                    GridLevels::Codebook { levels } => {
                        LevelsHead::Codebook(levels.iter().map(|level| level.to_bits()).collect())
                    }
                    other => {
                        let reason = format!("levels of a kind that cannot be kept: {other:?}");
                        return Err(Error::tensor(name, reason));
                    }
                },
            }),
        };
        self.write_json(&LayerHead {
            name: name.clone(),
            variant: layer.variant,
            layer: layer.layer,
            starved: layer.starved,
            rows,
            cols,
            dtype,
            grid,
            report,
        })?;
        // A row at a time, so that no second copy of the layer is made.
        for row in pruned.weights.rows() {
            let encoded = encode(&name, dtype, &row.to_vec())?;
            self.write(&encoded.bytes)?;
        }
        let kept: Vec<bool> = pruned.mask.iter().copied().collect();
        let bits: Vec<u8> = kept.chunks(8).map(packed).collect();
        self.write(&bits)?;
        let Some(quantized) = &pruned.quantized else {
            return Ok(());
        };
        for row in quantized.codes.rows() {
            self.write(&row.to_vec())?;
        }
        for values in [&quantized.scale, &quantized.zero] {
            for value in values {
                self.write(&value.to_le_bytes())?;
            }
        }
        for &group in &quantized.group_of_column {
            self.write(&(group as u32).to_le_bytes())?;
        }
        Ok(())
    }

    /// Puts the file in its place, once it is on the disk.
    ///
    /// # Errors
    /// If that fails. A file that was in the place stays then.
    pub fn commit(mut self) -> Result<()> {
        self.write(&0_u64.to_le_bytes())?;
        let digest = self.out.digest.clone().finalize();
        self.write(&digest)?;
        self.out
            .flush()
            .and_then(|()| self.out.inner.get_ref().sync_all())
            .map_err(|e| Error::io("write", &self.temporary, e))?;
        rename(&self.temporary, &self.path)?;
        self.path.parent().map_or(Ok(()), sync_names)
    }
}

impl Drop for BlockWriter {
    fn drop(&mut self) {
        // Gone where the file was committed; else a left-over that the next run removes.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Up to eight flags, low bits first.
fn packed(flags: &[bool]) -> u8 {
    let bits = flags.iter().enumerate();
    bits.fold(0, |byte, (at, &flag)| byte | (u8::from(flag) << at))
}

/// A block file that is whole, opened for reading.
pub struct BlockFile {
    path: PathBuf,
    head: Head,
    reader: BufReader<File>,
    /// Bytes of layers that have not been read yet, the last zero included.
    left: u64,
}

impl fmt::Debug for BlockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockFile")
            .field("path", &self.path)
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

impl BlockFile {
    /// Opens a file, holds it against its checksum and reads its head.
    ///
    /// # Errors
    /// If it cannot be read, is truncated, changed, or no such file.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::io("read", path, source);
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let Some(covered) = len.checked_sub(DIGEST_BYTES) else {
            return Err(damaged(path, &format!("it has {len} bytes")));
        };
        check_digest(path, &mut reader, covered)?;
        reader.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut opened = Self {
            path: path.to_path_buf(),
            head: Head {
                fingerprint: Fingerprint::default(),
                block: 0,
                blocks: 0,
            },
            reader,
            left: covered,
        };
        let magic = opened.bytes(MAGIC.len() as u64)?;
        if magic != MAGIC {
            if magic[..MAGIC.len() - 1] == MAGIC[..MAGIC.len() - 1] {
                let reason = "written by another version, which cannot be gone on from; start over (--fresh)";
                return Err(Error::format(path, reason));
            }
            return Err(damaged(path, "it is no file of a finished block"));
        }
        opened.head = opened
            .json()?
            .ok_or_else(|| damaged(path, "it has no head"))?;
        Ok(opened)
    }

    /// The run that it belongs to.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.head.fingerprint
    }

    /// The block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.head.block
    }

    /// Blocks of the model.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.head.blocks
    }

    /// The next layer; `None` behind the last.
    ///
    /// # Errors
    /// If the file cannot be read or contradicts itself.
    pub fn next_layer(&mut self) -> Result<Option<KeptLayer>> {
        let Some(head) = self.json::<LayerHead>()? else {
            if self.left > 0 {
                return Err(self.damaged("something stands behind its last layer"));
            }
            return Ok(None);
        };
        let (rows, cols) = (head.rows, head.cols);
        let count = (rows as u64)
            .checked_mul(cols as u64)
            .filter(|&count| count > 0);
        let Some(count) = count else {
            return Err(self.damaged(&format!("a layer has the shape {rows} x {cols}")));
        };
        let weight_bytes = count
            .checked_mul(head.dtype.bitsize() as u64)
            .map(|bits| bits.div_ceil(8));
        let bytes = self.sized(weight_bytes)?;
        let values = decode("(a kept layer)", head.dtype, &bytes)
            .map_err(|error| self.damaged(&error.to_string()))?;
        drop(bytes);
        let weights = self.matrix(rows, cols, values)?;
        let bits = self.bytes(count.div_ceil(8))?;
        let mask = (0..weights.len())
            .map(|at| bits[at / 8] >> (at % 8) & 1 == 1)
            .collect();
        let mask = self.matrix(rows, cols, mask)?;
        let quantized = head
            .grid
            .map(|grid| self.grid(grid, rows, cols))
            .transpose()?;
        Ok(Some(KeptLayer {
            name: head.name,
            variant: head.variant,
            layer: head.layer,
            starved: head.starved,
            weights,
            mask,
            quantized,
            report: head.report,
        }))
    }

    fn grid(&mut self, grid: GridHead, rows: usize, cols: usize) -> Result<QuantizedLayer> {
        let codes = self.bytes((rows * cols) as u64)?;
        let codes = self.matrix(rows, cols, codes)?;
        let per_group = |this: &mut Self| {
            let bytes = (rows as u64)
                .checked_mul(grid.groups as u64)
                .and_then(|count| count.checked_mul(4));
            let bytes = this.sized(bytes)?;
            let values = decode("(a kept grid)", Dtype::F32, &bytes)?;
            this.matrix(rows, grid.groups, values)
        };
        let (scale, zero) = (per_group(self)?, per_group(self)?);
        let groups = self.sized((cols as u64).checked_mul(4))?;
        let groups = groups.as_chunks::<4>().0.iter();
        let levels = match grid.levels {
            LevelsHead::Affine(max_code) => GridLevels::Affine { max_code },
            LevelsHead::Codebook(bits) => GridLevels::Codebook {
                levels: bits.into_iter().map(f32::from_bits).collect::<Arc<[f32]>>(),
            },
        };
        let groups = groups.map(|&group| u32::from_le_bytes(group) as usize);
        QuantizedLayer::from_parts(codes, scale, zero, groups.collect(), levels)
            .map_err(|error| self.damaged(&error.to_string()))
    }

    fn matrix<T>(&self, rows: usize, cols: usize, values: Vec<T>) -> Result<Array2<T>> {
        Array2::from_shape_vec((rows, cols), values)
            .map_err(|error| self.damaged(&error.to_string()))
    }

    /// A length and so many bytes of JSON; `None` for length 0.
    fn json<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>> {
        let mut length = [0; 8];
        let bytes = self.bytes(length.len() as u64)?;
        length.copy_from_slice(&bytes);
        match u64::from_le_bytes(length) {
            0 => Ok(None),
            length if length > MOST_JSON => {
                Err(self.damaged(&format!("a description claims {length} bytes")))
            }
            length => {
                let text = self.bytes(length)?;
                serde_json::from_slice(&text)
                    .map(Some)
                    .map_err(|error| self.damaged(&error.to_string()))
            }
        }
    }

    fn sized(&mut self, count: Option<u64>) -> Result<Vec<u8>> {
        match count {
            Some(count) => self.bytes(count),
            None => Err(self.damaged("a size overflows")),
        }
    }

    /// The next bytes; nothing is allocated for more than the file has.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        if count > self.left {
            let reason = format!("{count} bytes are to follow where {} are left", self.left);
            return Err(self.damaged(&reason));
        }
        self.left -= count;
        let mut bytes = vec![0; count as usize];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|e| Error::io("read", &self.path, e))?;
        Ok(bytes)
    }

    fn damaged(&self, reason: &str) -> Error {
        damaged(&self.path, reason)
    }
}

fn check_digest(path: &Path, reader: &mut impl Read, covered: u64) -> Result<()> {
    let failed = |source| Error::io("read", path, source);
    let mut digest = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut left = covered;
    while left > 0 {
        let part = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
        reader.read_exact(&mut buffer[..part]).map_err(failed)?;
        digest.update(&buffer[..part]);
        left -= part as u64;
    }
    let mut stored = [0; DIGEST_BYTES as usize];
    reader.read_exact(&mut stored).map_err(failed)?;
    if digest.finalize()[..] != stored {
        return Err(damaged(path, "its checksum does not hold"));
    }
    Ok(())
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::format(
        path,
        format!(
            "damaged: {reason}; remove this file to do its block and those behind it again, or start over (--fresh)"
        ),
    )
}
