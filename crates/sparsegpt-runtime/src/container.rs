//! Packed layers on disk: safetensors, mapped into memory and used where they lie. `docs/format.md` has the bytes.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::{Pod, cast_slice};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};

use crate::buffer::{Aligned, Buffer, Source};
use crate::dense::DenseMatrix;
use crate::error::{Error, Result};
use crate::layer::LinearLayer;
use crate::linear::{QuantizedLinear, QuantizedWeights, SparseLinear, Weights};
use crate::packed::PackedMatrix;
use crate::pattern::PatternMatrix;
use crate::quantized::QuantizedMatrix;
use crate::value::Value;

/// The key of the header's `__metadata__` that says what the file is, and the version it has there.
const KEY: &str = "sparsegpt-packed";
const VERSION: &str = "1";
/// Bytes of the length that a safetensors file begins with.
const LENGTH_BYTES: usize = 8;
/// Rows and columns below this, so that sizes fit.
const MOST_ROWS: u64 = 1 << 31;

const SHAPE: &str = "shape";
const MASKS: &str = "masks";
const OFFSETS: &str = "offsets";
const VALUES: &str = "values";
const DENSE: &str = "dense";
const BIAS: &str = "bias";
const PATTERN: &str = "pattern";
const CODES: &str = "codes";
const GRID: &str = "grid";
const SCALES: &str = "scales";
const ZEROS: &str = "zeros";

/// Gathers layers and writes them as one file.
///
/// ```
/// use sparsegpt_runtime::{Container, ContainerWriter, SparseLinear};
/// use sparsegpt_runtime::ndarray::array;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("layers.safetensors");
/// let layer = SparseLinear::new(array![[0.0_f32, 2.0], [0.0, 0.0]].view(), None)?;
/// let mut writer = ContainerWriter::new();
/// writer.add("first", &layer)?;
/// writer.write(&path)?;
///
/// // SAFETY: nothing else knows of the file.
/// let container = unsafe { Container::open(&path)? };
/// let read = container.layer::<f32>("first")?;
/// assert_eq!(read.unpack(), layer.unpack());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct ContainerWriter<'a> {
    /// Name, type, shape, bytes.
    tensors: Vec<(String, Dtype, Vec<usize>, Bytes<'a>)>,
}

#[derive(Debug)]
enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
}

