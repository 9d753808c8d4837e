//! Which instruction set the kernels use.

use std::{cell::Cell, fmt, sync::OnceLock};

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// AVX-512, and AMX's products of bf16 matrices.
    Amx,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// The vectors of every 64-bit ARM processor.
    Neon,
    /// Plain Rust.
    Portable,
}

/// Best first.
const LEVELS: [Level; 5] = [Level::Amx, Level::Avx512, Level::Avx2, Level::Neon, Level::Portable];

impl Level {
    /// The name used by `METAL_CANDLE_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Amx => "amx",
            Level::Avx512 => "avx512",
            Level::Avx2 => "avx2",
            Level::Neon => "neon",
            Level::Portable => "portable",
        }
    }

    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => Level::Avx512.is_available() && super::amx::is_available(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            Level::Portable => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

thread_local! {
    static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
}

/// The levels of this machine, best first.
pub fn available() -> impl Iterator<Item = Level> {
    LEVELS.into_iter().filter(|level| level.is_available())
}

/// The level in use: see the module's documentation.
///
/// # Panics
/// If `METAL_CANDLE_SIMD` names no level, or one that this machine lacks.
pub fn level() -> Level {
    static DEFAULT: OnceLock<Level> = OnceLock::new();
    FORCED.get().unwrap_or_else(|| *DEFAULT.get_or_init(default_level))
}

/// Runs `body` with a given level, on this thread and on the pool threads that work for it.
///
/// # Panics
/// If this machine lacks the level.
pub fn with_level<R>(level: Level, body: impl FnOnce() -> R) -> R {
    assert!(level.is_available(), "SIMD level `{level}` is not available on this machine");
    let _restore = RestoreOnDrop(FORCED.replace(Some(level)));
    body()
}

/// What [`with_level`] set on this thread.
pub(crate) fn forced_level() -> Option<Level> {
    FORCED.get()
}

/// Carries [`forced_level`] to another thread. The level must be available.
pub(crate) fn set_forced_level(level: Option<Level>) {
    FORCED.set(level);
}

struct RestoreOnDrop(Option<Level>);

impl Drop for RestoreOnDrop {
    fn drop(&mut self) {
        FORCED.set(self.0);
    }
}

fn default_level() -> Level {
    match std::env::var("METAL_CANDLE_SIMD") {
        Ok(name) => parse(&name).unwrap_or_else(|message| panic!("METAL_CANDLE_SIMD: {message}")),
        Err(std::env::VarError::NotPresent) => available().next().unwrap_or(Level::Portable),
        Err(error) => panic!("METAL_CANDLE_SIMD: {error}"),
    }
}

fn parse(name: &str) -> Result<Level, String> {
    let names = |levels: &mut dyn Iterator<Item = Level>| -> String {
        levels.map(|level| format!("`{level}`")).collect::<Vec<_>>().join(", ")
    };
    let Some(level) = LEVELS.into_iter().find(|level| level.name() == name) else {
        return Err(format!("unknown level `{name}`; use one of {}", names(&mut LEVELS.into_iter())));
    };
    if !level.is_available() {
        let usable = names(&mut available());
        return Err(format!("level `{name}` is not available on this machine; use one of {usable}"));
    }
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_bad_ones_are_explained() {
        assert_eq!(parse("portable"), Ok(Level::Portable));
        assert!(parse("AVX9").is_err_and(|message| message.contains("`AVX9`") && message.contains("`avx2`")));
        for level in LEVELS {
            match parse(level.name()) {
                Ok(parsed) => assert!(parsed == level && level.is_available()),
                Err(message) => assert!(!level.is_available() && message.contains("not available")),
            }
        }
    }

    #[test]
    fn a_forced_level_ends_with_its_scope() {
        let before = level();
        with_level(Level::Portable, || assert_eq!(level(), Level::Portable));
        assert_eq!(level(), before);
        let panicked = std::panic::catch_unwind(|| with_level(Level::Portable, || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(level(), before);
    }
}
