//! Tensors in and out of safetensors files.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::json;
use sparsegpt_models::staging::StagedFile;

use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::interrupt;

/// A safetensors file in memory.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Values in the type they have in the file.
#[derive(Debug)]
pub(crate) enum Floats {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Floats {
    pub(crate) fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
            Self::F16(values) => values.into_iter().map(f16::to_f32).collect(),
        }
    }
}

impl TensorFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes =
            fs::read(path).map_err(|error| Failure::file(path, format!("cannot read: {error}")))?;
        let file = Self {
            path: path.to_path_buf(),
            bytes,
        };
        file.tensors()?;
        Ok(file)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, Failure> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| {
            Failure::file(&self.path, format!("not a whole safetensors file: {error}"))
        })
    }

    /// The tensor of a name, where there is one.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>, Failure> {
        Ok(self.tensors()?.tensor(name).ok())
    }

    /// The names of its tensors for an error message: the first few, and how many there are besides.
    pub(crate) fn names(&self) -> Result<String, Failure> {
        const MOST: usize = 12;
        let tensors = self.tensors()?;
        let mut names = tensors.names();
        names.sort_unstable();
        let more = names.len().saturating_sub(MOST);
        names.truncate(MOST);
        let listed = names.join(", ");
        Ok(match more {
            0 => listed,
            more => format!("{listed} and {more} more"),
        })
    }

    /// An error about one of its tensors.
    pub(crate) fn wrong(&self, name: &str, reason: impl std::fmt::Display) -> Failure {
        Failure::file(&self.path, format!("tensor {name:?}: {reason}"))
    }

    /// The tensor of a name as a matrix in f32, where there is one.
    pub(crate) fn matrix(&self, name: &str) -> Result<Option<Array2<f32>>, Failure> {
        let Some(tensor) = self.tensor(name)? else {
            return Ok(None);
        };
        let &[rows, cols] = tensor.shape() else {
            return Err(self.wrong(
                name,
                format!("expected 2 sizes, found {:?}", tensor.shape()),
            ));
        };
        let values = self.floats(name, &tensor)?.into_f32();
        Array2::from_shape_vec((rows, cols), values)
            .map(Some)
            .map_err(|e| self.wrong(name, e))
    }

    pub(crate) fn floats(&self, name: &str, tensor: &TensorView<'_>) -> Result<Floats, Failure> {
        let data = tensor.data();
        Ok(match tensor.dtype() {
            Dtype::F32 => Floats::F32(elements(data, f32::from_le_bytes)),
            Dtype::BF16 => Floats::Bf16(elements(data, bf16::from_le_bytes)),
            Dtype::F16 => Floats::F16(elements(data, f16::from_le_bytes)),
            other => {
                return Err(self.wrong(name, format!("expected F32, F16 or BF16, found {other:?}")));
            }
        })
    }

    /// A tensor of integers, widened to i64.
    pub(crate) fn integers(
        &self,
        name: &str,
        tensor: &TensorView<'_>,
    ) -> Result<Vec<i64>, Failure> {
        let data = tensor.data();
        Ok(match tensor.dtype() {
            Dtype::U8 | Dtype::BOOL => data.iter().map(|&byte| i64::from(byte)).collect(),
            Dtype::I32 => elements(data, |bytes| i64::from(i32::from_le_bytes(bytes))),
            Dtype::I64 => elements(data, i64::from_le_bytes),
            other => {
                return Err(self.wrong(name, format!("expected integers, found {other:?}")));
            }
        })
    }
}

fn elements<const N: usize, T>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|&chunk| element(chunk))
        .collect()
}

/// A tensor to be written.
#[derive(Debug)]
pub(crate) struct OwnedTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl OwnedTensor {
    pub(crate) fn f32(values: ArrayView2<'_, f32>) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: values.shape().to_vec(),
            bytes: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }

