//! Tokenizers and the incremental detokenizer: golden encodings (golden/make_text.py) and properties.
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, sync::Arc};

use metal_candle::text::{Detokenizer, TextError, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

const NAMES: [&str; 3] = ["byte_level", "metaspace", "wordpiece"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/tokenizers").join(name)
}

fn tokenizer(name: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&folder(name)).unwrap())
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Decodes one id at a time; gives all pieces.
fn pieces(detokenizer: &mut Detokenizer, ids: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
    pieces.push(detokenizer.finish().unwrap());
    pieces
}

#[test]
fn encodings_and_decodings_are_those_of_transformers() {
    for name in NAMES {
        let (tokenizer, golden) = (tokenizer(name), golden(name));
        assert_eq!(golden["vocab_size"], tokenizer.vocab_size());
        for case in golden["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids_special"]), "{name}: {text:?}");
            for (key, skip) in [("decoded", false), ("decoded_skip", true)] {
                let decoded = case[key].as_str().unwrap();
                assert_eq!(tokenizer.decode(&expected, skip).unwrap(), decoded, "{name}: {text:?}");
                let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
                assert_eq!(pieces(&mut detokenizer, &expected).concat(), decoded, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn tokens_and_their_roles_are_those_of_transformers() {
    for name in NAMES {
        let (tokenizer, golden) = (tokenizer(name), golden(name));
        for (token, id) in golden["tokens"].as_object().unwrap() {
            let id = u32::try_from(id.as_u64().unwrap()).unwrap();
            assert_eq!(tokenizer.id_of(token), Some(id), "{name}: {token}");
            assert_eq!(tokenizer.token_of(id).as_deref(), Some(token.as_str()));
        }
        let special = ids(&golden["special"]);
        for id in &special {
            assert!(tokenizer.is_special(*id), "{name}: {id}");
        }
        for (role, token) in golden["named"].as_object().unwrap() {
            assert_eq!(tokenizer.named_token(role), token.as_str(), "{name}: {role}");
            assert!(tokenizer.named_token_id(role).is_some());
        }
        assert_eq!(tokenizer.id_of("no such token"), None);
        assert_eq!(tokenizer.token_of(u32::MAX), None);
        assert!(!tokenizer.is_special(u32::MAX));
    }
}

#[test]
fn the_flags_of_the_config_win() {
    let plain = Tokenizer::from_file(&folder("byte_level").join("tokenizer.json")).unwrap();
    let with_config = tokenizer("byte_level");
    let id = plain.id_of("<think>").unwrap();
    assert!(!plain.is_special(id) && with_config.is_special(id));
    assert_eq!((plain.id_of("<tool>"), plain.named_token("eos_token")), (None, None));
    assert!(with_config.id_of("<tool>").is_some_and(|id| !with_config.is_special(id)));
}

#[test]
fn offsets_point_into_the_text() {
    let text = "Hi <|im_end|> 🦀";
    let tokens = tokenizer("byte_level").encode_with_offsets(text, false).unwrap();
    assert_eq!(
        tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        tokenizer("byte_level").encode(text, false).unwrap()
    );
    let end = tokenizer("byte_level").id_of("<|im_end|>").unwrap();
    let range = tokens.iter().find(|(id, _)| *id == end).unwrap().1.clone();
    assert_eq!(&text[range], "<|im_end|>");
}

#[test]
fn a_primed_detokenizer_keeps_the_leading_space() {
    for (name, expected) in [("byte_level", " world"), ("metaspace", " world"), ("wordpiece", " world")] {
        let tokenizer = tokenizer(name);
        let (context, all) =
            (tokenizer.encode("Hello", false).unwrap(), tokenizer.encode("Hello world", false).unwrap());
        assert_eq!(context, all[..context.len()], "{name}");
        let mut detokenizer = Detokenizer::new(tokenizer, true);
        detokenizer.prime(&context).unwrap();
        assert_eq!(pieces(&mut detokenizer, &all[context.len()..]).concat(), expected, "{name}");
    }
}

#[test]
fn the_context_is_not_printed_again_when_it_was_held_back() {
    let tokenizer = tokenizer("metaspace");
    let byte = |byte: u8| tokenizer.id_of(&format!("<0x{byte:02X}>")).unwrap();
    let letter = tokenizer.encode("a", false).unwrap();
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), true);
    // "a\n" and the first two bytes of a euro sign, then its third byte, a line end and a letter.
    detokenizer.prime(&[letter[0], byte(b'\n')]).unwrap();
    let mut fork = detokenizer.clone();
    assert_eq!(pieces(&mut fork, &[byte(b'\n'), letter[0]]).concat(), "\n a");
    detokenizer.prime(&[byte(0xe2), byte(0x82)]).unwrap();
    assert_eq!(pieces(&mut detokenizer, &[byte(0xac), byte(b'\n'), letter[0]]).concat(), "\n€\n a");
}

#[test]
fn characters_come_whole() {
    let tokenizer = tokenizer("byte_level");
    let ids = tokenizer.encode("a🦀b", false).unwrap();
    let pieces = pieces(&mut Detokenizer::new(tokenizer, false), &ids);
    assert!(ids.len() > 3, "the crab must take several tokens");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    assert!(pieces.iter().any(|piece| piece.contains('🦀')));
}

