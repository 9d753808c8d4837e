//! A curve in one line of text.

use metal_candle::train::report::bucket_means;

/// Fits beside two numbers in a narrow terminal.
const WIDTH: usize = 40;
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII: [char; 5] = ['_', '.', '-', '=', '#'];

/// The values from left to right, low to high; `x` where none is finite.
pub(crate) fn sparkline(values: &[f64], unicode: bool) -> String {
    let levels = if unicode { &BLOCKS[..] } else { &ASCII[..] };
    let means = bucket_means(values, WIDTH);
    let finite = || means.iter().copied().filter(|mean| mean.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let level = |mean: f64| {
        let share = if high > low { (mean - low) / (high - low) } else { 0.0 };
        levels[((share * levels.len() as f64) as usize).min(levels.len() - 1)]
    };
    means.iter().map(|&mean| if mean.is_finite() { level(mean) } else { 'x' }).collect()
}

/// Whether the terminal shows more than ASCII, as far as the environment says.
pub(crate) fn unicode_terminal() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // The first one that is set decides, as in every C program; Windows' own new terminal sets none of them.
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
    locale.map_or(set("WT_SESSION").is_some(), |locale| names_utf8(&locale))
}

fn names_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_and_lowest_values_get_the_outer_levels() {
        assert_eq!(sparkline(&[8.0, 4.0, 1.0, f64::NAN], true), "█▄▁x");
        assert_eq!(sparkline(&[8.0, 4.0, 1.0], false), "#-_");
        assert_eq!(sparkline(&[2.0, 2.0], true), "▁▁");
        assert_eq!(sparkline(&[], true), "");
        assert_eq!(sparkline(&[f64::NAN], true), "x");
        assert_eq!(sparkline(&vec![1.0; 10_000], false).len(), WIDTH);
    }

    #[test]
    fn locales() {
        assert!(names_utf8("de_DE.UTF-8") && names_utf8("C.utf8"));
        assert!(!names_utf8("C") && !names_utf8("en_US.ISO-8859-1"));
    }
}
