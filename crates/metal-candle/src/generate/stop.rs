//! Stop strings, found across token borders.
//!
//! The text is read byte by byte by one Knuth–Morris–Pratt automaton per stop string, so each byte is read once,
//! however the text is cut into pieces. What is shown is what a search of the whole text would leave: everything before
//! the leftmost stop string; of two that begin at the same place, the shorter.

/// Stop strings cannot be used as given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// An empty stop string would stop at once.
    #[error("stop string number {index} (counted from 0) is empty; remove it")]
    Empty {
        /// Its place in the list.
        index: usize,
    },
}

/// Whether the stop string itself is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopText {
    /// The text ends before it.
    #[default]
    Exclude,
    /// The text ends with it.
    Include,
}

/// What a piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that can be shown now: no stop string can begin in it any more.
    pub emit: String,
    /// Which stop string ended the text. It is reported once more by each later call.
    pub stopped: Option<usize>,
}

/// Watches a growing text for stop strings and holds back only what may still become one.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    stop_text: StopText,
    /// Text not shown yet: the longest ending that is the beginning of a stop string.
    held: String,
    /// Bytes of `held` that the automata have read.
    read: usize,
    /// The leftmost stop string so far, while an unfinished one that begins before it may still win.
    found: Option<Found>,
    stopped: Option<usize>,
}

/// Where a stop string lies in `held`.
#[derive(Clone, Copy, Debug)]
struct Found {
    pattern: usize,
    start: usize,
    end: usize,
}

impl StopMatcher {
    /// A matcher for these stop strings; there may be none.
    pub fn new<S: AsRef<str>>(
        stops: impl IntoIterator<Item = S>,
        stop_text: StopText,
    ) -> Result<Self, StopError> {
        let pattern = |(index, stop): (usize, S)| match stop.as_ref() {
            "" => Err(StopError::Empty { index }),
            stop => Ok(Pattern::new(stop.as_bytes())),
        };
        let patterns = stops.into_iter().enumerate().map(pattern).collect::<Result<_, _>>()?;
        Ok(Self { patterns, stop_text, held: String::new(), read: 0, found: None, stopped: None })
    }

    /// Takes the next piece of text. After a stop string everything is swallowed.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped.is_some() {
            return StopOutcome { emit: String::new(), stopped: self.stopped };
        }
        self.held.push_str(piece);
        while self.read < self.held.len() {
            self.read_byte();
            if let Some(found) = self.found.filter(|found| self.earliest_open() >= found.start) {
                return self.stop(found);
            }
        }
        // An open match begins with a whole character, and so does what follows the text to show.
        let safe = self.earliest_open();
        StopOutcome { emit: self.release(safe), stopped: None }
    }

    /// The text has ended: what was held back will not become a longer stop string.
    pub fn flush(&mut self) -> StopOutcome {
        match self.found {
            Some(found) => self.stop(found),
            None => StopOutcome { emit: self.release(self.held.len()), stopped: self.stopped },
        }
    }

    /// Which stop string ended the text.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Feeds one byte to every automaton and keeps the leftmost finished match.
    fn read_byte(&mut self) {
        let byte = self.held.as_bytes()[self.read];
        self.read += 1;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            if !pattern.advance(byte) {
                continue;
            }
            let start = self.read - pattern.bytes.len();
            if self.found.is_none_or(|found| start < found.start) {
                self.found = Some(Found { pattern: index, start, end: self.read });
            }
        }
    }

    /// Where the longest unfinished match begins; the end of the text if there is none.
    fn earliest_open(&self) -> usize {
        self.read - self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0)
    }

    fn stop(&mut self, found: Found) -> StopOutcome {
        self.stopped = Some(found.pattern);
        self.found = None;
        let end = match self.stop_text {
            StopText::Exclude => found.start,
            StopText::Include => found.end,
        };
        let emit = self.release(end);
        self.held.clear();
        self.read = 0;
        StopOutcome { emit, stopped: self.stopped }
    }

    /// Removes the first `length` bytes of the held text and returns them.
    fn release(&mut self, length: usize) -> String {
        self.read = self.read.saturating_sub(length);
        if let Some(found) = &mut self.found {
            // A found match waits for an open one before it, which is held: nothing from there on is released.
            (found.start, found.end) = (found.start - length, found.end - length);
        }
        if length == self.held.len() {
            std::mem::take(&mut self.held)
        } else {
            self.held.drain(..length).collect()
        }
    }
}

