//! Numbers as people read them.

/// A time with three digits that count.
pub(crate) fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        ..1e3 => (nanoseconds, "ns"),
        ..1e6 => (nanoseconds / 1e3, "µs"),
        ..1e9 => (nanoseconds / 1e6, "ms"),
        _ => (nanoseconds / 1e9, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Three digits that count, for values above 0.1.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A share in percent.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

pub(crate) fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{} {}", digits(value), units[unit]) }
}

/// A rate, such as 12.3 GB/s.
pub(crate) fn rate(per_second: f64, unit: &str) -> String {
    let (value, prefix) = match per_second {
        ..1e9 => (per_second / 1e6, "M"),
        ..1e12 => (per_second / 1e9, "G"),
        _ => (per_second / 1e12, "T"),
    };
    format!("{} {prefix}{unit}/s", digits(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            ["1.23 ns", "45.7 µs", "123 ms", "2.00 s"],
            [time(1.234), time(45_678.0), time(123e6), time(2e9)]
                .map(|text| text)
                .each_ref()
                .map(String::as_str)
        );
        assert_eq!(digits(9.996), "10.0");
        assert_eq!([percent(0.0123), percent(0.5)], ["1.2 %", "50 %"]);
        assert_eq!([bytes(100.0), bytes(1536.0)], ["100 B", "1.50 KiB"]);
        assert_eq!(rate(12.34e9, "B"), "12.3 GB/s");
    }
}
