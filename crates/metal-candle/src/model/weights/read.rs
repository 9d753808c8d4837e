//! One tensor at a time from a safetensors file, for what does not need a whole model.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::{TensorInfo, WeightsError, header};

/// An open safetensors file whose header was read and checked.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: Vec<(String, TensorInfo)>,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<TensorFile, WeightsError> {
        let tensors = header::read_file(path, 0)?;
        let file = File::open(path).map_err(|source| WeightsError::io("open", path, source))?;
        Ok(TensorFile { path: path.into(), file, tensors })
    }

    /// In the order of their bytes.
    pub(crate) fn tensors(&self) -> &[(String, TensorInfo)] {
        &self.tensors
    }

    pub(crate) fn bytes(&mut self, info: &TensorInfo) -> Result<Vec<u8>, WeightsError> {
        let mut bytes = vec![0; info.byte_count()];
        let read = self.file.seek(SeekFrom::Start(info.range.start as u64));
        let read = read.and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|source| WeightsError::io("read", &self.path, source))?;
        Ok(bytes)
    }

    /// A tensor of this float dtype, which the file's header says it has.
    pub(crate) fn tensor(&mut self, info: &TensorInfo, dtype: DType) -> Result<Tensor, WeightsError> {
        let bytes = self.bytes(info)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?)
    }
}
