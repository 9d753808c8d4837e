//! Running the Metal kernels on the CPU, in the tests of this crate: the same launches, through the testkit's
//! emulator, on tensors in the CPU's memory.

use std::cell::Cell;

use candle_core::Result;

use super::Launch;

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
}

/// True while a test runs its ops as kernels.
pub(crate) fn is_on() -> bool {
    IS_ON.get()
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum LaneOrder {}
impl LaneOrder {
    pub(crate) const ALL: [LaneOrder; 0] = [];
}
pub(crate) fn is_there() -> bool {
    false
}

/// Runs a test's ops as emulated kernels.
pub(crate) fn with<T>(_order: LaneOrder, run: impl FnOnce() -> T) -> T {
    IS_ON.set(true);
    let result = run();
    IS_ON.set(false);
    result
}

pub(super) fn launch(launch: &Launch<'_>) -> Result<()> {
    candle_core::bail!("{}: no emulator yet", launch.kernel.name)
}
