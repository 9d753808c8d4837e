//! Dense layers.

use candle_core::{DType, Result};
use metal_candle_kernels::linear::{self, Projection};

use crate::{random, report};

/// Rows, inputs, outputs of dense layers: those of qwen2.5-0.5b, and a square.
const LINEAR: [(usize, usize, usize); 6] = [
    (512, 896, 896),
    (512, 896, 128),
    (512, 896, 4864),
    (512, 4864, 896),
    (512, 896, 151_936),
    (1024, 1024, 1024),
];

pub(crate) fn linear() -> Result<()> {
    for (rows, inputs, outputs) in LINEAR {
        for dtype in [DType::F32, DType::BF16] {
            let weight = random((outputs, inputs))?.to_dtype(dtype)?;
            let projection = Projection { weight, bias: None };
            let (x, dy) = (random((rows, inputs))?, random((rows, outputs))?);
            let case = format!("{rows}x{inputs}x{outputs} {}", dtype.as_str());
            report("linear", &case, "forward", || linear::linear(&x, &projection))?;
            report("linear", &case, "backward", || linear::linear_backward(&dy, &projection))?;
            if dtype == DType::F32 && outputs < 10_000 {
                report("linear", &case, "weight", || linear::linear_weight_backward(&x, &dy))?;
            }
        }
    }
    Ok(())
}
