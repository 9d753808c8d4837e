//! Puts the results of `+`, `~` and `*` through a filter that counts their bytes: `a ~ b` becomes `(a ~ b)|__spend`.
//!
//! Only the extent of each operation must be known for that, not what its operands mean.

use super::source::{Kind, Token, first_name};

/// The filter.
pub(super) const SPEND_FILTER: &str = "__spend";
/// An operation of one precedence is counted after so many operators at the latest: between two counts a value cannot
/// grow by more than that, and brackets do not nest too deep for minijinja's parser.
const LONGEST_RUN: usize = 16;
/// Words that end an operand.
const WORDS: [&str; 11] =
    ["and", "or", "if", "else", "elif", "in", "recursive", "as", "import", "with", "ignore"];

/// The tokens of one `{{ }}` or `{% %}` with all operations counted. What is not understood stays as it is.
pub(super) fn count_results<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut groups =
        Groups { level: Level::default(), outer: Vec::new(), opened: Vec::new(), closed: Vec::new() };
    let tag = first_name(tokens);
    let mut before = ["", ""];
    for (index, token) in tokens.iter().enumerate().filter(|(_, token)| token.kind != Kind::Space) {
        let names_tag = index > 0 && before[1].starts_with("{%") && tag.is_some();
        // `is in` and `is not in` name a test.
        let names_test = before[1] == "is" || before == ["is", "not"];
        let word = token.kind == Kind::Name && !names_test;
        let ends = names_tag
            || token.kind == Kind::Delimiter
            || (word && (token.text == "not" || WORDS.contains(&token.text)));
        groups.take(index, token, ends);
        before = [before[1], token.text];
    }
    groups.finish();
    groups.inserted(tokens)
}

/// Operands and the operators between them, at one depth of brackets.
#[derive(Default)]
struct Level {
    /// Begin and end, as indices of tokens.
    operands: Vec<(usize, usize)>,
    operators: Vec<Operator>,
    current: Option<Operand>,
}

#[derive(Clone, Copy)]
struct Operand {
    begin: usize,
    end: usize,
    /// More than signs.
    has_value: bool,
}

#[derive(Clone, Copy)]
struct Operator {
    at: usize,
    precedence: u8,
    grows: bool,
}

struct Groups {
    level: Level,
    outer: Vec<Level>,
    /// Where brackets open, and where they close.
    opened: Vec<usize>,
    closed: Vec<usize>,
}

impl Groups {
    fn take(&mut self, index: usize, token: &Token<'_>, ends: bool) {
        let text = token.text;
        match text {
            _ if ends => self.finish(),
            "(" | "[" | "{" => {
                self.level.extend(index, false);
                self.outer.push(std::mem::take(&mut self.level));
            }
            ")" | "]" | "}" => {
                self.finish();
                self.level = self.outer.pop().unwrap_or_default();
                self.level.extend(index, true);
            }
            "," | ":" | ";" | "=" | "!" | "<" | ">" => self.finish(),
            "+" | "-" | "~" | "*" | "/" | "%" => {
                if !self.level.operate(index, text) {
                    self.finish();
                }
            }
            // The exponent of `1e-5` is another token.
            _ => self.level.extend(index, !(token.kind == Kind::Number && text.ends_with(['e', 'E']))),
        }
    }

    fn finish(&mut self) {
        std::mem::take(&mut self.level).finish(&mut self.opened, &mut self.closed);
    }

    fn inserted<'a>(&self, tokens: &[Token<'a>]) -> Vec<Token<'a>> {
        if self.opened.is_empty() {
            return tokens.to_vec();
        }
        let count = |places: &[usize]| {
            let mut counts = vec![0; tokens.len() + 1];
            places.iter().for_each(|&place| counts[place] += 1);
            counts
        };
        let (opened, closed) = (count(&self.opened), count(&self.closed));
        let mut out = Vec::with_capacity(tokens.len() + 5 * self.opened.len());
        for (index, token) in tokens.iter().enumerate() {
            for _ in 0..closed[index] {
                out.extend(
                    [(Kind::Other, ")"), (Kind::Other, "|"), (Kind::Name, SPEND_FILTER)].map(token_of),
                );
            }
            out.extend((0..opened[index]).map(|_| token_of((Kind::Other, "("))));
            out.push(*token);
        }
        out
    }
}

