//! What Metal adds to C++.

use std::cell::Cell;

use half::{bf16, f16};
use metal_candle_testkit::{
    msl::{BufferArgument, LaneOrder, Launch, Library},
    random::Random,
    tolerance::{Gate, Precision, assert_close, tolerance},
};

use crate::kernels::{CHECKED, PLAIN, RMS_NORM, bytes, expected, floats, input, rms_norm, run_test};

#[test]
fn sixteen_bit_floats_are_read_and_rounded() {
    let Some(library) = Library::compile_or_skip(RMS_NORM, CHECKED) else { return };
    let half: Vec<f16> = input().into_iter().map(f16::from_f32).collect();
    let brain: Vec<bf16> = input().into_iter().map(bf16::from_f32).collect();
    let half_bytes: Vec<u8> = half.iter().flat_map(|value| value.to_le_bytes()).collect();
    let brain_bytes: Vec<u8> = brain.iter().flat_map(|value| value.to_le_bytes()).collect();
    for order in LaneOrder::ALL {
        let y = rms_norm(&library, "rms_norm_f16", &half_bytes, order).unwrap();
        let y: Vec<f32> = y.chunks(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect();
        let x: Vec<f32> = half.iter().map(|value| value.to_f32()).collect();
        assert_close(&y, &expected(&x), tolerance(Gate::Norm, Precision::F16), "f16");
        let y = rms_norm(&library, "rms_norm_bf16", &brain_bytes, order).unwrap();
        let y: Vec<f32> = y.chunks(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect();
        let x: Vec<f32> = brain.iter().map(|value| value.to_f32()).collect();
        assert_close(&y, &expected(&x), tolerance(Gate::Norm, Precision::Bf16), "bf16");
    }
}

#[test]
fn vectors_are_made_converted_and_swizzled() {
    let source = "
        #include <metal_stdlib>
        using namespace metal;
        struct Parameters { uint offset; float scale; };
        constant float table[3] = {10, 20, 30};
        template <typename T, typename T4>
        T4 widen(device const float4 *x) { return T4(x[0]) + T4(T(0.5h)); }
        template <typename T> void turn(thread T (&one)[1], thread const float4 (&values)[2]) { one[0] = values[1].wzyx; }
        kernel void test(device float *x [[buffer(0)]]) {
            device float4 *y = (device float4 *)x;
            float4 value = y[0];
            float4 values[2] = {float4(0), value}, turned[1];
            turn(turned, values);
            y[1] = turned[0];
            y[2] = float4(value.xy, 7, half(8));
            y[3] = float4(half4(value) * half(2)) + float4(bfloat4(1)) + float(int2(3.9, -3.9).y);
            y[4].xy = max(value.zw, float2(3.5)) + exp(float2(0)) + clamp(value.xy, 0.0f, 1.5f);
            y[4].zw = float2(dot(value, value), as_type<float>(0x3f800000u));
            y[5] = select(value, float4(0), value > 2.0f);
            y[6] = float4(widen<half, half4>(y));
            y[7] = static_cast<float4>(uint4(1, 2, 3, 4)) * table[1];
        }";
    let Some(library) = Library::compile_or_skip(source, CHECKED) else { return };
    let mut values = [0.; 32];
    values[..4].copy_from_slice(&[1., 2., 3., 4.]);
    run_test(&library, &mut values, 1, LaneOrder::Forward).unwrap();
    let rows: Vec<&[f32]> = values.chunks(4).collect();
    assert_eq!(rows[1], [4., 3., 2., 1.]);
    assert_eq!(rows[2], [1., 2., 7., 8.]);
    assert_eq!(rows[3], [0., 2., 4., 6.]);
    assert_eq!(rows[4], [5.5, 6.5, 30., 1.]);
    assert_eq!(rows[5], [1., 2., 0., 0.]);
    assert_eq!(rows[6], [1.5, 2.5, 3.5, 4.5]);
    assert_eq!(rows[7], [20., 40., 60., 80.]);
}

#[test]
fn instances_of_templates_have_the_names_that_they_are_given() {
    let source = "
        #include <metal_stdlib>
        using namespace metal;
        template <typename T, int FACTOR>
        [[kernel, max_total_threads_per_threadgroup(64)]] void scale(
            device T *x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
            x[i] *= T(FACTOR);
        }
        template [[host_name(\"test\")]] [[kernel]] void scale<float, 3>(device float *x, uint i);
        #define instance(name, type, factor) \
            template [[host_name(name)]] [[kernel]] decltype(scale<type, factor>) scale<type, factor>;
        instance(\"five_\" \"f32\", float, 5)
        kernel void unused(device float *x, device const float *y [[buffer(1)]]) { x[0] = y[0]; }
        ";
    let Some(library) = Library::compile_or_skip(source, CHECKED) else { return };
    let mut values = [1., 2., 3.];
    run_test(&library, &mut values, 3, LaneOrder::Backward).unwrap();
    assert_eq!(values, [3., 6., 9.]);
    let cells = [Cell::new(0u8), Cell::new(0), Cell::new(0x80), Cell::new(0x3f)];
    let launch = Launch {
        buffers: &[BufferArgument::Memory(&cells)],
        groups: [1, 1, 1],
        threads: [1, 1, 1],
        threadgroup_bytes: &[],
        order: LaneOrder::Forward,
    };
    library.run("five_f32", &launch).unwrap();
    assert_eq!(floats(&cells.map(Cell::into_inner)), [5.]);
}

/// Two SIMD groups multiply 8×8 blocks; the left ones come through threadgroup memory.
#[test]
fn simdgroup_matrices_multiply() {
    const N: usize = 16;
    let source = "
        #include <metal_stdlib>
        using namespace metal;
        kernel void product(
            device const float *a [[buffer(0)]],
            device const float *b [[buffer(1)]],
            device float *c [[buffer(2)]],
            threadgroup float *left [[threadgroup(0)]],
            uint3 block [[threadgroup_position_in_grid]],
            ushort thread_index [[thread_index_in_threadgroup]],
            ushort simd_group [[simdgroup_index_in_threadgroup]])
        {
            for (uint i = thread_index; i < 128; i += 64) left[i] = a[block.y * 128 + i];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            simdgroup_float8x8 sum(0), x, y;
            for (uint k = 0; k < 16; k += 8) {
                simdgroup_load(x, left + k, 16);
                simdgroup_load(y, b, 16, ulong2(k, simd_group * 8), true);
                simdgroup_multiply_accumulate(sum, x, y, sum);
            }
            simdgroup_store(sum, c + block.y * 128 + simd_group * 8, 16);
        }";
    let Some(library) = Library::compile_or_skip(source, CHECKED) else { return };
    let mut random = Random::new(3);
    let (a, b) = (random.uniform(N * N, -1.0..1.0), random.uniform(N * N, -1.0..1.0));
    // c = a · bᵀ
    let dot =
        |i: usize| (0..N).map(|k| f64::from(a[i / N * N + k]) * f64::from(b[i % N * N + k])).sum::<f64>();
    let expected: Vec<f32> = (0..N * N).map(|i| dot(i) as f32).collect();
    let c = vec![Cell::new(0xffu8); 4 * N * N];
    let (a, b) = (bytes(&a), bytes(&b));
    for order in LaneOrder::ALL {
        let launch = Launch {
            buffers: &[BufferArgument::Bytes(&a), BufferArgument::Bytes(&b), BufferArgument::Memory(&c)],
            groups: [1, 2, 1],
            threads: [64, 1, 1],
            threadgroup_bytes: &[128 * 4],
            order,
        };
        library.run("product", &launch).unwrap();
        let found = floats(&c.iter().map(Cell::get).collect::<Vec<_>>());
        assert_close(&found, &expected, tolerance(Gate::Linear, Precision::F32), format!("{order:?}"));
    }
}

#[test]
fn simd_functions_see_the_lanes_of_their_own_group() {
    let source = "
        #include <metal_stdlib>
        using namespace metal;
        kernel void test(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
            float value = x[i];
            x[i] = simd_sum(value);
            x[64 + i] = simd_max(float2(value, -value)).y;
            x[128 + i] = simd_shuffle_down(value, 1);
            x[192 + i] = simd_shuffle_up(value, 2);
            x[256 + i] = simd_broadcast(value, 3);
            x[320 + i] = simd_prefix_exclusive_sum(value);
            x[384 + i] = simd_shuffle_xor(value, 1) + (simd_any(value > 62) ? 0.5 : 0.0);
        }";
    let Some(library) = Library::compile_or_skip(source, CHECKED) else { return };
    for order in LaneOrder::ALL {
        let mut x: Vec<f32> = (0..448).map(|i| i as f32).collect();
        run_test(&library, &mut x, 64, order).unwrap();
        for i in 0..64 {
            let (lane, start) = (i % 32, i / 32 * 32);
            let sum = |count: usize| (start..start + count).sum::<usize>() as f32;
            let high = if start == 32 { 0.5 } else { 0. };
            let found: Vec<f32> = (0..7).map(|function| x[64 * function + i]).collect();
            let expected = [
                sum(32),
                -(start as f32),
                (if lane == 31 { i } else { i + 1 }) as f32,
                (if lane < 2 { i } else { i - 2 }) as f32,
                (start + 3) as f32,
                sum(lane),
                (i ^ 1) as f32 + high,
            ];
            assert_eq!(found, expected, "{order:?} thread {i}");
        }
    }
}

#[test]
fn atomics_count_and_the_last_threadgroup_in_each_order_differs() {
    let source = "
        #include <metal_stdlib>
        using namespace metal;
        kernel void count(
            device atomic_uint *counter [[buffer(0)]],
            device uint *last [[buffer(1)]],
            uint group [[threadgroup_position_in_grid]])
        {
            atomic_fetch_add_explicit(counter, 1u, memory_order_relaxed);
            last[0] = group;
        }";
    let Some(library) = Library::compile_or_skip(source, CHECKED) else { return };
    let last = |order| {
        let (counter, last) = ([const { Cell::new(0u8) }; 4], [const { Cell::new(0u8) }; 4]);
        let launch = Launch {
            buffers: &[BufferArgument::Memory(&counter), BufferArgument::Memory(&last)],
            groups: [5, 1, 1],
            threads: [40, 1, 1],
            threadgroup_bytes: &[],
            order,
        };
        library.run("count", &launch).unwrap();
        assert_eq!(u32::from_le_bytes(counter.map(Cell::into_inner)), 200);
        u32::from_le_bytes(last.map(Cell::into_inner))
    };
    assert_eq!(last(LaneOrder::Forward), 4);
    assert_eq!(last(LaneOrder::Backward), 0);
}

#[test]
fn what_metal_does_not_have_does_not_compile() {
    for (what, statement) in [
        ("a double", "double d = 1; x[0] = d;"),
        ("a vector cast", "x[0] = ((float4)(int4)(1)).x;"),
        ("a conversion between vectors", "half4 h = 1; float4 f = h; x[0] = f.x;"),
        ("an initial value in threadgroup memory", "threadgroup float shared[2] = {1, 2}; x[0] = shared[0];"),
    ] {
        let source = format!("kernel void test(device float *x [[buffer(0)]]) {{ {statement} }}");
        if Library::compile_or_skip(RMS_NORM, PLAIN).is_none() {
            return;
        }
        assert!(Library::compile(&source, PLAIN).is_err(), "{what}");
    }
}
