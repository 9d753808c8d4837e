//! Spans for a profiler that watches the process: NVTX ranges, which NVIDIA's Nsight Systems shows.
//!
//! NVTX's library is looked for when it is asked for, under all names that it has had: <https://github.com/NVIDIA/NVTX>.
//! Metal's counterpart is settled when the program is built: see the feature `metal-labels`.

use std::{fmt, sync::atomic::Ordering};

use super::{MARKS, STATE};

/// There is no library that would pass ranges on to a profiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMarks;

impl fmt::Display for NoMarks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(
            "NVTX was not found (libnvToolsExt.so.1 or libnvtx3interop.so.1, from the CUDA toolkit or pip install \
             nvidia-nvtx; its folder belongs in LD_LIBRARY_PATH): profilers see no ranges",
        )
    }
}

impl std::error::Error for NoMarks {}

/// Tells a profiler of all spans from now on.
pub fn mark() -> Result<(), NoMarks> {
    if !library::is_there() {
        return Err(NoMarks);
    }
    STATE.fetch_or(MARKS, Ordering::Relaxed);
    Ok(())
}

pub(super) fn begin(name: &str) {
    library::push(name);
}

pub(super) fn end() {
    library::pop();
}

#[cfg(unix)]
mod library {
    use std::{
        ffi::{CStr, CString, c_char, c_int},
        sync::OnceLock,
    };

    const NAMES: [&CStr; 4] =
        [c"libnvToolsExt.so.1", c"libnvtx3interop.so.1", c"libnvToolsExt.so", c"libnvtx3interop.so"];

    #[derive(Clone, Copy)]
    struct Functions {
        push: unsafe extern "C" fn(*const c_char) -> c_int,
        pop: unsafe extern "C" fn() -> c_int,
    }

    pub(super) fn is_there() -> bool {
        functions().is_some()
    }

    pub(super) fn push(name: &str) {
        if let (Some(functions), Ok(name)) = (functions(), CString::new(name)) {
            // SAFETY: nvtxRangePushA takes a C string, which it copies.
            unsafe { (functions.push)(name.as_ptr()) };
        }
    }

    pub(super) fn pop() {
        if let Some(functions) = functions() {
            // SAFETY: nvtxRangePop takes nothing.
            unsafe { (functions.pop)() };
        }
    }

    fn functions() -> Option<Functions> {
        static FOUND: OnceLock<Option<Functions>> = OnceLock::new();
        *FOUND.get_or_init(|| NAMES.into_iter().find_map(open))
    }

    fn open(name: &CStr) -> Option<Functions> {
        // SAFETY: the names are C strings. The library stays open. The two functions have these types in every version of
        // NVTX, and an address that is not null is theirs.
        unsafe {
            let library = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
            if library.is_null() {
                return None;
            }
            let push = libc::dlsym(library, c"nvtxRangePushA".as_ptr());
            let pop = libc::dlsym(library, c"nvtxRangePop".as_ptr());
            if push.is_null() || pop.is_null() {
                return None;
            }
            Some(Functions {
                push: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn(*const c_char) -> c_int>(
                    push,
                ),
                pop: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn() -> c_int>(pop),
            })
        }
    }
}

#[cfg(not(unix))]
mod library {
    pub(super) fn is_there() -> bool {
        false
    }

    pub(super) fn push(_: &str) {}

    pub(super) fn pop() {}
}
