//! Letters of a pen: the few words and numbers of the picture, without a font file.
//!
//! A glyph is a list of strokes on a grid 10 rows high: capitals and digits stand between rows 0 and 6, small letters
//! between 2 and 6, tails reach down to 8. A stroke is a list of points, each two digits, column and row. After `~` the
//! points bend the pen, a quadratic B-spline, instead of being corners.

/// Rows from the top of the digits to the line that they stand on.
pub(super) const BASELINE: f64 = 6.0;
/// Empty columns after a glyph.
const GAP: f64 = 1.6;
/// Columns of a space.
const SPACE: f64 = 2.4;
/// Straight pieces of one bend.
const PIECES: usize = 6;

/// Strokes in columns and rows, and the columns that they take.
pub(super) struct Writing {
    pub(super) strokes: Vec<Vec<(f64, f64)>>,
    pub(super) width: f64,
}

/// Writes a text. Capitals are written small; a character that is not known leaves a space.
pub(super) fn write(text: &str) -> Writing {
    let mut strokes = Vec::new();
    let mut left = 0.0;
    for character in text.chars() {
        let glyph = glyph(character.to_ascii_lowercase());
        let mut right: f64 = if glyph.is_empty() { SPACE - GAP } else { 0.0 };
        for stroke in glyph.split_ascii_whitespace() {
            let points = points(stroke);
            right = points.iter().fold(right, |right, point| right.max(point.0));
            strokes.push(points.into_iter().map(|(column, row)| (left + column, row)).collect());
        }
        left += right + GAP;
    }
    Writing { strokes, width: (left - GAP).max(0.0) }
}

fn points(stroke: &str) -> Vec<(f64, f64)> {
    let (bent, digits) = stroke.strip_prefix('~').map_or((false, stroke), |digits| (true, digits));
    let digit = |byte: u8| f64::from(byte - b'0');
    let corners: Vec<(f64, f64)> =
        digits.as_bytes().chunks_exact(2).map(|pair| (digit(pair[0]), digit(pair[1]))).collect();
    if bent { bend(&corners) } else { corners }
}

/// The B-spline of the corners, closed where the last is the first.
fn bend(corners: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let middle =
        |one: (f64, f64), other: (f64, f64)| (f64::midpoint(one.0, other.0), f64::midpoint(one.1, other.1));
    let last = corners.len() - 1;
    let closed = corners[0] == corners[last];
    let around = if closed { 0..last } else { 1..last };
    let at = |index: usize| corners[if closed { index % last } else { index }];
    let mut points = Vec::new();
    for index in around {
        let before = at(if closed { index + last - 1 } else { index - 1 });
        let start = if !closed && index == 1 { before } else { middle(before, at(index)) };
        let after = at(index + 1);
        let end = if !closed && index + 1 == last { after } else { middle(at(index), after) };
        for piece in 0..=PIECES {
            let share = piece as f64 / PIECES as f64;
            let mix = |from: f64, over: f64, to: f64| {
                (1.0 - share).powi(2) * from + 2.0 * share * (1.0 - share) * over + share.powi(2) * to
            };
            let over = at(index);
            points.push((mix(start.0, over.0, end.0), mix(start.1, over.1, end.1)));
        }
    }
    points
}

fn glyph(character: char) -> &'static str {
    match character {
        '0' => "~0040460600",
        '1' => "012026",
        '2' => "~0200404306 0646",
        '3' => "~0100404323 ~2343460605",
        '4' => "36300444",
        '5' => "400003 ~0342460605",
        '6' => "~30000646420204",
        '7' => "004016",
        '8' => "~0040430300 ~0343460603",
        '9' => "~16464000044442",
        '.' => "0606",
        ',' => "0607",
        '-' => "0333",
        '/' => "0640",
        ':' => "0303 0606",
        'a' => "~4202064642 4246",
        'b' => "0006 ~0242460602",
        'c' => "~434202064645",
        'd' => "~4202064642 4046",
        'e' => "0444 ~444202064645",
        'f' => "~301013 1316 0232",
        'g' => "~4202064642 4246 ~46480807",
        'h' => "0006 ~04024244 4446",
        'i' => "0206 0000",
        'j' => "1216 ~161808 1010",
        'k' => "0006 320436",
        'l' => "0006",
        'm' => "0206 ~04023234 3436 ~34326264 6466",
        'n' => "0206 ~04024244 4446",
        'o' => "~0242460602",
        'p' => "0208 ~0242460602",
        'q' => "~4202064642 4248",
        'r' => "0206 ~040232",
        's' => "~4342020444460605",
        't' => "1015 ~151636 0232",
        'u' => "0204 ~04064644 4246",
        'v' => "022642",
        'w' => "0216335662",
        'x' => "0246 4206",
        'y' => "0226 4218",
        'z' => "02420646",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_glyph_stays_on_its_grid() {
        for character in ('a'..='z').chain('0'..='9').chain(".,-/:".chars()) {
            let writing = write(&character.to_string());
            assert!(!writing.strokes.is_empty(), "{character}");
            for &(column, row) in writing.strokes.iter().flatten() {
                assert!((0.0..=writing.width + 1e-9).contains(&column), "{character}: column {column}");
                assert!((0.0..=8.0).contains(&row), "{character}: row {row}");
            }
        }
    }

    #[test]
    fn letters_stand_side_by_side() {
        let [one, two, space] = ["1", "11", "1 1"].map(|text| write(text).width);
        assert_eq!(two, 2.0 * one + GAP);
        assert_eq!(space, two + SPACE);
        assert_eq!(write("").width, 0.0);
    }
}