impl Bytes<'_> {
    fn get(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> ContainerWriter<'a> {
    /// No layers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer under a name that is not taken.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is taken.
    pub fn add<V: Value>(&mut self, name: &str, layer: &'a SparseLinear<V>) -> Result<()> {
        self.begin(name, layer.rows(), layer.cols())?;
        match layer.weights() {
            Weights::Sparse(weight) => {
                let parts = weight.parts();
                self.push(name, MASKS, Dtype::U64, parts.masks);
                self.push(name, OFFSETS, Dtype::U64, parts.offsets);
                self.push(name, VALUES, V::DTYPE, parts.values);
            }
            Weights::Pattern(weight) => {
                let parts = weight.parts();
                self.push_owned(name, PATTERN, Dtype::U8, 2, parts.pattern.to_vec());
                self.push(name, CODES, Dtype::U8, parts.codes);
                self.push(name, VALUES, V::DTYPE, parts.values);
            }
            Weights::Dense(weight) => self.push(name, DENSE, V::DTYPE, weight.values()),
        }
        if let Some(bias) = layer.bias() {
            self.push(name, BIAS, Dtype::F32, bias);
        }
        Ok(())
    }

    /// Adds a quantized layer under a name that is not taken.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is taken, or the layer is stored dense, for which there is no form.
    pub fn add_quantized(&mut self, name: &str, layer: &'a QuantizedLinear) -> Result<()> {
        let QuantizedWeights::Sparse(weight) = layer.weights() else {
            return Err(Error::Setting {
                name: "quantized layer",
                expected: "one that is stored sparse",
                found: layer.storage().to_string(),
            });
        };
        self.begin(name, layer.rows(), layer.cols())?;
        let parts = weight.parts();
        let grid = parts.grid.iter().flat_map(|number| number.to_le_bytes());
        self.push_owned(name, GRID, Dtype::U64, 2, grid.collect());
        self.push(name, MASKS, Dtype::U64, parts.masks);
        self.push(name, OFFSETS, Dtype::U64, parts.offsets);
        self.push(name, CODES, Dtype::U8, parts.codes);
        self.push(name, SCALES, Dtype::F32, parts.scales);
        self.push(name, ZEROS, Dtype::U8, parts.zeros);
        if let Some(bias) = layer.bias() {
            self.push(name, BIAS, Dtype::F32, bias);
        }
        Ok(())
    }

    fn begin(&mut self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let shape = format!("{name}.{SHAPE}");
        if self.tensors.iter().any(|(taken, ..)| *taken == shape) {
            return Err(Error::Setting {
                name: "layer name",
                expected: "one that no other layer of the file has",
                found: name.to_owned(),
            });
        }
        let sides = [rows as u64, cols as u64];
        let sides = sides.iter().flat_map(|side| side.to_le_bytes()).collect();
        self.push_owned(name, SHAPE, Dtype::U64, 2, sides);
        Ok(())
    }

    fn push_owned(&mut self, layer: &str, part: &str, dtype: Dtype, len: usize, bytes: Vec<u8>) {
        let name = format!("{layer}.{part}");
        self.tensors
            .push((name, dtype, vec![len], Bytes::Owned(bytes)));
    }

    fn push<T: Pod>(&mut self, layer: &str, part: &str, dtype: Dtype, values: &'a [T]) {
        let bytes = Bytes::Borrowed(cast_slice(values));
        self.tensors
            .push((format!("{layer}.{part}"), dtype, vec![values.len()], bytes));
    }

    /// Writes the file, which must not be a mapped one.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::Format`] on a machine whose numbers begin with the high byte.
    pub fn write(&self, path: &Path) -> Result<()> {
        check_byte_order(path)?;
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, dtype, shape, bytes) in &self.tensors {
            let view = TensorView::new(*dtype, shape.clone(), bytes.get())
                .map_err(|error| Error::format(path, format!("{name}: {error}")))?;
            views.push((name.as_str(), view));
        }
        // One entry, as a second would come in any order, and the same layers are to give the same bytes.
        let metadata = HashMap::from([(KEY.to_owned(), VERSION.to_owned())]);
        // The file that is renamed to `path` is private to its maker.
        let failed = |error| Error::io("write", path, error);
        let permissions = permissions_at(path).map_err(failed)?;
        safetensors::serialize_to_file(views, Some(metadata), path)
            .map_err(|error| failed(io::Error::other(error)))?;
        fs::set_permissions(path, permissions).map_err(failed)
    }
}

/// Those of what is at `path`, or else of any new file there; nothing is left.
fn permissions_at(path: &Path) -> io::Result<Permissions> {
    match File::create_new(path) {
        Ok(file) => {
            let permissions = file.metadata()?.permissions();
            fs::remove_file(path)?;
            Ok(permissions)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(fs::metadata(path)?.permissions())
        }
        Err(error) => Err(error),
    }
}

/// A file of layers, mapped into memory, or the same bytes in memory.
pub struct Container {
    path: PathBuf,
    bytes: Source,
    data_start: usize,
    metadata: Metadata,
}

