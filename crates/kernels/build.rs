//! Compiles the CUDA kernels, where the feature `cuda` asks for them.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Machine code for the GPUs that the kernels are tuned for, which is that of others of their family, and PTX for those that came later.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
];

/// Of nvcc, beside targets, source and image.
const OPTIONS: [&str; 5] = ["--fatbin", "-O3", "-std=c++17", "--compress-mode=size", "-diag-suppress=177"];

/// A source, and where its device code goes.
struct Unit {
    source: PathBuf,
    image: PathBuf,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let shared = ["src/gpu/prelude.cuh", "src/gpu/common.gpu"].map(read).concat();
    let (mut units, mut headers) = (Vec::new(), String::new());
    for folder in list("src") {
        let kernels = folder.join("kernels.gpu");
        if kernels.is_file() {
            let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
            let source = out.join(format!("{name}.cu"));
            fs::write(&source, shared.clone() + &read(&kernels)).expect("OUT_DIR can be written");
            units.push(Unit { source, image: out.join(format!("{name}.fatbin")) });
        }
        if !folder.join("cuda").is_dir() {
            continue;
        }
        for source in list(folder.join("cuda")) {
            if source.extension().is_some_and(|extension| extension == "cu") {
                let name = source.file_stem().expect("a source has a name").to_string_lossy().into_owned();
                units.push(Unit { source, image: out.join(format!("{name}_cuda.fatbin")) });
            } else {
                headers += &read(&source);
            }
        }
    }
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    unit.compile(&headers);
                }
            });
        }
    });
}

impl Unit {
    /// Unless its image is of the same source and headers.
    fn compile(&self, headers: &str) {
        let mut hasher = DefaultHasher::new();
        (headers, read(&self.source), OPTIONS, TARGETS).hash(&mut hasher);
        let (made_of, note) = (hasher.finish().to_string(), self.image.with_extension("of"));
        if self.image.is_file() && fs::read_to_string(&note).is_ok_and(|noted| noted == made_of) {
            return;
        }
        let nvcc = match env::var_os("CUDA_HOME") {
            Some(home) => Path::new(&home).join("bin/nvcc"),
            None => PathBuf::from("nvcc"),
        };
        let run = Command::new(&nvcc)
            .args(OPTIONS)
            .args(TARGETS)
            .arg(&self.source)
            .arg("-o")
            .arg(&self.image)
            .status();
        match run {
            Ok(status) if status.success() => fs::write(note, made_of).expect("OUT_DIR can be written"),
            Ok(status) => panic!("{} failed on {} ({status})", nvcc.display(), self.source.display()),
            Err(error) => panic!(
                "{}: {error}. The feature `cuda` needs the CUDA compiler: put nvcc on the PATH or set CUDA_HOME",
                nvcc.display()
            ),
        }
    }
}

/// What a folder holds, in order.
fn list(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let folder = folder.as_ref();
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a folder of src can be listed").path()).collect();
    paths.sort();
    paths
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
