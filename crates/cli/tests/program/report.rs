//! `metal-candle report`.

use std::fs;

use crate::support::run;

#[test]
fn a_run_becomes_a_page_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = "{\"event\":\"started\",\"model\":\"a<b\",\"total_steps\":2}\n\
                   {\"event\":\"step\",\"step\":1,\"loss\":3.0}\n\
                   {\"event\":\"step\",\"step\":2,\"loss\":null}\n\
                   {\"event\":\"finished\",\"steps\":2,\"stopped\":\"not_finite\"}\n{\"event\":\"st";
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    let path = folder.path().to_str().unwrap();
    let said = run(&["report", path]).ok();
    assert_eq!(said.out, format!("{path}/report.html\n{path}/loss.png\n"));
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    for words in ["a&lt;b", "1 not finite", "metal-candle chat -m &#39;a&lt;b&#39;"] {
        assert!(page.contains(words), "{words}: {page}");
    }
    assert!(fs::read(folder.path().join("loss.png")).unwrap().starts_with(b"\x89PNG"));
    let json = run(&["report", path, "--json"]).json();
    assert_eq!((json["steps"].as_u64(), json["finished"].as_bool()), (Some(2), Some(true)));
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    run(&["report", path]).fails(1, &["metrics.jsonl"]);
    fs::write(folder.path().join("metrics.jsonl"), "{\"event\":\"dance\"}\n").unwrap();
    run(&["report", path]).fails(1, &["line 1", "dance"]);
}
