//! Models and batches for the tests of training.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::DType;
use metal_candle::{
    model::{LoadOptions, Model},
    train::Rows,
};
pub(crate) use metal_candle_kernels::cross_entropy::IGNORED;
use metal_candle_testkit::golden;

/// Sequences one after another, each token predicting the next of its sequence.
pub(crate) struct OwnedRows {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) starts: Vec<u32>,
}

impl OwnedRows {
    pub(crate) fn packed(sequences: &[Vec<u32>]) -> Self {
        let mut rows = Self { tokens: Vec::new(), targets: Vec::new(), starts: vec![0] };
        for sequence in sequences {
            rows.tokens.extend(sequence);
            rows.targets.extend(&sequence[1..]);
            rows.targets.push(IGNORED);
            rows.starts.push(rows.tokens.len() as u32);
        }
        rows
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows { tokens: &self.tokens, targets: &self.targets, starts: &self.starts }
    }
}

/// A golden model in f32.
pub(crate) fn load(name: &str) -> Arc<Model> {
    let options = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::default() };
    Arc::new(Model::load(&golden::model(name).folder, &options, &mut |_, _| ()).unwrap())
}
