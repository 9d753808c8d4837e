//! Launches that do not fit, and what is bound to a kernel.

use std::{cell::Cell, process::Command};

use metal_candle_testkit::msl::{BufferArgument, LaneOrder, Launch, Library, MslError};

use crate::kernels::{CHECKED, PLAIN};

const ADD: &str = r"
#include <metal_stdlib>
kernel void add(
    device const uchar *from [[buffer(0)]],
    device uchar *to [[buffer(1)]],
    constant ushort &amount [[buffer(2)]],
    threadgroup uchar *shared [[threadgroup(0)]],
    uint i [[thread_position_in_grid]],
    uint local [[thread_position_in_threadgroup]])
{
    shared[local] = from[i];
    to[i] = shared[local] + amount;
}
";

fn launch<'a>(buffers: &'a [BufferArgument<'a>]) -> Launch<'a> {
    Launch {
        buffers,
        groups: [2, 1, 1],
        threads: [2, 1, 1],
        threadgroup_bytes: &[2],
        order: LaneOrder::Forward,
    }
}

#[test]
fn a_launch_that_does_not_fit_the_kernel_is_an_error() {
    use BufferArgument::{Bytes, Memory};
    let Some(library) = Library::compile_or_skip(ADD, PLAIN) else { return };
    let to = vec![Cell::new(0u8); 4];
    let from: &[u8] = &[1, 2, 3, 4];
    let fitting = [Bytes(from), Memory(&to), Bytes(&[5, 0])];
    library.run("add", &launch(&fitting)).unwrap();
    assert_eq!(to.iter().map(Cell::get).collect::<Vec<_>>(), [6, 7, 8, 9]);

    let message = |function: &str, launch: Launch<'_>| match library.run(function, &launch) {
        Err(MslError::Launch(message)) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(message("sub", launch(&fitting)), "there is no kernel sub; there are: add");
    assert_eq!(message("add", launch(&fitting[..2])), "add has a buffer 2, but 2 buffers were given");
    let four = [fitting[0], fitting[1], fitting[2], Bytes(&[])];
    assert_eq!(message("add", launch(&four)), "4 buffers were given, but add has no buffer 3");
    let read_only = [fitting[0], Bytes(from), fitting[2]];
    let expected = "add writes to buffer 1, which was given as bytes to read";
    assert_eq!(message("add", launch(&read_only)), expected);
    let wide = [fitting[0], fitting[1], Bytes(&[5, 0, 0, 0])];
    let expected = "buffer 2 of add is one value of 2 bytes, but 4 bytes were given";
    assert_eq!(message("add", launch(&wide)), expected);
    let threads = Launch { threads: [1025, 1, 1], ..launch(&fitting) };
    let expected = "add was launched with 1025 threads in a threadgroup; 1 to 1024 are possible";
    assert_eq!(message("add", threads), expected);
    let unsized_memory = Launch { threadgroup_bytes: &[], ..launch(&fitting) };
    assert_eq!(message("add", unsized_memory), "add has threadgroup memory 0, whose size was not given");
    let large = Launch { threadgroup_bytes: &[32769], ..launch(&fitting) };
    let expected = "add was launched with 32769 bytes of threadgroup memory; 32768 are possible";
    assert_eq!(message("add", large), expected);
}

#[test]
fn buffers_may_overlap_and_start_at_any_address() {
    let Some(library) = Library::compile_or_skip(ADD, CHECKED) else { return };
    let memory: Vec<Cell<u8>> = (0..8).map(Cell::new).collect();
    let buffers = [
        BufferArgument::Memory(&memory[1..5]),
        BufferArgument::Memory(&memory[4..8]),
        BufferArgument::Bytes(&[10, 0]),
    ];
    library.run("add", &launch(&buffers)).unwrap();
    // The fourth value read is the first one written.
    let found: Vec<u8> = memory.into_iter().map(Cell::into_inner).collect();
    assert_eq!(found, [0, 1, 2, 3, 11, 12, 13, 21]);
}

/// Runs another test of this program with a compiler that is not there.
#[test]
fn without_the_compiler_tests_say_so_or_fail_where_it_is_required() {
    let run = |required| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "launches::buffers_may_overlap_and_start_at_any_address"])
            .env("METAL_CANDLE_CLANG", "/nowhere/clang++")
            .env("METAL_CANDLE_REQUIRE_MSL", required)
            .output()
            .unwrap()
    };
    let skipped = run("0");
    let stderr = String::from_utf8_lossy(&skipped.stderr);
    assert!(skipped.status.success() && stderr.contains("*** SKIPPED"), "{stderr}");
    assert!(stderr.contains("scripts/metal/install-clang"), "{stderr}");
    let required = run("1");
    assert!(!required.status.success());
    assert!(String::from_utf8_lossy(&required.stdout).contains("METAL_CANDLE_REQUIRE_MSL is 1"));
}
