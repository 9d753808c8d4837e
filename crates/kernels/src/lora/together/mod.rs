//! Adapters of several products of one input, trained together: their passes over the input and its gradient are one.
//!
//! M: rows, K: inputs, N: a product's outputs, r: an adapter's rank.

#[cfg(feature = "cuda")]
mod cuda;
mod gpu;

use candle_core::{Result, Tensor, bail};

use super::{
    LoraAdapter, LoraGradients, check_adapter, check_changeable, lora_backward, lora_down, lora_up_in_place,
};
use crate::{
    device::runs_kernels,
    linear::rows,
    trace::{self, Work, work},
};

/// One of the adapters on the way back.
#[derive(Debug, Clone, Copy)]
pub struct LoraMember<'a> {
    /// What is trained.
    pub adapter: &'a LoraAdapter,
    /// The gradient of its product's result, `[M, N]`.
    pub dy: &'a Tensor,
    /// Where the gradient of A is added, `[r, K]` in f32.
    pub da: &'a Tensor,
    /// Where the gradient of B is added, `[N, r]` in f32.
    pub db: &'a Tensor,
}

/// Rows up to which a saved launch is worth more than the speed of the products of the device's library, which may add.
const MOST_ROWS: usize = 8192;

/// `x · Aᵀ [M, r]` of each adapter.
#[derive(Debug, Clone)]
pub struct LoraProjections {
    each: Vec<Tensor>,
    /// All of them, one behind the other, where they were made at once.
    all: Option<Tensor>,
    /// The same for tensor cores: each in rows of whole blocks of eight ranks, zeros behind the last.
    #[cfg(feature = "cuda")]
    blocks: Option<Tensor>,
}

impl LoraProjections {
    /// Those of the adapters, in their order.
    pub fn each(&self) -> &[Tensor] {
        &self.each
    }

    fn of_each(each: Vec<Tensor>) -> Self {
        Self {
            each,
            all: None,
            #[cfg(feature = "cuda")]
            blocks: None,
        }
    }

    /// Views of what lies one behind the other, each `[M, r]`.
    fn over(all: Tensor, sizes: impl Iterator<Item = Result<(usize, usize)>>) -> Result<Self> {
        let mut first = 0;
        let place = |size: Result<(usize, usize)>| {
            let (rows, rank) = size?;
            first += rows * rank;
            all.narrow(0, first - rows * rank, rows * rank)?.reshape((rows, rank))
        };
        Ok(Self { all: Some(all.clone()), ..Self::of_each(sizes.map(place).collect::<Result<_>>()?) })
    }
}

/// [`lora_down`] of each adapter.
pub fn lora_down_together(x: &Tensor, adapters: &[&LoraAdapter]) -> Result<LoraProjections> {
    let _op = trace::op("lora_down_together", x.device(), || {
        Work::products(x, &adapters.iter().map(|adapter| &adapter.a).collect::<Vec<_>>())
    });
    for adapter in adapters {
        check_adapter("lora_down_together", x, adapter)?;
    }
    let factors: Vec<_> = adapters.iter().map(|adapter| &adapter.a).collect();
    let flat = rows(x)?;
    #[cfg(feature = "cuda")]
    if let Some(projections) = cuda::down(&flat, adapters)? {
        return Ok(projections);
    }
    let inputs = vec![&flat; factors.len()];
    if runs_kernels(x.device()) && gpu::is_for(&inputs, &factors, 0) {
        return gpu::pull(&inputs, &factors, false);
    }
    let each = adapters.iter().map(|adapter| lora_down(x, adapter)).collect::<Result<_>>()?;
    Ok(LoraProjections::of_each(each))
}

/// [`lora_up_in_place`] of each adapter into a product of its own.
pub fn lora_up_together(
    projections: &LoraProjections,
    products: &[&Tensor],
    adapters: &[&LoraAdapter],
) -> Result<()> {
    let _op = products.first().map(|y| {
        trace::op("lora_up_together", y.device(), || {
            projections.each.iter().zip(adapters).fold(Work::moving(products), |sum, (projected, adapter)| {
                sum.and_work(Work::products(projected, &[&adapter.b]))
            })
        })
    });
    check_counts("lora_up_together", projections, products.len(), adapters.len())?;
    #[cfg(feature = "cuda")]
    if cuda::up(projections, products, adapters)? {
        return Ok(());
    }
    for ((projected, y), adapter) in projections.each.iter().zip(products).zip(adapters) {
        let fits =
            y.dims() == [projected.dim(0)?, adapter.outputs()] && projected.dim(1)? == adapter.b.dim(1)?;
        let is_small = y.dim(0)? <= MOST_ROWS;
        if fits && is_small && runs_kernels(y.device()) && gpu::is_for(&[y, projected], &[&adapter.b], 1) {
            check_changeable("lora_up_together", "y", y)?;
            gpu::push(y, projected, &[(&adapter.b, adapter.scale)], true)?;
        } else {
            lora_up_in_place(projected, y, adapter)?;
        }
    }
    Ok(())
}

/// [`lora_backward`] of each adapter; `dx [M, K]` gets the sum of what goes through all of them.
pub fn lora_backward_together(
    x: &Tensor,
    projections: &LoraProjections,
    members: &[LoraMember<'_>],
    dx: Option<&Tensor>,
) -> Result<()> {
    let _op = trace::op("lora_backward_together", x.device(), || {
        let read = Work::moving(&[x]).and_moving(&projections.each.iter().collect::<Vec<_>>());
        let read = dx.map_or(read, |dx| read.and_moving(&[dx, dx]));
        members.iter().fold(read, |sum, LoraMember { adapter, dy, .. }| {
            let through = if dx.is_some() { 2 * adapter.a.elem_count() as u64 * work::rows(x) } else { 0 };
            sum.and_moving(&[dy]).and(0, through).and_sums(x, adapter)
        })
    });
    check_counts("lora_backward_together", projections, members.len(), members.len())?;
    #[cfg(feature = "cuda")]
    if cuda::backward(x, projections, members, dx)? {
        return Ok(());
    }
    if let Some(all) = &projections.all
        && gpu::backward(x, all, members, dx)?
    {
        return Ok(());
    }
    for (LoraMember { adapter, dy, da, db }, projected) in members.iter().zip(&projections.each) {
        lora_backward(x, dy, adapter, projected, &LoraGradients { dx, da, db })?;
    }
    Ok(())
}

fn check_counts(
    operation: &str,
    projections: &LoraProjections,
    products: usize,
    adapters: usize,
) -> Result<()> {
    let count = projections.each.len();
    if [products, adapters] != [count, count] {
        bail!("{operation}: {count} projections and {products} products for {adapters} adapters");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
