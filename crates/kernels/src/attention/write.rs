//! New keys and values into the cache.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::KvChunk;
use crate::trace;

impl KvChunk {
    /// Writes `rows` of `keys` and `values`, both `[rows, G, D]` and contiguous, to the positions of the chunk from `first`
    /// on. The chunk shares no memory with them.
    pub fn write(&self, first: usize, keys: &Tensor, values: &Tensor, rows: Range<usize>) -> Result<()> {
        trace::launched(2);
        write(&self.keys, first, keys, &rows)?;
        write(&self.values, first, values, &rows)
    }
}

/// Without a view where all rows are written: to make one takes as long as to copy a row.
fn write(to: &Tensor, first: usize, from: &Tensor, rows: &Range<usize>) -> Result<()> {
    if rows.start == 0 && from.dims().first() == Some(&rows.end) {
        return to.slice_set(from, 0, first);
    }
    to.slice_set(&from.narrow(0, rows.start, rows.len())?, 0, first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{message, random, wide};

    fn chunk(dtype: DType) -> KvChunk {
        let zeros = || Tensor::zeros((5, 2, 3), dtype, &Device::Cpu).unwrap();
        KvChunk { keys: zeros(), values: zeros() }
    }

    #[test]
    fn rows_come_to_their_positions_and_nothing_else_changes() {
        for dtype in [DType::F32, DType::BF16] {
            let (keys, values) = (random(1, (4, 2, 3), dtype), random(2, (4, 2, 3), dtype));
            for rows in [1..3, 0..2, 0..1] {
                let part = |from: &Tensor| from.narrow(0, rows.start, rows.len()).unwrap();
                // Some of the rows, and then all of fewer rows.
                for (keys, values, rows) in
                    [(&keys, &values, rows.clone()), (&part(&keys), &part(&values), 0..rows.len())]
                {
                    let chunk = chunk(dtype);
                    chunk.write(2, keys, values, rows.clone()).unwrap();
                    for (written, from) in [(&chunk.keys, keys), (&chunk.values, values)] {
                        let around = Tensor::zeros((3, 2, 3), dtype, &Device::Cpu).unwrap();
                        let before = around.narrow(0, 0, 2).unwrap();
                        let behind = around.narrow(0, 0, 3 - rows.len()).unwrap();
                        let from = from.narrow(0, rows.start, rows.len()).unwrap();
                        assert_eq!(wide(written), wide(&Tensor::cat(&[before, from, behind], 0).unwrap()));
                    }
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
