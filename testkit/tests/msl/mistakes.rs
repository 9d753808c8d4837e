//! Mistakes that the emulation exists to find. Each is planted into a kernel that is right without it.

use metal_candle_testkit::{
    msl::{CompileOptions, LaneOrder, Library, MslError},
    tolerance::{Gate, Precision, assert_close, largest_difference, tolerance},
};

use crate::kernels::{CHECKED, PLAIN, RMS_NORM, bytes, expected, floats, input, planted, rms_norm, run_test};

/// In how many orders the norm in f32 is wrong.
fn wrong_orders(library: &Library) -> usize {
    let x = input();
    let allowed = tolerance(Gate::Norm, Precision::F32).0;
    let is_wrong = |order| {
        let y = floats(&rms_norm(library, "rms_norm_f32", &bytes(&x), order).unwrap());
        largest_difference(&y, &expected(&x)).relative > allowed
    };
    LaneOrder::ALL.into_iter().filter(|&order| is_wrong(order)).count()
}

fn message<T: std::fmt::Debug>(result: Result<T, MslError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_norm_without_a_mistake_passes_every_check() {
    for options in [PLAIN, CHECKED] {
        let Some(library) = Library::compile_or_skip(RMS_NORM, options) else { return };
        let x = input();
        for order in LaneOrder::ALL {
            let y = floats(&rms_norm(&library, "rms_norm_f32", &bytes(&x), order).unwrap());
            let allowed = tolerance(Gate::Norm, Precision::F32);
            assert_close(&y, &expected(&x), allowed, format!("{options:?} {order:?}"));
        }
        assert_eq!(wrong_orders(&library), 0);
    }
}

#[test]
fn a_removed_barrier_gives_a_wrong_result_in_some_order() {
    for barrier in ["1", "2"] {
        let call = format!("threadgroup_barrier(mem_flags::mem_threadgroup); /* {barrier} */");
        let source = planted(RMS_NORM, &call, "");
        let Some(library) = Library::compile_or_skip(&source, PLAIN) else { return };
        assert!(wrong_orders(&library) > 0, "barrier {barrier} is not missed");
    }
}

#[test]
fn a_wrong_stride_gives_a_wrong_result() {
    for (old, new) in
        [("x + row * columns", "x + row * threads"), ("y[row * columns + i]", "y[row * 512 + i]")]
    {
        let Some(library) = Library::compile_or_skip(&planted(RMS_NORM, old, new), PLAIN) else { return };
        assert_eq!(wrong_orders(&library), LaneOrder::ALL.len(), "{new}");
    }
}

#[test]
fn an_access_past_the_end_of_a_buffer_is_reported() {
    let read = planted(RMS_NORM, "i < columns; i += threads) sum", "i <= columns; i += threads) sum");
    let write = planted(RMS_NORM, "y[row * columns + i] =", "y[row * columns + i + 1] =");
    for (what, source) in [("READ", read), ("WRITE", write)] {
        let Some(library) = Library::compile_or_skip(&source, CHECKED) else { return };
        let result = rms_norm(&library, "rms_norm_f32", &bytes(&input()), LaneOrder::Forward);
        let Err(MslError::Memory(report)) = result else { panic!("{what}: {result:?}") };
        assert!(report.contains(&format!("{what} of size 4")), "{report}");
        assert!(report.contains("kernel.metal"), "{report}");
    }
}

#[test]
fn an_access_past_the_end_of_threadgroup_memory_is_reported() {
    let source = planted(RMS_NORM, "threadgroup float partial[32]", "threadgroup float partial[3]");
    let Some(library) = Library::compile_or_skip(&source, CHECKED) else { return };
    let result = rms_norm(&library, "rms_norm_f32", &bytes(&input()), LaneOrder::Forward);
    let Err(MslError::Memory(report)) = result else { panic!("{result:?}") };
    assert!(report.contains("global-buffer-overflow"), "{report}");
}

#[test]
fn a_vector_at_an_odd_address_is_reported() {
    let source = "kernel void test(device float *x [[buffer(0)]]) { *(device float4 *)(x + 1) = 2; }";
    let Some(library) = Library::compile_or_skip(source, CHECKED) else { return };
    let result = run_test(&library, &mut [0.; 8], 1, LaneOrder::Forward);
    let Err(MslError::Memory(report)) = result else { panic!("{result:?}") };
    assert!(report.contains("misaligned"), "{report}");
}

#[test]
fn a_pointer_into_a_wrong_address_space_does_not_compile() {
    let mistakes = [
        planted(RMS_NORM, "device const T *values", "threadgroup const T *values"),
        planted(RMS_NORM, "device const T *values", "thread const T *values"),
        planted(RMS_NORM, "device const T *values", "constant T *values"),
        "float first(threadgroup const float4 *x) { return x[0].x; }
         kernel void test(device float4 *x [[buffer(0)]]) { x[0] = first(x); }"
            .to_owned(),
    ];
    for source in mistakes {
        if Library::compile_or_skip(&source, PLAIN).is_none() {
            return;
        }
        let options = CompileOptions { address_spaces_checked: true, ..PLAIN };
        let result = Library::compile(&source, options);
        let Err(MslError::AddressSpace(errors)) = result else { panic!("{result:?}") };
        assert!(errors.contains("device"), "{errors}");
    }
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_an_error() {
    let barrier = "threadgroup_barrier(mem_flags::mem_threadgroup); /* 1 */";
    for (planted_barrier, expected) in [
        ("if (index >= 64) return; threadgroup_barrier(mem_flags::mem_none);", "which have returned"),
        (
            "if (index < 64) threadgroup_barrier(mem_flags::mem_none); else threadgroup_barrier(mem_flags::mem_none);",
            "different threadgroup_barriers",
        ),
    ] {
        let source = planted(RMS_NORM, barrier, planted_barrier);
        let Some(library) = Library::compile_or_skip(&source, PLAIN) else { return };
        for order in LaneOrder::ALL {
            let result = rms_norm(&library, "rms_norm_f32", &bytes(&input()), order);
            assert!(matches!(result, Err(MslError::Rule(_))), "{result:?}");
            let message = message(result);
            assert!(message.contains("barrier divergence") && message.contains(expected), "{message}");
        }
    }
}

#[test]
fn lanes_of_one_simd_group_in_different_functions_are_an_error() {
    let source = "
        kernel void test(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
            if (i % 2 == 0) x[i] = simd_sum(x[i]);
            else x[i] = simd_max(x[i]);
        }";
    let Some(library) = Library::compile_or_skip(source, PLAIN) else { return };
    let message = message(run_test(&library, &mut [1.; 32], 32, LaneOrder::Forward));
    assert_eq!(message, "SIMD-group divergence: lanes of one SIMD group wait at line 3 and at line 4");
}

#[test]
fn the_value_of_a_lane_that_does_not_take_part_is_an_error() {
    let source = "
        kernel void test(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
            if (i < 16) x[i] = simd_shuffle_xor(x[i], 16);
        }";
    let Some(library) = Library::compile_or_skip(source, PLAIN) else { return };
    let message = message(run_test(&library, &mut [1.; 32], 32, LaneOrder::Forward));
    assert_eq!(message, "a SIMD-group function at line 3 reads lane 16, which does not take part");
}

#[test]
fn threadgroup_memory_that_was_not_written_is_not_a_number() {
    let source = "
        kernel void test(device float *x [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
            threadgroup float shared[64];
            if (i != 5) shared[i] = x[i];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            x[i] = shared[i];
        }";
    let Some(library) = Library::compile_or_skip(source, PLAIN) else { return };
    let mut values = [1.; 64];
    run_test(&library, &mut values, 64, LaneOrder::Forward).unwrap();
    let unwritten: Vec<usize> = (0..64).filter(|&i| values[i].is_nan()).collect();
    assert_eq!(unwritten, [5]);
}

#[test]
fn a_crash_is_an_error_of_that_launch() {
    for source in [
        "kernel void test(device float *x [[buffer(0)]]) { x[1ul << 44] = 1; }",
        "float deep(float x) { volatile float y[4096]; y[0] = x; return deep(y[0] + 1) + y[0]; }
         kernel void test(device float *x [[buffer(0)]]) { x[0] = deep(x[0]); }",
    ] {
        let Some(library) = Library::compile_or_skip(source, PLAIN) else { return };
        let result = run_test(&library, &mut [0.], 1, LaneOrder::Forward);
        assert!(matches!(result, Err(MslError::Crash { .. })), "{result:?}");
    }
}

#[test]
fn a_compile_error_names_the_line_of_the_metal_file() {
    let source = "kernel void test(\n    device float *x [[buffer(0)]])\n{\n    x[0] = missing;\n}\n";
    if Library::compile_or_skip(RMS_NORM, PLAIN).is_none() {
        return;
    }
    let errors = message(Library::compile(source, PLAIN));
    assert!(errors.contains("kernel.metal:4:"), "{errors}");
}
