//! Why a Metal kernel cannot be compiled or run.

use std::io;

/// Why a Metal kernel cannot be compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MslError {
    /// There is no clang.
    #[error("Metal kernels need {tool} to run on this machine: run scripts/metal/install-clang")]
    ToolMissing {
        /// The program that was looked for.
        tool: String,
    },
    /// The source uses something that the translator does not know.
    #[error("the Metal source cannot be translated: {0}")]
    Translation(String),
    /// The compiler's errors, with lines of the Metal source.
    #[error("the Metal source does not compile:\n{0}")]
    Compile(String),
    /// Something points into one address space and is used as if it were in another.
    #[error("the Metal source mixes address spaces:\n{0}")]
    AddressSpace(String),
    /// The launch does not fit the kernel: its name, buffers, threads or threadgroup memory.
    #[error("wrong launch: {0}")]
    Launch(String),
    /// The kernel broke a rule of Metal while it ran: barriers that not all threads reach, lanes that wait for
    /// lanes that do something else.
    #[error("{0}")]
    Rule(String),
    /// The address sanitizer's report.
    #[error("the kernel uses memory that is not its own:\n{0}")]
    Memory(String),
    /// The kernel ran for longer than this.
    #[error("the kernel did not end within {limit_s} s")]
    Endless {
        /// The limit.
        limit_s: u32,
    },
    /// The kernel crashed, as it may when it uses memory that is not its own.
    #[error("the kernel crashed ({status}); compile with address_sanitizer to see where\n{stderr}")]
    Crash {
        /// How the program ended.
        status: String,
        /// What it wrote.
        stderr: String,
    },
    /// A file or a program could not be used.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
}
