//! Recordings are of the whole process: all that is said of them is said in one test.
#![allow(clippy::unwrap_used, missing_docs)]

use metal_candle_kernels::{
    DType, Device, Tensor,
    linear::{Projection, linear},
    rms_norm::{RmsNorm, rms_norm},
    softmax::{Mask, softmax},
    trace::{
        Plant, Recording, RecordingRuns, Settings, SpanRecord, Work, finish, host_span, launched, launches,
        mark, sample, span, start,
    },
};

fn inputs() -> (Tensor, RmsNorm) {
    let x = Tensor::ones((4, 32), DType::F32, &Device::Cpu).unwrap();
    let weight = Tensor::ones(32, DType::F32, &Device::Cpu).unwrap();
    (x, RmsNorm { weight, epsilon: 1e-6, weight_offset: 0. })
}

/// Spans of the calling thread; other tests of the process may record in theirs.
fn own(recording: &Recording) -> Vec<SpanRecord> {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    recording
        .threads
        .iter()
        .filter(|thread| thread.name == name)
        .flat_map(|thread| thread.spans.clone())
        .collect()
}

#[test]
fn spans_nest_and_say_how_much_work_they_were() {
    let (x, norm) = inputs();
    rms_norm(&x, &norm).unwrap();
    start(Settings::default()).unwrap();
    assert_eq!(start(Settings::default()), Err(RecordingRuns));
    {
        let _layer = span("layer", x.device()).at(7);
        let y = rms_norm(&x, &norm).unwrap();
        let weight = Tensor::ones((8, 32), DType::F32, &Device::Cpu).unwrap();
        linear(&y, &Projection { weight, bias: None }).unwrap();
    }
    let _unfinished = host_span("unfinished");
    sample(x.device());
    let recording = finish().unwrap();
    assert!(finish().is_none());

    let spans = own(&recording);
    let names: Vec<_> = spans.iter().map(|span| (span.name, span.depth)).collect();
    assert_eq!(names, [("layer", 0), ("rms_norm", 1), ("linear", 1), ("unfinished", 0)]);
    assert_eq!(spans[0].index, Some(7));
    // x and the result once, and the weight.
    assert_eq!(spans[1].work.unwrap().bytes, 4 * (2 * 4 * 32 + 32));
    assert_eq!(spans[2].work, Some(Work { bytes: 4 * (4 * 32 + 8 * 32 + 4 * 8), flops: 2 * 4 * 8 * 32 }));
    assert!(spans[0].launches >= 2 && recording.launches >= 2);
    for span in &spans {
        assert!(span.start_ns + span.duration_ns <= recording.duration_ns);
    }
    let [layer, inner, ..] = spans.as_slice() else { panic!("four spans") };
    assert!(layer.start_ns <= inner.start_ns);
    assert!(inner.start_ns + inner.duration_ns <= layer.start_ns + layer.duration_ns);
    assert_eq!(recording.samples.len(), 1);
    assert_eq!(
        recording.samples[0].resident_bytes.is_some(),
        cfg!(any(target_os = "linux", target_vendor = "apple"))
    );

    room_ends();
    a_planted_op_is_slow();
    nothing_is_kept_without_a_recording();
}

fn room_ends() {
    let (x, norm) = inputs();
    start(Settings { most_spans: 3, plant: None }).unwrap();
    for _ in 0..5 {
        rms_norm(&x, &norm).unwrap();
    }
    let recording = finish().unwrap();
    let kept: usize = recording.threads.iter().map(|thread| thread.spans.len()).sum();
    assert_eq!(kept, 3);
    assert!(recording.dropped >= 2, "{}", recording.dropped);
}

fn a_planted_op_is_slow() {
    let x = Tensor::ones((64, 256), DType::F32, &Device::Cpu).unwrap();
    let plant = Plant { name: "softmax".to_owned(), factor: 1000. };
    start(Settings { plant: Some(plant), ..Settings::default() }).unwrap();
    softmax(&x, Mask::None).unwrap();
    let planted = own(&finish().unwrap());
    // The op itself takes microseconds.
    assert!(planted[0].duration_ns > 500_000, "{planted:?}");
}

fn nothing_is_kept_without_a_recording() {
    let (x, norm) = inputs();
    rms_norm(&x, &norm).unwrap();
    sample(x.device());
    assert!(finish().is_none());
}

#[test]
fn a_call_of_an_op_counts_on_the_cpu() {
    let (x, norm) = inputs();
    let before = launches();
    rms_norm(&x, &norm).unwrap();
    launched(2);
    assert!(launches() - before >= 3);
}

#[test]
fn a_profiler_without_nvtx_is_an_error_that_says_what_to_do() {
    if let Err(error) = mark() {
        assert!(error.to_string().contains("pip install nvidia-nvtx"), "{error}");
        return;
    }
    // With the library, ranges go where nobody listens.
    let (x, norm) = inputs();
    rms_norm(&x, &norm).unwrap();
}
