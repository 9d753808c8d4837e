//! Downloads against a stand-in hub on loopback: what arrives, and what every kind of fault leads to.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use metal_candle::hub::{DownloadProgress, FilesWanted, HubError, HubOptions, ModelSource, fetch};
use metal_candle::model::weights::Checkpoint;
use metal_candle_testkit::hub_server::{COMMIT, Fault, HubServer, PULL_REQUEST};
use support::{raw_f32, safetensors_file};
use tempfile::TempDir;

const MODEL: &str = "tiny/model";

fn weights_file() -> Vec<u8> {
    safetensors_file(&[raw_f32("a", &[1000], &[0.5; 1000])])
}

fn text_files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", br#"{"model_type":"llama"}"#.to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{ }".to_vec()),
        ("chat_template.jinja", b"{{ messages }}".to_vec()),
        ("README.md", b"read me".to_vec()),
        ("pytorch_model.bin", b"pickle".to_vec()),
        ("original/config.json", b"no".to_vec()),
    ]
}

fn single_file_model() -> Vec<(&'static str, Vec<u8>)> {
    let mut files = text_files();
    files.push(("model.safetensors", weights_file()));
    files
}

fn sharded_model() -> Vec<(&'static str, Vec<u8>)> {
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let mut files = text_files();
    files.push(("model.safetensors.index.json", index.into()));
    files.push(("model-1.safetensors", safetensors_file(&[raw_f32("a", &[2], &[1.0, 2.0])])));
    files.push(("model-2.safetensors", safetensors_file(&[raw_f32("b", &[1], &[3.0])])));
    files.push(("unused.safetensors", b"not fetched".to_vec()));
    files
}

/// A hub with an empty cache.
struct Setup {
    server: HubServer,
    cache: TempDir,
    options: HubOptions,
}

impl Setup {
    fn new(files: &[(&str, Vec<u8>)]) -> Setup {
        let server = HubServer::start(MODEL, files).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let options = HubOptions {
            endpoint: server.endpoint(),
            retries: 2,
            retry_wait: Duration::from_millis(1),
            ..HubOptions::new(cache.path().join("hub"))
        };
        Setup { server, cache, options }
    }

    fn fetch(&self, name: &str) -> Result<PathBuf, HubError> {
        fetch(&ModelSource::parse(name).unwrap(), &self.options, &mut ())
    }

    /// Fetching must fail, and no file may be half there afterwards.
    #[track_caller]
    fn fails(&self, parts: &[&str]) -> HubError {
        let error = self.fetch(MODEL).unwrap_err();
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        self.assert_no_half_file();
        error
    }

    /// Every blob and every file of a snapshot equals one of the server's files; refs need a full snapshot.
    #[track_caller]
    fn assert_no_half_file(&self) {
        let whole: Vec<Vec<u8>> =
            sharded_model().into_iter().chain(single_file_model()).map(|file| file.1).collect();
        let model = self.options.cache.join("models--tiny--model");
        for folder in [model.join("blobs"), model.join("snapshots").join(COMMIT)] {
            for path in files_in(&folder) {
                let unfinished = path.extension().is_some_and(|extension| extension == "incomplete");
                assert!(unfinished || whole.contains(&fs::read(&path).unwrap()), "{}", path.display());
            }
        }
        assert!(!model.join("refs/main").exists(), "the revision must not point to an incomplete snapshot");
    }

