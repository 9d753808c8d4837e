//! New keys and values into the cache: one call for both, which on the CPU is two copies and nothing else.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use super::KvChunk;
use crate::{
    device::runs_kernels,
    trace::{self, Work},
    view::{View, update},
};

impl KvChunk {
    /// Writes `rows` of `keys` and `values`, both `[rows, G, D]`, to the positions of the chunk from `first` on. The chunk
    /// shares no memory with them.
    pub fn write(&self, first: usize, keys: &Tensor, values: &Tensor, rows: Range<usize>) -> Result<()> {
        let _op = trace::op("cache_write", keys.device(), || work(keys, &rows));
        for (name, to, from) in [("keys", &self.keys, keys), ("values", &self.values, values)] {
            check(name, first, to, from, &rows)?;
        }
        if runs_kernels(keys.device()) || keys.dtype() != DType::F32 {
            let part = |from: &Tensor| from.narrow(0, rows.start, rows.len())?.contiguous();
            trace::launched(2);
            self.keys.slice_set(&part(keys)?, 0, first)?;
            return self.values.slice_set(&part(values)?, 0, first);
        }
        copy(first, &self.keys, keys, &rows)?;
        copy(first, &self.values, values, &rows)
    }
}

fn work(keys: &Tensor, rows: &Range<usize>) -> Work {
    let row: usize = keys.dims()[1..].iter().product();
    Work::default().and((4 * rows.len() * row * keys.dtype().size_in_bytes()) as u64, 0)
}

fn check(name: &str, first: usize, to: &Tensor, from: &Tensor, rows: &Range<usize>) -> Result<()> {
    let (&[length, groups, head_dim], &[count, ..]) = (to.dims(), from.dims()) else {
        bail!("cache_write: the chunk has {name} {:?}, expected [chunk, G, D]", to.dims());
    };
    if from.dims()[1..] != [groups, head_dim] || from.dtype() != to.dtype() {
        let (found, expected) = ((from.dims(), from.dtype()), (to.dims(), to.dtype()));
        bail!("cache_write: `{name}` is {found:?}, which does not fit the chunk's {expected:?}");
    }
    if rows.start > rows.end || rows.end > count || first > length || rows.len() > length - first {
        bail!("cache_write: rows {rows:?} of {count} `{name}` for the positions from {first} of {length}");
    }
    Ok(())
}

fn copy(first: usize, to: &Tensor, from: &Tensor, rows: &Range<usize>) -> Result<()> {
    let row: usize = to.dims()[1..].iter().product();
    let dense = if from.is_contiguous() { None } else { Some(from.contiguous()?) };
    let view = View::new(dense.as_ref().unwrap_or(from));
    let from = &view.f32s("cache_write: the rows")?[rows.start * row..rows.end * row];
    update(to, "cache_write", |to| {
        to[first * row..][..from.len()].copy_from_slice(from);
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::{message, random};

    fn chunk(dtype: DType) -> KvChunk {
        let zeros = || Tensor::zeros((5, 2, 3), dtype, &Device::Cpu).unwrap();
        KvChunk { keys: zeros(), values: zeros() }
    }

    #[test]
    fn rows_come_to_their_positions_and_nothing_else_changes() {
        for dtype in [DType::F32, DType::BF16] {
            let (keys, values) = (random(1, (4, 2, 3), dtype), random(2, (4, 2, 3), dtype));
            let strided = values.t().unwrap().contiguous().unwrap().t().unwrap();
            for values in [&values, &strided] {
                let chunk = chunk(dtype);
                chunk.write(2, &keys, values, 1..3).unwrap();
                for (written, from) in [(&chunk.keys, &keys), (&chunk.values, values)] {
                    let around = Tensor::zeros((2, 2, 3), dtype, &Device::Cpu).unwrap();
                    let expected =
                        [&around, &from.narrow(0, 1, 2).unwrap(), &around.narrow(0, 0, 1).unwrap()];
                    let expected = Tensor::cat(&expected, 0).unwrap();
                    let numbers = |tensor: &Tensor| {
                        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                    };
                    assert_eq!(numbers(written), numbers(&expected));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (chunk, rows) = (chunk(DType::F32), random(1, (4, 2, 3), DType::F32));
        let beyond = "cache_write: rows 0..4 of 4 `keys` for the positions from 2 of 5";
        assert_eq!(message(chunk.write(2, &rows, &rows, 0..4)), beyond);
        assert!(message(chunk.write(9, &rows, &rows, 0..0)).contains("from 9 of 5"));
        assert!(message(chunk.write(0, &rows, &rows, 3..5)).contains("rows 3..5 of 4"));
        let wide = random(1, (4, 2, 4), DType::F32);
        assert!(message(chunk.write(0, &rows, &wide, 0..1)).contains("`values` is ([4, 2, 4], F32)"));
        let narrow = rows.to_dtype(DType::BF16).unwrap();
        assert!(message(chunk.write(0, &narrow, &rows, 0..1)).contains("`keys` is ([4, 2, 3], BF16)"));
    }
}
