//! Attention of packed sequences to themselves, forward and backward: what training and encoders need.
//!
//! The rows of several sequences follow one another, and a row sees only rows of its own sequence. Nothing of
//! the size of the scores is kept: the forward pass leaves one number per row and head, the logarithm of the
//! sum of exponentials, from which the backward pass computes the weights again.
//! T: rows, H: query heads, G: key/value heads, D: head size.

#[cfg(test)]
mod reference;

use candle_core::{DType, Result, Tensor, bail};

use super::{AttentionParams, check::check_params, cpu, gpu};
use crate::{
    device::{self, runs_kernels},
    fresh::Fresh,
    graph::record3,
    trace::{self, Work},
    view::has_dense_rows,
};

/// Which rows see which.
#[derive(Debug, Clone)]
pub struct PackedAttention {
    /// The first row of each sequence, then the number of rows: sequence `s` has the rows
    /// `starts[s]..starts[s + 1]`.
    pub starts: Vec<u32>,
    /// What is the same for all rows. A window needs `causal`.
    pub params: AttentionParams,
    /// Whether a row sees no later ones.
    pub causal: bool,
}

impl PackedAttention {
    /// Of `passes` over what the rows see: 1 forward; 2 back, with five products instead of two and every input's gradient.
    fn work(&self, queries: &Tensor, keys: &Tensor, passes: usize) -> Work {
        let width = queries.dims().iter().skip(1).product::<usize>() as u64;
        let window = self.params.window.unwrap_or(usize::MAX);
        let seen = |pair: &[u32]| {
            let rows = pair[1].saturating_sub(pair[0]) as usize;
            let seen = |row: usize| if self.causal { (row + 1).min(window) } else { rows };
            (0..rows).map(seen).sum::<usize>() as u64
        };
        let seen: u64 = self.starts.windows(2).map(seen).sum();
        let moved = Work::moving(&[queries, queries, keys, keys]).bytes;
        let flops = if passes == 1 { 4 } else { 10 };
        Work { bytes: passes as u64 * moved, flops: flops * seen * width }
    }
}

/// `queries [T, H, D]`, `keys [T, G, D]`, `values [T, G, D]` → `[T, H, D]`, recorded in candle's graph.
///
/// Rows may be parts of wider ones (a fused product of queries, keys and values): they are read in place.
pub fn packed_attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    packing: &PackedAttention,
) -> Result<Tensor> {
    let _op = trace::op("packed_attention", queries.device(), || packing.work(queries, keys, 1));
    check("packed_attention", [queries, keys, values], packing)?;
    if !is_fitted(queries) {
        let [fitted_queries, fitted_keys, fitted_values] = fitted([queries, keys, values])?;
        let out = packed_attention(&fitted_queries, &fitted_keys, &fitted_values, packing)?;
        return restored(&out, queries);
    }
    let (out, lse) = forward("packed_attention", [queries, keys, values], packing)?;
    let packing = packing.clone();
    record3("packed_attention", out, [queries, keys, values], move |inputs, out, d_out| {
        let [queries, keys, values] = inputs;
        let (d_queries, d_keys, d_values) =
            packed_attention_backward(queries, keys, values, out, &lse, d_out, &packing)?;
        Ok([Some(d_queries), Some(d_keys), Some(d_values)])
    })
}

/// [`packed_attention`] outside of the graph, with what [`packed_attention_backward`] needs: returns the
/// output and, `[H, T]` in f32, the natural logarithm of each row's sum of exponentials.
pub fn packed_attention_forward(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    packing: &PackedAttention,
) -> Result<(Tensor, Tensor)> {
    let _op = trace::op("packed_attention_forward", queries.device(), || packing.work(queries, keys, 1));
    check("packed_attention_forward", [queries, keys, values], packing)?;
    let inputs = fitted([queries, keys, values])?;
    let (out, lse) = forward("packed_attention_forward", inputs.each_ref(), packing)?;
    Ok((restored(&out.into_tensor(), queries)?, lse))
}

/// The gradients of queries, keys and values from that of the output. `out` and `lse` are what
/// [`packed_attention_forward`] returned.
pub fn packed_attention_backward(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    d_out: &Tensor,
    packing: &PackedAttention,
) -> Result<(Tensor, Tensor, Tensor)> {
    let _op = trace::op("packed_attention_backward", queries.device(), || packing.work(queries, keys, 2));
    const NAME: &str = "packed_attention_backward";
    check(NAME, [queries, keys, values], packing)?;
    check_saved(queries, out, lse, d_out)?;
    let inputs = fitted([queries, keys, values, out, d_out])?;
    let [fit_queries, fit_keys, fit_values, out, d_out] = inputs.each_ref().map(with_dense_rows);
    let (fit_queries, fit_keys, fit_values, out, d_out) =
        (fit_queries?, fit_keys?, fit_values?, out?, d_out?);
    let inputs = [&fit_queries, &fit_keys, &fit_values, &out, &d_out];
    let lse = lse.detach().contiguous()?;
    let gradients = if runs_kernels(queries.device()) {
        gpu::backward(NAME, inputs, &lse, packing)?
    } else {
        cpu::backward(inputs, &lse, packing)?
    };
    let [d_queries, d_keys, d_values] = gradients.map(Fresh::into_tensor);
    Ok((restored(&d_queries, queries)?, restored(&d_keys, keys)?, restored(&d_values, values)?))
}

