//! Thousands of damaged `tokenizer.json` files: each is read or refused, without a panic inside the tokenizers crate.
//! A panic that is caught is no error for the caller, but the panic hook of the program has printed it by then.
#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs, panic,
    path::Path,
};

use metal_candle::text::Tokenizer;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde_json::{Map, Value, json};

const MUTATIONS: usize = 30_000;
const TEXT: &str = "Hello  wörld, 12\u{1F600}\n the e\u{301}nd <s>";

thread_local! {
    static PANICS: RefCell<BTreeMap<String, String>> = const { RefCell::new(BTreeMap::new()) };
    static READING: Cell<bool> = const { Cell::new(false) };
    static INPUT: RefCell<Value> = const { RefCell::new(Value::Null) };
}

/// Values that stand where others belong.
fn stranger(random: &mut Pcg64Mcg) -> Value {
    let long = "ab".repeat(300);
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(0.5),
        json!(4_294_967_295u64),
        json!(18_446_744_073_709_551_615u64),
        json!(1e300),
        json!(""),
        json!(" "),
        json!("é"),
        json!("▁"),
        json!("##"),
        json!("("),
        json!("a*"),
        json!(long),
        json!([]),
        json!([0, 1]),
        json!(["a", "b"]),
        json!({}),
        json!({ "type": "Strip" }),
        json!({ "String": "" }),
        json!({ "Regex": "x*" }),
        json!({ "Regex": "(?=o)" }),
    ];
    values[random.random_range(0..values.len())].clone()
}

