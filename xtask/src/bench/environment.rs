//! What a result was measured on. Asked of the running system by its own commands, so one text serves every platform.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde::{Deserialize, Serialize};

/// Absent fields are what this system does not tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) cpu: String,
    pub(crate) architecture: String,
    pub(crate) cores: usize,
    /// Instruction sets that matter for kernels.
    pub(crate) simd: Vec<String>,
    pub(crate) caches: BTreeMap<String, String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) system: String,
    pub(crate) kernel: Option<String>,
    pub(crate) governor: Option<String>,
    pub(crate) frequency_mhz: Option<f64>,
    pub(crate) gpu: Option<String>,
    pub(crate) gpu_driver: Option<String>,
    pub(crate) rustc: Option<String>,
    /// Cargo features of the bench programs.
    pub(crate) features: Vec<String>,
    pub(crate) commit: Option<String>,
    /// Whether tracked files differ from the commit.
    pub(crate) dirty: bool,
    /// `METAL_CANDLE_*` and `RUSTFLAGS`, which change what is measured.
    pub(crate) variables: BTreeMap<String, String>,
}

impl Environment {
    /// Results of two machines say nothing about two programs.
    pub(crate) fn machine(&self) -> (&str, usize, Option<&str>) {
        (&self.cpu, self.cores, self.gpu.as_deref())
    }
}

pub(crate) fn snapshot(workspace: &Path, features: &[String]) -> Environment {
    let mut environment = if std::env::consts::OS == "macos" { macos() } else { linux() };
    environment.architecture = std::env::consts::ARCH.to_owned();
    environment.cores = std::thread::available_parallelism().map_or(1, usize::from);
    environment.features = features.to_vec();
    environment.rustc = output("rustc", &["--version"]);
    environment.kernel = output("uname", &["-sr"]);
    let folder = workspace.display().to_string();
    // Where programs are carried to a machine, whoever carries them says of which commit they are.
    match std::env::var("METAL_CANDLE_COMMIT") {
        Ok(commit) => environment.commit = Some(commit),
        Err(_) => {
            environment.commit = output("git", &["-C", &folder, "rev-parse", "--short=12", "HEAD"]);
            environment.dirty =
                output("git", &["-C", &folder, "status", "--porcelain", "--untracked-files=no"]).is_some();
        }
    }
    if let Some(gpu) = output("nvidia-smi", &["--query-gpu=name,driver_version", "--format=csv,noheader"]) {
        let first = gpu.lines().next().unwrap_or_default();
        let (name, driver) = first.split_once(", ").unwrap_or((first, ""));
        environment.gpu = Some(name.to_owned());
        environment.gpu_driver = Some(driver.to_owned());
    }
    environment.variables = std::env::vars()
        .filter(|(name, _)| name.starts_with("METAL_CANDLE_") || name == "RUSTFLAGS")
        // A place and a name, which change nothing.
        .filter(|(name, _)| !["METAL_CANDLE_GOLDEN", "METAL_CANDLE_COMMIT"].contains(&name.as_str()))
        .collect();
    environment
}

/// The load average of the last minute.
pub(crate) fn load() -> Option<f64> {
    let text = read("/proc/loadavg").or_else(|| output("sysctl", &["-n", "vm.loadavg"]))?;
    text.split_whitespace().find_map(|word| word.parse().ok())
}

fn linux() -> Environment {
    let cpu = read("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| -> Option<String> {
        let line = cpu.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
    let memory = read("/proc/meminfo").unwrap_or_default();
    let kibibytes: Option<u64> = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let release = read("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let model = field("model name").or_else(|| {
        let listed = output("lscpu", &[])?;
        Some(listed.lines().find_map(|line| line.strip_prefix("Model name:"))?.trim().to_owned())
    });
    // Virtual machines hide the name; family and model still tell generations apart.
    let generation = field("cpu family")
        .zip(field("model"))
        .map(|(family, model)| format!(" (family {family}, model {model})"));
    Environment {
        cpu: model.unwrap_or_else(|| "unknown".to_owned()) + &generation.unwrap_or_default(),
        simd: simd(&flags),
        caches: linux_caches(),
        memory_bytes: kibibytes.map(|kibibytes| kibibytes << 10),
        system: system.unwrap_or("Linux").trim_matches('"').to_owned(),
        governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        frequency_mhz: field("cpu MHz").and_then(|text| text.parse().ok()),
        ..Environment::default()
    }
}

fn linux_caches() -> BTreeMap<String, String> {
    let folders = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten().flatten();
    folders
        .filter_map(|folder| {
            let part = |name: &str| read(&folder.path().join(name).display().to_string());
            let kind = match part("type")?.as_str() {
                "Data" => "d",
                "Instruction" => "i",
                _ => "",
            };
            Some((format!("L{}{kind}", part("level")?), part("size")?))
        })
        .collect()
}

fn macos() -> Environment {
    let number = |name: &str| -> Option<u64> { output("sysctl", &["-n", name])?.parse().ok() };
    let caches = [
        ("L1d", "hw.perflevel0.l1dcachesize"),
        ("L1i", "hw.perflevel0.l1icachesize"),
        ("L2", "hw.perflevel0.l2cachesize"),
    ];
    let features = ["FEAT_DotProd", "FEAT_FP16", "FEAT_BF16", "FEAT_I8MM", "FEAT_SME", "FEAT_SME2"];
    let gpu = output("system_profiler", &["SPDisplaysDataType"]).unwrap_or_default();
    let gpu_field = |name: &str| {
        gpu.lines().find_map(|line| line.trim().strip_prefix(name)).map(|text| text.trim().to_owned())
    };
    let gpu_cores =
        gpu_field("Total Number of Cores:").map(|count| format!(", {count} cores")).unwrap_or_default();
    let fast = number("hw.perflevel0.physicalcpu").zip(number("hw.perflevel1.physicalcpu"));
    let model = output("sysctl", &["-n", "machdep.cpu.brand_string"]).unwrap_or_else(|| "unknown".to_owned());
    Environment {
        cpu: model
            + &fast.map(|(fast, slow)| format!(" ({fast} fast and {slow} slow cores)")).unwrap_or_default(),
        simd: features
            .iter()
            .filter(|name| number(&format!("hw.optional.arm.{name}")) == Some(1))
            .map(|name| name.trim_start_matches("FEAT_").to_lowercase())
            .collect(),
        caches: caches
            .iter()
            .filter_map(|(name, key)| Some(((*name).to_owned(), format!("{}K", number(key)? >> 10))))
            .collect(),
        memory_bytes: number("hw.memsize"),
        system: format!("macOS {}", output("sw_vers", &["-productVersion"]).unwrap_or_default()),
        gpu: gpu_field("Chipset Model:").map(|name| name + &gpu_cores),
        gpu_driver: gpu_field("Metal Support:"),
        ..Environment::default()
    }
}

fn simd(flags: &str) -> Vec<String> {
    const THOSE_THAT_MATTER: [&str; 14] = [
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512_bf16",
        "avx512_vnni",
        "amx_bf16",
        "asimd",
        "asimddp",
        "bf16",
        "sve2",
    ];
    let present: Vec<&str> = flags.split_whitespace().collect();
    THOSE_THAT_MATTER.iter().filter(|flag| present.contains(flag)).map(|flag| (*flag).to_owned()).collect()
}

fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A command's output; none where the command is absent, fails or says nothing.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
