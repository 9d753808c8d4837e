//! How to reach the hub and where its cache lies: the one place that reads the environment for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// Which of a model's files are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilesWanted {
    /// Config, tokenizer, chat template and weights.
    #[default]
    Everything,
    /// Everything but the weights.
    TextOnly,
}

/// Where the hub and its cache are, and how patient to be.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The address of the hub, without a slash at the end.
    pub endpoint: String,
    /// The cache folder: it holds `models--org--name` folders.
    pub cache: PathBuf,
    /// The access token for private and gated models.
    pub token: Option<String>,
    /// Use only what is in the cache; no request is sent.
    pub offline: bool,
    /// Which files to fetch.
    pub what: FilesWanted,
    /// How often a request is repeated after a fault that may pass, in a row without progress.
    pub retries: u32,
    /// The wait before the first repetition; it doubles each time.
    pub retry_wait: Duration,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a server may send nothing before the connection counts as broken.
    pub stall_timeout: Duration,
    /// Whether to use the proxy that the environment names (`HTTPS_PROXY`, `NO_PROXY`, …).
    pub proxy_from_env: bool,
}

impl HubOptions {
    /// The public hub with this cache folder, without a token.
    pub fn new(cache: impl Into<PathBuf>) -> HubOptions {
        HubOptions {
            endpoint: "https://huggingface.co".into(),
            cache: cache.into(),
            token: None,
            offline: false,
            what: FilesWanted::Everything,
            retries: 4,
            retry_wait: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            proxy_from_env: false,
        }
    }

    /// What the environment says, in the words of the Python libraries: `HF_ENDPOINT`, `HF_HOME`,
    /// `HF_HUB_CACHE`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` (else the file `token` in `HF_HOME`),
    /// `HF_HUB_OFFLINE`.
    pub fn from_env() -> Result<HubOptions, HubError> {
        let options = Self::from_variables(|name| std::env::var(name).ok())?;
        Ok(HubOptions { proxy_from_env: true, ..options })
    }

    /// Like [`from_env`](Self::from_env), with variables from elsewhere. Empty ones count as unset.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<HubOptions, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = variable("HOME").or_else(|| variable("USERPROFILE"));
        let folder = |name: &str| {
            let value = variable(name)?;
            match (value.strip_prefix("~/"), &home) {
                (Some(rest), Some(home)) => Some(Path::new(home).join(rest)),
                _ => Some(PathBuf::from(value)),
            }
        };
        let hf_home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(Path::new(home.as_ref()?).join(".cache/huggingface")));
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| Some(hf_home.as_ref()?.join("hub")))
            .ok_or(HubError::NoCacheFolder)?;
        let token_file = folder("HF_TOKEN_PATH").or_else(|| Some(hf_home.as_ref()?.join("token")));
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok());
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        let mut options = HubOptions { token, ..HubOptions::new(cache) };
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            options.endpoint = endpoint.trim().trim_end_matches('/').to_string();
        }
        if let Some(offline) = variable("HF_HUB_OFFLINE") {
            options.offline = parse_switch("HF_HUB_OFFLINE", &offline)?;
        }
        Ok(options)
    }
}

fn parse_switch(name: &'static str, value: &str) -> Result<bool, HubError> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Ok(true),
        "0" | "off" | "no" | "false" => Ok(false),
        _ => Err(HubError::BadVariable { name, value: value.into() }),
    }
}

/// The token is a secret and stays out of logs.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .field("what", &self.what)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<HubOptions, HubError> {
        HubOptions::from_variables(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_cache_follows_the_usual_variables() {
        let cache = |pairs: &[(&str, &str)]| from(pairs).unwrap().cache;
        let home = ("HOME", "/h");
        assert_eq!(cache(&[home]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("USERPROFILE", "/u")]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")]), Path::new("/h/hf/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/hf")]), Path::new("/c"));
        assert_eq!(cache(&[home, ("HF_HOME", "")]), Path::new("/h/.cache/huggingface/hub"));
        assert!(matches!(from(&[]), Err(HubError::NoCacheFolder)));
    }

    #[test]
    fn the_token_comes_from_a_variable_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).unwrap().token, None);
        std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).unwrap().token.as_deref(), Some("from-file"));
        let both = from(&[("HF_HOME", home), ("HF_TOKEN", " mine ")]).unwrap();
        assert_eq!(both.token.as_deref(), Some("mine"));
        assert!(!format!("{both:?}").contains("mine"));
        std::fs::write(folder.path().join("other"), "elsewhere").unwrap();
        let path = format!("{home}/other");
        let other = from(&[("HF_HOME", home), ("HF_TOKEN_PATH", &path)]).unwrap();
        assert_eq!(other.token.as_deref(), Some("elsewhere"));
    }

    #[test]
    fn endpoint_and_offline() {
        let options =
            from(&[("HOME", "/h"), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "1")]).unwrap();
        assert_eq!((options.endpoint.as_str(), options.offline), ("http://mirror", true));
        assert!(!from(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "off")]).unwrap().offline);
        let error = from(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "maybe")]).unwrap_err().to_string();
        assert!(error.contains("HF_HUB_OFFLINE") && error.contains("maybe"), "{error}");
    }
}
