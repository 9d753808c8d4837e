//! The rotations of packed rows, out of tables that are made once.

use candle_core::{DType, Tensor};
use metal_candle_kernels::{
    embedding::embedding,
    rope::{Pairs, Rotation},
};

use crate::model::{Model, ModelError, rope::RopeSpec};

/// Cosines and sines of the positions of every rotary embedding of a model; they grow as longer sequences come.
#[derive(Debug, Default)]
pub(crate) struct RotaryTables {
    /// Positions held.
    length: usize,
    /// `[length, pairs]` of each rotary embedding; none where the frequencies depend on the sequence's length.
    tables: Vec<Option<[Tensor; 2]>>,
}

impl RotaryTables {
    /// The rotation of every row, for each distinct rotary embedding. Positions restart with every sequence.
    pub(crate) fn rotations(&mut self, model: &Model, starts: &[u32]) -> Result<Vec<Rotation>, ModelError> {
        let lengths: Vec<usize> = starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect();
        self.grow(model, lengths.iter().copied().max().unwrap_or(0))?;
        let positions: Vec<u32> = lengths.iter().flat_map(|&length| 0..length as u32).collect();
        let of = |(rope, table): (&RopeSpec, &Option<[Tensor; 2]>)| {
            let [cos, sin] = match table {
                Some([cos, sin]) => [cos, sin].map(|table| embedding(table, &positions, 1.0, DType::F32)),
                None => {
                    let spans = lengths.iter().map(|&length| (0, length, length));
                    return model.rotation(rope, spans);
                }
            };
            Ok(Rotation { cos: cos?, sin: sin?, pairs: Pairs::Halves })
        };
        model.spec.ropes.iter().zip(&self.tables).map(of).collect()
    }

    fn grow(&mut self, model: &Model, longest: usize) -> Result<(), ModelError> {
        if longest <= self.length && !self.tables.is_empty() {
            return Ok(());
        }
        self.length = longest.next_power_of_two().max(64).min(model.spec.max_positions.max(longest));
        let length = self.length;
        let table = |rope: &RopeSpec| {
            if rope.depends_on_length() {
                return Ok(None);
            }
            let rotation = model.rotation(rope, std::iter::once((0, length, length)))?;
            Ok::<_, ModelError>(Some([rotation.cos, rotation.sin]))
        };
        self.tables = model.spec.ropes.iter().map(table).collect::<Result<_, _>>()?;
        Ok(())
    }
}
