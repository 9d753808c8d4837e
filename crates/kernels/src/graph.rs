//! Puts the result of a kernel into candle's graph, so that any candle program trains through our ops.
//!
//! Each op computes first and is recorded afterwards: the same code serves both, and where nothing asks for a
//! gradient, recording is only a move.

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Storage,
    Tensor, bail,
};

use crate::fresh::Fresh;

/// From the inputs, the result and its gradient (contiguous) to the gradient of each input. All are outside
/// of the graph. An input for which nothing asks may be given `None`.
pub(crate) trait Backward<const N: usize>:
    Fn([&Tensor; N], &Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static
{
}

impl<const N: usize, F> Backward<N> for F where
    F: Fn([&Tensor; N], &Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static
{
}

/// The result as a tensor that depends on `x`.
pub(crate) fn record1(
    name: &'static str,
    result: Fresh,
    x: &Tensor,
    backward: impl Backward<1>,
) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(result.into_tensor());
    }
    x.apply_op1(Recorded::new(name, result, backward))
}

/// The result as a tensor that depends on two others.
pub(crate) fn record2(
    name: &'static str,
    result: Fresh,
    [x, y]: [&Tensor; 2],
    backward: impl Backward<2>,
) -> Result<Tensor> {
    if !(x.track_op() || y.track_op()) {
        return Ok(result.into_tensor());
    }
    x.apply_op2(y, Recorded::new(name, result, backward))
}

/// The result as a tensor that depends on three others.
pub(crate) fn record3(
    name: &'static str,
    result: Fresh,
    [x, y, z]: [&Tensor; 3],
    backward: impl Backward<3>,
) -> Result<Tensor> {
    if !(x.track_op() || y.track_op() || z.track_op()) {
        return Ok(result.into_tensor());
    }
    x.apply_op3(y, z, Recorded::new(name, result, backward))
}

/// A custom op whose result is already there.
struct Recorded<B> {
    name: &'static str,
    result: Mutex<Option<Fresh>>,
    backward: B,
}

impl<B> Recorded<B> {
    fn new(name: &'static str, result: Fresh, backward: B) -> Self {
        Self { name, result: Mutex::new(Some(result)), backward }
    }

    fn take(&self) -> Result<Fresh> {
        let result = self.result.lock().expect("no panic while the lock is held").take();
        result.ok_or_else(|| candle_core::Error::Msg(format!("{}: the op was applied twice", self.name)))
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        let Fresh { storage, shape } = self.take()?;
        let Storage::Cpu(storage) = storage else { bail!("{}: the result is not on the CPU", self.name) };
        Ok((storage, shape))
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        let Fresh { storage, shape } = self.take()?;
        let Storage::Cuda(storage) = storage else { bail!("{}: the result is not on CUDA", self.name) };
        Ok((storage, shape))
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        let Fresh { storage, shape } = self.take()?;
        let Storage::Metal(storage) = storage else { bail!("{}: the result is not on Metal", self.name) };
        Ok((storage, shape))
    }

    /// The gradients, computed outside of the graph.
    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]>
    where
        B: Backward<N>,
    {
        let inputs = inputs.map(Tensor::detach);
        (self.backward)(inputs.each_ref(), &result.detach(), &gradient.detach().contiguous()?)
    }
}

impl<B: Backward<1>> CustomOp1 for Recorded<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.gradients([x], result, gradient)?;
        Ok(x)
    }
}

impl<B: Backward<2>> CustomOp2 for Recorded<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = self.gradients([x, y], result, gradient)?;
        Ok((x, y))
    }
}

impl<B: Backward<3>> CustomOp3 for Recorded<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = self.gradients([x, y, z], result, gradient)?;
        Ok((x, y, z))
    }
}
