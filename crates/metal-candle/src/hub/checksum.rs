//! Whether downloaded contents are those that the hub's etag names.
//!
//! The hub names large files by the SHA-256 of their contents and others by their hash as a git blob, which is SHA-1
//! over a header and the contents. Servers that speak the hub's language may name them otherwise; then only the size
//! can be checked.

use std::io::Read;

use ring::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::client::FileFacts;

const READ_BYTES: usize = 256 << 10;

/// The hash of what has arrived so far.
pub(super) struct Checksum {
    /// In hexadecimal digits.
    expected: String,
    /// Of the whole contents: git's hash begins with it.
    bytes: u64,
    /// `None` if the etag is no hash.
    context: Option<Context>,
}

impl Checksum {
    /// Of nothing yet.
    pub(super) fn new(facts: &FileFacts) -> Checksum {
        let expected = facts.etag.to_ascii_lowercase();
        let mut checksum = Checksum { expected, bytes: facts.bytes, context: None };
        checksum.restart();
        checksum
    }

    /// Forgets what has arrived.
    pub(super) fn restart(&mut self) {
        self.context = self.algorithm().map(Context::new);
        if self.expected.len() == 40 {
            self.update(format!("blob {}\0", self.bytes).as_bytes());
        }
    }

    /// Takes the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(context) = &mut self.context {
            context.update(bytes);
        }
    }

    /// Takes all that is left of a file.
    pub(super) fn update_from(&mut self, mut file: impl Read) -> std::io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.update(&buffer[..count]);
        }
    }

    /// The expected hash and the one that came out, if they differ.
    pub(super) fn mismatch(&self) -> Option<(String, String)> {
        let digest = self.context.clone()?.finish();
        let found: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        (found != self.expected).then(|| (self.expected.clone(), found))
    }

    fn algorithm(&self) -> Option<&'static Algorithm> {
        if !self.expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        match self.expected.len() {
            64 => Some(&SHA256),
            40 => Some(&SHA1_FOR_LEGACY_USE_ONLY),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mismatch(etag: &str, pieces: &[&str]) -> Option<(String, String)> {
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let mut checksum = Checksum::new(&FileFacts { etag: etag.to_owned(), bytes });
        checksum.update(b"a first attempt");
        checksum.restart();
        pieces.iter().for_each(|piece| checksum.update(piece.as_bytes()));
        checksum.mismatch()
    }

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        // `git hash-object` and `sha256sum` of the six bytes.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for etag in [git, sha256] {
            assert_eq!(mismatch(etag, &["hel", "lo\n"]), None);
            assert_eq!(mismatch(&etag.to_uppercase(), &["hello\n"]), None);
            let (expected, found) = mismatch(etag, &["hellO\n"]).expect("the contents differ");
            assert!(expected == etag && found.len() == etag.len() && found != etag);
        }
        assert_eq!(mismatch("9a0364b9e99bb480dd25e1f0284c8555", &["hello\n"]), None, "no hash that is known");
    }
}
