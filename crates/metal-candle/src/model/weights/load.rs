//! From mapped files to tensors: one copy, in parallel, checked for finite numbers while it is in cache.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use metal_candle_kernels::memory::{FileMap, Plain, bytes_of_mut, huge_vec};
use metal_candle_kernels::pool;

use super::error::BadTensor;
use super::{Checkpoint, TensorInfo, Weights, WeightsError};

/// What one thread copies at a time.
const PIECE_BYTES: usize = 1 << 20;
/// After this many bytes the file's pages are given back and the caller hears of the progress.
const WINDOW_BYTES: usize = 16 << 20;
/// Tensors start at multiples of a cache line, which is also the widest vector register.
const ALIGNMENT_BYTES: usize = 64;

/// See [`Checkpoint::load`].
pub(super) fn load(
    checkpoint: &Checkpoint,
    device: &Device,
    dtype: Option<DType>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights, WeightsError> {
    let _loading = crate::trace::host_span("load_weights");
    refuse_unsupported(checkpoint, dtype)?;
    let mut progress = Progress { done: 0, total: checkpoint.total_bytes(), report: progress };
    let mut loaded = Vec::with_capacity(checkpoint.tensors.len());
    for (shard, path) in checkpoint.shards.iter().enumerate() {
        let in_shard = checkpoint.tensors.iter().filter(|(_, info)| info.shard == shard);
        let mut in_shard: Vec<Source<'_>> =
            in_shard.map(|(name, info)| Source { name, info, dtype: file_dtype(info) }).collect();
        if in_shard.is_empty() {
            continue;
        }
        in_shard.sort_by_key(|source| source.info.range.start);
        let map = map_file(path, &in_shard)?;
        for target in [DType::F32, DType::BF16, DType::F16] {
            let group = in_shard.iter().filter(|source| dtype.unwrap_or(source.dtype) == target);
            let group: Vec<Source<'_>> = group.copied().collect();
            let loader = Loader { map: &map, path, device };
            match target {
                DType::F32 => loader.load_group::<f32>(&group, &mut progress, &mut loaded)?,
                DType::BF16 => loader.load_group::<bf16>(&group, &mut progress, &mut loaded)?,
                _ => loader.load_group::<f16>(&group, &mut progress, &mut loaded)?,
            }
        }
    }
    Ok(loaded.into_iter().collect())
}

/// A tensor to load; `dtype` is that of the file.
#[derive(Clone, Copy)]
struct Source<'a> {
    name: &'a String,
    info: &'a TensorInfo,
    dtype: DType,
}

struct Progress<'a> {
    done: u64,
    total: u64,
    report: &'a mut dyn FnMut(u64, u64),
}

fn refuse_unsupported(checkpoint: &Checkpoint, dtype: Option<DType>) -> Result<(), WeightsError> {
    if let Some(target) = dtype.filter(|target| !matches!(target, DType::F32 | DType::BF16 | DType::F16)) {
        return Err(WeightsError::UnsupportedTarget(target));
    }
    let unsupported = checkpoint.tensors.iter().filter(|(_, info)| info.float_dtype().is_none());
    let tensors: Vec<String> = unsupported.map(|(name, info)| format!("{name}: {}", info.dtype)).collect();
    if tensors.is_empty() {
        return Ok(());
    }
    Err(WeightsError::UnsupportedDtype { folder: checkpoint.folder.clone(), tensors })
}

fn file_dtype(info: &TensorInfo) -> DType {
    info.float_dtype().expect("unsupported dtypes were refused before loading")
}

fn map_file(path: &Path, sources: &[Source<'_>]) -> Result<FileMap, WeightsError> {
    let file = File::open(path).map_err(|source| WeightsError::io("open", path, source))?;
    let map = FileMap::new(&file).map_err(|source| WeightsError::io("map", path, source))?;
    let expected = sources.last().map_or(0, |source| source.info.range.end);
    if map.bytes().len() < expected {
        let found = map.bytes().len() as u64;
        return Err(WeightsError::Changed { path: path.into(), expected: expected as u64, found });
    }
    Ok(map)
}

struct Loader<'a> {
    map: &'a FileMap,
    path: &'a Path,
    device: &'a Device,
}

