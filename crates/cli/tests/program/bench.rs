//! `bench` on a shape so small that it takes no time.

use serde_json::{Value, json};

use crate::support::{run, tiny_chat};

const SHORT: [&str; 6] = ["--prompt", "24", "--tokens", "6", "--repetitions", "3"];

fn check(report: &Value) {
    for phase in ["prefill", "decode"] {
        let number =
            |key: &str| report[phase][key].as_f64().unwrap_or_else(|| panic!("{phase}.{key}: {report}"));
        let (median, min, max) = (number("tok_s"), number("min"), number("max"));
        assert!(0.0 < min && min <= median && median <= max, "{report}");
    }
    assert_eq!((&report["prefill"]["tokens"], &report["decode"]["tokens"]), (&json!(24), &json!(6)));
    assert_eq!((&report["device"], &report["repetitions"]), (&json!("cpu"), &json!(3)));
    assert!(report["decode"]["launches_per_token"].as_f64().unwrap() > 10.0, "{report}");
    assert!(report["simd"].is_string() && report["load_s"].as_f64().unwrap() > 0.0, "{report}");
    if cfg!(unix) {
        assert!(report["peak_rss_mb"].as_f64().unwrap() > 1.0, "{report}");
    }
}

#[test]
fn a_shape_is_measured_with_random_weights() {
    let args = [&["bench", "--shape", "tiny", "--threads", "2", "--json"][..], &SHORT].concat();
    let report = run(&args).json();
    check(&report);
    assert_eq!((&report["model"], &report["dtype"]), (&json!("tiny"), &json!("bf16")));
    assert_eq!((&report["threads"], &report["decode"]["context"]), (&json!(2), &json!(0)));
    let report = run(&[&args[..], &["--dtype", "f32", "--context", "600"]].concat()).json();
    check(&report);
    assert_eq!((&report["dtype"], &report["decode"]["context"]), (&json!("f32"), &json!(600)));
}

#[test]
fn a_model_is_measured_in_its_own_dtype() {
    let report = run(&[&["bench", "-m", &tiny_chat(), "--json"][..], &SHORT].concat()).json();
    check(&report);
    assert_eq!(report["dtype"], "f32");
}

#[test]
fn the_table_is_for_people() {
    let table = run(&[&["bench", "--shape", "tiny"][..], &SHORT].concat()).ok().out;
    for word in [
        "tok/s",
        "prefill",
        "24 tokens",
        "decode",
        "6 tokens after 0",
        "GB/s",
        "calls of ops per decoded token",
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }
}

#[test]
fn what_does_not_fit_the_context_is_refused() {
    run(&["bench", "--shape", "tiny", "--prompt", "4097"]).fails(1, &["4097", "4096", "--prompt"]);
    run(&["bench", "--shape", "tiny", "--context", "4000"]).fails(1, &["4096", "--context"]);
}
