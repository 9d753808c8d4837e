//! The largest logits of each row, found where the logits are: what a greedy step, or a sampler that keeps the best
//! k, needs of them.
//!
//! R: rows, V: vocabulary.
//!
//! Of equal numbers the one with the smallest id comes first; both zeros are equal. A NaN comes before every number,
//! so that broken logits show: a row with one has the id of its first NaN as its largest.

mod cpu;
mod gpu;

use candle_core::{Result, Tensor, bail};

use crate::{
    device::runs_kernels,
    trace::{self, Work},
};

/// The most that [`top_k`] finds.
pub const MOST: usize = 1024;

/// `logits [R, V]` of any float type → the id of each row's largest, `[R]` in u32 on the same device.
pub fn argmax(logits: &Tensor) -> Result<Tensor> {
    let _op = trace::op("argmax", logits.device(), || Work::elementwise(logits, 1, 1));
    check("argmax", logits, 1)?;
    let logits = logits.detach().contiguous()?;
    if runs_kernels(logits.device()) { gpu::argmax(&logits) } else { cpu::argmax(&logits) }
}

/// `logits [R, V]` of any float type → the `k` largest of each row, best first: `[R, k]` values of that type and
/// `[R, k]` ids in u32, on the same device. `k` is at most [`MOST`] and at most V.
pub fn top_k(logits: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let _op = trace::op("top_k", logits.device(), || Work::elementwise(logits, 1, 1));
    check("top_k", logits, k)?;
    let logits = logits.detach().contiguous()?;
    if runs_kernels(logits.device()) { gpu::top_k(&logits, k) } else { cpu::top_k(&logits, k) }
}

fn check(operation: &str, logits: &Tensor, k: usize) -> Result<()> {
    let &[_, vocabulary] = logits.dims() else {
        bail!("{operation}: `logits` is {:?}, expected [R, V]", logits.dims());
    };
    if k == 0 || k > vocabulary.min(MOST) {
        bail!("{operation}: {k} of {vocabulary} logits were asked for; use 1 to {}", vocabulary.min(MOST));
    }
    if vocabulary >= u32::MAX as usize {
        bail!("{operation}: {vocabulary} logits per row are more than ids can count");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
