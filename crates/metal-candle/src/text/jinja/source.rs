//! Rewrites template text before minijinja compiles it. Works on the tokens inside `{{ }}` and `{% %}`, never on
//! literal text, strings, comments or raw blocks.

use std::borrow::Cow;

/// Stands where a `generation` block starts; a noncharacter, so no text has it by right.
pub(in crate::text) const GENERATION_START: char = '\u{fdd0}';
/// Stands where a `generation` block ends.
pub(in crate::text) const GENERATION_END: char = '\u{fdd1}';
pub(super) const START_VARIABLE: &str = "__generation_start";
pub(super) const END_VARIABLE: &str = "__generation_end";
/// `value.items` without a call becomes `value.__attribute_items()`, so that a method can win over a key.
pub(super) const ATTRIBUTE_PREFIX: &str = "__attribute_";
/// `value['items']` becomes `value.__item_items()`, so that a missing key can give the method.
pub(super) const ITEM_PREFIX: &str = "__item_";
/// Methods of Python's dict: the names where attribute and key can be confused.
pub(super) const DICT_METHODS: [&str; 11] =
    ["items", "keys", "values", "get", "pop", "update", "copy", "clear", "setdefault", "popitem", "fromkeys"];

/// Rewrites a template's text. What is not understood is left alone, for the compiler to complain about.
pub(in crate::text) fn rewrite(template: &str) -> String {
    let template = normalize_newlines(template);
    let mut out = String::with_capacity(template.len() + 64);
    let mut rest: &str = &template;
    while let Some(start) = next_opening(rest) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = match &rest[..2] {
            "{#" => rest.find("#}").map(|at| at + 2),
            _ => match scan(rest) {
                Some((tokens, end)) => {
                    if is_tag(&tokens, "raw") {
                        let end = end_of_raw(rest, end);
                        end.inspect(|end| out.push_str(&rest[..*end]))
                    } else {
                        rewrite_block(&tokens, &mut out);
                        Some(end)
                    }
                }
                None => None,
            },
        };
        let Some(end) = end else { break };
        if rest.starts_with("{#") {
            out.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Jinja2 reads every kind of line end as `\n`.
fn normalize_newlines(text: &str) -> Cow<'_, str> {
    if text.contains('\r') {
        Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(text)
    }
}

fn next_opening(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `{{`, `{%` or an end, with its whitespace sign.
    Delimiter,
    Space,
    Name,
    Text,
    Number,
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

/// Splits one `{{ }}` or `{% %}` at the start of `text` into tokens; gives them with the length of the whole.
/// `None` if it does not end.
fn scan(text: &str) -> Option<(Vec<Token<'_>>, usize)> {
    let variable = text.starts_with("{{");
    let sign = usize::from(matches!(text.as_bytes().get(2), Some(b'-' | b'+')));
    let mut tokens = vec![Token { kind: Kind::Delimiter, text: &text[..2 + sign] }];
    let mut at = 2 + sign;
    let mut braces = 0usize;
    while at < text.len() {
        let rest = &text[at..];
        if braces == 0
            && let Some(length) = closing(rest, variable)
        {
            tokens.push(Token { kind: Kind::Delimiter, text: &rest[..length] });
            return Some((tokens, at + length));
        }
        let (kind, length) = next_token(rest)?;
        match &rest[..length] {
            "{" | "[" | "(" => braces += 1,
            "}" | "]" | ")" => braces = braces.saturating_sub(1),
            _ => {}
        }
        tokens.push(Token { kind, text: &rest[..length] });
        at += length;
    }
    None
}

fn closing(text: &str, variable: bool) -> Option<usize> {
    let end = if variable { "}}" } else { "%}" };
    let signed = text.starts_with(['-', '+']);
    text[usize::from(signed)..].starts_with(end).then_some(2 + usize::from(signed))
}

fn next_token(text: &str) -> Option<(Kind, usize)> {
    let first = text.chars().next()?;
    let span = |inside: fn(char) -> bool| text.find(|next| !inside(next)).unwrap_or(text.len());
    Some(match first {
        '\'' | '"' => (Kind::Text, quoted_length(text, first)?),
        _ if first.is_whitespace() => (Kind::Space, span(char::is_whitespace)),
        _ if first == '_' || first.is_alphabetic() => {
            (Kind::Name, span(|next| next == '_' || next.is_alphanumeric()))
        }
        '0'..='9' => (Kind::Number, span(|next| next == '_' || next.is_ascii_alphanumeric())),
        _ => (Kind::Other, first.len_utf8()),
    })
}

fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if character == '\\' {
            escaped = true;
        } else if character == quote {
            return Some(at + 1);
        }
    }
    None
}

