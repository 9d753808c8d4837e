//! The files under `golden/`, read into plain vectors. `golden/README.md` says what each tensor means.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// One folder of `golden/models`: a tiny checkpoint and what transformers computes with it.
#[derive(Debug)]
pub struct GoldenModel {
    /// The folder's name, such as `qwen2-bf16`.
    pub name: String,
    /// A model folder as on the hub.
    pub folder: PathBuf,
    expected: OnceLock<BTreeMap<String, Expected>>,
}

/// Numbers in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Floats {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// As many as the product of the shape.
    pub values: Vec<f32>,
}

/// A file of tensors under `golden/`.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    tensors: BTreeMap<String, Expected>,
}

#[derive(Debug)]
enum Expected {
    Floats(Floats),
    Ids(Vec<u32>),
    /// Integers of which some are negative, as targets that do not count are.
    Signed(Vec<i64>),
}

/// All golden models, sorted by name.
pub fn models() -> Vec<GoldenModel> {
    let root = root().join("models");
    let entries = fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|error| panic!("{}: {error}", root.display())).path())
        .collect();
    folders.retain(|folder| folder.join("expected.safetensors").is_file());
    folders.sort();
    folders.into_iter().map(GoldenModel::at).collect()
}

/// The golden model of this name.
pub fn model(name: &str) -> GoldenModel {
    let models = models();
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    models
        .into_iter()
        .find(|model| model.name == name)
        .unwrap_or_else(|| panic!("no golden model is called {name}, there are {}", names.join(", ")))
}

/// The folder `golden` of the source tree, or the one that `METAL_CANDLE_GOLDEN` names: tests that were built elsewhere find no tree.
pub fn root() -> PathBuf {
    if let Some(folder) = std::env::var_os("METAL_CANDLE_GOLDEN") {
        return folder.into();
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("testkit lies in the workspace").join("golden")
}

/// A JSON file of the folder `golden`, such as `rope.json`.
pub fn json(path: &str) -> serde_json::Value {
    let path = root().join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Tensors {
    /// A file such as `ops/attention.safetensors`.
    pub fn open(path: &str) -> Self {
        let path = root().join(path);
        let tensors = read(&path);
        Self { path, tensors }
    }

    /// The floats of this name.
    pub fn floats(&self, name: &str) -> &Floats {
        match self.tensors.get(name) {
            Some(Expected::Floats(floats)) => floats,
            Some(_) => panic!("{}: {name} holds integers", self.path.display()),
            None => self.no_such(name),
        }
    }

    /// The token ids of this name.
    pub fn ids(&self, name: &str) -> &[u32] {
        match self.tensors.get(name) {
            Some(Expected::Ids(ids)) => ids,
            Some(_) => panic!("{}: {name} does not hold token ids", self.path.display()),
            None => self.no_such(name),
        }
    }

    /// The integers of this name.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        match self.tensors.get(name) {
            Some(Expected::Ids(ids)) => ids.iter().copied().map(i64::from).collect(),
            Some(Expected::Signed(values)) => values.clone(),
            Some(Expected::Floats(_)) => panic!("{}: {name} holds floats", self.path.display()),
            None => self.no_such(name),
        }
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn no_such(&self, name: &str) -> ! {
        let names: Vec<&str> = self.names().collect();
        panic!("{}: no tensor {name}, there are {}", self.path.display(), names.join(", "))
    }
}

impl GoldenModel {
    /// The expected floats of this name, such as `logits`.
    pub fn floats(&self, name: &str) -> &Floats {
        match self.tensor(name) {
            Expected::Floats(floats) => floats,
            _ => panic!("{}: {name} holds integers", self.name),
        }
    }

    /// The expected token ids of this name, such as `greedy`.
    pub fn ids(&self, name: &str) -> &[u32] {
        match self.tensor(name) {
            Expected::Ids(ids) => ids,
            _ => panic!("{}: {name} does not hold token ids", self.name),
        }
    }

    /// Whether there is a tensor of this name: not every model has `logits_native`, for example.
    pub fn has(&self, name: &str) -> bool {
        self.expected().contains_key(name)
    }

    /// What is appended to the tensor names of each prompt: `""` first, then `_short` and the like.
    pub fn suffixes(&self) -> Vec<&str> {
        self.expected().keys().filter_map(|name| name.strip_prefix("prompt")).collect()
    }

    fn at(folder: PathBuf) -> Self {
        let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        Self { name, folder, expected: OnceLock::new() }
    }

    fn tensor(&self, name: &str) -> &Expected {
        self.expected().get(name).unwrap_or_else(|| {
            let names: Vec<&str> = self.expected().keys().map(String::as_str).collect();
            panic!("{}: no expected tensor {name}, there are {}", self.name, names.join(", "))
        })
    }

    fn expected(&self) -> &BTreeMap<String, Expected> {
        self.expected.get_or_init(|| read(&self.folder.join("expected.safetensors")))
    }
}

impl Floats {
    /// The rows of a matrix.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        let &[_, columns] = self.shape.as_slice() else { panic!("not a matrix: {:?}", self.shape) };
        self.values.chunks_exact(columns)
    }
}

