//! The measuring itself: groups in a new order each time, old and new program in turns.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::{
    baseline::Baseline,
    detector::Pair,
    process::{Setup, Side},
    programs::{self, Programs},
    progress::Progress,
    random::Random,
    result::{Counters, group},
    statistics::median,
};

/// Processes by row: the batches of each, in nanoseconds per iteration.
pub(crate) type Samples = BTreeMap<String, Vec<Vec<f64>>>;

/// What is measured, and how.
pub(crate) struct Session {
    pub(crate) setup: Setup,
    pub(crate) repeat: usize,
    /// In the programs' order.
    groups: Vec<Group>,
    random: Random,
    /// Links to the programs, which have to outlive the session.
    _links: TempDir,
}

/// Rows of one group of one bench program: they share a process.
#[derive(Debug, Clone)]
struct Group {
    name: String,
    program: String,
    path: PathBuf,
    rows: Vec<String>,
    /// The baseline's program, and which of these rows it has.
    old: Option<(PathBuf, Vec<String>)>,
}

#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) new: Samples,
    pub(crate) old: Samples,
    pub(crate) counters: Vec<Counters>,
}

/// Which rows to measure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// All if empty.
    pub(crate) groups: Vec<String>,
    /// Part of a row's name.
    pub(crate) filter: Option<String>,
    /// All if empty.
    pub(crate) rows: Vec<String>,
}

impl Session {
    pub(crate) fn new(
        programs: &Programs,
        old: Option<&Programs>,
        selection: &Selection,
        setup: Setup,
        repeat: usize,
        seed: u64,
    ) -> Result<Self> {
        // A program keeps its own path on its heap, and a longer one moves everything that it allocates later: a 5 %
        // difference has been seen. So both sides get paths of the same length.
        let links = tempfile::tempdir()?;
        let programs = &programs.linked(&links.path().join("new"))?;
        let old = old.map(|old| old.linked(&links.path().join("old"))).transpose()?;
        let mut groups: Vec<Group> = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        for (program, path) in &programs.benches {
            let old_path = old.as_ref().and_then(|old| old.benches.get(program));
            let old_rows =
                old_path.map(|path| programs::rows(path, &setup.device)).transpose()?.unwrap_or_default();
            for row in programs::rows(path, &setup.device)? {
                let name = group(&row);
                known.insert(name.to_owned());
                if !selection.takes(&row) {
                    continue;
                }
                let at = groups.iter().position(|group| group.name == name && group.program == *program);
                let at = at.unwrap_or_else(|| {
                    let old = old_path.map(|path| (path.clone(), Vec::new()));
                    let (name, program, path) = (name.to_owned(), program.clone(), path.clone());
                    groups.push(Group { name, program, path, rows: Vec::new(), old });
                    groups.len() - 1
                });
                if let Some((_, rows)) = groups[at].old.as_mut().filter(|_| old_rows.contains(&row)) {
                    rows.push(row.clone());
                }
                groups[at].rows.push(row);
            }
        }
        let known: Vec<String> = known.into_iter().collect();
        for name in &selection.groups {
            ensure!(known.contains(name), "there is no group `{name}`; there are {}", known.join(", "));
        }
        ensure!(!groups.is_empty(), "no row fits --filter; the groups are {}", known.join(", "));
        Ok(Self { setup, repeat, groups, random: Random::new(seed), _links: links })
    }

    /// Runs everything `repeat` times.
    pub(crate) fn measure(&mut self) -> Result<Measured> {
        let mut measured = Measured::default();
        let starts = self.groups.iter().map(|group| if group.has_old() { 2 } else { 1 }).sum::<usize>();
        let progress = Progress::new("measuring", self.repeat * starts);
        for round in 0..self.repeat {
            let mut order: Vec<usize> = (0..self.groups.len()).collect();
            self.random.shuffle(&mut order);
            for index in order {
                let group = self.groups[index].clone();
                let mut sides = vec![Side::New];
                if group.has_old() {
                    sides.insert(usize::from(self.random.coin()), Side::Old);
                }
                for side in sides {
                    self.measure_group(&group, side, round == 0, &mut measured)?;
                    progress.step(&group.name);
                }
            }
        }
        // A row that names a reason not to run on this device is listed and leaves nothing.
        ensure!(!measured.new.is_empty(), "none of these rows runs on {}", self.setup.device);
        Ok(measured)
    }