fn token_of((kind, text): (Kind, &'static str)) -> Token<'static> {
    Token { kind, text }
}

impl Level {
    /// The token at `index` belongs to an operand.
    fn extend(&mut self, index: usize, is_value: bool) {
        let operand = self.current.get_or_insert(Operand { begin: index, end: index, has_value: false });
        operand.end = index + 1;
        operand.has_value = is_value;
    }

    /// Takes an operator or a sign; false for a sign that means something else.
    fn operate(&mut self, index: usize, text: &str) -> bool {
        if let Some(operand) = self.current.filter(|operand| operand.has_value) {
            self.operands.push((operand.begin, operand.end));
            self.current = None;
            let precedence = match text {
                "+" | "-" => 1,
                "~" => 2,
                _ => 3,
            };
            self.operators.push(Operator { at: index, precedence, grows: matches!(text, "+" | "~" | "*") });
            return true;
        }
        match (self.operators.last_mut(), text) {
            (_, "-" | "+") => self.extend(index, false),
            // The second sign of `**` and `//`.
            (Some(last), "*" | "/") if self.current.is_none() && last.at + 1 == index => {
                last.precedence = if text == "*" { 4 } else { 3 };
                last.grows = false;
            }
            _ => return false,
        }
        true
    }

    /// Finds what brackets belong around, now that the level has ended.
    fn finish(mut self, opened: &mut Vec<usize>, closed: &mut Vec<usize>) {
        self.operands.extend(self.current.map(|operand| (operand.begin, operand.end)));
        if self.operands.len() != self.operators.len() + 1 {
            return;
        }
        for (index, operator) in self.operators.iter().enumerate() {
            let binds_less = |other: &Operator| other.precedence < operator.precedence;
            let first = self.operators[..index].iter().rposition(binds_less).map_or(0, |before| before + 1);
            let run =
                self.operators[first..=index].iter().filter(|other| other.precedence == operator.precedence);
            let (length, grows) =
                run.fold((0, false), |(length, grows), other| (length + 1, grows || other.grows));
            let next =
                self.operators[index + 1..].iter().position(|other| other.precedence <= operator.precedence);
            let end = next.map_or(self.operators.len(), |after| index + 1 + after);
            let last = self.operators.get(end).is_none_or(binds_less);
            if grows && (last || length % LONGEST_RUN == 0) {
                opened.push(self.operands[first].0);
                closed.push(self.operands[end].1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::rewrite;

    #[test]
    fn operations_are_counted_where_they_end() {
        for (from, to) in [
            ("{{ a + b }}", "{{ (a + b)|__spend }}"),
            ("{{ a ~ b ~ c }}", "{{ (a ~ b ~ c)|__spend }}"),
            ("{{ a + b * c ~ d - e }}", "{{ (a + ((b * c)|__spend ~ d)|__spend - e)|__spend }}"),
            ("{{ -a * -2 }}", "{{ (-a * -2)|__spend }}"),
            (
                "{% set x.y = x.y + [a, b ~ c]|f(d + 1) %}",
                "{% set x.y = (x.y + [a, (b ~ c)|__spend]|f((d + 1)|__spend))|__spend %}",
            ),
            (
                "{%- for a in b + c if d ~ e == f -%}",
                "{%- for a in (b + c)|__spend if (d ~ e)|__spend == f -%}",
            ),
            (
                "{% if a + b not in c and d is not in e %}",
                "{% if (a + b)|__spend not in c and d is not in e %}",
            ),
            ("{{ a + b is not none }}", "{{ (a + b is not none)|__spend }}"),
            ("{{ a ~ (b if c ~ d else -1) }}", "{{ (a ~ (b if (c ~ d)|__spend else -1))|__spend }}"),
            ("{{ {'a': b + 1}[c ~ 'd'] }}", "{{ {'a': (b + 1)|__spend}[(c ~ 'd')|__spend] }}"),
            ("{{ f(a=b + c, *d) }}", "{{ f(a=(b + c)|__spend, *d) }}"),
            ("{{ 1e-5 - 2 ** 3 // 4 % 5 }}", "{{ 1e-5 - 2 ** 3 // 4 % 5 }}"),
            ("{{ a + 1e-5 }}", "{{ (a + 1e-5)|__spend }}"),
            ("{{ a + }}", "{{ a + }}"),
        ] {
            assert_eq!(rewrite(from).expect("not too deep"), to);
        }
    }

    #[test]
    fn long_runs_are_counted_on_the_way() {
        let rewritten = rewrite(&format!("{{{{ {}x }}}}", "x ~ ".repeat(40))).expect("not too deep");
        assert_eq!(rewritten.matches("__spend").count(), 3);
        assert!(rewritten.starts_with("{{ (((x ~ x"), "{rewritten}");
    }
}
