//! The loss as a picture: a PNG drawn here, on white, for places that show no page.
//!
//! Lines are drawn with the share of each pixel that they cover. Shape letters: W and H are the picture's width and height.

use miniz_oxide::deflate::compress_to_vec_zlib;

use super::{
    History,
    checksum::CRC32,
    plot::{Line, Plot, Role},
    strokes::{self, BASELINE},
};

const W: usize = 1600;
const H: usize = 900;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 1550.0;
const TOP: f64 = 120.0;
const BOTTOM: f64 = 810.0;

const INK: Colour = [29, 32, 36];
const SOFT: Colour = [102, 107, 115];
const GRID: Colour = [229, 226, 218];
const BLUE: Colour = [37, 87, 199];
const PALE: Colour = [185, 200, 236];
const ORANGE: Colour = [194, 86, 12];
const RED: Colour = [179, 38, 30];
const WHITE: Colour = [255, 255, 255];

type Colour = [u8; 3];
type Point = (f64, f64);

/// The file.
pub(super) fn render(history: &History) -> Vec<u8> {
    let plot = Plot::loss(history);
    let mut canvas = Canvas::new();
    canvas.frame(&plot);
    for line in &plot.lines {
        canvas.line(&plot, line);
    }
    for &step in &plot.broken {
        let x = place_x(&plot, step);
        canvas.stroke(&[(x, BOTTOM), (x, BOTTOM - 40.0)], 2.5, RED);
    }
    if let Some((step, loss)) = plot.best {
        canvas.ring(place(&plot, (step, loss)));
    }
    canvas.legend(&plot);
    if history.steps.is_empty() {
        canvas.text("no steps yet", (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM)), 0.5, 5.0, SOFT);
    }
    canvas.png()
}

fn place_x(plot: &Plot, step: f64) -> f64 {
    LEFT + plot.x.place(step) * (RIGHT - LEFT)
}

fn place(plot: &Plot, (step, loss): Point) -> Point {
    (place_x(plot, step), BOTTOM - plot.y.place(loss) * (BOTTOM - TOP))
}

/// Pixels, three bytes each.
struct Canvas {
    pixels: Vec<u8>,
    /// Of each pixel the share that the stroke being drawn covers.
    covered: Vec<f32>,
}

impl Canvas {
    fn new() -> Self {
        Self { pixels: vec![255; 3 * W * H], covered: vec![0.0; W * H] }
    }

    fn frame(&mut self, plot: &Plot) {
        for (value, label) in &plot.y.ticks {
            let y = place(plot, (0.0, *value)).1.round() + 0.5;
            self.stroke(&[(LEFT, y), (RIGHT, y)], 1.0, GRID);
            self.text(label, (LEFT - 20.0, y + 9.0), 1.0, 3.0, SOFT);
        }
        for (value, label) in &plot.x.ticks {
            self.text(label, (place_x(plot, *value), BOTTOM + 42.0), 0.5, 3.0, SOFT);
        }
        for &step in &plot.resumed {
            let x = place_x(plot, step).round() + 0.5;
            let mut y = TOP;
            while y < BOTTOM {
                self.stroke(&[(x, y), (x, (y + 8.0).min(BOTTOM))], 1.5, SOFT);
                y += 18.0;
            }
        }
        self.text("loss", (LEFT - 60.0, 66.0), 0.0, 4.5, INK);
        self.text("step", (RIGHT, BOTTOM + 74.0), 1.0, 3.0, SOFT);
    }

    fn line(&mut self, plot: &Plot, line: &Line) {
        let (width, colour) = look(line.role);
        for part in line.points.split(|point| !point.1.is_finite()).filter(|part| !part.is_empty()) {
            let points: Vec<Point> = part.iter().map(|&point| place(plot, point)).collect();
            let single = line.points.len() == 1;
            self.stroke(&points, if single { 12.0 } else { width }, colour);
            if line.role == Role::Evaluation && line.points.len() <= 60 {
                for &point in &points {
                    self.stroke(&[point], 10.0, colour);
                }
            }
        }
    }

