//! `doctor`: what it shows, and what it must not.

use std::fs;

use metal_candle_testkit::golden;
use serde_json::json;

use crate::support::{finish, program};

#[test]
fn json_has_every_section_and_never_the_token() {
    let home = tempfile::tempdir().unwrap();
    let blobs = home.path().join("hub/models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("a"), [0; 77]).unwrap();
    let doctor = |args: &[&str]| {
        let mut command = program(&[&["doctor"], args].concat());
        command
            .env("HF_HOME", home.path())
            .env("HF_TOKEN", "hf_secret")
            .env("HF_ENDPOINT", "http://mirror.test");
        let outcome = finish(command, "").ok();
        assert!(!format!("{outcome:?}").contains("hf_secret"));
        outcome
    };
    let report = doctor(&["--json"]).json();
    assert_eq!(report["versions"]["metal-candle"], env!("CARGO_PKG_VERSION"));
    assert!(report["versions"]["rustc"].as_str().unwrap().starts_with("rustc 1."), "{report}");
    assert_eq!(report["devices"]["cpu"], "ready");
    assert!(report["cpu"]["simd_available"].as_array().unwrap().contains(&json!("portable")), "{report}");
    assert!(report["cpu"]["threads"].as_u64().unwrap() >= 1, "{report}");
    let hub = &report["hub"];
    assert_eq!((&hub["token"], &hub["endpoint"]), (&json!("set"), &json!("http://mirror.test")));
    assert_eq!((&hub["models"], &hub["offline"]), (&json!({ "org/name": { "bytes": 77 } }), &json!(true)));
    let text = doctor(&[]).out;
    for word in ["versions", "devices", "simd", "huge pages", "org/name", "77 B", "http://mirror.test"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn candle_is_the_one_that_the_manifest_pins() {
    let report = finish(program(&["doctor", "--json"]), "").json();
    let manifest = fs::read_to_string(golden::root().join("../Cargo.toml")).unwrap();
    let pin = format!("candle-core = \"={}\"", report["versions"]["candle"].as_str().unwrap());
    assert!(manifest.contains(&pin), "{pin}");
}

#[test]
fn a_broken_setting_is_shown_instead_of_ending_the_report() {
    let mut command = program(&["doctor", "--json"]);
    command.env("HF_HUB_OFFLINE", "maybe");
    let report = finish(command, "").json();
    assert!(report["hub"]["problem"].as_str().unwrap().contains("HF_HUB_OFFLINE"), "{report}");
}