    fn count(&self, beginning: &str) -> usize {
        self.server.requests().iter().filter(|request| request.starts_with(beginning)).count()
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = files_in(folder)
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_arrives_whole_and_loads() {
    let setup = Setup::new(&single_file_model());
    let folder = setup.fetch(MODEL).unwrap();
    assert_eq!(folder, setup.options.cache.join("models--tiny--model/snapshots").join(COMMIT));
    let expected = [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names_in(&folder), expected, "no .bin, no README, nothing from folders");
    for (name, contents) in single_file_model().iter().filter(|file| expected.contains(&file.0)) {
        assert_eq!(fs::read(folder.join(name)).unwrap(), *contents, "{name}");
    }
    assert_eq!(Checkpoint::open(&folder).unwrap().tensors()["a"].shape, [1000]);
    let blobs = names_in(&setup.options.cache.join("models--tiny--model/blobs"));
    assert!(blobs.len() == 5 && blobs.iter().all(|name| [40, 64].contains(&name.len())), "{blobs:?}");
    let reference = setup.options.cache.join("models--tiny--model/refs/main");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
}

#[test]
fn a_second_fetch_asks_only_for_the_commit() {
    let setup = Setup::new(&single_file_model());
    let first = setup.fetch(MODEL).unwrap();
    let before = setup.server.requests().len();
    assert_eq!(setup.fetch(MODEL).unwrap(), first);
    assert_eq!(
        setup.server.requests()[before..],
        [format!("GET /api/models/{MODEL}/revision/main?blobs=true")]
    );
}

#[test]
fn shards_follow_the_index() {
    let setup = Setup::new(&sharded_model());
    let folder = setup.fetch(MODEL).unwrap();
    assert!(!folder.join("unused.safetensors").exists());
    assert_eq!(Checkpoint::open(&folder).unwrap().tensors().len(), 2);
}

#[test]
fn text_only_needs_no_weights() {
    let mut setup = Setup::new(&text_files());
    setup.options.what = FilesWanted::TextOnly;
    let folder = setup.fetch(MODEL).unwrap();
    assert!(folder.join("tokenizer.json").exists());
    setup.options.what = FilesWanted::Everything;
    let error = setup.fetch(MODEL).unwrap_err();
    assert!(error.to_string().contains("no safetensors weights (it has pytorch_model.bin)"), "{error}");
}

#[test]
fn revisions_are_cached_apart() {
    let setup = Setup::new(&single_file_model());
    setup.fetch(&format!("{MODEL}@{PULL_REQUEST}")).unwrap();
    let refs = setup.options.cache.join("models--tiny--model/refs");
    assert_eq!(fs::read_to_string(refs.join(PULL_REQUEST)).unwrap(), COMMIT);
    assert!(!refs.join("main").exists());
    setup.fetch(&format!("{MODEL}@{COMMIT}")).unwrap();
    assert!(!refs.join(COMMIT).exists(), "a commit needs no reference");
    let offline = HubOptions { offline: true, ..setup.options.clone() };
    for name in [format!("{MODEL}@{COMMIT}"), format!("{MODEL}@{PULL_REQUEST}")] {
        fetch(&ModelSource::parse(&name).unwrap(), &offline, &mut ()).unwrap();
    }
}

#[test]
fn progress_ends_at_the_size_of_each_file() {
    #[derive(Default)]
    struct Record {
        planned: Vec<(String, Option<u64>)>,
        last: std::collections::BTreeMap<String, (u64, u64)>,
    }
    impl DownloadProgress for Record {
        fn plan(&mut self, files: &[(String, Option<u64>)]) {
            self.planned = files.to_vec();
        }
        fn update(&mut self, file: &str, done: u64, total: u64) {
            self.last.insert(file.into(), (done, total));
        }
    }
    let setup = Setup::new(&single_file_model());
    let mut record = Record::default();
    fetch(&ModelSource::parse(MODEL).unwrap(), &setup.options, &mut record).unwrap();
    assert_eq!(record.planned.len(), 5);
    for (name, bytes) in record.planned {
        assert_eq!(record.last[&name], (bytes.unwrap(), bytes.unwrap()), "{name}");
    }
}

#[test]
fn a_cut_connection_is_continued() {
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/cdn/model.safetensors", Fault::CutAfter(1000), 1);
    let folder = setup.fetch(MODEL).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights_file());
    let transfers: Vec<_> =
        setup.server.requests().into_iter().filter(|text| text.starts_with("GET /cdn")).collect();
    assert_eq!(transfers, ["GET /cdn/model.safetensors", "GET /cdn/model.safetensors range"]);
}

#[test]
fn a_connection_that_is_always_cut_is_an_error_and_can_be_continued_later() {
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/cdn/model.safetensors", Fault::CutAfter(10), 3);
    let error = setup.fails(&["model.safetensors", "broke off after 30 of", "again"]);
    assert!(matches!(error, HubError::Broken { received: 30, .. }), "{error}");
    let folder = setup.fetch(MODEL).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights_file());
    let blobs = names_in(&setup.options.cache.join("models--tiny--model/blobs"));
    assert!(!blobs.iter().any(|name| name.ends_with("incomplete")), "{blobs:?}");
}

