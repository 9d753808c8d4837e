//! From the text of a Metal file to a program, once per text and options.
//!
//! Programs are kept in the target folder, each in a folder named after a hash of all that went into it.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::{CompileOptions, MslError, translate::translate};

/// After so many seconds a kernel is taken for endless.
pub(super) const TIME_LIMIT_S: u32 = 60;

const HEADERS: [(&str, &str); 6] = [
    ("metal.h", include_str!("../../msl/metal.h")),
    ("program.h", include_str!("../../msl/program.h")),
    ("simdgroup.h", include_str!("../../msl/simdgroup.h")),
    ("runtime.h", include_str!("../../msl/runtime.h")),
    ("math.h", include_str!("../../msl/math.h")),
    ("types.h", include_str!("../../msl/types.h")),
];

/// The names that Metal files include; what they declare is in `metal.h`.
const METAL_HEADERS: [&str; 9] = [
    "metal_stdlib",
    "metal_math",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_atomic",
    "metal_integer",
    "metal_common",
    "metal_limits",
    "metal_type_traits",
];

const PREPROCESS: [&str; 9] = [
    "-E",
    "-xc++",
    "-std=c++17",
    "-nostdinc",
    "-undef",
    "-D__METAL__",
    "-D__METAL_VERSION__=310",
    "-D__HAVE_BFLOAT__=1",
    "-Iincluded",
];

/// Vectors convert only where they are told to, constants are single, and 16-bit floats are rounded after each
/// operation: as in Metal. Of the warnings, those count that are always mistakes.
const LANGUAGE: [&str; 12] = [
    "-std=c++17",
    "-flax-vector-conversions=none",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "-Wno-everything",
    "-Werror=return-type",
    "-Werror=uninitialized",
    "-Iheaders",
];

const PLAIN: [&str; 4] = ["-O1", "-static", "--rtlib=compiler-rt", "--unwindlib=libgcc"];
const SANITIZED: [&str; 6] = [
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,alignment",
    "-fno-sanitize-recover=all",
    "--rtlib=compiler-rt",
];

/// The program for this source, compiled unless it was compiled before.
pub(super) fn compile(source: &str, options: CompileOptions) -> Result<PathBuf, MslError> {
    let clang = clang();
    if let Err(error) = Command::new(&clang).arg("--version").output() {
        return Err(match error.kind() {
            io::ErrorKind::NotFound => MslError::ToolMissing { tool: clang },
            _ => failed(format!("start {clang}"))(error),
        });
    }
    let mut inputs =
        format!("{clang} {TIME_LIMIT_S} {options:?} {PREPROCESS:?} {LANGUAGE:?} {PLAIN:?} {SANITIZED:?}\n");
    for (name, text) in HEADERS {
        inputs += &format!("{name}\n{text}\n");
    }
    inputs += source;
    let folder = programs().join(name(&inputs));
    fs::create_dir_all(&folder).map_err(failed(format!("create {}", folder.display())))?;
    // One test compiles, the others wait for it.
    let lock = folder.join("lock");
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.map_err(failed(format!("lock {}", folder.display())))?;
    let program = folder.join("program");
    if fs::read_to_string(folder.join("inputs")).is_ok_and(|found| found == inputs) && program.exists() {
        return Ok(program);
    }
    Build { clang: &clang, folder: &folder }.run(source, options)?;
    write(&folder.join("inputs"), &inputs)?;
    Ok(program)
}

/// Turns an error of the file system into one that says what was tried.
pub(super) fn failed(what: String) -> impl FnOnce(io::Error) -> MslError {
    move |error| MslError::Io { what, error }
}

struct Build<'a> {
    clang: &'a str,
    folder: &'a Path,
}

impl Build<'_> {
    fn run(&self, source: &str, options: CompileOptions) -> Result<(), MslError> {
        self.write_headers()?;
        write(&self.folder.join("kernel.metal"), source)?;
        let preprocessed = self.clang(&PREPROCESS, &["kernel.metal"])?;
        if !preprocessed.status.success() {
            return Err(MslError::Compile(text(&preprocessed.stderr)));
        }
        let code = translate(&text(&preprocessed.stdout)).map_err(MslError::Translation)?;
        write(&self.folder.join("kernel.cpp"), &code)?;
        let limit = format!("-DMSL_TIME_LIMIT_S={TIME_LIMIT_S}");
        let kind: &[&str] = if options.address_sanitizer { &SANITIZED } else { &PLAIN };
        let output = [kind, &[&limit, "kernel.cpp", "-o", "program.new"]].concat();
        let compiled = self.clang(&LANGUAGE, &output)?;
        if !compiled.status.success() {
            return Err(MslError::Compile(text(&compiled.stderr)));
        }
        if options.address_spaces_checked {
            let check = ["-fsyntax-only", "-DMSL_CHECK_ADDRESS_SPACES", &limit, "kernel.cpp"];
            let checked = self.clang(&LANGUAGE, &check)?;
            if !checked.status.success() {
                return Err(MslError::AddressSpace(text(&checked.stderr)));
            }
        }
        let (new, program) = (self.folder.join("program.new"), self.folder.join("program"));
        fs::rename(&new, &program).map_err(failed(format!("rename {}", new.display())))
    }

    fn write_headers(&self) -> Result<(), MslError> {
        let (headers, included) = (self.folder.join("headers"), self.folder.join("included"));
        for folder in [&headers, &included] {
            fs::create_dir_all(folder).map_err(failed(format!("create {}", folder.display())))?;
        }
        for (name, text) in HEADERS {
            write(&headers.join(name), text)?;
        }
        METAL_HEADERS.iter().try_for_each(|name| write(&included.join(name), ""))
    }

    fn clang(&self, first: &[&str], second: &[&str]) -> Result<Output, MslError> {
        let mut command = Command::new(self.clang);
        command.args(first).args(second).arg("-fno-color-diagnostics").current_dir(self.folder);
        command.output().map_err(failed(format!("run {}", self.clang)))
    }
}

/// The compiler. `METAL_CANDLE_CLANG` names another one.
fn clang() -> String {
    std::env::var("METAL_CANDLE_CLANG").unwrap_or_else(|_| "clang++-19".into())
}

/// Where programs are kept: beside the test that runs, in the target folder, or among temporary files.
fn programs() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let target = test.ancestors().find(|folder| folder.ends_with("deps")).and_then(Path::parent);
    target.map_or_else(|| std::env::temp_dir().join("metal-candle-msl"), |folder| folder.join("msl"))
}

fn name(inputs: &str) -> String {
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn write(path: &Path, text: &str) -> Result<(), MslError> {
    fs::write(path, text).map_err(failed(format!("write {}", path.display())))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
