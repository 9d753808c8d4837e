//! Splits preprocessed source into tokens that, put together again, are the source.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// White space and line markers of the preprocessor.
    Space,
    /// An identifier or keyword.
    Word,
    /// A literal: number, character or text.
    Literal,
    /// One character of punctuation.
    Mark,
}

/// A part of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'source> {
    pub(super) kind: Kind,
    pub(super) text: &'source str,
}

impl Token<'_> {
    /// Whether it is this word or mark.
    pub(super) fn is(&self, text: &str) -> bool {
        self.kind != Kind::Space && self.text == text
    }
}

/// All tokens of the source.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = if first.is_whitespace() {
            (Kind::Space, length_while(rest, char::is_whitespace))
        } else if first == '#' {
            (Kind::Space, rest.find('\n').unwrap_or(rest.len()))
        } else if first.is_ascii_digit() || (first == '.' && starts_with_digit(&rest[1..])) {
            (Kind::Literal, number_length(rest))
        } else if first == '"' || first == '\'' {
            (Kind::Literal, quoted_length(rest, first))
        } else if is_word(first) {
            (Kind::Word, length_while(rest, is_word))
        } else {
            (Kind::Mark, first.len_utf8())
        };
        let (text, after) = rest.split_at(length);
        tokens.push(Token { kind, text });
        rest = after;
    }
    tokens
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|character: char| character.is_ascii_digit())
}

fn length_while(text: &str, accept: impl Fn(char) -> bool) -> usize {
    text.find(|character| !accept(character)).unwrap_or(text.len())
}

/// Digits, letters and points, and a sign behind an exponent.
fn number_length(text: &str) -> usize {
    let mut previous = ' ';
    let end = text.find(|character: char| {
        let sign = matches!(character, '+' | '-') && matches!(previous, 'e' | 'E' | 'p' | 'P');
        previous = character;
        !(is_word(character) || character == '.' || sign)
    });
    end.unwrap_or(text.len())
}

/// Up to and with the closing quote; the preprocessor has seen that there is one.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_the_whole_source() {
        let source =
            "# 1 \"a.metal\"\nkernel void f(device float *x [[buffer(0)]]) { x[0] = 1.5e-3f + .5h; }\n";
        let tokens = tokens(source);
        assert_eq!(tokens.iter().map(|token| token.text).collect::<String>(), source);
        let literals: Vec<&str> =
            tokens.iter().filter(|token| token.kind == Kind::Literal).map(|token| token.text).collect();
        assert_eq!(literals, ["0", "0", "1.5e-3f", ".5h"]);
    }

    #[test]
    fn quotes_hide_what_looks_like_code() {
        let tokens = tokens(r#"a("x\"[[ ';", '\'')"#);
        let texts: Vec<&str> = tokens.iter().map(|token| token.text).filter(|text| *text != " ").collect();
        assert_eq!(texts, ["a", "(", r#""x\"[[ ';""#, ",", r"'\''", ")"]);
    }
}