#[test]
fn a_server_that_ignores_ranges_does_not_corrupt() {
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/cdn/model.safetensors", Fault::CutAfter(1000), 1);
    setup.server.plan("GET", "/cdn/model.safetensors", Fault::NoRanges, 1);
    let folder = setup.fetch(MODEL).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights_file());
}

#[test]
fn wrong_sizes_are_refused_and_nothing_is_kept() {
    let wrong = weights_file().len() + 7;
    let faults = [
        ("HEAD", "config.json", Fault::ContentLength(99)),
        ("GET", "/cdn/model.safetensors", Fault::ContentLength(wrong)),
        ("GET", "/cdn/model.safetensors", Fault::ContentLength(12)),
        ("GET", "/cdn/model.safetensors", Fault::Surplus(7)),
    ];
    for (method, path, fault) in faults {
        let setup = Setup::new(&single_file_model());
        setup.server.plan(method, path, fault.clone(), usize::MAX);
        let error = setup.fails(&["size of", "nothing was kept"]);
        assert!(matches!(error, HubError::WrongSize { .. }), "{fault:?}: {error}");
        let left = names_in(&setup.options.cache.join("models--tiny--model/blobs"));
        assert!(!left.iter().any(|name| name.ends_with("incomplete")), "{left:?}");
    }
}

#[test]
fn damaged_contents_of_the_right_size_are_refused_and_nothing_is_kept() {
    for (path, file) in
        [("/cdn/model.safetensors", "model.safetensors"), ("/resolve/", "chat_template.jinja")]
    {
        let setup = Setup::new(&single_file_model());
        setup.server.plan("GET", path, Fault::Flipped, 1);
        let error = setup.fails(&["contents of", file, "nothing was kept"]);
        let HubError::Corrupt { expected, found, .. } = error else { panic!("{error}") };
        assert!(expected != found && expected.len() == found.len());
        let left = names_in(&setup.options.cache.join("models--tiny--model/blobs"));
        assert!(!left.iter().any(|name| name.starts_with(&expected)), "{left:?}");
        setup.fetch(MODEL).unwrap();
    }
}

#[test]
fn damage_in_what_an_earlier_run_left_is_repaired() {
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/cdn/model.safetensors", Fault::CutAfter(1000), 3);
    setup.fails(&["broke off after"]);
    let blobs = files_in(&setup.options.cache.join("models--tiny--model/blobs"));
    let part = blobs.iter().find(|path| path.extension().is_some_and(|end| end == "incomplete")).unwrap();
    let mut bytes = fs::read(part).unwrap();
    bytes[500] ^= 1;
    fs::write(part, bytes).unwrap();
    let folder = setup.fetch(MODEL).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights_file());
}

#[test]
fn sizes_are_verified_without_a_list_of_them() {
    let setup = Setup::new(&single_file_model());
    setup.server.hide_sizes();
    setup.server.plan("GET", "/cdn/model.safetensors", Fault::ContentLength(12), 1);
    setup.fails(&["size of model.safetensors is wrong"]);
    setup.fetch(MODEL).unwrap();
}

