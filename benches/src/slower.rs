//! Planted slowdowns: whoever looks for regressions is shown one.

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::Row;

const SLOWER: &str = "METAL_CANDLE_BENCH_SLOWER";

/// Which rows are to take how many times as long.
pub(crate) struct Slower(Vec<(String, f64)>);

impl Slower {
    /// From the environment; every row named has to be one of `all`.
    pub(crate) fn from_environment(all: &[Row]) -> Result<Self> {
        let slower = Self::parse(&env::var(SLOWER).unwrap_or_default())?;
        for (id, _) in &slower.0 {
            ensure!(all.iter().any(|row| row.id == *id), "{SLOWER}: there is no row `{id}`");
        }
        Ok(slower)
    }

    fn parse(text: &str) -> Result<Self> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        let slower = parts.map(|part| {
            let parsed = part.rsplit_once('=').and_then(|(id, factor)| Some((id, factor.parse().ok()?)));
            let (id, factor): (_, f64) =
                parsed.with_context(|| format!("{SLOWER}: `{part}` is not ROW=FACTOR, such as a/b=1.05"))?;
            ensure!(factor >= 1. && factor.is_finite(), "{SLOWER}: {id} cannot take {factor} times as long");
            Ok((id.to_owned(), factor))
        });
        Ok(Self(slower.collect::<Result<_>>()?))
    }

    /// By how much more of its own time a row is slowed down.
    pub(crate) fn share(&self, row: &Row) -> f64 {
        self.0.iter().find(|(id, _)| *id == row.id).map_or(0., |(_, factor)| factor - 1.)
    }
}

/// Keeps the processor busy, as slower code would.
pub(crate) fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn slowdowns_are_read_by_row() {
        let slower = Slower::parse("a/b=1.05,c/d/e=2").unwrap();
        assert_eq!(slower.0, [("a/b".to_owned(), 1.05), ("c/d/e".to_owned(), 2.)]);
        for wrong in ["a/b", "a/b=fast", "a/b=0.5", "a/b=inf"] {
            assert!(Slower::parse(wrong).is_err(), "{wrong}");
        }
    }
}