impl Loader<'_> {
    /// Loads tensors that all become `T`: into one buffer on the CPU, one by one elsewhere.
    fn load_group<T: Element>(
        &self,
        sources: &[Source<'_>],
        progress: &mut Progress<'_>,
        loaded: &mut Vec<(String, Tensor)>,
    ) -> Result<(), WeightsError> {
        if sources.is_empty() {
            return Ok(());
        }
        if !self.device.is_cpu() {
            for source in sources {
                let mut values = self.buffer::<T>(elements(source))?;
                self.fill(&mut values, &[0], &[*source], progress)?;
                let tensor = Tensor::from_vec(values, source.info.shape.as_slice(), self.device)?;
                loaded.push((source.name.clone(), tensor));
            }
            return Ok(());
        }
        let align = ALIGNMENT_BYTES / size_of::<T>();
        let padded: usize = sources.iter().map(|source| elements(source).next_multiple_of(align)).sum();
        let mut values = self.buffer::<T>(padded + align)?;
        let mut next = values.as_ptr().align_offset(ALIGNMENT_BYTES).min(align);
        let mut starts = Vec::with_capacity(sources.len());
        for source in sources {
            starts.push(next);
            next += elements(source).next_multiple_of(align);
        }
        self.fill(&mut values, &starts, sources, progress)?;
        let buffer = Tensor::from_vec(values, padded + align, self.device)?;
        for (source, start) in sources.iter().zip(starts) {
            let view = buffer.narrow(0, start, elements(source))?.reshape(source.info.shape.as_slice())?;
            loaded.push((source.name.clone(), view));
        }
        Ok(())
    }

    fn buffer<T: Element>(&self, len: usize) -> Result<Vec<T>, WeightsError> {
        huge_vec(len).map_err(|source| WeightsError::io("find memory for", self.path, source))
    }

    /// Copies each source to its start in `values`, window by window, each window by all threads.
    fn fill<T: Element>(
        &self,
        values: &mut [T],
        starts: &[usize],
        sources: &[Source<'_>],
        progress: &mut Progress<'_>,
    ) -> Result<(), WeightsError> {
        let pieces = cut(values, starts, sources);
        let faults: Mutex<Vec<Fault>> = Mutex::new(Vec::new());
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest.iter().take_while(|piece| within_window(&mut bytes, piece)).count();
            let (window, later) = rest.split_at(count);
            pool::for_each(window.len(), &|index| {
                let piece = &window[index];
                let source = &sources[piece.tensor];
                let from = &self.map.bytes()[piece.from.clone()];
                // Each piece is locked once, by the one thread that has its index.
                let mut to = piece.to.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(mut fault) = copy(&mut to, from, source.dtype) {
                    fault.tensor = piece.tensor;
                    fault.first_index +=
                        (piece.from.start - source.info.range.start) / source.dtype.size_in_bytes();
                    faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
                }
            });
            let (first, last) = (&window[0], &window[window.len() - 1]);
            self.map.release(first.from.start..last.from.end);
            progress.done += bytes as u64;
            (progress.report)(progress.done, progress.total);
            rest = later;
        }
        let faults = faults.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.report_faults(faults, sources, T::DTYPE)
    }

    fn report_faults(
        &self,
        mut faults: Vec<Fault>,
        sources: &[Source<'_>],
        dtype: DType,
    ) -> Result<(), WeightsError> {
        if faults.is_empty() {
            return Ok(());
        }
        faults.sort_by_key(|fault| (fault.tensor, fault.first_index));
        let mut tensors: Vec<BadTensor> = Vec::new();
        for fault in &faults {
            let name = sources[fault.tensor].name;
            match tensors.last_mut().filter(|last| last.name == *name) {
                Some(last) => last.count += fault.count,
                None => tensors.push(BadTensor {
                    name: name.clone(),
                    count: fault.count,
                    first_index: fault.first_index,
                    overflowed: fault.overflowed.then_some(dtype),
                }),
            }
        }
        Err(WeightsError::BadWeights { path: self.path.into(), tensors })
    }
}

fn elements(source: &Source<'_>) -> usize {
    source.info.shape.iter().product()
}

/// Part of one tensor: where its bytes come from and where its values go.
struct Piece<'a, T> {
    tensor: usize,
    from: std::ops::Range<usize>,
    to: Mutex<&'a mut [T]>,
}