#[test]
fn server_errors_are_repeated_then_reported() {
    let setup = Setup::new(&single_file_model());
    for (method, path) in [("GET", "/api/"), ("HEAD", "config.json"), ("GET", "/resolve/")] {
        setup.server.plan(method, path, Fault::Status(503, ""), 2);
    }
    setup.fetch(MODEL).unwrap();
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/api/", Fault::Status(500, ""), usize::MAX);
    setup.fails(&["cannot reach", "status 500", &setup.server.endpoint()]);
    assert_eq!(setup.count("GET /api"), 3);
}

#[test]
fn a_stalled_server_is_given_up() {
    let mut setup = Setup::new(&single_file_model());
    setup.options.stall_timeout = Duration::from_millis(50);
    setup.server.plan("GET", "/cdn/", Fault::Stall, usize::MAX);
    setup.fails(&["model.safetensors", "broke off after 0 of"]);
}

#[test]
fn a_slow_server_is_waited_for() {
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/api/", Fault::Delay(Duration::from_millis(100)), 1);
    setup.fetch(MODEL).unwrap();
}

#[test]
fn missing_model_revision_and_file_are_told_apart() {
    let setup = Setup::new(&single_file_model());
    let error = setup.fetch("tiny/other").unwrap_err();
    assert!(matches!(error, HubError::RepoNotFound { .. }), "{error}");
    let error = setup.fetch(&format!("{MODEL}@v9")).unwrap_err();
    assert!(
        matches!(error, HubError::RevisionNotFound { .. }) && error.to_string().contains("v9"),
        "{error}"
    );
    setup.server.plan("HEAD", "tokenizer.json", Fault::Status(404, "EntryNotFound"), 1);
    let error = setup.fails(&["has no file tokenizer.json"]);
    assert!(matches!(error, HubError::FileNotFound { .. }), "{error}");
}

#[test]
fn a_mirror_without_error_codes_is_asked_again() {
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/revision/", Fault::Status(404, ""), 2);
    let error = setup.fetch(&format!("{MODEL}@main")).unwrap_err();
    assert!(matches!(error, HubError::RevisionNotFound { .. }), "the model itself is there: {error}");
    let error = setup.fetch("tiny/other").unwrap_err();
    assert!(matches!(error, HubError::RepoNotFound { .. }), "{error}");
}

#[test]
fn gated_models_need_a_token_that_has_access() {
    let mut setup = Setup::new(&single_file_model());
    setup.server.require_token("secret");
    setup.fails(&["status 401", "gated", "accept its licence", "set HF_TOKEN"]);
    setup.options.token = Some("wrong".into());
    setup.fails(&["status 403", "with the account of HF_TOKEN"]);
    setup.options.token = Some("secret".into());
    setup.fetch(MODEL).unwrap();
    setup.server.plan("GET", "/api/", Fault::Status(401, ""), 1);
    setup.options.token = None;
    let error = setup.fetch(MODEL).unwrap_err().to_string();
    assert!(error.contains("private or gated: set HF_TOKEN"), "{error}");
}

#[test]
fn the_token_stays_on_the_hubs_host() {
    let mut setup = Setup::new(&single_file_model());
    setup.options.token = Some("secret".into());
    setup.fetch(MODEL).unwrap();
    let requests = setup.server.requests();
    assert!(
        requests.iter().any(|text| text.starts_with("GET /api") && text.ends_with("token")),
        "{requests:?}"
    );
    assert!(!requests.iter().any(|text| text.contains("/cdn/") && text.ends_with("token")), "{requests:?}");
}

#[test]
fn a_renamed_model_is_followed_but_only_on_the_hub() {
    let setup = Setup::new(&single_file_model());
    setup.server.plan("HEAD", "config.json", Fault::Moved("/tiny/model/resolve/main/config.json"), 1);
    setup.fetch(MODEL).unwrap();
    let elsewhere = [
        "http://example.invalid/config.json",
        "//example.invalid/config.json",
        "http://127.0.0.1.example.invalid/",
        "",
    ];
    for location in elsewhere {
        let setup = Setup::new(&single_file_model());
        setup.server.plan("HEAD", "config.json", Fault::Moved(location), 1);
        setup.fails(&["redirects to", location]);
    }
    let setup = Setup::new(&single_file_model());
    setup.server.plan("HEAD", "", Fault::Moved("/round"), usize::MAX);
    setup.fails(&["redirects in a circle"]);
}