/// One stop string and how much of it the text ends with.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each length of a match, the length of the longest shorter one that the same text ends with.
    shorter: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut shorter = vec![0; bytes.len() + 1];
        let mut border = 0;
        for length in 2..=bytes.len() {
            while border > 0 && bytes[border] != bytes[length - 1] {
                border = shorter[border];
            }
            border += usize::from(bytes[border] == bytes[length - 1]);
            shorter[length] = border;
        }
        Self { bytes: bytes.to_vec(), shorter, matched: 0 }
    }

    /// Reads one byte; whether the whole pattern ends here.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.shorter[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        let complete = self.matched == self.bytes.len();
        if complete {
            self.matched = self.shorter[self.matched];
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The whole text searched at once: what is shown and which stop string ended it.
    fn search(text: &str, stops: &[String], stop_text: StopText) -> (String, Option<usize>) {
        let place = |(index, stop): (usize, &String)| text.find(stop).map(|start| (start, stop.len(), index));
        match stops.iter().enumerate().filter_map(place).min() {
            None => (text.to_owned(), None),
            Some((start, length, index)) => {
                let end = if stop_text == StopText::Include { start + length } else { start };
                (text[..end].to_owned(), Some(index))
            }
        }
    }

    /// Pushes the pieces and checks each step: what is held back must be the beginning of a stop string, and the
    /// longest one.
    fn stream(pieces: &[&str], stops: &[String], stop_text: StopText) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops, stop_text).unwrap();
        let (mut shown, mut read) = (String::new(), String::new());
        for piece in pieces {
            read.push_str(piece);
            let outcome = matcher.push(piece);
            shown.push_str(&outcome.emit);
            if outcome.stopped.is_some() {
                assert_eq!(
                    matcher.push("more"),
                    StopOutcome { emit: String::new(), stopped: outcome.stopped }
                );
                return (shown, outcome.stopped);
            }
            assert!(read.starts_with(&shown));
            if stops.iter().all(|stop| !read.contains(stop.as_str())) {
                let could_open = |start: &usize| stops.iter().any(|stop| stop.starts_with(&read[*start..]));
                let safe = read.char_indices().map(|(start, _)| start).find(could_open).unwrap_or(read.len());
                assert_eq!(shown.len(), safe, "held back too much or too little of {read:?} for {stops:?}");
            }
        }
        let outcome = matcher.flush();
        shown.push_str(&outcome.emit);
        assert_eq!(matcher.stopped(), outcome.stopped);
        assert_eq!(matcher.flush().emit, "");
        (shown, outcome.stopped)
    }

    fn owned(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|&stop| stop.to_owned()).collect()
    }

    #[test]
    fn every_split_into_three_pieces_gives_the_same() {
        let cases: [(&str, &[&str]); 9] = [
            ("hello STOP world", &["STOP"]),
            ("hello STO world", &["STOP"]),
            ("aaaaab", &["aab"]),
            ("abcx", &["abcd", "bc"]),
            ("abcd", &["abcd", "bc"]),
            ("abc", &["abcd", "bc"]),
            ("grüße 日本語 ende", &["本語", "ßx"]),
            ("one\n\nUser: two", &["\n\nUser:", "\n\nuser", "\n\n\n"]),
            ("no stops at all", &[]),
        ];
        for (text, stops) in cases {
            let stops = owned(stops);
            let borders: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
            for stop_text in [StopText::Exclude, StopText::Include] {
                let expected = search(text, &stops, stop_text);
                for &first in &borders {
                    for &second in borders.iter().filter(|&&second| second >= first) {
                        let pieces = [&text[..first], &text[first..second], &text[second..]];
                        assert_eq!(stream(&pieces, &stops, stop_text), expected, "{pieces:?} {stops:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_leftmost_and_then_the_shortest_wins() {
        assert_eq!(search("xabcd", &owned(&["bc", "abcd"]), StopText::Exclude), ("x".to_owned(), Some(1)));
        assert_eq!(
            stream(&["xab", "cd"], &owned(&["bc", "abcd"]), StopText::Exclude),
            ("x".to_owned(), Some(1))
        );
        assert_eq!(
            stream(&["xab", "cy"], &owned(&["bc", "abcd"]), StopText::Exclude),
            ("xa".to_owned(), Some(0))
        );
        assert_eq!(
            stream(&["x\n\n"], &owned(&["\n\n", "\n"]), StopText::Include),
            ("x\n".to_owned(), Some(1))
        );
    }

    #[test]
    fn text_is_shown_as_soon_as_it_is_safe() {
        let mut matcher = StopMatcher::new(["</s>"], StopText::Exclude).unwrap();
        assert_eq!(matcher.push("a < b"), StopOutcome { emit: "a < b".to_owned(), stopped: None });
        assert_eq!(matcher.push(" </"), StopOutcome { emit: " ".to_owned(), stopped: None });
        assert_eq!(matcher.push("b"), StopOutcome { emit: "</b".to_owned(), stopped: None });
        assert_eq!(matcher.push("</s> tail"), StopOutcome { emit: String::new(), stopped: Some(0) });
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert_eq!(
            StopMatcher::new(["a", ""], StopText::Exclude).unwrap_err(),
            StopError::Empty { index: 1 }
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_split_equals_a_search_of_the_whole(
            pieces in vec("[abé日]{0,4}", 0..8),
            stops in vec("[abé日]{1,5}", 0..4),
            include: bool,
        ) {
            let stop_text = if include { StopText::Include } else { StopText::Exclude };
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(stream(&pieces, &stops, stop_text), search(&pieces.concat(), &stops, stop_text));
        }
    }
}
