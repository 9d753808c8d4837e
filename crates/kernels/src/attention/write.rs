//! New keys and values into the cache.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::KvChunk;
use crate::trace;

impl KvChunk {
    /// Writes `rows` of `keys` and `values`, both `[rows, G, D]`, to the positions of the chunk from `first` on. The chunk
    /// shares no memory with them.
    pub fn write(&self, first: usize, keys: &Tensor, values: &Tensor, rows: Range<usize>) -> Result<()> {
        trace::launched(2);
        write(&self.keys, first, keys, &rows)?;
        write(&self.values, first, values, &rows)
    }
}

/// Without a view where all rows are written: to make one takes as long as to copy a row.
fn write(to: &Tensor, first: usize, from: &Tensor, rows: &Range<usize>) -> Result<()> {
    if *rows == (0..from.dim(0)?) && from.is_contiguous() {
        return to.slice_set(from, 0, first);
    }
    to.slice_set(&from.narrow(0, rows.start, rows.len())?.contiguous()?, 0, first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::{DType, Device};

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
    fn what_does_not_fit_is_an_error() {
        let (chunk, rows) = (chunk(DType::F32), random(1, (4, 2, 3), DType::F32));
        assert!(message(chunk.write(2, &rows, &rows, 0..4)).contains("shape mismatch"));
        assert!(message(chunk.write(0, &rows, &rows, 3..5)).contains("narrow"));
        let wide = random(1, (4, 2, 4), DType::F32);
        assert!(message(chunk.write(0, &rows, &wide, 0..1)).contains("shape mismatch"));
        let narrow = rows.to_dtype(DType::BF16).unwrap();
        assert!(message(chunk.write(0, &narrow, &rows, 0..1)).contains("dtype mismatch"));
    }
}
