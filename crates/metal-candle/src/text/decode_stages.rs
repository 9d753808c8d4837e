//! The decoders of `tokenizer.json` as a stream: each stage takes one token at a time and passes on what can no longer
//! change. Fed with all tokens and finished, the stages give exactly what the decoder gives for the whole list.

use std::sync::Arc;

use tokenizers::{Decoder, DecoderWrapper};

use super::{TextError, tokenizer::guarded};

/// One step of decoding with the state it needs between tokens.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// No decoder: tokens joined by spaces.
    Joined { first: bool },
    /// A decoder that looks at one token alone.
    PerToken(Arc<DecoderWrapper>),
    /// A decoder that treats the first token unlike the others.
    FirstDiffers { decoder: Arc<DecoderWrapper>, first: bool },
    /// A decoder that treats the last token unlike the others: one token is held back.
    LastDiffers { decoder: Arc<DecoderWrapper>, held: Option<String> },
    /// Bytes spelled as characters; `tail` is the start of a character that is not complete yet.
    ByteLevel { tail: Vec<u8> },
    /// Tokens such as `<0xE2>`. A run of them is text only if the whole run is UTF-8, so a run is held until it ends.
    ByteFallback { run: Vec<u8> },
    /// `Strip` behind a stage that fuses all tokens into one: acts on the ends of the whole text.
    StripEnds { content: char, start: usize, stop: usize, held: usize },
    /// A decoder that needs everything at once: nothing is passed on before the end.
    Whole { decoder: Arc<DecoderWrapper>, tokens: Vec<String>, fused: bool },
}

/// The stages of a tokenizer's decoder.
pub(super) fn stages_of(decoder: Option<&DecoderWrapper>) -> Vec<Stage> {
    let mut stages = Vec::new();
    match decoder {
        None => stages.push(Stage::Joined { first: true }),
        Some(decoder) => {
            push_stages(decoder, &mut false, &mut stages);
        }
    }
    stages
}

/// `fused` is set once a decoder makes one token of all: what comes after it sees pieces of a single token.
fn push_stages(decoder: &DecoderWrapper, fused: &mut bool, stages: &mut Vec<Stage>) {
    let whole = |fused: bool| Stage::Whole { decoder: Arc::new(decoder.clone()), tokens: Vec::new(), fused };
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for inner in sequence.get_decoders() {
                push_stages(inner, fused, stages);
            }
        }
        DecoderWrapper::Fuse(_) => *fused = true,
        DecoderWrapper::Strip(strip) if *fused => stages.push(Stage::StripEnds {
            content: strip.content,
            start: strip.start,
            stop: strip.stop,
            held: 0,
        }),
        _ if *fused => stages.push(whole(true)),
        DecoderWrapper::ByteLevel(_) => {
            *fused = true;
            stages.push(Stage::ByteLevel { tail: Vec::new() });
        }
        DecoderWrapper::ByteFallback(_) => stages.push(Stage::ByteFallback { run: Vec::new() }),
        DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_) => {
            stages.push(Stage::PerToken(Arc::new(decoder.clone())));
        }
        DecoderWrapper::WordPiece(_) | DecoderWrapper::Metaspace(_) => {
            stages.push(Stage::FirstDiffers { decoder: Arc::new(decoder.clone()), first: true });
        }
        DecoderWrapper::BPE(_) => {
            stages.push(Stage::LastDiffers { decoder: Arc::new(decoder.clone()), held: None });
        }
        DecoderWrapper::CTC(_) => stages.push(whole(false)),
    }
}

