//! CUDA's libraries, looked for before candle needs them: a build that opens them at run time panics at the first that is missing.

/// The libraries without which no CUDA device can be opened, as far as this machine lacks them.
///
/// None is missing where the program is linked to them: it would not have started. Only Unix is looked at.
#[cfg(all(feature = "cuda", unix))]
pub fn missing() -> Vec<&'static str> {
    ["libcuda", "libcublas", "libcublasLt", "libcurand"]
        .into_iter()
        .filter(|library| !is_present(library))
        .collect()
}

/// Nothing is needed, or nothing is known.
#[cfg(not(all(feature = "cuda", unix)))]
pub fn missing() -> Vec<&'static str> {
    Vec::new()
}

/// Whether the loader finds the library under one of the names that cudarc, which opens it for candle, tries as well.
#[cfg(all(feature = "cuda", unix))]
fn is_present(library: &str) -> bool {
    let built_for = candle_core::cuda_backend::cudarc::driver::sys::CUDA_VERSION / 1000;
    let versions = [built_for, 12, 11, 10, 9, 1].map(|version| format!("{library}.so.{version}"));
    std::iter::once(format!("{library}.so")).chain(versions).any(|name| opens(&name))
}

#[cfg(all(feature = "cuda", unix))]
fn opens(name: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(name) else { return false };
    // SAFETY: the name is a C string. What the library runs when it is opened, it runs when candle opens it, too; it stays open
    // so that it does so once.
    !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) }.is_null()
}

#[cfg(all(test, feature = "cuda", target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_by_their_versioned_names() {
        assert!(opens("libc.so.6"));
        assert!(is_present("libutil"), "libutil.so.1 comes with glibc");
        assert!(!is_present("libmetal-candle-has-no-such-library"));
    }
}