fn forward(
    operation: &str,
    [queries, keys, values]: [&Tensor; 3],
    packing: &PackedAttention,
) -> Result<(Fresh, Tensor)> {
    let inputs = [with_dense_rows(queries)?, with_dense_rows(keys)?, with_dense_rows(values)?];
    let (out, lse) = if runs_kernels(queries.device()) {
        gpu::forward(operation, inputs.each_ref(), packing)?
    } else {
        cpu::forward(inputs.each_ref(), packing)?
    };
    Ok((out, lse.into_tensor()))
}

/// Whether the implementation for this device takes the tensors as they are.
fn is_fitted(queries: &Tensor) -> bool {
    !device::narrow_on_cpu(queries) && !gpu::pads(queries)
}

/// The tensors as the implementation takes them: on the CPU in f32, on a GPU with padded heads.
fn fitted<const N: usize>(tensors: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut fitted = tensors.map(Tensor::clone);
    for tensor in &mut fitted {
        if device::narrow_on_cpu(tensor) {
            *tensor = tensor.to_dtype(DType::F32)?;
        }
        if gpu::pads(tensor) {
            *tensor = gpu::padded(tensor)?;
        }
    }
    Ok(fitted)
}

/// A result for fitted tensors, as one for a tensor `like` what was given.
fn restored(result: &Tensor, like: &Tensor) -> Result<Tensor> {
    result.narrow(2, 0, like.dims()[2])?.to_dtype(like.dtype())?.contiguous()
}

/// The tensor, outside of the graph; itself if its rows can be read in place.
fn with_dense_rows(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach();
    if has_dense_rows(tensor.layout()) { Ok(tensor) } else { tensor.contiguous() }
}

fn check(operation: &str, [queries, keys, values]: [&Tensor; 3], packing: &PackedAttention) -> Result<()> {
    let &[rows, heads, head_dim] = queries.dims() else {
        bail!("{operation}: `queries` is {:?}, expected [T, H, D]", queries.dims());
    };
    let &[key_rows, groups, key_dim] = keys.dims() else {
        bail!("{operation}: `keys` is {:?}, expected [T, G, D]", keys.dims());
    };
    if heads == 0 || head_dim == 0 {
        bail!("{operation}: `queries` is {:?}, expected at least one head and one element", queries.dims());
    }
    if (key_rows, key_dim) != (rows, head_dim) {
        let (found, expected) = (keys.dims(), queries.dims());
        bail!(
            "{operation}: `keys` is {found:?}, expected [{rows}, G, {head_dim}] for `queries` {expected:?}"
        );
    }
    if groups == 0 || heads % groups != 0 {
        bail!("{operation}: `keys` has {groups} heads, expected a divisor of the {heads} of `queries`");
    }
    if values.dims() != keys.dims() {
        bail!("{operation}: `values` is {:?}, expected {:?} like `keys`", values.dims(), keys.dims());
    }
    for (name, tensor) in [("keys", keys), ("values", values)] {
        if tensor.dtype() != queries.dtype() {
            let (found, expected) = (tensor.dtype(), queries.dtype());
            bail!("{operation}: `{name}` is {found:?}, expected {expected:?} like `queries`");
        }
    }
    check_params(operation, packing.params)?;
    if packing.params.window.is_some() && !packing.causal {
        bail!("{operation}: `window` needs `causal`; leave it out where rows see later ones");
    }
    check_starts(operation, &packing.starts, rows)
}

fn check_starts(operation: &str, starts: &[u32], rows: usize) -> Result<()> {
    if starts.first() != Some(&0) || starts.last().map(|&end| end as usize) != Some(rows) {
        let (first, last) = (starts.first(), starts.last());
        bail!("{operation}: `starts` goes from {first:?} to {last:?}, expected from 0 to {rows}, the rows");
    }
    if let Some(index) = starts.windows(2).position(|pair| pair[0] >= pair[1]) {
        let pair = &starts[index..index + 2];
        bail!("{operation}: `starts` has {pair:?} at {index}, expected at least one row per sequence");
    }
    Ok(())
}

fn check_saved(queries: &Tensor, out: &Tensor, lse: &Tensor, d_out: &Tensor) -> Result<()> {
    for (name, tensor) in [("out", out), ("d_out", d_out)] {
        if tensor.dims() != queries.dims() || tensor.dtype() != queries.dtype() {
            let (found, dtype) = (tensor.dims(), tensor.dtype());
            let (expected, expected_dtype) = (queries.dims(), queries.dtype());
            bail!(
                "packed_attention_backward: `{name}` is {found:?} {dtype:?}, expected {expected:?} \
                 {expected_dtype:?} like `queries`"
            );
        }
    }
    let expected = [queries.dims()[1], queries.dims()[0]];
    if lse.dims() != expected || lse.dtype() != DType::F32 {
        let (found, dtype) = (lse.dims(), lse.dtype());
        bail!("packed_attention_backward: `lse` is {found:?} {dtype:?}, expected {expected:?} F32");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
#[cfg(test)]
mod tests;