#[test]
fn answers_that_make_no_sense_are_named() {
    for etag in ["../../../evil", "", "a/b", ".."] {
        let setup = Setup::new(&single_file_model());
        setup.server.plan("HEAD", "config.json", Fault::Etag(etag), 1);
        setup.fails(&["did not answer like a model hub", "etag"]);
    }
    let setup = Setup::new(&single_file_model());
    setup.server.plan("GET", "/api/", Fault::CutAfter(20), usize::MAX);
    setup.fails(&["cannot reach"]);
    let setup = Setup::new(&[("config.json", vec![])]);
    let error = setup.fetch(&format!("{MODEL}@main")).unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
    let setup = Setup::new(&[("README.md", vec![])]);
    assert!(setup.fetch(MODEL).unwrap_err().to_string().contains("no file config.json"));
}

#[test]
fn an_index_cannot_make_us_fetch_other_paths() {
    let mut files = text_files();
    files.push(("model.safetensors.index.json", br#"{"weight_map":{"a":"../../x.safetensors"}}"#.to_vec()));
    let setup = Setup::new(&files);
    let error = setup.fetch(MODEL).unwrap_err();
    assert!(
        matches!(error, HubError::Index(_)) && error.to_string().contains("../../x.safetensors"),
        "{error}"
    );
    let mut files = text_files();
    files.push(("model.safetensors.index.json", br#"{"weight_map":{"a":"gone.safetensors"}}"#.to_vec()));
    let error = Setup::new(&files).fetch(MODEL).unwrap_err();
    assert!(error.to_string().contains("no file gone.safetensors"), "{error}");
}

#[test]
fn an_unreachable_hub_is_named() {
    let mut setup = Setup::new(&[]);
    // Nothing listens on the discard port of loopback.
    setup.options.endpoint = "http://127.0.0.1:9".into();
    setup.fails(&["cannot reach http://127.0.0.1:9", "HF_HUB_OFFLINE=1"]);
}

#[test]
fn offline_uses_the_cache_and_names_what_it_lacks() {
    let mut setup = Setup::new(&sharded_model());
    setup.options.offline = true;
    setup.fails(&["offline", "tiny/model@main", "missing: all files"]);
    assert!(setup.server.requests().is_empty());
    setup.options.offline = false;
    let folder = setup.fetch(MODEL).unwrap();
    setup.options.offline = true;
    let before = setup.server.requests().len();
    assert_eq!(setup.fetch(MODEL).unwrap(), folder);
    assert_eq!(setup.server.requests().len(), before);
    fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    fs::remove_file(folder.join("config.json")).unwrap();
    let error = setup.fetch(MODEL).unwrap_err().to_string();
    assert!(error.contains("config.json, model-2.safetensors"), "{error}");
}

#[test]
fn a_damaged_cache_repairs_itself_online() {
    let setup = Setup::new(&single_file_model());
    let folder = setup.fetch(MODEL).unwrap();
    fs::write(folder.join("model.safetensors"), b"short").unwrap(); // through the link, into the blob
    setup.fetch(MODEL).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights_file());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut setup = Setup::new(&single_file_model());
    let file = setup.cache.path().join("file");
    fs::write(&file, b"").unwrap();
    setup.options.cache = file.join("hub");
    let error = setup.fetch(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }) && error.to_string().contains("set HF_HOME"), "{error}");
}

/// Nobody may create folders in /sys, root included.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_cache_is_named() {
    let mut setup = Setup::new(&single_file_model());
    setup.options.cache = "/sys/metal-candle-cache".into();
    let error = setup.fetch(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Cache { action: "create", .. }), "{error}");
    assert!(error.to_string().contains("/sys/metal-candle-cache"), "{error}");
}
