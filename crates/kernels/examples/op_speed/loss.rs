//! The head with its loss, and the largest logits.

use candle_core::{DType, Result};
use metal_candle_kernels::{
    cross_entropy::{HeadWeight, LossParams, lm_head_loss as lm_head_loss_of, lm_head_loss_and_gradients},
    linear::Projection,
    sample::{argmax, top_k as top_k_of},
};

use crate::{random, report};

/// Tokens, hidden size, vocabulary: those of qwen2.5-0.5b, and a few tokens of it.
const LOSSES: [(usize, usize, usize); 2] = [(512, 896, 151_936), (16, 896, 151_936)];

pub(crate) fn lm_head_loss() -> Result<()> {
    for (tokens, width, vocabulary) in LOSSES {
        for dtype in [DType::F32, DType::BF16] {
            // Logits as models have them: exponentials of others are numbers too small to be normal, or nothing.
            let weight = (random((vocabulary, width))? / (width as f64).sqrt())?;
            let head = Projection { weight: weight.to_dtype(dtype)?, bias: None };
            let hidden = random((tokens, width))?;
            let targets: Vec<u32> = (0..tokens).map(|token| (token * 7919 % vocabulary) as u32).collect();
            let case = format!("{tokens}x{width}x{vocabulary} {}", dtype.as_str());
            let params = LossParams::default();
            report("lm_head_loss", &case, "forward", || lm_head_loss_of(&hidden, &head, &targets, &params))?;
            report("lm_head_loss", &case, "backward", || {
                lm_head_loss_and_gradients(&hidden, &head, &targets, &params, HeadWeight::Frozen)
            })?;
        }
    }
    Ok(())
}

pub(crate) fn top_k() -> Result<()> {
    for (rows, vocabulary, k) in [(1, 151_936, 1), (16, 151_936, 1), (1, 151_936, 50), (16, 151_936, 50)] {
        let logits = random((rows, vocabulary))?;
        let case = format!("{rows}x{vocabulary}x{k}");
        if k == 1 {
            report("top_k", &case, "forward", || argmax(&logits))?;
        } else {
            report("top_k", &case, "forward", || top_k_of(&logits, k))?;
        }
    }
    Ok(())
}