    fn ring(&mut self, point: Point) {
        self.stroke(&[point], 24.0, ORANGE);
        self.stroke(&[point], 14.0, WHITE);
    }

    /// What the lines are, from the right.
    fn legend(&mut self, plot: &Plot) {
        let has = |role| plot.lines.iter().any(|line| line.role == role && !line.points.is_empty());
        let y = 66.0;
        let mut right = RIGHT;
        let mut entry = |canvas: &mut Self, words: &str, role: Option<Role>| {
            right -= canvas.text(words, (right, y), 1.0, 3.0, SOFT) + 14.0;
            match role {
                Some(role) => {
                    let (_, colour) = look(role);
                    canvas.stroke(&[(right - 34.0, y - 7.0), (right, y - 7.0)], 4.0, colour);
                    right -= 34.0;
                }
                None => {
                    canvas.ring((right - 12.0, y - 7.0));
                    right -= 24.0;
                }
            }
            right -= 44.0;
        };
        if let Some((step, loss)) = plot.best {
            entry(self, &format!("best {loss:.3} at step {step}"), None);
        }
        if has(Role::Evaluation) {
            entry(self, "validation", Some(Role::Evaluation));
        }
        if has(Role::Raw) {
            entry(self, "smoothed", Some(Role::Main));
            entry(self, "each step", Some(Role::Raw));
        } else {
            entry(self, "training", Some(Role::Main));
        }
    }

    /// Writes text whose baseline begins (`anchor` 0), is centred (½) or ends (1) at a point; returns its width. A row of the
    /// letters' grid is `size` pixels high.
    fn text(&mut self, text: &str, at: Point, anchor: f64, size: f64, colour: Colour) -> f64 {
        let writing = strokes::write(text);
        let width = writing.width * size;
        let (left, top) = (at.0 - anchor * width, at.1 - BASELINE * size);
        for stroke in &writing.strokes {
            let points: Vec<Point> =
                stroke.iter().map(|&(column, row)| (left + column * size, top + row * size)).collect();
            self.stroke(&points, 0.72 * size, colour);
        }
        width
    }

    /// Draws a line through points, round at ends and corners; of one point a disc.
    fn stroke(&mut self, points: &[Point], width: f64, colour: Colour) {
        let reach = width / 2.0 + 1.0;
        let around = |from: f64, to: f64, most: usize| {
            let low = (from.min(to) - reach).floor().clamp(0.0, most as f64) as usize;
            let high = (from.max(to) + reach).ceil().clamp(0.0, most as f64) as usize;
            low..high
        };
        let mut touched: Vec<usize> = Vec::new();
        let single = [points[0], points[0]];
        let segments = if points.len() == 1 { &single[..] } else { points };
        for pair in segments.windows(2) {
            for y in around(pair[0].1, pair[1].1, H) {
                for x in around(pair[0].0, pair[1].0, W) {
                    let centre = (x as f64 + 0.5, y as f64 + 0.5);
                    let share =
                        (width / 2.0 + 0.5 - distance(centre, pair[0], pair[1])).clamp(0.0, 1.0) as f32;
                    let covered = &mut self.covered[y * W + x];
                    // Once for the whole stroke: where two pieces meet it is no darker.
                    if share > *covered {
                        if *covered == 0.0 {
                            touched.push(y * W + x);
                        }
                        *covered = share;
                    }
                }
            }
        }
        // A line thinner than a pixel is paler.
        let strength = width.min(1.0) as f32;
        for index in touched {
            let share = strength * std::mem::take(&mut self.covered[index]);
            for (pixel, &colour) in self.pixels[3 * index..3 * index + 3].iter_mut().zip(&colour) {
                *pixel = (f32::from(*pixel) * (1.0 - share) + f32::from(colour) * share).round() as u8;
            }
        }
    }

