//! Runs Metal kernels on the CPU, on machines without Metal.
//!
//! [`Library::compile`] translates the text of a Metal file to C++, compiles it with
//! clang and the headers in `testkit/msl`, and [`Library::run`] runs a kernel of it in a process of its own:
//! threadgroups one after the other, the threads of a threadgroup as fibers that change only at barriers and
//! SIMD-group functions. What it finds:
//!
//! - wrong results, in several [`LaneOrder`]s, so that a missing barrier shows;
//! - memory used before it was written (threadgroup memory starts as NaN), and with
//!   [`CompileOptions::address_sanitizer`] every access outside of a buffer;
//! - barriers that not all threads reach, SIMD-group functions that read lanes which do not take part;
//! - with [`CompileOptions::address_spaces_checked`], pointers into a wrong address space.
//!
//! It is not Apple's compiler: arithmetic is exact to the language's rules but not to a GPU's fast math, 32
//! lanes make a SIMD group, and nothing is learnt about speed. Not there: textures, function constants,
//! `packed_` vectors of three, vectors of bool (comparisons give integer vectors), matrices other than
//! `simdgroup_matrix`. With the check of address spaces, structs in device or constant memory can be used by
//! member but not copied whole.

mod compile;
mod error;
mod launch;
mod tokens;
mod translate;

use std::{cell::Cell, io::Write, path::PathBuf};

pub use error::MslError;

/// Compiled kernels.
#[derive(Debug)]
pub struct Library {
    program: PathBuf,
}

/// What is checked besides the results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompileOptions {
    /// Accesses outside of buffers and threadgroup memory are errors when the kernel runs.
    pub address_sanitizer: bool,
    /// Pointers used in a wrong address space are errors when the kernel is compiled.
    pub address_spaces_checked: bool,
}

/// One dispatch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Buffer 0, buffer 1, …; as many as the kernel has.
    pub buffers: &'a [BufferArgument<'a>],
    /// Threadgroups.
    pub groups: [u32; 3],
    /// Threads in a threadgroup.
    pub threads: [u32; 3],
    /// Sizes of the parameters in threadgroup memory.
    pub threadgroup_bytes: &'a [usize],
    /// Which thread runs first.
    pub order: LaneOrder,
}

/// What is bound to a parameter of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum BufferArgument<'a> {
    /// Memory that the kernel may write to. Several buffers may overlap.
    Memory(&'a [Cell<u8>]),
    /// Bytes that it may only read, copied before the launch: a `constant T &` takes exactly those of one `T`.
    Bytes(&'a [u8]),
}

/// In which order threadgroups run, and the threads of a threadgroup between two barriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneOrder {
    /// 0, 1, 2, …
    Forward,
    /// …, 2, 1, 0
    Backward,
    /// Another random order after each barrier and SIMD-group function.
    Shuffled(u64),
}

impl LaneOrder {
    /// The orders that a correct kernel gives the same results in.
    pub const ALL: [Self; 4] = [Self::Forward, Self::Backward, Self::Shuffled(1), Self::Shuffled(2)];
}

impl Library {
    /// Compiles the text of a Metal file, unless the same text was compiled before.
    pub fn compile(source: &str, options: CompileOptions) -> Result<Self, MslError> {
        compile::compile(source, options).map(|program| Self { program })
    }

    /// Compiles the text of a Metal file; without clang, says so on standard error and returns None. A test
    /// that gets None ends there.
    ///
    /// # Panics
    /// If the source does not compile; also without clang, if `METAL_CANDLE_REQUIRE_MSL` is 1.
    #[track_caller]
    pub fn compile_or_skip(source: &str, options: CompileOptions) -> Option<Self> {
        match Self::compile(source, options) {
            Ok(library) => Some(library),
            Err(error @ MslError::ToolMissing { .. }) => {
                let required = std::env::var_os("METAL_CANDLE_REQUIRE_MSL").is_some_and(|value| value == "1");
                assert!(!required, "METAL_CANDLE_REQUIRE_MSL is 1, but: {error}");
                // Not eprintln!, which tests that pass keep to themselves.
                let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {error} ***\n");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs a kernel to its end.
    pub fn run(&self, function: &str, launch: &Launch<'_>) -> Result<(), MslError> {
        launch::run(&self.program, function, launch)
    }
}
