//! Where an op runs.

use candle_core::{DType, Device, Tensor};

/// True where an op runs as kernels of ours: on a GPU, and in tests under the emulator.
pub(crate) fn runs_kernels(device: &Device) -> bool {
    #[cfg(test)]
    if crate::gpu::emulator::is_on() {
        return true;
    }
    !device.is_cpu()
}

/// True for half precision on the CPU. Our CPU code computes in f32 only: such a call is widened, computed and
/// narrowed again, which is right and not fast.
pub(crate) fn narrow_on_cpu(x: &Tensor) -> bool {
    matches!(x.dtype(), DType::BF16 | DType::F16) && !runs_kernels(x.device())
}