    fn measure_group(&self, group: &Group, side: Side, count: bool, measured: &mut Measured) -> Result<()> {
        let (batches, counters) = match (side, &group.old) {
            (Side::Old, Some((path, rows))) => (self.setup.run(path, rows, side)?, Vec::new()),
            _ if count => self.setup.run_counting(&group.path, &group.rows)?,
            _ => (self.setup.run(&group.path, &group.rows, side)?, Vec::new()),
        };
        measured.counters.extend(counters);
        let samples = if side == Side::New { &mut measured.new } else { &mut measured.old };
        for (row, batches) in batches {
            samples.entry(row).or_default().push(batches);
        }
        Ok(())
    }

    /// One pair of processes of a row, in an order that a coin decides.
    pub(crate) fn pair(&mut self, row: &str) -> Result<Pair> {
        let group = self.group_of(row)?.clone();
        let old = group.old.as_ref().with_context(|| format!("the baseline has no program with {row}"))?;
        self.in_turns((&group.path, row, Side::New), (&old.0, row, Side::Old))
    }

    /// A process of each of two rows, in an order that a coin decides.
    pub(crate) fn pair_of(&mut self, row: &str, over: &str) -> Result<Pair> {
        let [path, over_path] = [row, over].map(|row| self.group_of(row).map(|group| group.path.clone()));
        self.in_turns((&path?, row, Side::New), (&over_path?, over, Side::New))
    }

    /// One process of each, one right after the other.
    fn in_turns(&mut self, first: (&Path, &str, Side), second: (&Path, &str, Side)) -> Result<Pair> {
        let is_first = self.random.coin();
        let run = |(path, row, side): (&Path, &str, Side)| self.time(path, row, side);
        if is_first {
            let time = run(first)?;
            Ok((time, run(second)?))
        } else {
            let time = run(second)?;
            Ok((run(first)?, time))
        }
    }

    /// One more process of the row's group in the new program: alone in a process, a row would find other caches and another
    /// heap than when it was recorded.
    pub(crate) fn again(&self, row: &str) -> Result<f64> {
        let group = self.group_of(row)?;
        let batches = self.setup.run(&group.path, &group.rows, Side::New)?;
        Ok(median(
            batches.get(row).with_context(|| format!("{} did not measure {row}", group.path.display()))?,
        ))
    }

    fn time(&self, program: &Path, row: &str, side: Side) -> Result<f64> {
        let batches = self.setup.run(program, &[row.to_owned()], side)?;
        Ok(median(batches.get(row).with_context(|| format!("{} did not measure {row}", program.display()))?))
    }

    fn group_of(&self, row: &str) -> Result<&Group> {
        let group = self.groups.iter().find(|group| group.rows.iter().any(|known| known == row));
        group.with_context(|| format!("no bench program has the row {row}"))
    }

    /// All rows with the program that has them, in the programs' order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&str, &str)> {
        self.groups
            .iter()
            .flat_map(|group| group.rows.iter().map(|row| (row.as_str(), group.program.as_str())))
    }
}

impl Group {
    fn has_old(&self) -> bool {
        self.old.as_ref().is_some_and(|(_, rows)| !rows.is_empty())
    }
}

impl Selection {
    fn takes(&self, row: &str) -> bool {
        let in_group = self.groups.is_empty() || self.groups.iter().any(|name| name == group(row));
        let in_rows = self.rows.is_empty() || self.rows.iter().any(|name| name == row);
        in_group && in_rows && self.filter.as_ref().is_none_or(|part| row.contains(part))
    }
}

/// Time that a confirmation may take for each row.
pub(crate) struct Patience {
    limit: Duration,
    spent: BTreeMap<String, Duration>,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, spent: BTreeMap::new() }
    }

    /// Runs `work` unless the row has used up its time.
    pub(crate) fn spend<T>(&mut self, row: &str, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let spent = self.spent.entry(row.to_owned()).or_default();
        if *spent >= self.limit {
            return Ok(None);
        }
        let start = Instant::now();
        let result = work()?;
        *spent += start.elapsed();
        Ok(Some(result))
    }
}

/// The programs to run in turns with ours, and what to say about them.
pub(crate) fn old_programs(baseline: Option<&Baseline>) -> Option<&Programs> {
    let baseline = baseline?;
    if baseline.programs.is_none() {
        eprintln!(
            "the baseline `{}` has no programs that start here: its recorded times are compared instead, so a machine \
             in another mood looks like a change",
            baseline.name
        );
    }
    baseline.programs.as_ref()
}