/// Where parts stand, and parts that are right there.
fn places() -> Vec<(&'static str, Vec<Value>)> {
    let named = |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!({ "type": name })).collect() };
    let mut normalizers = vec![
        json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true }),
        json!({ "type": "Strip", "strip_left": true, "strip_right": true }),
        json!({ "type": "Prepend", "prepend": "" }),
        json!({ "type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA=" }),
        json!({ "type": "Sequence", "normalizers": [] }),
    ];
    normalizers.extend(named(&["NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Lowercase", "Nmt"]));
    let mut pre_tokenizers = vec![
        json!({ "type": "Sequence", "pretokenizers": [] }),
        json!({ "type": "Digits", "individual_digits": true }),
        json!({ "type": "Punctuation", "behavior": "Contiguous" }),
        json!({ "type": "CharDelimiterSplit", "delimiter": "o" }),
        json!({ "type": "Metaspace", "replacement": "o", "prepend_scheme": "first", "split": true }),
        json!({ "type": "FixedLength", "length": 2 }),
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
    ];
    pre_tokenizers.extend(named(&["UnicodeScripts", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"]));
    let processors = vec![
        json!({ "type": "Sequence", "processors": [] }),
        json!({ "type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 4_000_000_000u64] }),
        json!({ "type": "RobertaProcessing", "sep": ["a", 1], "cls": ["b", 2], "trim_offsets": true, "add_prefix_space": true }),
        json!({ "type": "TemplateProcessing", "single": [{ "Sequence": { "id": "B", "type_id": 0 } }], "pair": [], "special_tokens": {} }),
    ];
    let mut decoders = vec![
        json!({ "type": "Sequence", "decoders": [] }),
        json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        json!({ "type": "BPEDecoder", "suffix": "" }),
        json!({ "type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true }),
        json!({ "type": "Strip", "content": " ", "start": 3, "stop": 900 }),
    ];
    decoders.extend(named(&["ByteFallback", "Fuse"]));
    let patterns = ["l*", "^", "$", r"\b", "(?=o)", " +", "(?<=[.!])"].map(|regex| json!({ "Regex": regex }));
    let texts = ["", "l", " "].map(|text| json!({ "String": text }));
    for pattern in patterns.iter().chain(&texts) {
        for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
            pre_tokenizers
                .push(json!({ "type": "Split", "pattern": pattern, "behavior": behavior, "invert": true }));
        }
        let replace = json!({ "type": "Replace", "pattern": pattern, "content": "xyz" });
        normalizers.push(replace.clone());
        decoders.push(replace);
    }
    let truncation =
        json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5 });
    let padding = json!({
        "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"
    });
    vec![
        ("normalizer", normalizers),
        ("pre_tokenizer", pre_tokenizers),
        ("post_processor", processors),
        ("decoder", decoders),
        ("truncation", vec![truncation]),
        ("padding", vec![padding]),
    ]
}

/// Changes one to three places of a valid file. Half of the changes put another part in, mostly where it belongs: what
/// is refused as soon as it is read runs nothing.
fn mutate(seed: &Value, places: &[(&str, Vec<Value>)], random: &mut Pcg64Mcg) -> Value {
    let mut file = seed.clone();
    for _ in 0..random.random_range(1..=3) {
        if file.is_object() && random.random_range(0..2) == 0 {
            let place = random.random_range(0..places.len());
            let from =
                if random.random_range(0..5) == 0 { random.random_range(0..places.len()) } else { place };
            let parts = &places[from].1;
            file[places[place].0] = parts[random.random_range(0..parts.len())].clone();
        } else {
            // The file as a whole seldom: a stranger in its place is always refused.
            let depth = random.random_range(0..40).min(5);
            change(&mut file, depth, random);
        }
    }
    file
}

/// Walks down at random, `depth` steps at most, and changes what is there.
fn change(value: &mut Value, depth: usize, random: &mut Pcg64Mcg) {
    if depth > 0 {
        let next = random.random_range(0..depth);
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let index = random.random_range(0..fields.len());
                if depth == 1 {
                    return change_fields(fields, index, random);
                }
                return change(fields.values_mut().nth(index).unwrap(), next, random);
            }
            Value::Array(items) if !items.is_empty() => {
                let index = random.random_range(0..items.len());
                match random.random_range(0..6) {
                    0 => drop(items.remove(index)),
                    1 => items.push(items[index].clone()),
                    2 => {
                        let other = random.random_range(0..items.len());
                        items.swap(index, other);
                    }
                    _ => change(&mut items[index], next, random),
                }
                return;
            }
            _ => {}
        }
    }
    *value = stranger(random);
}

fn change_fields(fields: &mut Map<String, Value>, index: usize, random: &mut Pcg64Mcg) {
    let key = fields.keys().nth(index).unwrap().clone();
    match random.random_range(0..4) {
        0 => drop(fields.remove(&key)),
        1 => {
            let value = fields.remove(&key).unwrap();
            fields.insert(["", "é", "a", "<s>", "type"][random.random_range(0..5)].to_owned(), value);
        }
        2 => {
            let other = fields.values().nth(random.random_range(0..fields.len())).unwrap().clone();
            fields.insert(key, other);
        }
        _ => drop(fields.insert(key, stranger(random))),
    }
}

fn exercise(file: &Value) -> bool {
    INPUT.set(file.clone());
    READING.set(true);
    let read = read(file);
    READING.set(false);
    read
}

fn read(file: &Value) -> bool {
    let Ok(tokenizer) = Tokenizer::from_bytes(&serde_json::to_vec(file).unwrap()) else { return false };
    // Refusals are fine everywhere.
    let ids = tokenizer.encode(TEXT, true).unwrap_or_default();
    tokenizer.encode_with_offsets(TEXT, false).ok();
    tokenizer.encode("", true).ok();
    tokenizer.decode(&ids, false).ok();
    tokenizer.decode(&[0, 1, 2, 5, u32::MAX], true).ok();
    true
}

#[test]
fn damaged_tokenizers_are_refused_before_anything_panics() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let seeds = [
        "golden/tokenizers/byte_level/tokenizer.json",
        "golden/tokenizers/metaspace/tokenizer.json",
        "golden/tokenizers/wordpiece/tokenizer.json",
        "fuzz/seeds/tokenizer/byte_level_bpe.json",
        "fuzz/seeds/tokenizer/unigram.json",
    ];
    let note = |info: &panic::PanicHookInfo<'_>| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        PANICS.with_borrow_mut(|panics| {
            panics
                .entry(format!("{location}: {info}"))
                .or_insert_with(|| INPUT.with_borrow(Value::to_string));
        });
    };
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| if READING.get() { note(info) } else { usual(info) }));
    let places = places();
    let mut accepted = 0;
    for (number, path) in seeds.iter().enumerate() {
        let seed: Value = serde_json::from_slice(&fs::read(root.join(path)).unwrap()).unwrap();
        let mut random = Pcg64Mcg::seed_from_u64(number as u64);
        assert!(exercise(&seed), "{path}");
        for _ in 0..MUTATIONS / seeds.len() {
            accepted += usize::from(exercise(&mutate(&seed, &places, &mut random)));
        }
    }
    let panics = PANICS.take();
    let list: Vec<String> =
        panics.iter().map(|(panic, file)| format!("{panic}\nfirst for {file}\n")).collect();
    assert!(list.is_empty(), "{}", list.concat());
    // Most changes make a file wrong; those that do not must be enough to run what was read.
    assert!((MUTATIONS / 5..MUTATIONS * 4 / 5).contains(&accepted), "{accepted} of {MUTATIONS} were read");
}
