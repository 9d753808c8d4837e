//! Ops on rows: normalisations, softmax, rotations, embeddings, casts, gated activations.

use candle_core::{DType, Device, Result, Tensor};
use metal_candle_kernels::{
    cast, embedding,
    gated::{self, Activation},
    layer_norm::{self, LayerNorm},
    rms_norm::{self, RmsNorm},
    rope::{self, Pairs, Rotation},
    softmax::{self, Mask},
};

use crate::{random, report};

/// Rows and columns of row-wise ops: the rows of earlier benchmarks, attention scores, a square, MLP and hidden size.
const ROWS: [(usize, usize); 5] = [(64, 1024), (512, 896), (1024, 1024), (512, 4864), (8192, 896)];

/// Forward and backward of an op on rows; the backward closure is also given the gradient.
fn rows<T, U>(
    op: &str,
    forward: impl Fn(&Tensor) -> Result<T>,
    backward: impl Fn(&Tensor, &Tensor) -> Result<U>,
) -> Result<()> {
    for (rows, columns) in ROWS {
        let (x, dy) = (random((rows, columns))?, random((rows, columns))?);
        let case = format!("{rows}x{columns}");
        report(op, &case, "forward", || forward(&x))?;
        report(op, &case, "backward", || backward(&x, &dy))?;
    }
    Ok(())
}

pub(crate) fn softmax() -> Result<()> {
    rows("softmax", |x| softmax::softmax(x, Mask::None), softmax::softmax_backward)
}

pub(crate) fn layer_norm() -> Result<()> {
    let norm = |x: &Tensor| -> Result<LayerNorm> {
        let weight = Tensor::ones(x.dim(1)?, DType::F32, &Device::Cpu)?;
        Ok(LayerNorm { bias: Some(weight.clone()), weight, epsilon: 1e-5 })
    };
    rows(
        "layer_norm",
        |x| layer_norm::layer_norm(x, &norm(x)?),
        |x, dy| layer_norm::layer_norm_backward_all(x, &norm(x)?, dy),
    )?;
    for (rows, columns) in ROWS {
        let (x, dy) = (random((rows, columns))?, random((rows, columns))?);
        let norm = norm(&x)?;
        let backward = || layer_norm::layer_norm_backward(&x, &norm, &dy);
        report("layer_norm", &format!("{rows}x{columns}"), "frozen", backward)?;
    }
    Ok(())
}

/// Rows of 14 heads of 64.
pub(crate) fn rope() -> Result<()> {
    for rows in [64, 512, 8192] {
        for pairs in [Pairs::Halves, Pairs::Neighbours] {
            let (x, turn) = (random((rows, 896))?.reshape((rows, 14, 64))?, random((rows, 32))?);
            let rotation = Rotation { cos: turn.clone(), sin: turn, pairs };
            let case = format!("{rows}x14x64 {pairs:?}");
            report("rope", &case, "forward", || rope::rope(&x, &rotation))?;
            report("rope", &case, "backward", || rope::rope_backward(&x, &rotation))?;
        }
    }
    Ok(())
}

pub(crate) fn embedding() -> Result<()> {
    let table = random((32_000, 896))?;
    for count in [512, 8192] {
        let ids: Vec<u32> = (0..count).map(|index| index * 7919 % 32_000).collect();
        let dy = random((count as usize, 896))?;
        let case = format!("{count} of 32000x896");
        report("embedding", &case, "forward", || embedding::embedding(&table, &ids, 1., DType::F32))?;
        report("embedding", &case, "backward", || embedding::embedding_backward(&ids, &dy, 32_000, 1.))?;
    }
    Ok(())
}

pub(crate) fn cast() -> Result<()> {
    for (rows, columns) in [(64, 1024), (512, 4864), (8192, 896)] {
        for (from, to) in [
            (DType::F32, DType::BF16),
            (DType::BF16, DType::F32),
            (DType::F32, DType::F16),
            (DType::F16, DType::F32),
        ] {
            let x = random((rows, columns))?.to_dtype(from)?;
            let case = format!("{rows}x{columns} {} {}", from.as_str(), to.as_str());
            report("cast", &case, "forward", || cast::cast(&x, to, 1.))?;
        }
    }
    Ok(())
}

pub(crate) fn rms_norm() -> Result<()> {
    let norm = |x: &Tensor| -> Result<RmsNorm> {
        let weight = Tensor::ones(x.dim(1)?, DType::F32, &Device::Cpu)?;
        Ok(RmsNorm { weight, epsilon: 1e-6, weight_offset: 0. })
    };
    rows(
        "rms_norm",
        |x| rms_norm::rms_norm(x, &norm(x)?),
        |x, dy| {
            let norm = norm(x)?;
            Ok((
                rms_norm::rms_norm_backward(x, &norm, dy, None)?,
                rms_norm::rms_norm_weight_backward(x, &norm, dy)?,
            ))
        },
    )
}

pub(crate) fn gated() -> Result<()> {
    rows(
        "gated",
        |x| gated::gated(x, x, Activation::Silu),
        |x, dy| gated::gated_backward(x, x, dy, Activation::Silu),
    )
}
