//! A disk that fills up while downloading. A limit on file sizes stands in for it, because it needs no
//! rights; it holds for a whole process, so the test runs itself again as a child.
#![cfg(all(feature = "hub", unix))]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use metal_candle::hub::{HubError, HubOptions, ModelSource, fetch};
use metal_candle_testkit::hub_server::HubServer;

const ENDPOINT: &str = "METAL_CANDLE_TEST_ENDPOINT";
const CACHE: &str = "METAL_CANDLE_TEST_CACHE";
/// In blocks of 512 or 1,024 bytes, as the shell likes.
const LIMIT_BLOCKS: &str = "64";

#[test]
fn a_full_disk_is_named_and_the_download_continues_later() {
    if let (Ok(endpoint), Ok(cache)) = (std::env::var(ENDPOINT), std::env::var(CACHE)) {
        let error = download(endpoint, Path::new(&cache)).unwrap_err();
        assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("more bytes") && message.contains("HF_HOME"), "{message}");
        return;
    }
    let weights: Vec<u8> = (0..300_000u32).map(|index| (index % 253) as u8).collect();
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", weights.clone())];
    let server = HubServer::start("tiny/model", &files).unwrap();
    let cache = tempfile::tempdir().unwrap();

    let script = format!("trap '' XFSZ; ulimit -f {LIMIT_BLOCKS}; exec \"$0\" --exact \"$1\" --nocapture");
    let child = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .arg("a_full_disk_is_named_and_the_download_continues_later")
        .env(ENDPOINT, server.endpoint())
        .env(CACHE, cache.path())
        .output()
        .unwrap();
    let output =
        format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && output.contains("1 passed"), "{output}");

    let folder = cache.path().join("models--tiny--model");
    let partial = std::fs::read_dir(folder.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    let partial: Vec<_> = partial.filter(|path| path.extension().is_some()).collect();
    assert_eq!(partial.len(), 1, "the unfinished file is marked: {partial:?}");
    assert!(!folder.join("refs/main").exists());

    let snapshot = download(server.endpoint(), cache.path()).unwrap();
    assert_eq!(std::fs::read(snapshot.join("model.safetensors")).unwrap(), weights);
    let requests = server.requests();
    assert!(requests.iter().any(|request| request == "GET /cdn/model.safetensors range"), "{requests:?}");
}

fn download(endpoint: String, cache: &Path) -> Result<std::path::PathBuf, HubError> {
    let options = HubOptions { endpoint, ..HubOptions::new(cache) };
    fetch(&ModelSource::parse("tiny/model").unwrap(), &options, &mut ())
}