    pub(crate) fn u8(values: ArrayView2<'_, u8>) -> Self {
        Self {
            dtype: Dtype::U8,
            shape: values.shape().to_vec(),
            bytes: values.iter().copied().collect(),
        }
    }

    pub(crate) fn i32(values: impl Iterator<Item = i32>) -> Self {
        let bytes: Vec<u8> = values.flat_map(i32::to_le_bytes).collect();
        Self {
            dtype: Dtype::I32,
            shape: vec![bytes.len() / 4],
            bytes,
        }
    }

    /// The same values with another shape of the same size.
    pub(crate) fn reshaped(mut self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(
            shape.iter().product::<usize>(),
            self.shape.iter().product::<usize>()
        );
        self.shape = shape;
        self
    }
}

impl View for &OwnedTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Refuses a file that is there, unless it may be replaced, and a folder that is not.
pub(crate) fn check_output(path: &Path, force: bool) -> Result<(), Failure> {
    let refuse = |reason: &str| Err(Failure::usage(format!("{}: {reason}", path.display())));
    if path.is_dir() {
        return refuse("is a folder, expected the name of a file");
    }
    let taken = path.symlink_metadata().ok();
    if taken.is_some_and(|taken| !taken.is_file()) {
        return refuse("is a link or a device, expected a file; name the file itself");
    }
    if path.exists() && !force {
        return refuse("exists; choose another name, or allow replacing it (--force)");
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            refuse("its folder does not exist; create it first")
        }
        _ if path.file_name().is_none() => refuse("expected the name of a file"),
        _ => Ok(()),
    }
}

/// Writes tensors to a file that appears under its name when it is whole.
pub(crate) fn write(
    path: &Path,
    tensors: &[(String, OwnedTensor)],
    console: &Console,
) -> Result<(), Failure> {
    let bytes = safetensors::serialize(tensors.iter().map(|(name, tensor)| (name, tensor)), None)
        .map_err(|error| Failure::new(Exit::Work, error))?;
    let mut file = begin(path, console)?;
    file.append(&bytes).map_err(Failure::writing)?;
    put_in_place(file)
}

/// Writes one f32 tensor part by part, so that it need not be in memory as a whole.
#[derive(Debug)]
pub(crate) struct StreamedTensor {
    file: StagedFile,
    values_left: u64,
}

impl StreamedTensor {
    pub(crate) fn create(
        path: &Path,
        name: &str,
        shape: &[usize],
        console: &Console,
    ) -> Result<Self, Failure> {
        let values: u64 = shape.iter().map(|&size| size as u64).product();
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [0, 4 * values] });
        let mut header = json!({ name: entry }).to_string();
        // The data start at a multiple of 8 bytes.
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let mut tensor = Self {
            file: begin(path, console)?,
            values_left: values,
        };
        tensor.bytes(&(header.len() as u64).to_le_bytes())?;
        tensor.bytes(header.as_bytes())?;
        Ok(tensor)
    }

    pub(crate) fn append(&mut self, values: &[f32]) -> Result<(), Failure> {
        self.values_left = self.values_left.saturating_sub(values.len() as u64);
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.bytes(&bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.append(bytes).map_err(Failure::writing)
    }

    pub(crate) fn finish(self) -> Result<(), Failure> {
        if self.values_left > 0 {
            return Err(Failure::new(
                Exit::Work,
                format!(
                    "{}: cannot be written: the model gave fewer values than its shape has",
                    self.file.path().display()
                ),
            ));
        }
        put_in_place(self.file)
    }
}

/// Begins a file; what killed runs to the same place had left is removed and told.
fn begin(path: &Path, console: &Console) -> Result<StagedFile, Failure> {
    let file = StagedFile::create(path).map_err(Failure::writing)?;
    interrupt::left_over(Some(file.staging().to_path_buf()));
    console.tell_leftovers(file.leftovers());
    Ok(file)
}

fn put_in_place(file: StagedFile) -> Result<(), Failure> {
    file.finish().map_err(Failure::writing)?;
    interrupt::left_over(None);
    Ok(())
}
