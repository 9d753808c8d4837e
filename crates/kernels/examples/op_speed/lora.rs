//! LoRA deltas and gradients.

use candle_core::Result;
use metal_candle_kernels::lora::{self, LoraAdapter, LoraGradients};

use crate::{random, report};

/// Rows, inputs, outputs and rank of adapters, decoding included.
const LORA: [(usize, usize, usize, usize); 8] = [
    (1, 896, 896, 8),
    (16, 896, 896, 8),
    (64, 512, 512, 8),
    (64, 2048, 2048, 8),
    (512, 896, 896, 8),
    (512, 896, 128, 8),
    (512, 896, 4864, 16),
    (512, 4864, 896, 64),
];

pub(crate) fn lora() -> Result<()> {
    for (rows, inputs, outputs, rank) in LORA {
        let adapter = LoraAdapter { a: random((rank, inputs))?, b: random((outputs, rank))?, scale: 2. };
        let (x, y, dy) = (random((rows, inputs))?, random((rows, outputs))?, random((rows, outputs))?);
        let case = format!("{rows}x{inputs}x{outputs} rank {rank}");
        let segment = [lora::LoraSegment { rows: 0..rows, adapter: &adapter }];
        report("lora", &case, "forward", || lora::lora_in_place(&x, &y, &segment))?;
        let projected = lora::lora_down(&x, &adapter)?;
        let (dx, da, db) = (x.zeros_like()?, adapter.a.zeros_like()?, adapter.b.zeros_like()?);
        let into = LoraGradients { dx: Some(&dx), da: &da, db: &db };
        report("lora", &case, "backward", || lora::lora_backward(&x, &dy, &adapter, &projected, &into))?;
        if rows == 512 {
            let weight = random((outputs, inputs))?;
            report("lora", &case, "dora norm", || lora::dora_norm(&weight, &adapter))?;
        }
    }
    Ok(())
}