    /// The file: a header, one chunk of compressed rows, an end.
    fn png(&self) -> Vec<u8> {
        let mut rows = Vec::with_capacity(H * (3 * W + 1));
        for row in self.pixels.chunks_exact(3 * W) {
            // Not filtered.
            rows.push(0);
            rows.extend(row);
        }
        let mut header = Vec::new();
        header.extend((W as u32).to_be_bytes());
        header.extend((H as u32).to_be_bytes());
        // Eight bits a channel, RGB, and the only methods there are.
        header.extend([8, 2, 0, 0, 0]);
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        for (kind, content) in
            [(b"IHDR", header), (b"IDAT", compress_to_vec_zlib(&rows, 6)), (b"IEND", Vec::new())]
        {
            file.extend((content.len() as u32).to_be_bytes());
            let start = file.len();
            file.extend(kind);
            file.extend(content);
            let check = CRC32.of(&file[start..]);
            file.extend(check.to_be_bytes());
        }
        file
    }
}

/// The width and colour of a line.
fn look(role: Role) -> (f64, Colour) {
    match role {
        Role::Raw => (1.25, PALE),
        Role::Main => (4.0, BLUE),
        Role::Evaluation => (3.0, ORANGE),
    }
}

/// Of a point from the piece of a line between two others.
fn distance(point: Point, from: Point, to: Point) -> f64 {
    let (along_x, along_y) = (to.0 - from.0, to.1 - from.1);
    let length = along_x * along_x + along_y * along_y;
    let share = if length == 0.0 {
        0.0
    } else {
        (((point.0 - from.0) * along_x + (point.1 - from.1) * along_y) / length).clamp(0.0, 1.0)
    };
    (point.0 - from.0 - share * along_x).hypot(point.1 - from.1 - share * along_y)
}

#[cfg(test)]
mod tests {
    use miniz_oxide::inflate::decompress_to_vec_zlib;

    use super::*;
    use crate::train::events::{Evaluation, Step, TrainEvent};

    /// The kinds and contents of a PNG's chunks, whose checks must fit.
    fn chunks(file: &[u8]) -> Vec<(&[u8], &[u8])> {
        let mut rest = file.strip_prefix(b"\x89PNG\r\n\x1a\n").unwrap();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk().unwrap();
            let (chunk, after) = after.split_at(4 + u32::from_be_bytes(*length) as usize);
            let (check, after) = after.split_first_chunk().unwrap();
            assert_eq!(CRC32.of(chunk), u32::from_be_bytes(*check));
            chunks.push(chunk.split_at(4));
            rest = after;
        }
        chunks
    }

    fn pixels(file: &[u8]) -> Vec<Colour> {
        let rows = decompress_to_vec_zlib(chunks(file)[1].1).unwrap();
        assert_eq!(rows.len(), H * (3 * W + 1));
        let rows = rows.chunks_exact(3 * W + 1);
        rows.flat_map(|row| row[1..].chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]])).collect()
    }

    fn history(losses: &[f64]) -> History {
        let mut history = History::default();
        for (index, &loss) in losses.iter().enumerate() {
            history.add(TrainEvent::Step(Step { step: index as u64 + 1, loss, ..Step::default() }));
        }
        history
    }

    #[test]
    fn the_file_has_the_chunks_of_a_png_and_shows_each_line() {
        let mut history = history(&[3.0, 2.5, f64::NAN, 2.0]);
        let file = render(&history);
        let kinds: Vec<&[u8]> = chunks(&file).iter().map(|chunk| chunk.0).collect();
        assert_eq!(kinds, [b"IHDR", b"IDAT", b"IEND"]);
        assert_eq!(chunks(&file)[0].1, [0, 0, 6, 64, 0, 0, 3, 132, 8, 2, 0, 0, 0]);
        let found = pixels(&file);
        assert!([WHITE, BLUE, RED, GRID].iter().all(|colour| found.contains(colour)));
        assert!(!found.contains(&ORANGE));
        history.add(TrainEvent::Evaluation(Evaluation { step: 2, loss: 2.2, ..Evaluation::default() }));
        assert!(pixels(&render(&history)).contains(&ORANGE));
    }

    #[test]
    fn every_history_makes_a_picture() {
        for losses in [vec![], vec![1.0], vec![f64::NAN; 40], vec![f64::INFINITY, 1.0]] {
            assert_eq!(pixels(&render(&history(&losses))).len(), W * H, "{losses:?}");
        }
    }
}