fn is_tag(tokens: &[Token<'_>], name: &str) -> bool {
    tokens[0].text.starts_with("{%") && first_name(tokens) == Some(name)
}

fn first_name<'a>(tokens: &[Token<'a>]) -> Option<&'a str> {
    let first = tokens[1..].iter().find(|token| token.kind != Kind::Space)?;
    (first.kind == Kind::Name).then_some(first.text)
}

/// The end of the `{% endraw %}` that closes a raw block whose opening tag ends at `from`.
fn end_of_raw(text: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += text[at..].find("{%")?;
        if let Some((tokens, length)) = scan(&text[at..])
            && is_tag(&tokens, "endraw")
        {
            return Some(at + length);
        }
        at += 2;
    }
}

fn rewrite_block(tokens: &[Token<'_>], out: &mut String) {
    let (opening, closing) = (tokens[0].text, tokens[tokens.len() - 1].text);
    let alone = tokens.iter().filter(|token| token.kind != Kind::Space).count() == 3;
    // The blocks around the marks carry the tag's whitespace signs, and give the scope that transformers' block has.
    if alone && is_tag(tokens, "generation") {
        out.push_str(&format!("{opening} with %}}{{{{ {START_VARIABLE} }}}}{{% if true {closing}"));
    } else if alone && is_tag(tokens, "endgeneration") {
        out.push_str(&format!("{opening} endif %}}{{{{ {END_VARIABLE} }}}}{{% endwith {closing}"));
    } else {
        rewrite_expressions(tokens, out);
    }
}

fn rewrite_expressions(tokens: &[Token<'_>], out: &mut String) {
    let targets = assignment_targets(tokens);
    let mut index = 0;
    while index < tokens.len() {
        let token = tokens[index];
        let writable = targets.contains(&index);
        if !writable && let Some(name) = uncalled_attribute(tokens, index) {
            out.push_str(&format!(".{ATTRIBUTE_PREFIX}{name}()"));
            index += 2;
        } else if !writable && let Some((name, length)) = method_subscript(tokens, index) {
            out.push_str(&format!(".{ITEM_PREFIX}{name}()"));
            index += length;
        } else {
            match token.kind {
                Kind::Text if token.text.contains('\\') => out.push_str(&plain_escapes(token.text)),
                _ => out.push_str(token.text),
            }
            index += 1;
        }
    }
}

/// The tokens that `{% set … = %}` and `{% for … in %}` assign to.
fn assignment_targets(tokens: &[Token<'_>]) -> std::ops::Range<usize> {
    let end = if is_tag(tokens, "set") {
        tokens.iter().position(|token| token.text == "=").unwrap_or(tokens.len())
    } else if is_tag(tokens, "for") {
        tokens.iter().position(|token| token.text == "in").unwrap_or(0)
    } else {
        0
    };
    0..end
}

/// `.name` at `index`, where `name` is a method of dict and no call follows.
fn uncalled_attribute<'a>(tokens: &[Token<'a>], index: usize) -> Option<&'a str> {
    let [dot, name, ..] = tokens.get(index..)? else { return None };
    let follows = tokens[index + 2..].iter().find(|token| token.kind != Kind::Space)?;
    (dot.text == "." && dot.kind == Kind::Other && DICT_METHODS.contains(&name.text) && follows.text != "(")
        .then_some(name.text)
}

