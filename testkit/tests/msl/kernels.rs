//! Kernels whose results are known, and what the tests need to run them.

use std::cell::Cell;

use metal_candle_testkit::{
    msl::{BufferArgument, CompileOptions, LaneOrder, Launch, Library, MslError},
    random::Random,
};

/// One threadgroup per row; the sums of its SIMD groups meet in threadgroup memory.
pub(crate) const RMS_NORM: &str = r"
#include <metal_stdlib>
using namespace metal;

#define RMS_NORM(NAME, T) \
kernel void NAME( \
    device const T *x [[buffer(0)]], \
    device T *y [[buffer(1)]], \
    constant uint &columns [[buffer(2)]], \
    constant float &epsilon [[buffer(3)]], \
    uint row [[threadgroup_position_in_grid]], \
    uint index [[thread_position_in_threadgroup]], \
    uint threads [[threads_per_threadgroup]], \
    uint lane [[thread_index_in_simdgroup]], \
    uint simd_group [[simdgroup_index_in_threadgroup]]) \
{ \
    threadgroup float partial[32]; \
    device const T *values = x + row * columns; \
    float sum = 0; \
    for (uint i = index; i < columns; i += threads) sum += float(values[i]) * float(values[i]); \
    sum = simd_sum(sum); \
    if (lane == 0) partial[simd_group] = sum; \
    threadgroup_barrier(mem_flags::mem_threadgroup); /* 1 */ \
    if (simd_group == 0) { \
        float part = lane < (threads + 31) / 32 ? partial[lane] : 0; \
        part = simd_sum(part); \
        if (lane == 0) partial[0] = rsqrt(part / float(columns) + epsilon); \
    } \
    threadgroup_barrier(mem_flags::mem_threadgroup); /* 2 */ \
    for (uint i = index; i < columns; i += threads) \
        y[row * columns + i] = T(float(values[i]) * partial[0]); \
}
RMS_NORM(rms_norm_f32, float)
RMS_NORM(rms_norm_f16, half)
RMS_NORM(rms_norm_bf16, bfloat)
";

pub(crate) const ROWS: usize = 3;
pub(crate) const COLUMNS: usize = 517;
const EPSILON: f32 = 1e-5;

/// With all checks.
pub(crate) const CHECKED: CompileOptions =
    CompileOptions { address_sanitizer: true, address_spaces_checked: true };

/// Only what the results need.
pub(crate) const PLAIN: CompileOptions =
    CompileOptions { address_sanitizer: false, address_spaces_checked: false };

/// Replaces the one place where `old` stands.
pub(crate) fn planted(source: &str, old: &str, new: &str) -> String {
    assert_eq!(source.matches(old).count(), 1, "{old} must stand in one place");
    source.replace(old, new)
}

/// The input of the norm.
pub(crate) fn input() -> Vec<f32> {
    Random::new(7).normal(ROWS * COLUMNS, 0.2, 1.5)
}

/// What the norm of `x` is.
pub(crate) fn expected(x: &[f32]) -> Vec<f32> {
    let row = |row: &[f32]| {
        let squares = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        let scale = 1. / (squares / COLUMNS as f64 + f64::from(EPSILON)).sqrt();
        row.iter().map(|&value| (f64::from(value) * scale) as f32).collect::<Vec<_>>()
    };
    x.chunks(COLUMNS).flat_map(row).collect()
}

/// Runs one of the norms on bytes of its type; the result's bytes.
pub(crate) fn rms_norm(
    library: &Library,
    name: &str,
    x: &[u8],
    order: LaneOrder,
) -> Result<Vec<u8>, MslError> {
    // What is not written stays not a number, in each of the types.
    let y = vec![Cell::new(0xff); x.len()];
    let buffers = [
        BufferArgument::Bytes(x),
        BufferArgument::Memory(&y),
        BufferArgument::Bytes(&(COLUMNS as u32).to_le_bytes()),
        BufferArgument::Bytes(&EPSILON.to_le_bytes()),
    ];
    let groups = [ROWS as u32, 1, 1];
    let launch = Launch { buffers: &buffers, groups, threads: [128, 1, 1], threadgroup_bytes: &[], order };
    library.run(name, &launch)?;
    Ok(y.into_iter().map(Cell::into_inner).collect())
}

/// Runs a kernel `test(device float *values, …)` with one threadgroup.
pub(crate) fn run_test(
    library: &Library,
    values: &mut [f32],
    threads: u32,
    order: LaneOrder,
) -> Result<(), MslError> {
    let cells: Vec<Cell<u8>> = bytes(values).into_iter().map(Cell::new).collect();
    let buffers = [BufferArgument::Memory(&cells)];
    let launch = Launch {
        buffers: &buffers,
        groups: [1, 1, 1],
        threads: [threads, 1, 1],
        threadgroup_bytes: &[],
        order,
    };
    library.run("test", &launch)?;
    values.copy_from_slice(&floats(&cells.into_iter().map(Cell::into_inner).collect::<Vec<_>>()));
    Ok(())
}

pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
