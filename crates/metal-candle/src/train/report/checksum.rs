//! The two cyclic redundancy checks of the formats written here; they differ in one number.

/// A check over 32 bits, lowest bit first.
pub(super) struct Crc32 {
    table: [u32; 256],
}

/// Castagnoli's polynomial: TensorBoard's records.
pub(super) static CRC32C: Crc32 = Crc32::new(0x82F6_3B78);
/// IEEE's polynomial: the chunks of a PNG.
pub(super) static CRC32: Crc32 = Crc32::new(0xEDB8_8320);

impl Crc32 {
    const fn new(polynomial: u32) -> Self {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { (value >> 1) ^ polynomial } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        Self { table }
    }

    pub(super) fn of(&self, bytes: &[u8]) -> u32 {
        let step =
            |value: u32, byte: &u8| self.table[((value ^ u32::from(*byte)) & 0xff) as usize] ^ (value >> 8);
        !bytes.iter().fold(!0, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values that every catalogue of such checks gives, and those of RFC 3720 for the iSCSI polynomial.
    #[test]
    fn known_answers() {
        assert_eq!(CRC32.of(b"123456789"), 0xCBF4_3926);
        assert_eq!(CRC32C.of(b"123456789"), 0xE306_9283);
        assert_eq!(CRC32C.of(&[0; 32]), 0x8A91_36AA);
        assert_eq!(CRC32C.of(&[0xff; 32]), 0x62A8_AB43);
        assert_eq!(CRC32C.of(b""), 0);
    }
}
