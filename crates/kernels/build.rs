//! Compiles the CUDA kernels, where the feature `cuda` asks for them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Machine code for the GPUs that the kernels are tuned for, and PTX for all others from compute 8.0 on.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_80,code=compute_80",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let shared = ["src/gpu/prelude.cuh", "src/gpu/common.gpu"].map(read).concat();
    for folder in fs::read_dir("src").expect("the package has a folder src") {
        let folder = folder.expect("src can be listed").path();
        let kernels = folder.join("kernels.gpu");
        if kernels.is_file() {
            let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
            let source = out.join(format!("{name}.cu"));
            fs::write(&source, shared.clone() + &read(&kernels)).expect("OUT_DIR can be written");
            compile(&source, &out.join(format!("{name}.fatbin")));
        }
        let Ok(own) = fs::read_dir(folder.join("cuda")) else { continue };
        for source in own.map(|file| file.expect("a folder of src can be listed").path()) {
            if source.extension().is_some_and(|extension| extension == "cu") {
                let name = source.file_stem().expect("a source has a name").to_string_lossy().into_owned();
                compile(&source, &out.join(format!("{name}_cuda.fatbin")));
            }
        }
    }
}

fn compile(source: &Path, image: &Path) {
    let nvcc = match env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => PathBuf::from("nvcc"),
    };
    let run = Command::new(&nvcc)
        .args(["--fatbin", "-O3", "-std=c++17", "--compress-mode=size", "-diag-suppress=177"])
        .args(TARGETS)
        .arg(source)
        .arg("-o")
        .arg(image)
        .status();
    match run {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} failed on {} ({status})", nvcc.display(), source.display()),
        Err(error) => panic!(
            "{}: {error}. The feature `cuda` needs the CUDA compiler: put nvcc on the PATH or set CUDA_HOME",
            nvcc.display()
        ),
    }
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