/// `['name']` at `index` behind a value, where `name` is a method of dict; with its number of tokens.
fn method_subscript<'a>(tokens: &[Token<'a>], index: usize) -> Option<(&'a str, usize)> {
    let [open, name, close, ..] = tokens.get(index..)? else { return None };
    if open.text != "[" || name.kind != Kind::Text || close.text != "]" {
        return None;
    }
    let before = tokens[..index].iter().rev().find(|token| token.kind != Kind::Space)?;
    let keyword = ["in", "if", "else", "and", "or", "not", "is", "set", "for", "elif"].contains(&before.text);
    let value = matches!(before.kind, Kind::Name | Kind::Text) || matches!(before.text, ")" | "]" | "}");
    let bare = &name.text[1..name.text.len() - 1];
    (value && !keyword && DICT_METHODS.contains(&bare)).then_some((bare, 3))
}

/// A string literal with Python's escapes as one with only those that minijinja reads the same way.
fn plain_escapes(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    out.push('"');
    for character in unescape(&literal[1..literal.len() - 1]).chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

/// Python's reading of a string literal; an escape that it does not know stays as it is.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(escape) = rest.chars().next() else {
            out.push('\\');
            break;
        };
        let after = &rest[escape.len_utf8()..];
        let simple = match escape {
            '\n' => Some(None),
            '\\' | '\'' | '"' => Some(Some(escape)),
            'a' => Some(Some('\x07')),
            'b' => Some(Some('\x08')),
            'f' => Some(Some('\x0c')),
            'n' => Some(Some('\n')),
            'r' => Some(Some('\r')),
            't' => Some(Some('\t')),
            'v' => Some(Some('\x0b')),
            _ => None,
        };
        if let Some(character) = simple {
            out.extend(character);
            rest = after;
            continue;
        }
        let numeric = match escape {
            'x' => digits(after, 2, 16, true),
            'u' => digits(after, 4, 16, true),
            'U' => digits(after, 8, 16, true),
            '0'..='7' => digits(rest, 3, 8, false),
            _ => None,
        };
        match numeric {
            Some((character, length)) => {
                out.push(character);
                rest = if escape.is_ascii_digit() { &rest[length..] } else { &after[length..] };
            }
            None => {
                out.push('\\');
                out.push(escape);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

fn digits(text: &str, count: usize, radix: u32, exact: bool) -> Option<(char, usize)> {
    let length = text.chars().take(count).take_while(|digit| digit.is_digit(radix)).count();
    if length == 0 || (exact && length < count) {
        return None;
    }
    let code = u32::from_str_radix(&text[..length], radix).ok()?;
    Some((char::from_u32(code)?, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_text_strings_comments_and_raw_blocks_stay() {
        for text in [
            "plain { text } with % signs",
            "{{ '{% generation %}' }}",
            "{# {% generation %} x.items #}",
            "{% raw %}{% generation %}{{ x.items }}{% endraw %}",
            "{{ x.items() }}{{ ['items'] }}{% set ns.items = 1 %}{% if 'a' in ['get'] %}{% endif %}",
            "{{ unclosed",
            "{% generation",
        ] {
            assert_eq!(rewrite(text), text);
        }
    }

    #[test]
    fn generation_tags_keep_their_whitespace_signs() {
        assert_eq!(
            rewrite("a {%- generation +%} b {% endgeneration -%} c"),
            "a {%- with %}{{ __generation_start }}{% if true +%} b {% endif %}{{ __generation_end }}{% endwith -%} c"
        );
    }

    #[test]
    fn dict_methods_without_a_call_are_looked_up_as_python_does() {
        assert_eq!(rewrite("{{ a.items.b }}"), "{{ a.__attribute_items().b }}");
        assert_eq!(rewrite("{{ a['items'] }}"), "{{ a.__item_items() }}");
    }

    #[test]
    fn strings_are_read_as_python_reads_them() {
        assert_eq!(rewrite(r"{{ '\d\x41\u00e9\n\'\101' }}"), "{{ \"\\\\dAé\\n'A\" }}");
    }
}
