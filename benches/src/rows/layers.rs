//! Single layers and products.

use candle_core::Tensor;
use metal_candle_kernels::{
    attention::{AttentionParams, PackedAttention, packed_attention_forward},
    layer_norm::{LayerNorm, layer_norm},
    linear::{Projection, linear},
    rms_norm::{RmsNorm, rms_norm},
    softmax::{Mask, softmax},
};

use crate::{Call, Row, Work};

pub(super) fn rows() -> Vec<Row> {
    vec![
        softmax_of("layer_operations/softmax_stable", &[4, 16, 1024]),
        layer_norm_of("layer_operations/layer_norm", &[4, 16, 1024]),
        rms_norm_of("layer_operations/rms_norm", &[4, 16, 1024]),
        // There is no lazy mode: these are what a user calls, compared with the better of the two modes that were published.
        add("lazy_vs_eager/add_1024", 1024),
        matmul("lazy_vs_eager/matmul_64", 64),
        matmul("lazy_vs_eager/matmul_128", 128),
        matmul("square_1024/matmul", 1024).without_instructions(),
        softmax_of("square_1024/softmax", &[1024, 1024]).without_instructions(),
        layer_norm_of("square_1024/layer_norm", &[1024, 1024]).without_instructions(),
        rms_norm_of("square_1024/rms_norm", &[1024, 1024]).without_instructions(),
        attention("square_1024/attention", 1024, 16, 64).without_instructions(),
    ]
}

fn softmax_of(id: &str, shape: &'static [usize]) -> Row {
    Row::new(id, elementwise(shape, 5), move |bench| {
        let x = bench.random(shape)?;
        Ok(Call::new(move || softmax(&x, Mask::None)))
    })
}

fn layer_norm_of(id: &str, shape: &'static [usize]) -> Row {
    Row::new(id, elementwise(shape, 8), move |bench| {
        let (x, weight) = (bench.random(shape)?, bench.random(shape[shape.len() - 1])?);
        let norm = LayerNorm { bias: Some(weight.copy()?), weight, epsilon: 1e-5 };
        Ok(Call::new(move || layer_norm(&x, &norm)))
    })
}

fn rms_norm_of(id: &str, shape: &'static [usize]) -> Row {
    Row::new(id, elementwise(shape, 4), move |bench| {
        let (x, weight) = (bench.random(shape)?, bench.random(shape[shape.len() - 1])?);
        let norm = RmsNorm { weight, epsilon: 1e-5, weight_offset: 0. };
        Ok(Call::new(move || rms_norm(&x, &norm)))
    })
}

/// Every number read and written once.
fn elementwise(shape: &[usize], flops: usize) -> Work {
    let count: usize = shape.iter().product();
    Work::new(4 * 2 * count, flops * count)
}

fn add(id: &str, count: usize) -> Row {
    Row::new(id, Work::new(4 * 3 * count, count), move |bench| {
        let (left, right) = (bench.random(count)?, bench.random(count)?);
        Ok(Call::new(move || &left + &right))
    })
}

/// A square product in f32.
fn matmul(id: &str, size: usize) -> Row {
    Row::new(id, Work::new(4 * 3 * size * size, 2 * size * size * size), move |bench| {
        let x = bench.random((size, size))?;
        let projection = Projection { weight: bench.random((size, size))?, bias: None };
        Ok(Call::new(move || linear(&x, &projection)))
    })
}

/// Causal attention of one sequence to itself.
fn attention(id: &str, rows: usize, heads: usize, head_dim: usize) -> Row {
    let size = rows * heads * head_dim;
    let pairs = rows * (rows + 1) / 2;
    Row::new(id, Work::new(4 * 4 * size, 4 * pairs * heads * head_dim), move |bench| {
        let tensor = || bench.random((rows, heads, head_dim));
        let (queries, keys, values): (Tensor, Tensor, Tensor) = (tensor()?, tensor()?, tensor()?);
        let params =
            AttentionParams { scale: (head_dim as f32).sqrt().recip(), soft_cap: None, window: None };
        let packing = PackedAttention { starts: vec![0, rows as u32], params, causal: true };
        Ok(Call::new(move || packed_attention_forward(&queries, &keys, &values, &packing)))
    })
}
