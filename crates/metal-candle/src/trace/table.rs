//! What cost most.

use std::{collections::HashMap, fmt};

use super::{Recording, SpanRecord, per_nanosecond, time_ns};

/// All spans of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Their name.
    pub name: &'static str,
    /// How many there were.
    pub count: u64,
    /// Their time without that of the spans within them: the accelerator's where it was measured.
    pub own_ns: u64,
    /// Their time with that of the spans within them.
    pub whole_ns: u64,
    /// Moved at least.
    pub bytes: u64,
    /// Computed at least.
    pub flops: u64,
}

/// The names that cost most, dearest first; `Display` makes lines of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// All of them.
    pub costs: Vec<Cost>,
    duration_ns: u64,
    dropped: u64,
}

/// Lines of a table.
const MOST: usize = 10;

impl Table {
    /// Adds up the spans of a recording.
    pub fn of(recording: &Recording) -> Self {
        let mut costs: HashMap<&'static str, Cost> = HashMap::new();
        for thread in &recording.threads {
            for (span, own_ns) in thread.spans.iter().zip(own_times(&thread.spans)) {
                let name = span.name;
                let none = Cost { name, count: 0, own_ns: 0, whole_ns: 0, bytes: 0, flops: 0 };
                let cost = costs.entry(name).or_insert(none);
                let work = span.work.unwrap_or_default();
                cost.count += 1;
                cost.own_ns += own_ns;
                cost.whole_ns += time_ns(span);
                cost.bytes += work.bytes;
                cost.flops += work.flops;
            }
        }
        let mut costs: Vec<Cost> = costs.into_values().collect();
        costs.sort_by_key(|cost| (std::cmp::Reverse(cost.own_ns), cost.name));
        Self { costs, duration_ns: recording.duration_ns, dropped: recording.dropped }
    }
}

/// The time of each span that is not that of a span within it.
fn own_times(spans: &[SpanRecord]) -> Vec<u64> {
    let mut own: Vec<u64> = spans.iter().map(time_ns).collect();
    let mut around: Vec<usize> = Vec::new();
    for (place, span) in spans.iter().enumerate() {
        around.truncate(span.depth as usize);
        if let Some(&parent) = around.last() {
            own[parent] = own[parent].saturating_sub(time_ns(span));
        }
        around.push(place);
    }
    own
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["", "share", "own ms", "calls", "us/call", "GB/s", "GFLOP/s"];
        let [name, share, own, calls, each, bytes, flops] = header;
        writeln!(formatter, "{name:<26} {share:>6} {own:>10} {calls:>8} {each:>10} {bytes:>8} {flops:>8}")?;
        for cost in self.costs.iter().take(MOST) {
            let Cost { name, count, own_ns, whole_ns, .. } = *cost;
            let share = 100.0 * own_ns as f64 / self.duration_ns.max(1) as f64;
            let (own, each) = (own_ns as f64 / 1e6, own_ns as f64 / 1e3 / count.max(1) as f64);
            let rate =
                |amount| per_nanosecond(amount, whole_ns).map_or(String::new(), |rate| format!("{rate:.1}"));
            let (bytes, flops) = (rate(cost.bytes), rate(cost.flops));
            writeln!(
                formatter,
                "{name:<26} {share:>5.1}% {own:>10.2} {count:>8} {each:>10.1} {bytes:>8} {flops:>8}"
            )?;
        }
        if self.dropped > 0 {
            writeln!(formatter, "{} later spans found no room and are not in it", self.dropped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{DeviceTime, ThreadRecord, Work};

    fn span(name: &'static str, depth: u32, duration_ns: u64, device: Option<u64>) -> SpanRecord {
        SpanRecord {
            name,
            index: None,
            start_ns: 0,
            duration_ns,
            depth,
            work: device.map(|_| Work { bytes: 800, flops: 1600 }),
            launches: 1,
            device: device.map(|duration_ns| DeviceTime { start_ns: 0, duration_ns }),
        }
    }

    #[test]
    fn time_is_counted_where_it_was_spent() {
        let spans = vec![
            span("step", 0, 1000, None),
            span("layer", 1, 600, None),
            span("linear", 2, 10, Some(400)),
            span("softmax", 2, 5, Some(100)),
            span("sampling", 1, 50, None),
            span("layer", 0, 80, None),
        ];
        let threads = vec![ThreadRecord { name: String::new(), spans }];
        let recording = Recording { threads, duration_ns: 2000, dropped: 3, ..Recording::default() };
        let table = Table::of(&recording);
        let own: Vec<_> = table.costs.iter().map(|cost| (cost.name, cost.count, cost.own_ns)).collect();
        // A layer of 600 has 100 of its own.
        assert_eq!(
            own,
            [
                ("linear", 1, 400),
                ("step", 1, 350),
                ("layer", 2, 180),
                ("softmax", 1, 100),
                ("sampling", 1, 50)
            ]
        );
        let text = table.to_string();
        assert!(
            text.contains(
                "linear                      20.0%       0.00        1        0.4      2.0      4.0"
            ),
            "{text}"
        );
        assert!(text.contains("3 later spans"), "{text}");
    }
}
