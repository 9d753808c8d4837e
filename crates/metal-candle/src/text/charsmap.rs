//! Whether a `precompiled_charsmap` can be walked: a trie in one array, then the texts that its leaves point to.
//!
//! The format is that of sentencepiece's normaliser (<https://github.com/s-yata/darts-clone>): four bytes with the
//! trie's size, units of four bytes each, and texts that end with zero bytes. Every walk starts at unit 0; a unit's
//! offset leads to a block of 256 units, of which the next byte of the input chooses one.

/// Units that one step can reach.
const BLOCK: usize = 256;

/// Refuses a map in which some input leads out of the array or to no text.
pub(super) fn check(encoded: &str) -> Result<(), String> {
    let bytes = decode_base64(encoded).ok_or("precompiled_charsmap is not base64")?;
    let (length, rest) = bytes.split_first_chunk().ok_or("precompiled_charsmap is empty")?;
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let (trie, texts) =
        rest.split_at_checked(length).ok_or("precompiled_charsmap is shorter than the trie it announces")?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let texts = std::str::from_utf8(texts).map_err(|_| "the texts of precompiled_charsmap are not UTF-8")?;
    walk(&units, texts).ok_or_else(|| "the trie of precompiled_charsmap leads out of itself".to_owned())
}

/// Visits all that any input can reach; `None` if some of it is not there.
fn walk(units: &[u32], texts: &str) -> Option<()> {
    let mut seen = vec![false; units.len()];
    let mut pending = vec![offset(*units.first()?)];
    while let Some(base) = pending.pop() {
        let first = base & !(BLOCK - 1);
        if units.len() < first + BLOCK {
            return None;
        }
        if std::mem::replace(&mut seen[base], true) {
            continue;
        }
        for byte in 1..BLOCK {
            let at = base ^ byte;
            let unit = units[at];
            if unit & (1 << 31 | 0xff) != byte as u32 {
                continue;
            }
            let next = at ^ offset(unit);
            let is_leaf = unit >> 8 & 1 == 1;
            if is_leaf && !texts.is_char_boundary((units.get(next)? & !(1 << 31)) as usize) {
                return None;
            }
            pending.push(next);
        }
    }
    Some(())
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & 1 << 9) >> 6)
}

fn decode_base64(encoded: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(encoded.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in encoded.trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(digit), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let bits =
                chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
            for digit in 0..=chunk.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
            }
        }
        text
    }

    /// A map of "a" to the text at `value`.
    fn map(units: usize, step: u32, value: u32, texts: &str) -> String {
        let mut trie = vec![0u32; units];
        if let Some(unit) = trie.get_mut(usize::from(b'a')) {
            *unit = u32::from(b'a') | 1 << 8 | step << 10;
        }
        if let Some(leaf) = trie.get_mut(usize::from(b'a') ^ step as usize) {
            *leaf = 1 << 31 | value;
        }
        let mut bytes = (4 * units as u32).to_le_bytes().to_vec();
        bytes.extend(trie.into_iter().flat_map(u32::to_le_bytes));
        bytes.extend(texts.bytes());
        encode(&bytes)
    }

    #[test]
    fn a_map_must_hold_all_that_an_input_can_reach() {
        assert_eq!(check(&map(256, 1, 2, "é\0")), Ok(()));
        for (bad, reason) in [
            (map(255, 1, 2, "é\0"), "leads out"),
            (map(0, 1, 2, "é\0"), "leads out"),
            (map(256, 1 << 12, 2, "é\0"), "leads out"),
            (map(256, 1, 1, "é\0"), "leads out"),
            (map(256, 1, 9, "é\0"), "leads out"),
            ("/////w==".to_owned(), "announces"),
            ("AA".to_owned(), "empty"),
            ("????????".to_owned(), "base64"),
            (encode(&[0, 0, 0, 0, 0xff]), "UTF-8"),
        ] {
            let error = check(&bad).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
