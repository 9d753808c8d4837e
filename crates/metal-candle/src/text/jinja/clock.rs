//! The local time, for templates that print today's date.

use std::{
    fmt::{self, Write},
    str::FromStr,
};

use chrono::{
    NaiveDate, NaiveDateTime, Timelike,
    format::{Item, StrftimeItems},
};

const SECONDS: &str = "%Y-%m-%dT%H:%M:%S";

/// A wall-clock time without a zone, as `strftime_now` of a chat template sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime(NaiveDateTime);

impl LocalTime {
    /// The time now, in this machine's zone.
    pub fn now() -> Self {
        Self(chrono::Local::now().naive_local())
    }

    /// A fixed time; `None` if there is no such date or time.
    pub fn new(year: i32, month: u32, day: u32, hour: u32, minute: u32, second: u32) -> Option<Self> {
        NaiveDate::from_ymd_opt(year, month, day)?.and_hms_opt(hour, minute, second).map(Self)
    }

    /// Python's `datetime.strftime` for a time without a zone; `None` for a format that is not known.
    pub(super) fn format(self, format: &str) -> Option<String> {
        let format = zoneless(format, self.0.nanosecond() / 1000);
        let items: Vec<Item<'_>> = StrftimeItems::new(&format).collect();
        if items.iter().any(|item| matches!(item, Item::Error)) {
            return None;
        }
        let mut text = String::new();
        write!(text, "{}", self.0.format_with_items(items.iter())).ok()?;
        Some(text)
    }
}

/// To the second, as in `2026-01-31T23:59:00`.
impl fmt::Display for LocalTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.format(SECONDS))
    }
}

impl FromStr for LocalTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = NaiveDateTime::parse_from_str(text, SECONDS);
        parsed.map(Self).map_err(|error| format!("{text} is no time: {error}"))
    }
}

/// Fills in what chrono reads otherwise: `%f` has six digits, and a time without a zone prints none.
fn zoneless(format: &str, microsecond: u32) -> String {
    let mut out = String::with_capacity(format.len());
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let directive = rest[1..].chars().next();
        match directive {
            Some('f') => out.push_str(&format!("{microsecond:06}")),
            Some('Z' | 'z') => {}
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
        rest = &rest[1 + directive.map_or(0, char::len_utf8)..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::LocalTime;

    #[test]
    fn prints_as_python_does() {
        let time = LocalTime::new(2026, 2, 3, 14, 5, 9).unwrap();
        for (format, expected) in [
            ("%d %b %Y", "03 Feb 2026"),
            ("%Y-%m-%d %H:%M:%S", "2026-02-03 14:05:09"),
            ("%A, %B %-d, %I:%M %p", "Tuesday, February 3, 02:05 PM"),
            ("%j %y %f%Z%z 100%%", "034 26 000000 100%"),
            ("%c", "Tue Feb  3 14:05:09 2026"),
        ] {
            assert_eq!(time.format(format).as_deref(), Some(expected), "{format}");
        }
        assert_eq!(time.format("%!"), None);
    }
}
