//! Runs rows under criterion.
#![allow(clippy::print_stderr)] // what the bench programs have to say

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use criterion::{Bencher, BenchmarkId, Criterion, SamplingMode, Throughput};

use crate::{
    Bench, Call, Pace, Place, Row, counters, rows,
    slower::{Slower, spin},
};

/// A bench program: measures what criterion's arguments select of `rows`.
pub fn main(rows: &[Row]) -> ExitCode {
    match measure(rows) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rows: &[Row]) -> Result<()> {
    let bench = Bench::from_environment()?;
    let slower = Slower::from_environment(&rows::all())?;
    let counters = counters::file_from_environment();
    // What the command line says about times goes for quick rows.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for row in rows {
        if let Place::Processor(reason) = row.place
            && !bench.device().is_cpu()
        {
            eprintln!("not on this device: {}: {reason}", row.id);
            continue;
        }
        let mut call = None;
        time(&mut criterion, row, |bencher| {
            let call = call.get_or_insert_with(|| expect(row, (row.make)(&bench)));
            bencher
                .iter_custom(|iterations| expect(row, elapsed(call, iterations, &bench, slower.share(row))));
        });
        if let (Some(file), Some(call)) = (&counters, &mut call) {
            counters::append(file, row, call, &bench)?;
        }
    }
    criterion.final_summary();
    Ok(())
}

fn time(criterion: &mut Criterion, row: &Row, run: impl FnMut(&mut Bencher<'_>)) {
    let (group, name, parameter) = row.parts();
    let mut group = criterion.benchmark_group(group);
    if row.pace == Pace::Slow {
        group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(2));
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
    }
    if let Some(&(_, count)) = row.work.units.first() {
        group.throughput(Throughput::Elements(count));
    }
    match parameter {
        Some(parameter) => group.bench_function(BenchmarkId::new(name, parameter), run),
        None => group.bench_function(name, run),
    };
    group.finish();
}

/// The time of some iterations, made longer by `slower` of itself.
fn elapsed(call: &mut Call, iterations: u64, bench: &Bench, slower: f64) -> Result<Duration> {
    let mut total = Duration::ZERO;
    let mut timed = |runs: u64, call: &mut Call| -> Result<()> {
        let start = Instant::now();
        for _ in 0..runs {
            call.run()?;
            bench.synchronize()?;
        }
        spin(start.elapsed().mul_f64(slower));
        total += start.elapsed();
        Ok(())
    };
    if call.is_prepared() {
        for _ in 0..iterations {
            call.prepare()?;
            bench.synchronize()?;
            timed(1, call)?;
        }
    } else {
        timed(iterations, call)?;
    }
    Ok(total)
}

/// Criterion's closures cannot fail.
fn expect<T>(row: &Row, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{}: {error:#}", row.id))
}
