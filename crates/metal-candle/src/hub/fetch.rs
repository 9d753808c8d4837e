//! Which files a model needs, and getting them into its snapshot folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::client::{Client, FileFacts};
use super::snapshot::{ModelCache, create_parent, file_bytes};
use super::{DownloadProgress, FilesWanted, HubError, HubModel, HubOptions};
use crate::model::weights::parse_index;

const CONFIG: &str = "config.json";
const SINGLE_WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TEXT_FILES: [&str; 5] =
    [CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// Fetches what the cache lacks, and returns the snapshot folder of the revision's commit.
pub(super) fn from_hub(
    model: &HubModel,
    options: &HubOptions,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    let client = Client::new(model, options);
    let info = client.info()?;
    let listed = info.siblings.into_iter().map(|sibling| (sibling.rfilename, sibling.size)).collect();
    let fetch = Fetch { model, client, cache: ModelCache::new(model, options), commit: info.sha, listed };
    let snapshot = fetch.cache.snapshot(&fetch.commit);
    let mut wanted: Vec<String> = fetch.listed.keys().filter(|name| is_text_file(name)).cloned().collect();
    if !fetch.listed.contains_key(CONFIG) {
        return Err(HubError::FileNotFound { model: model.to_string(), file: CONFIG.into() });
    }
    if options.what == FilesWanted::Everything {
        wanted.extend(fetch.weight_files(&snapshot, progress)?);
    }
    wanted.retain(|file| !fetch.is_there(&snapshot, file));
    let plan: Vec<(String, Option<u64>)> =
        wanted.iter().map(|file| (file.clone(), fetch.listed.get(file).copied().flatten())).collect();
    progress.plan(&plan);
    for file in &wanted {
        fetch.file(file, progress)?;
    }
    // Last, so that a revision never points to a snapshot that is not complete.
    fetch.cache.remember(&fetch.commit)?;
    Ok(snapshot)
}

/// The snapshot folder of what the cache knows as the revision, if it is complete.
pub(super) fn from_cache(model: &HubModel, options: &HubOptions) -> Result<PathBuf, HubError> {
    let cache = ModelCache::new(model, options);
    let missing = |missing: Vec<String>| {
        Err(HubError::NotInCache { model: model.to_string(), cache: options.cache.clone(), missing })
    };
    let Some(commit) = cache.known_commit() else {
        return missing(vec!["all files".into()]);
    };
    let snapshot = cache.snapshot(&commit);
    let there = |file: &str| file_bytes(&snapshot.join(file)).is_some();
    let mut absent: Vec<String> = Vec::new();
    if !there(CONFIG) {
        absent.push(CONFIG.into());
    }
    if options.what == FilesWanted::Everything && !there(SINGLE_WEIGHTS) {
        if there(INDEX) {
            absent.extend(shards_of(&snapshot.join(INDEX))?.into_iter().filter(|shard| !there(shard)));
        } else {
            absent.push(SINGLE_WEIGHTS.into());
        }
    }
    if absent.is_empty() { Ok(snapshot) } else { missing(absent) }
}

/// One model's revision on its way into the cache.
struct Fetch<'a> {
    model: &'a HubModel,
    client: Client<'a>,
    cache: ModelCache,
    commit: String,
    /// The repository's files with their sizes.
    listed: BTreeMap<String, Option<u64>>,
}

impl Fetch<'_> {
    /// The names of the weight files. Fetches the index at once, because it names the shards.
    fn weight_files(
        &self,
        snapshot: &Path,
        progress: &mut dyn DownloadProgress,
    ) -> Result<Vec<String>, HubError> {
        if self.listed.contains_key(SINGLE_WEIGHTS) {
            return Ok(vec![SINGLE_WEIGHTS.into()]);
        }
        if !self.listed.contains_key(INDEX) {
            let others = self.listed.keys().filter(|name| is_other_weight_file(name));
            let others: Vec<&str> = others.take(5).map(String::as_str).collect();
            let found = match others.as_slice() {
                [] => "it has no weights at all".into(),
                others => format!("it has {}", others.join(", ")),
            };
            return Err(HubError::NoWeights { model: self.model.to_string(), found });
        }
        if !self.is_there(snapshot, INDEX) {
            self.file(INDEX, progress)?;
        }
        let shards = shards_of(&snapshot.join(INDEX))?;
        match shards.iter().find(|shard| !self.listed.contains_key(*shard)) {
            Some(absent) => {
                Err(HubError::FileNotFound { model: self.model.to_string(), file: absent.clone() })
            }
            None => Ok(shards),
        }
    }

    /// Whether the snapshot has the file already, in the size that the hub lists.
    fn is_there(&self, snapshot: &Path, file: &str) -> bool {
        match (file_bytes(&snapshot.join(file)), self.listed.get(file).copied().flatten()) {
            (Some(bytes), Some(listed)) => bytes == listed,
            _ => false,
        }
    }

    /// Brings one file into the snapshot.
    fn file(&self, file: &str, progress: &mut dyn DownloadProgress) -> Result<(), HubError> {
        let facts = self.client.facts(&self.commit, file)?;
        if let Some(listed) = self.listed.get(file).copied().flatten().filter(|listed| *listed != facts.bytes)
        {
            return Err(HubError::WrongSize { file: file.into(), listed, served: facts.bytes });
        }
        self.blob(file, &facts, progress)?;
        self.cache.link(&self.commit, file, &facts.etag)
    }

    /// Makes sure that the cache holds the file's contents.
    fn blob(
        &self,
        file: &str,
        facts: &FileFacts,
        progress: &mut dyn DownloadProgress,
    ) -> Result<(), HubError> {
        let blob = self.cache.blob(&facts.etag);
        create_parent(&blob)?;
        let _lock = self.cache.lock(&facts.etag)?;
        if file_bytes(&blob) == Some(facts.bytes) {
            progress.update(file, facts.bytes, facts.bytes);
            return Ok(());
        }
        let part = self.cache.partial_blob(&facts.etag);
        let downloaded = self.client.download(&self.commit, file, facts, &part, progress);
        if matches!(downloaded, Err(HubError::WrongSize { .. } | HubError::Corrupt { .. })) {
            // The file is empty by now; leaving it would do no harm either.
            std::fs::remove_file(&part).ok();
        }
        downloaded?;
        std::fs::rename(&part, &blob).map_err(|source| HubError::cache("rename", &part, source))
    }
}

/// Files beside the weights. All of them lie at the top of a repository.
fn is_text_file(name: &str) -> bool {
    let template = name.starts_with("chat_template") && (name.ends_with(".jinja") || name.ends_with(".json"));
    TEXT_FILES.contains(&name) || (template && !name.contains(['/', '\\']))
}

fn is_other_weight_file(name: &str) -> bool {
    [".bin", ".gguf", ".pth", ".pt", ".safetensors", ".h5", ".msgpack"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

fn shards_of(index: &Path) -> Result<Vec<String>, HubError> {
    let json = std::fs::read(index).map_err(|source| HubError::cache("read", index, source))?;
    let shards: BTreeSet<String> = parse_index(&json, index)?.into_values().collect();
    Ok(shards.into_iter().collect())
}
