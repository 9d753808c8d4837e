//! Sharded checkpoints: the index file and the shards that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::WeightsError;
use super::error::ShardProblems;
use super::header::{self, TensorInfo, shortened};

/// Parses an index of shards: the file name of the shard of each tensor.
///
/// A shard must be a plain file name: an index cannot point outside its own folder. `path` is for
/// messages only.
pub fn parse_index(json: &[u8], path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let index: Index =
        serde_json::from_slice(json).map_err(|error| WeightsError::index(path, error.to_string()))?;
    let WeightMap(weight_map) = index.weight_map;
    if weight_map.is_empty() {
        return Err(WeightsError::index(path, "its weight_map is empty"));
    }
    for (tensor, file) in &weight_map {
        if !is_plain_file_name(file) {
            let (tensor, file) = (shortened(tensor), shortened(file));
            let reason = format!(
                "the shard `{file}` of the tensor `{tensor}` is not the name of a .safetensors file beside the index"
            );
            return Err(WeightsError::index(path, reason));
        }
    }
    Ok(weight_map)
}

/// Reads the index and the headers of all its shards, and compares them.
pub(super) fn open_shards(
    folder: &Path,
    index: &Path,
) -> Result<(Vec<PathBuf>, BTreeMap<String, TensorInfo>), WeightsError> {
    let json = std::fs::read(index).map_err(|source| WeightsError::io("read", index, source))?;
    let weight_map = parse_index(&json, index)?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    let mut problems = ShardProblems::default();
    let mut shards = Vec::new();
    let mut shard_names = Vec::new();
    let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
    for name in names {
        let path = folder.join(name);
        if !path.is_file() {
            problems.missing_shards.push(name.clone());
            continue;
        }
        for (tensor, info) in header::read_file(&path, shards.len())? {
            if let Some(first) = tensors.get(&tensor) {
                let first: &String = shard_names[first.shard];
                problems.repeated_tensors.push(format!("{tensor}: {first} and {name}"));
                continue;
            }
            tensors.insert(tensor, info);
        }
        shards.push(path);
        shard_names.push(name);
    }
    for (tensor, name) in &weight_map {
        let in_its_shard = tensors.get(tensor).is_some_and(|info| shard_names[info.shard] == name);
        let repeated = problems.repeated_tensors.iter().any(|text| text.starts_with(&format!("{tensor}: ")));
        if !in_its_shard && !repeated && !problems.missing_shards.contains(name) {
            problems.missing_tensors.push(format!("{tensor}: {name}"));
        }
    }
    for (tensor, info) in &tensors {
        if !weight_map.contains_key(tensor) {
            problems.unlisted_tensors.push(format!("{tensor}: {}", shard_names[info.shard]));
        }
    }
    if problems.is_empty() {
        return Ok((shards, tensors));
    }
    Err(WeightsError::Shards { path: index.into(), problems: Box::new(problems) })
}

fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    single && name.ends_with(".safetensors") && !name.contains(['/', '\\', '\0'])
}

/// `metadata` and whatever else there may be does not matter to us.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// A map that refuses repeated names: a plain map would keep only the last.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that names the shard of each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut shards = BTreeMap::new();
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            if shards.contains_key(&tensor) {
                let message = format!("the tensor `{}` is listed twice", shortened(&tensor));
                return Err(serde::de::Error::custom(message));
            }
            shards.insert(tensor, shard);
        }
        Ok(WeightMap(shards))
    }
}