fn read(path: &Path) -> BTreeMap<String, Expected> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.iter().map(|(name, view)| (name.to_owned(), expected(name, &view))).collect()
}

fn expected(name: &str, view: &TensorView<'_>) -> Expected {
    match view.dtype() {
        Dtype::F32 => {
            let values =
                view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Expected::Floats(Floats { shape: view.shape().to_vec(), values })
        }
        Dtype::I64 => {
            let values: Vec<i64> =
                view.data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
            let ids: Result<Vec<u32>, _> = values.iter().map(|&value| u32::try_from(value)).collect();
            ids.map_or(Expected::Signed(values), Expected::Ids)
        }
        other => panic!("{name}: golden files hold F32 and I64 only, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY_STEPS: usize = 32;

    #[test]
    fn every_model_is_complete_and_consistent() {
        let models = models();
        // A list that loses entries would let every golden test pass on less than it claims.
        assert!(models.len() >= 24, "only {} golden models", models.len());
        for model in models {
            assert!(model.folder.join("config.json").is_file(), "{}", model.name);
            assert_eq!(model.suffixes()[0], "", "{}", model.name);
            for suffix in model.suffixes() {
                check_prompt(&model, suffix);
            }
        }
    }

    fn check_prompt(model: &GoldenModel, suffix: &str) {
        let prompt = model.ids(&format!("prompt{suffix}"));
        let logits = model.floats(&format!("logits{suffix}"));
        let greedy = model.ids(&format!("greedy{suffix}"));
        let greedy_logits = model.floats(&format!("greedy_logits{suffix}"));
        let vocabulary = logits.shape[1];
        assert_eq!(logits.shape, [prompt.len(), vocabulary], "{}", model.name);
        assert_eq!(greedy_logits.shape, [GREEDY_STEPS, vocabulary], "{}", model.name);
        assert!(prompt.iter().all(|&id| (id as usize) < vocabulary), "{}", model.name);
        assert_eq!(greedy.len(), GREEDY_STEPS, "{}", model.name);
        for (&token, row) in greedy.iter().zip(greedy_logits.rows()) {
            let best = row[token as usize];
            assert!(row.iter().all(|&logit| logit <= best), "{}: greedy is not the argmax", model.name);
        }
    }

    #[test]
    fn native_logits_belong_to_the_half_precision_models() {
        let native: Vec<String> =
            models().into_iter().filter(|model| model.has("logits_native")).map(|model| model.name).collect();
        assert_eq!(native, ["llama3-f16", "qwen2-bf16"]);
    }

    #[test]
    fn further_prompts_have_suffixes() {
        assert_eq!(model("phi3-longrope").suffixes(), ["", "_short"]);
        assert_eq!(model("phi3-longrope-partial").suffixes(), ["", "_crossing"]);
    }

    #[test]
    #[should_panic(expected = "no golden model is called nothing, there are gemma2, ")]
    fn an_unknown_name_lists_the_known_ones() {
        model("nothing");
    }

    #[test]
    #[should_panic(expected = "no expected tensor weights, there are greedy, ")]
    fn an_unknown_tensor_lists_the_known_ones() {
        model("llama").floats("weights");
    }
}
