//! FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>): tells contents apart, and is the same on every machine.

/// Of nothing: the offset basis.
pub(crate) const START: u64 = 0xCBF2_9CE4_8422_2325;

/// Of what `so_far` stands for and more bytes.
pub(crate) fn fingerprint(so_far: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(so_far, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3))
}
