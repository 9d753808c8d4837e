//! Reads any bytes as each kind of foreign file, and checks what must hold when they are accepted.

use std::path::Path;

use metal_candle::model::weights::{parse_index, read_header};
use metal_candle::model::{Config, arch};

/// As a safetensors file.
pub fn checkpoint_header(data: &[u8]) {
    let Ok(tensors) = read_header(data, data.len() as u64, Path::new("fuzzed")) else { return };
    let header = u64::from_le_bytes(data[..8].try_into().expect("accepted files have a length")) as usize;
    let bytes: usize = tensors.iter().map(|(_, info)| info.byte_count()).sum();
    assert_eq!(8 + header + bytes, data.len(), "tensors must cover the file without overlap");
    for (name, info) in &tensors {
        let elements: usize = info.shape.iter().product();
        assert_eq!(elements * info.dtype.bitsize(), info.byte_count() * 8, "{name}");
    }
}

/// As an index of shards.
pub fn index(data: &[u8]) {
    let Ok(shards) = parse_index(data, Path::new("fuzzed")) else { return };
    for shard in shards.values() {
        assert!(!shard.contains(['/', '\\']) && shard != "..", "an index must not leave its folder: {shard}");
    }
}

/// As a `config.json`.
pub fn config(data: &[u8]) {
    let Ok(config) = Config::from_slice(data) else { return };
    let Ok(spec) = arch::read(&config, &[]) else { return };
    assert!(!spec.layers.is_empty() && spec.vocab_size > 0 && spec.hidden_size > 0);
}