/// Bad values in one piece. Indices count from the start of the piece, later of the tensor.
struct Fault {
    tensor: usize,
    first_index: usize,
    count: usize,
    overflowed: bool,
}

/// Cuts the sources, and the places in `values` that they go to, into pieces.
fn cut<'a, T: Element>(
    mut values: &'a mut [T],
    starts: &[usize],
    sources: &[Source<'_>],
) -> Vec<Piece<'a, T>> {
    let mut pieces = Vec::new();
    let mut position = 0;
    for (tensor, (source, &start)) in sources.iter().zip(starts).enumerate() {
        let (_, rest) = values.split_at_mut(start - position);
        let (own, rest) = rest.split_at_mut(elements(source));
        position = start + own.len();
        values = rest;
        let size = source.dtype.size_in_bytes();
        let mut from = source.info.range.start;
        for to in own.chunks_mut(PIECE_BYTES / size) {
            let end = from + to.len() * size;
            pieces.push(Piece { tensor, from: from..end, to: Mutex::new(to) });
            from = end;
        }
    }
    pieces
}

/// Adds the piece to the window of `bytes` unless the window is full; the first piece always fits.
fn within_window<T>(bytes: &mut usize, piece: &Piece<'_, T>) -> bool {
    let grown = *bytes + piece.from.len();
    let fits = *bytes == 0 || grown <= WINDOW_BYTES;
    if fits {
        *bytes = grown;
    }
    fits
}

/// Copies or converts one piece and reports values that are not finite afterwards.
fn copy<T: Element>(to: &mut [T], from: &[u8], file_dtype: DType) -> Option<Fault> {
    match file_dtype {
        same if same == T::DTYPE => bytes_of_mut(to).copy_from_slice(from),
        DType::F32 => convert::<f32, T>(to, from),
        DType::BF16 => convert::<bf16, T>(to, from),
        _ => convert::<f16, T>(to, from),
    }
    if T::all_finite(to) {
        return None;
    }
    let mut bad = to.iter().enumerate().filter(|(_, value)| !T::all_finite(&[**value]));
    let first_index = bad.next().map_or(0, |(index, _)| index);
    let count = 1 + bad.count();
    let size = file_dtype.size_in_bytes();
    let first = &from[first_index * size..(first_index + 1) * size];
    let overflowed = match file_dtype {
        DType::F32 => f32::read(first).is_finite(),
        DType::BF16 => bf16::read(first).is_finite(),
        _ => f16::read(first).is_finite(),
    };
    Some(Fault { tensor: 0, first_index, count, overflowed })
}

fn convert<S: Element, T: Element>(to: &mut [T], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from.chunks_exact(size_of::<S>())) {
        *to = T::narrow(S::read(from).widen());
    }
}

/// The dtypes of weights.
trait Element: WithDType + Plain {
    /// From its bytes in a file; exactly as many as its size.
    fn read(bytes: &[u8]) -> Self;
    fn widen(self) -> f32;
    /// Rounds to nearest; too large becomes infinite.
    fn narrow(value: f32) -> Self;
    /// No NaN, no infinity. One integer maximum over the magnitudes, which compilers vectorise.
    fn all_finite(values: &[Self]) -> bool;
}

macro_rules! element {
    ($float:ty, $magnitude:ty, $infinity:expr, $widen:expr, $narrow:expr) => {
        impl Element for $float {
            fn read(bytes: &[u8]) -> Self {
                <$float>::from_le_bytes(bytes.try_into().expect("callers cut by the size of the dtype"))
            }

            fn widen(self) -> f32 {
                $widen(self)
            }

            fn narrow(value: f32) -> Self {
                $narrow(value)
            }

            fn all_finite(values: &[Self]) -> bool {
                // Without the sign bit the bits order like the magnitudes, and fit a signed integer.
                let magnitude = |value: &$float| value.to_bits() as $magnitude & <$magnitude>::MAX;
                values.iter().fold(0, |largest: $magnitude, value| largest.max(magnitude(value))) < $infinity
            }
        }
    };
}
element!(f32, i32, 0x7f80_0000, |value| value, |value| value);
element!(bf16, i16, 0x7f80, bf16::to_f32, bf16::from_f32);
element!(f16, i16, 0x7c00, f16::to_f32, f16::from_f32);
