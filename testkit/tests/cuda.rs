//! Kernels that are written for NVIDIA's tensor cores, run on the CPU: compiled by clang with `cuda/cuda_shim.h`.
#![cfg(target_arch = "x86_64")] // the shim's threads are switched in its machine code

use std::{
    env,
    io::{self, ErrorKind, Write},
    path::Path,
    process::Command,
};

#[test]
fn a_layer_of_few_rows_with_adapters_matches_its_definition() {
    run("few_rows_test.cpp", "lora");
}

#[test]
fn adapters_of_one_input_match_their_definition() {
    run("together_test.cpp", "lora");
}

/// Compiles a program of `testkit/cuda` with the kernels of an op, and runs it.
fn run(program: &str, op: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let executable = Path::new(env!("CARGO_TARGET_TMPDIR")).join(program).with_extension("");
    let clang = env::var("METAL_CANDLE_CLANG").unwrap_or_else(|_| "clang++-19".into());
    let compiled = Command::new(&clang)
        .args(["-std=c++17", "-O2", "-DCUDA_EMULATION", "-I"])
        .arg(root.join("cuda"))
        .arg("-I")
        .arg(root.join("../crates/kernels/src").join(op).join("cuda"))
        .arg(root.join("cuda").join(program))
        .arg("-o")
        .arg(&executable)
        .output();
    let compiled = match compiled {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let required = env::var_os("METAL_CANDLE_REQUIRE_MSL").is_some_and(|value| value == "1");
            assert!(!required, "METAL_CANDLE_REQUIRE_MSL is 1, but there is no {clang}");
            // Not eprintln!, which tests that pass keep to themselves.
            let _ = writeln!(io::stderr(), "\n*** SKIPPED: there is no {clang} ***\n");
            return;
        }
        other => other.expect("the compiler starts"),
    };
    assert!(compiled.status.success(), "{program}: {}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&executable).output().expect("the program starts");
    let output = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&output));
}
