//! Thousands of damaged files: none may cause a panic, and none more memory than its size explains. The functions
//! and the limit are those of the fuzz targets, so every test run exercises them without nightly.
#![allow(clippy::unwrap_used)]

#[path = "../../../fuzz/src/allocation.rs"]
#[allow(unreachable_pub)]
mod allocation;
#[path = "../../../fuzz/src/exercise.rs"]
#[allow(unreachable_pub)]
mod exercise;
mod support;

use std::path::Path;

use allocation::{Counting, within_limit};
use candle_core::Device;
use metal_candle::model::weights::Checkpoint;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use support::{raw, raw_f32, safetensors_file};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MUTATIONS: usize = 20_000;

/// Fragments that parsers stumble over.
const FRAGMENTS: &[&str] = &[
    "",
    "0",
    "-1",
    "1e999",
    "0.5",
    "18446744073709551615",
    "18446744073709551616",
    "4294967296",
    "null",
    "true",
    "[]",
    "{}",
    "\"",
    "[[[[[[[[",
    "{\"a\":",
    "\\ud800",
    "\"F4\"",
    "\"../x.safetensors\"",
    "\u{FFFD}",
    "\0",
    ",",
    "]",
    "}",
];

/// Changes one to four places of a valid file.
fn mutate(valid: &[u8], random: &mut Pcg64Mcg) -> Vec<u8> {
    let mut data = valid.to_vec();
    for _ in 0..random.random_range(1..=4) {
        let start = random.random_range(0..=data.len());
        let end = (start + random.random_range(0..20)).min(data.len());
        match random.random_range(0..6) {
            0 => data.truncate(start),
            1 => drop(data.splice(start..end, FRAGMENTS[random.random_range(0..FRAGMENTS.len())].bytes())),
            2 => drop(data.splice(start..start, data[start..end].to_vec())),
            3 => drop(data.drain(start..end)),
            4 => replace_number(&mut data, start, FRAGMENTS[random.random_range(0..FRAGMENTS.len())]),
            _ => {
                if let Some(byte) = data.get_mut(start) {
                    *byte ^= 1 << random.random_range(0..8);
                }
            }
        }
    }
    data
}

/// Replaces the first number at or after `from`: random places seldom hit one.
fn replace_number(data: &mut Vec<u8>, from: usize, by: &str) {
    let Some(start) = data[from..].iter().position(u8::is_ascii_digit).map(|offset| from + offset) else {
        return;
    };
    let length = data[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    data.splice(start..start + length, by.bytes());
}

/// Reads each seed, which must be accepted as it is by the caller's own test, and its mutations.
fn run(seeds: &[Vec<u8>], mutations: usize, read: fn(&[u8])) {
    for (number, seed) in seeds.iter().enumerate() {
        let mut random = Pcg64Mcg::seed_from_u64(number as u64);
        within_limit(seed, read);
        for _ in 0..mutations.div_ceil(seeds.len()) {
            within_limit(&mutate(seed, &mut random), read);
        }
    }
}

fn checkpoint_seed() -> Vec<u8> {
    safetensors_file(&[
        raw_f32("model.embed_tokens.weight", &[4, 2], &[0.25; 8]),
        raw("model.norm.weight", "BF16", &[3], vec![0; 6]),
        raw("empty", "F16", &[0, 7], vec![]),
        raw("mask", "BOOL", &[2], vec![1, 0]),
    ])
}

#[test]
fn checkpoint_headers() {
    run(&[checkpoint_seed()], MUTATIONS, exercise::checkpoint_header);
}

#[test]
fn indexes() {
    let json =
        r#"{"metadata":{"total_size":9},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    run(&[json.into()], MUTATIONS, exercise::index);
}

#[test]
fn configs() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models");
    let mut folders: Vec<_> = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let seeds: Vec<_> =
        folders.iter().map(|folder| std::fs::read(folder.join("config.json")).unwrap()).collect();
    assert!(seeds.len() >= 10, "one config for each architecture");
    run(&seeds, MUTATIONS, exercise::config);
}

/// Many equal elements are what multiplies memory most.
#[test]
fn long_lists_stay_in_proportion() {
    let wrap = |before: &str, element: &str, after: &str| {
        format!("{before}{}{after}", element.repeat(100_000)).into_bytes()
    };
    let header = wrap(r#"{"a":{"dtype":"F32","data_offsets":[0,0],"shape":["#, "1,", "1]}}");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    within_limit(&file, exercise::checkpoint_header);
    within_limit(&wrap("{\"a\":[", "1,", "1]}"), exercise::config);
    within_limit(&wrap("{\"a\":", "[", ""), exercise::config);
    within_limit(
        &wrap("{\"weight_map\":{", r#""a":"b.safetensors","#, r#""c":"d.safetensors"}}"#),
        exercise::index,
    );
}

/// The limit acts: a child process that breaks it is ended.
#[test]
fn memory_out_of_proportion_ends_the_process() {
    const CHILD: &str = "METAL_CANDLE_TEST_GREEDY";
    if std::env::var_os(CHILD).is_some() {
        let greedy = |input: &[u8]| vec![1u8; allocation::limit(input.len()) + 1].len();
        within_limit(b"small", greedy);
        return;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "memory_out_of_proportion_ends_the_process", "--nocapture"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("more bytes live"), "{message}");
}

/// What opens must also load or be refused, whatever the header says.
#[test]
fn damaged_files_load_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let seed = safetensors_file(&[raw_f32("a", &[4, 2], &[0.25; 8]), raw("b", "BF16", &[3], vec![0; 6])]);
    let mut random = Pcg64Mcg::seed_from_u64(7);
    let mut loaded = 0;
    for _ in 0..500 {
        std::fs::write(&path, mutate(&seed, &mut random)).unwrap();
        let checkpoint = Checkpoint::open(folder.path());
        loaded +=
            usize::from(checkpoint.is_ok_and(|open| open.load(&Device::Cpu, None, &mut |_, _| {}).is_ok()));
    }
    assert!((1..400).contains(&loaded), "{loaded} of 500 loaded: the mutations are too weak or too strong");
}