#[test]
fn missing_and_broken_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err();
    assert!(
        matches!(error, TextError::Read { .. }) && error.to_string().contains("tokenizer.json"),
        "{error}"
    );
    let good = std::fs::read(self::folder("metaspace").join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), &good[..good.len() / 2]).unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err();
    assert!(matches!(error, TextError::Invalid { .. }) && error.to_string().contains("download"), "{error}");
    std::fs::write(folder.path().join("tokenizer.json"), &good).unwrap();
    for (config, reason) in [
        ("[]", "not a JSON object"),
        (r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#, "not a token id"),
        (r#"{"added_tokens_decoder": {"1": {}}}"#, "token 1"),
    ] {
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// Tokenizers whose decoder is given as JSON, over a small vocabulary with awkward tokens.
fn with_decoder(decoder: &str) -> Arc<Tokenizer> {
    let tokens = [
        "a", "b</w>", "##c", "▁d", "▁", " ", "  e ", "<0xE2>", "<0x82>", "<0xAC>", "<0x0A>", "é", ".", "n't",
        "",
    ];
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), Value::from(id))).collect();
    let json = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": {decoder},
            "model": {{"type": "WordLevel", "vocab": {}, "unk_token": "a"}}}}"#,
        Value::Object(vocab)
    );
    Arc::new(Tokenizer::from_bytes(json.as_bytes()).unwrap())
}

const DECODERS: [&str; 10] = [
    "null",
    r#"{"type": "BPEDecoder", "suffix": "</w>"}"#,
    r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###,
    r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}"#,
    r#"{"type": "CTC", "pad_token": "a", "word_delimiter_token": "▁", "cleanup": true}"#,
    r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#,
    r#"{"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 2, "stop": 0}]}"#,
    r#"{"type": "Sequence", "decoders": [{"type": "ByteFallback"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}]}"#,
    r#"{"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a."},
        "content": "!"}]}"#,
    r#"{"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {"type": "BPEDecoder", "suffix": "▁"}]}"#,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn byte_level_text_comes_back(text in any::<String>()) {
        let tokenizer = tokenizer("byte_level");
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn pieces_are_the_whole(name in prop::sample::select(&NAMES[..]), ids in prop::collection::vec(0u32..530, 0..60), skip: bool) {
        let tokenizer = tokenizer(name);
        let all = tokenizer.decode(&ids, skip).unwrap();
        let pieces = pieces(&mut Detokenizer::new(tokenizer, skip), &ids);
        prop_assert_eq!(pieces.concat(), all.as_str());
        let broken = |text: &str| text.matches('\u{fffd}').count();
        prop_assert_eq!(pieces.iter().map(|piece| broken(piece)).sum::<usize>(), broken(&all));
    }

    #[test]
    fn every_decoder_streams_to_the_same_text(decoder in prop::sample::select(&DECODERS[..]), ids in prop::collection::vec(0u32..16, 0..20)) {
        let tokenizer = with_decoder(decoder);
        let all = tokenizer.decode(&ids, false).unwrap();
        prop_assert_eq!(pieces(&mut Detokenizer::new(tokenizer, false), &ids).concat(), all);
    }

    #[test]
    fn a_fork_continues_as_if_alone(name in prop::sample::select(&NAMES[..]), ids in prop::collection::vec(0u32..530, 0..40), at in 0usize..40) {
        let tokenizer = tokenizer(name);
        let at = at.min(ids.len());
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), false);
        let mut text: String = ids[..at].iter().map(|id| detokenizer.push(*id).unwrap()).collect();
        let mut fork = detokenizer.clone();
        pieces(&mut detokenizer, &[1, 2, 3]);
        text += &pieces(&mut fork, &ids[at..]).concat();
        prop_assert_eq!(text, tokenizer.decode(&ids, false).unwrap());
    }

    #[test]
    fn context_and_continuation_make_the_whole(name in prop::sample::select(&NAMES[..]), context in "[a-z é🦀\n]{0,12}", rest in "[a-z é🦀\n]{0,12}") {
        let tokenizer = tokenizer(name);
        let (first, second) = (tokenizer.encode(&context, false).unwrap(), tokenizer.encode(&rest, false).unwrap());
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), true);
        detokenizer.prime(&first).unwrap();
        let text = tokenizer.decode(&first, true).unwrap() + &pieces(&mut detokenizer, &second).concat();
        prop_assert_eq!(text, tokenizer.decode(&[first, second].concat(), true).unwrap());
    }

    #[test]
    fn broken_tokenizer_files_never_panic(name in prop::sample::select(&NAMES[..]), cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), text in any::<String>()) {
        let mut bytes = std::fs::read(folder(name).join("tokenizer.json")).unwrap();
        for (at, byte) in cuts {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes) {
            let tokenizer = Arc::new(tokenizer);
            if let Ok(ids) = tokenizer.encode(&text, true) {
                let _ = tokenizer.decode(&ids, false);
                let mut detokenizer = Detokenizer::new(tokenizer, true);
                for id in ids {
                    let _ = detokenizer.push(id);
                }
            }
        }
    }
}
