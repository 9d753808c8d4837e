//! Where to compute: what a user may ask for, and what this build and this machine have.

use std::{fmt, str::FromStr};

use candle_core::utils::{cuda_is_available, metal_is_available};
pub use candle_core::{DType, Device};
pub use metal_candle_kernels::device_memory::DeviceMemory;
pub use metal_candle_kernels::memory::{Allocator, BandwidthProbe, peak_resident_bytes, physical_bytes};
use metal_candle_kernels::{cuda_libraries, device_memory, pool, simd};

/// The exact version of candle underneath.
pub const CANDLE_VERSION: &str = "0.11.1";

/// A device as a user names it: `auto`, `cpu`, `cuda`, `cuda:N`, `metal` or `metal:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best one that this build supports and this machine has.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number.
    Cuda(usize),
    /// An Apple GPU, by number.
    Metal(usize),
}

/// The text names no device, or the device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device's name.
    #[error("`{text}` is no device; use auto, cpu, cuda, cuda:N, metal or metal:N (N counts from 0)")]
    Unknown {
        /// What was given.
        text: String,
    },
    /// The program was built without support for the device.
    #[error(
        "{device} was not compiled into this build; use one with the feature `{feature}` (cargo build --release --features {feature}), or choose cpu"
    )]
    NotCompiledIn {
        /// What was asked for.
        device: DeviceChoice,
        /// The feature that it needs.
        feature: &'static str,
    },
    /// The machine does not have it, or its driver refuses.
    #[error("{device} cannot be used on this machine: {reason}; choose another device, or cpu")]
    Unavailable {
        /// What was asked for.
        device: DeviceChoice,
        /// What the driver said.
        reason: String,
    },
}

impl DeviceChoice {
    /// Opens the device. Only `auto` looks at more than one: the first of CUDA and Metal that works, else the CPU.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Auto => {
                let accelerators = [Self::Cuda(0), Self::Metal(0)];
                Ok(accelerators.into_iter().find_map(|choice| choice.open().ok()).unwrap_or(Device::Cpu))
            }
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => {
                self.require_cuda_libraries()?;
                self.accelerator("cuda", || Device::new_cuda(number))
            }
            Self::Metal(number) => self.accelerator("metal", || Device::new_metal(number)),
        }
    }

    /// Whether this build supports it.
    pub fn is_compiled_in(self) -> bool {
        match self {
            Self::Auto | Self::Cpu => true,
            Self::Cuda(_) => cuda_is_available(),
            Self::Metal(_) => metal_is_available(),
        }
    }

    /// candle panics where a library that it opens at run time is missing.
    fn require_cuda_libraries(self) -> Result<(), DeviceError> {
        let missing = cuda_libraries::missing();
        if missing.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "{} not found (libcuda comes with NVIDIA's driver, the others with the CUDA toolkit or its Python \
             packages; their folders belong in LD_LIBRARY_PATH)",
            missing.join(", ")
        );
        Err(DeviceError::Unavailable { device: self, reason })
    }

    fn accelerator(
        self,
        feature: &'static str,
        open: impl FnOnce() -> candle_core::Result<Device>,
    ) -> Result<Device, DeviceError> {
        if !self.is_compiled_in() {
            return Err(DeviceError::NotCompiledIn { device: self, feature });
        }
        let prepared = open().and_then(|device| device_memory::prepare(&device).map(|()| device));
        prepared.map_err(|error| DeviceError::Unavailable { device: self, reason: error.to_string() })
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { text: text.to_owned() };
        let (kind, number) = match text.split_once(':') {
            None => (text, None),
            Some((kind, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                (kind, Some(digits.parse().map_err(|_| unknown())?))
            }
            Some(_) => return Err(unknown()),
        };
        match (kind, number) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", number) => Ok(Self::Cuda(number.unwrap_or(0))),
            ("metal", number) => Ok(Self::Metal(number.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
            Self::Metal(number) => write!(formatter, "metal:{number}"),
        }
    }
}

/// The kind of an open device, as a user would write it: `cpu`, `cuda` or `metal`.
pub fn kind(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// How much memory the process could still take without others losing theirs, where the system tells (Linux).
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// What memory an accelerator has and has used; none for the CPU.
pub fn memory(device: &Device) -> candle_core::Result<Option<DeviceMemory>> {
    device_memory::device_memory(device)
}

/// How many threads the CPU kernels use.
pub fn threads() -> usize {
    pool::threads()
}

/// Sets how many threads the CPU kernels use from now on; 0 stands for the default, all that the process may use.
pub fn set_threads(threads: usize) {
    pool::set_threads(threads);
}

/// The instruction set that the CPU kernels use.
///
/// # Panics
/// If the variable `METAL_CANDLE_SIMD` names none, or one that this machine lacks.
pub fn simd_level() -> simd::Level {
    simd::level()
}

/// The instruction sets that the CPU kernels could use on this machine, best first.
pub fn simd_levels() -> impl Iterator<Item = simd::Level> {
    simd::available()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
            ("metal:1", DeviceChoice::Metal(1)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        assert_eq!("metal".parse::<DeviceChoice>().unwrap(), DeviceChoice::Metal(0));
    }

    #[test]
    fn other_texts_are_refused_by_name() {
        for text in
            ["", "gpu", "CPU", "cpu:0", "auto:1", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999999999999"]
        {
            let message = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{text}`")) && message.contains("cuda:N"), "{message}");
        }
    }

    #[test]
    fn a_device_that_is_not_compiled_in_is_an_error_that_names_the_build() {
        assert!(DeviceChoice::Cpu.open().unwrap().is_cpu());
        for (choice, feature) in [(DeviceChoice::Cuda(0), "cuda"), (DeviceChoice::Metal(0), "metal")] {
            if choice.is_compiled_in() {
                continue;
            }
            let message = choice.open().unwrap_err().to_string();
            assert!(message.contains(&format!("feature `{feature}`")), "{message}");
        }
        if !cuda_is_available() && !metal_is_available() {
            assert!(DeviceChoice::Auto.open().unwrap().is_cpu());
        }
    }

    #[test]
    fn a_device_that_the_machine_lacks_is_an_error_that_names_it() {
        for choice in [DeviceChoice::Cuda(4321), DeviceChoice::Metal(4321)] {
            let message = choice.open().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{choice} ")) && message.contains("cpu"), "{message}");
        }
    }
}