impl Stage {
    /// Takes one token and appends what is certain to `out`.
    pub(super) fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), TextError> {
        match self {
            Self::Joined { first } => {
                let separator = if std::mem::take(first) { "" } else { " " };
                out.push(format!("{separator}{token}"));
            }
            Self::PerToken(decoder) => out.extend(decode(decoder, vec![token])?),
            Self::FirstDiffers { decoder, first } => {
                if std::mem::take(first) {
                    out.extend(decode(decoder, vec![token])?);
                } else {
                    out.extend(decode(decoder, vec![String::new(), token])?.into_iter().skip(1));
                }
            }
            Self::LastDiffers { decoder, held } => {
                if let Some(previous) = held.replace(token) {
                    out.extend(decode(decoder, vec![previous, String::new()])?.into_iter().take(1));
                }
            }
            Self::ByteLevel { tail } => {
                push_spelled_bytes(&token, tail);
                out.push(take_complete(tail));
            }
            Self::ByteFallback { run } => match fallback_byte(&token) {
                Some(byte) => run.push(byte),
                None => {
                    out.extend(end_run(run));
                    out.push(token);
                }
            },
            Self::StripEnds { content, start, stop, held } => {
                out.push(strip_ends(&token, *content, start, *stop, held));
            }
            Self::Whole { tokens, .. } => tokens.push(token),
        }
        Ok(())
    }

    /// Appends what was held back; the stage is then as it was before the first token, or nearly so: use it no more.
    pub(super) fn finish(&mut self, out: &mut Vec<String>) -> Result<(), TextError> {
        match self {
            Self::LastDiffers { decoder, held } => {
                if let Some(last) = held.take() {
                    out.extend(decode(decoder, vec![last])?);
                }
            }
            Self::ByteLevel { tail } => {
                if !std::mem::take(tail).is_empty() {
                    out.push(char::REPLACEMENT_CHARACTER.to_string());
                }
            }
            Self::ByteFallback { run } => out.extend(end_run(run)),
            Self::StripEnds { held, .. } => *held = 0,
            Self::Whole { decoder, tokens, fused } => {
                let tokens = std::mem::take(tokens);
                if !tokens.is_empty() {
                    let tokens = if *fused { vec![tokens.concat()] } else { tokens };
                    out.extend(decode(decoder, tokens)?);
                }
            }
            Self::Joined { .. } | Self::PerToken(_) | Self::FirstDiffers { .. } => {}
        }
        Ok(())
    }
}

fn decode(decoder: &DecoderWrapper, tokens: Vec<String>) -> Result<Vec<String>, TextError> {
    guarded(|| decoder.decode_chain(tokens)).map_err(|reason| TextError::Decode { reason })
}

/// Appends the bytes that a byte-level token spells. A token with any other character stands for itself.
fn push_spelled_bytes(token: &str, bytes: &mut Vec<u8>) {
    let before = bytes.len();
    for character in token.chars() {
        match spelled_byte(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(before);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// Byte-level vocabularies spell printable Latin-1 bytes as themselves and the other 68 as U+0100 and up.
fn spelled_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Takes the complete characters off the front; each invalid sequence becomes U+FFFD, an incomplete one stays.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                rest = after;
                let Some(invalid) = error.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[invalid..];
            }
        }
    }
    let kept = bytes.len() - rest.len();
    bytes.drain(..kept);
    text
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn end_run(run: &mut Vec<u8>) -> Option<String> {
    let bytes = std::mem::take(run);
    if bytes.is_empty() {
        return None;
    }
    let count = bytes.len();
    Some(String::from_utf8(bytes).unwrap_or_else(|_| String::from(char::REPLACEMENT_CHARACTER).repeat(count)))
}

/// Drops up to `start` leading `content` characters of the whole text, and holds back up to `stop` trailing ones.
fn strip_ends(piece: &str, content: char, start: &mut usize, stop: usize, held: &mut usize) -> String {
    let mut rest = piece;
    while *start > 0 && !rest.is_empty() {
        match rest.strip_prefix(content) {
            Some(after) => {
                rest = after;
                *start -= 1;
            }
            None => *start = 0,
        }
    }
    let mut text = String::from(content).repeat(*held);
    text.push_str(rest);
    *held = text.chars().rev().take(stop).take_while(|character| *character == content).count();
    text.truncate(text.len() - *held * content.len_utf8());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_spelling() {
        let mut seen = [false; 256];
        for code in 0..0x400 {
            let character = char::from_u32(code).expect("no surrogate below U+0400");
            if let Some(byte) = spelled_byte(character) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "byte {byte:#x} twice");
            }
        }
        assert!(seen.iter().all(|byte| *byte));
    }

    #[test]
    fn strip_acts_on_the_ends_of_the_whole_text() {
        let (mut start, mut held) = (2, 0);
        let mut text = String::new();
        for piece in [" ", "  a ", " ", "b", " ", "  "] {
            text += &strip_ends(piece, ' ', &mut start, 2, &mut held);
        }
        assert_eq!(text, " a  b ");
    }

    #[test]
    fn invalid_bytes_become_one_replacement_each_and_incomplete_ones_wait() {
        let mut bytes = b"a\xff\xe2\x82".to_vec();
        assert_eq!(take_complete(&mut bytes), "a\u{fffd}");
        bytes.extend(b"\xac!\xf0\x9f");
        assert_eq!(take_complete(&mut bytes), "€!");
        assert_eq!(bytes, b"\xf0\x9f");
    }
}