impl fmt::Debug for Container {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Container")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Container {
    /// Maps a file and checks its header against its size. [`read`](Self::read) is the safe way.
    ///
    /// # Safety
    /// While the container or a layer of it is in use, nobody changes or shortens the file: layers are checked once, and kernels
    /// rely on what was found. (A file that is renamed to the path, as [`ContainerWriter::write`] does it, is another file.)
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is no container, a damaged one, or of another
    /// version.
    pub unsafe fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let size = file
            .metadata()
            .map_err(|source| Error::io("read", path, source))?
            .len();
        if size == 0 {
            return Err(Error::format(path, "the file is empty"));
        }
        // SAFETY: the map is only ever read, and the caller vouches for the file.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io("map", path, source))?;
        Self::of(path, Source::File(Arc::new(map)))
    }

    /// Reads a file into memory.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::io("open", path, source))?;
        if bytes.is_empty() {
            return Err(Error::format(path, "the file is empty"));
        }
        Self::of(path, Source::Memory(Arc::new(Aligned::from(&*bytes))))
    }

    /// A container that is in memory, as in an executable by `include_bytes!`. It is copied once, to where its values are
    /// aligned. `name` stands for the file in errors.
    ///
    /// ```
    /// # use sparsegpt_runtime::{Container, ContainerWriter, SparseLinear};
    /// # use sparsegpt_runtime::ndarray::array;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("layers.safetensors");
    /// # let layer = SparseLinear::new(array![[0.0_f32, 2.0], [0.0, 0.0]].view(), None)?;
    /// # let mut writer = ContainerWriter::new();
    /// # writer.add("first", &layer)?;
    /// # writer.write(&path)?;
    /// # let bytes = std::fs::read(&path)?;
    /// let container = Container::from_bytes("layers", &bytes)?;
    /// assert_eq!(container.layer::<f32>("first")?.unpack(), layer.unpack());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Format`] as [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::of(
            Path::new(name),
            Source::Memory(Arc::new(Aligned::from(bytes))),
        )
    }

    fn of(path: &Path, bytes: Source) -> Result<Self> {
        check_byte_order(path)?;
        let refuse = |reason: String| Error::format(path, reason);
        // Refuses headers that are cut off, overlaps, gaps, and sizes that disagree with shape, type or file.
        let (header_len, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| refuse(format!("no whole safetensors file: {error}")))?;
        let data_start = LENGTH_BYTES + header_len;
        let (expected, found) = (
            metadata.data_len(),
            bytes.len() - data_start.min(bytes.len()),
        );
        if expected != found {
            return Err(refuse(format!(
                "the header describes {expected} bytes of values, the file holds {found}; it is truncated or damaged"
            )));
        }
        let version = metadata.metadata().as_ref().and_then(|all| all.get(KEY));
        match version.map(String::as_str) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(refuse(format!(
                    "expected version {VERSION} of {KEY}, found {other:?}"
                )));
            }
            None => {
                return Err(refuse(format!(
                    "the header does not say {KEY}: this is no container of packed layers"
                )));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            bytes,
            data_start,
            metadata,
        })
    }

    /// Names of the layers, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let tensors = self.metadata.tensors();
        let names = tensors
            .keys()
            .filter_map(|name| name.strip_suffix(SHAPE)?.strip_suffix('.'));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The type of a layer's weights, as in `bf16`; `None` if there is no such layer.
    #[must_use]
    pub fn dtype(&self, layer: &str) -> Option<String> {
        let part = |part| self.metadata.info(&format!("{layer}.{part}"));
        // Codes stand for numbers of f32.
        let info = part(VALUES)
            .or_else(|| part(DENSE))
            .or_else(|| part(SCALES))?;
        Some(info.dtype.to_string().to_lowercase())
    }

    /// A layer of whatever type it has.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn any_layer(&self, name: &str) -> Result<Arc<dyn LinearLayer>> {
        if self.has(name, GRID) {
            return Ok(Arc::new(self.quantized_layer(name)?));
        }
        Ok(match self.dtype(name).as_deref() {
            Some("bf16") => Arc::new(self.layer::<bf16>(name)?),
            Some("f16") => Arc::new(self.layer::<f16>(name)?),
            // What is none of them is refused there.
            _ => Arc::new(self.layer::<f32>(name)?),
        })
    }

    /// A layer, its weights where they lie in the file. Its masks are read once, to check them.
    ///
    /// # Errors
    /// [`Error::Layer`] if it is not there, of another type, or damaged.
    pub fn layer<V: Value>(&self, name: &str) -> Result<SparseLinear<V>> {
        let refuse = |reason: String| Error::layer(&self.path, name, reason);
        let (rows, cols) = self.shape(name)?;
        // Rows without a weight would let a small file ask for any amount of memory.
        if rows > 0 && cols == 0 && !self.has(name, MASKS) {
            return Err(refuse(format!(
                "expected weights in {rows} rows, found none"
            )));
        }
        let layer = if self.has(name, DENSE) {
            let values = self.needed(name, DENSE, V::DTYPE)?;
            DenseMatrix::from_buffer(rows, cols, values)
                .and_then(|weight| SparseLinear::dense(weight, None))
        } else if self.has(name, PATTERN) {
            let pattern = self.needed::<u8>(name, PATTERN, Dtype::U8)?;
            let codes = self.needed(name, CODES, Dtype::U8)?;
            let values = self.needed(name, VALUES, V::DTYPE)?;
            PatternMatrix::from_buffers((rows, cols), &pattern, codes, values)
                .and_then(|weight| SparseLinear::pattern(weight, None))
        } else {
            let masks = self.needed(name, MASKS, Dtype::U64)?;
            let offsets = self.needed(name, OFFSETS, Dtype::U64)?;
            let values = self.needed(name, VALUES, V::DTYPE)?;
            PackedMatrix::from_buffers(rows, cols, masks, offsets, values)
                .and_then(|weight| SparseLinear::sparse(weight, None))
        };
        let bias = self.bias(name)?;
        layer
            .and_then(|layer| layer.with_bias(bias))
            .map_err(|error| refuse(error.to_string()))
    }

    /// A quantized layer, its codes where they lie in the file. Its masks are read once, to check them.
    ///
    /// # Errors
    /// [`Error::Layer`] if it is not there, of another kind, or damaged.
    pub fn quantized_layer(&self, name: &str) -> Result<QuantizedLinear> {
        let refuse = |reason: String| Error::layer(&self.path, name, reason);
        let shape = self.shape(name)?;
        let grid = self.needed::<u64>(name, GRID, Dtype::U64)?;
        let masks = [
            self.needed(name, MASKS, Dtype::U64)?,
            self.needed(name, OFFSETS, Dtype::U64)?,
        ];
        let codes = [
            self.needed(name, CODES, Dtype::U8)?,
            self.needed(name, ZEROS, Dtype::U8)?,
        ];
        let scales = self.needed(name, SCALES, Dtype::F32)?;
        let bias = self.bias(name)?;
        QuantizedMatrix::from_buffers(shape, &grid, masks, codes, scales)
            .and_then(|weight| QuantizedLinear::sparse(weight, bias))
            .map_err(|error| refuse(error.to_string()))
    }

    /// Rows and columns.
    fn shape(&self, name: &str) -> Result<(usize, usize)> {
        let refuse = |reason: String| Error::layer(&self.path, name, reason);
        let shape = self.part::<u64>(name, SHAPE, Dtype::U64)?;
        let shape = shape.ok_or_else(|| refuse("the file has no such layer".to_owned()))?;
        let &[rows, cols] = &*shape else {
            return Err(refuse(format!(
                "expected rows and columns as its shape, found {} numbers",
                shape.len()
            )));
        };
        if rows >= MOST_ROWS || cols >= MOST_ROWS {
            return Err(refuse(format!("a shape of {rows} x {cols} is too large")));
        }
        Ok((rows as usize, cols as usize))
    }

    fn bias(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let bias = self.part::<f32>(name, BIAS, Dtype::F32)?;
        Ok(bias.map(|bias| bias.to_vec()))
    }

    fn has(&self, layer: &str, part: &str) -> bool {
        self.metadata.info(&format!("{layer}.{part}")).is_some()
    }

    /// A part that the layer cannot do without.
    fn needed<T: Pod>(&self, layer: &str, part: &str, dtype: Dtype) -> Result<Buffer<T>> {
        self.part(layer, part, dtype)?
            .ok_or_else(|| Error::layer(&self.path, layer, format!("its {part} are missing")))
    }

    /// A part of a layer; `None` if the file does not have it.
    fn part<T: Pod>(&self, layer: &str, part: &str, dtype: Dtype) -> Result<Option<Buffer<T>>> {
        let refuse = |reason: String| Error::layer(&self.path, layer, reason);
        let Some(info) = self.metadata.info(&format!("{layer}.{part}")) else {
            return Ok(None);
        };
        if info.dtype != dtype {
            return Err(refuse(format!(
                "expected {part} of {dtype}, found {}",
                info.dtype
            )));
        }
        if info.shape.len() != 1 {
            return Err(refuse(format!(
                "expected {part} in one dimension, found {:?}",
                info.shape
            )));
        }
        let (start, end) = info.data_offsets;
        let buffer = Buffer::within(&self.bytes, self.data_start + start..self.data_start + end);
        let buffer =
            buffer.ok_or_else(|| refuse(format!("its {part} are not aligned to {dtype}")))?;
        Ok(Some(buffer))
    }
}

/// The files have the low byte first, and so must the machine that uses them where they lie.
fn check_byte_order(path: &Path) -> Result<()> {
    if cfg!(target_endian = "big") {
        return Err(Error::format(
            path,
            "containers are mapped as they are, which needs a little-endian machine",
        ));
    }
    Ok(())
}
