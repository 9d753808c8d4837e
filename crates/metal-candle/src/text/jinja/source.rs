//! Rewrites template text before minijinja compiles it. Works on the tokens inside `{{ }}` and `{% %}`, never on
//! literal text, strings, comments or raw blocks.

use std::borrow::Cow;

use super::operators::count_results;

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
/// `value[start:stop:step]` becomes `value.__slice(start, stop, step)`, which knows negative steps.
pub(super) const SLICE_METHOD: &str = "__slice";
/// Methods of Python's dict: the names where attribute and key can be confused.
pub(super) const DICT_METHODS: [&str; 11] =
    ["items", "keys", "values", "get", "pop", "update", "copy", "clear", "setdefault", "popitem", "fromkeys"];

/// How many tokens an expression may have without a comma, so that its parse tree fits the stack.
const MAX_EXPRESSION: usize = 1000;
/// How many `elif` may follow each other, for the same reason.
const MAX_ELIF: usize = 200;

/// A template that is too deep to compile safely: the line, and what is too deep.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::text) struct TooDeep {
    pub(in crate::text) line: usize,
    pub(in crate::text) reason: &'static str,
}

/// Rewrites a template's text. What is not understood is left alone, for the compiler to complain about.
pub(in crate::text) fn rewrite(template: &str) -> Result<String, TooDeep> {
    let template = normalize_newlines(template);
    let mut out = String::with_capacity(template.len() + 64);
    let mut rest: &str = &template;
    let mut elifs = 0;
    while let Some(start) = next_opening(rest) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let Some(length) = rewrite_next(rest, &mut elifs, &mut out).map_err(|reason| {
            let line = 1 + template[..template.len() - rest.len()].matches('\n').count();
            TooDeep { line, reason }
        })?
        else {
            break;
        };
        rest = &rest[length..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Rewrites the comment, raw block, tag or expression that `text` starts with; gives its length, or `None` if it does
/// not end.
fn rewrite_next(text: &str, elifs: &mut usize, out: &mut String) -> Result<Option<usize>, &'static str> {
    if text.starts_with("{#") {
        let end = text.find("#}").map(|at| at + 2);
        out.push_str(&text[..end.unwrap_or(0)]);
        return Ok(end);
    }
    let (tokens, end) = scan(text);
    if let Some(end) = end
        && is_tag(&tokens, "raw")
    {
        let end = end_of_raw(text, end);
        out.push_str(&text[..end.unwrap_or(0)]);
        return Ok(end);
    }
    check_depth(&tokens, elifs)?;
    if end.is_some() {
        rewrite_block(&tokens, out);
    }
    Ok(end)
}

/// Counts what makes a parse tree deep.
fn check_depth(tokens: &[Token<'_>], elifs: &mut usize) -> Result<(), &'static str> {
    match first_name(tokens) {
        Some("elif") => *elifs += 1,
        Some("endif") => *elifs = 0,
        _ => {}
    }
    let (mut longest, mut current) = (0, 0);
    for token in tokens.iter().filter(|token| token.kind != Kind::Space) {
        current = if token.text == "," { 0 } else { current + 1 };
        longest = current.max(longest);
    }
    if longest > MAX_EXPRESSION {
        return Err("an expression is too long to be compiled safely; split it with set");
    }
    if *elifs > MAX_ELIF {
        return Err("too many elif in one if; nest them or use a dictionary");
    }
    Ok(())
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
pub(super) enum Kind {
    /// `{{`, `{%` or an end, with its whitespace sign.
    Delimiter,
    Space,
    Name,
    Text,
    Number,
    Other,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
}

/// Splits one `{{ }}` or `{% %}` at the start of `text` into tokens; gives them with the length of the whole, or
/// without one if it does not end.
fn scan(text: &str) -> (Vec<Token<'_>>, Option<usize>) {
    let variable = text.starts_with("{{");
    let sign = usize::from(matches!(text.as_bytes().get(2), Some(b'-' | b'+')));
    let mut tokens = vec![Token { kind: Kind::Delimiter, text: &text[..2 + sign] }];
    let mut at = 2 + sign;
    let mut braces = 0usize;
    while at < text.len() {
        let rest = &text[at..];
        if braces == 0
            && let Some(length) = closing_length(rest, variable)
        {
            tokens.push(Token { kind: Kind::Delimiter, text: &rest[..length] });
            return (tokens, Some(at + length));
        }
        let Some((kind, length)) = next_token(rest) else { break };
        match &rest[..length] {
            "{" | "[" | "(" => braces += 1,
            "}" | "]" | ")" => braces = braces.saturating_sub(1),
            _ => {}
        }
        tokens.push(Token { kind, text: &rest[..length] });
        at += length;
    }
    (tokens, None)
}

fn closing_length(text: &str, variable: bool) -> Option<usize> {
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
    first_name(tokens) == Some(name)
}

/// The name of a tag; expressions have none.
pub(super) fn first_name<'a>(tokens: &[Token<'a>]) -> Option<&'a str> {
    if !tokens[0].text.starts_with("{%") {
        return None;
    }
    let first = tokens[1..].iter().find(|token| token.kind != Kind::Space)?;
    (first.kind == Kind::Name).then_some(first.text)
}

/// The end of the `{% endraw %}` that closes a raw block whose opening tag ends at `from`.
fn end_of_raw(text: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += text[at..].find("{%")? + 2;
        let inside = text[at..].trim_start_matches(['-', '+']).trim_start();
        if let Some(after) = inside.strip_prefix("endraw") {
            let closing = after.trim_start();
            if let Some(length) = closing_length(closing, false) {
                return Some(text.len() - closing.len() + length);
            }
        }
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
        rewrite_expressions(&count_results(tokens), out);
    }
}

fn rewrite_expressions(tokens: &[Token<'_>], out: &mut String) {
    let writable = assignment_targets(tokens);
    out.extend(tokens[..writable].iter().map(|token| token.text));
    rewrite_values(tokens, writable, out);
}

/// Rewrites the tokens from `index` on.
fn rewrite_values(tokens: &[Token<'_>], mut index: usize, out: &mut String) {
    while index < tokens.len() {
        let token = tokens[index];
        if let Some(name) = uncalled_attribute(tokens, index) {
            out.push_str(&format!(".{ATTRIBUTE_PREFIX}{name}()"));
            index += 2;
        } else if let Some((name, length)) = method_subscript(tokens, index) {
            out.push_str(&format!(".{ITEM_PREFIX}{name}()"));
            index += length;
        } else if let Some((parts, length)) = slice_parts(tokens, index) {
            out.push_str(&format!(".{SLICE_METHOD}("));
            for (position, part) in parts.into_iter().enumerate() {
                out.push_str(if position > 0 { ", " } else { "" });
                if part.iter().all(|token| token.kind == Kind::Space) {
                    out.push_str("none");
                }
                rewrite_values(part, 0, out);
            }
            out.push(')');
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

/// The parts of the slice in brackets at `index`, with its number of tokens. A colon of their own is what tells it
/// from a list or a subscript.
fn slice_parts<'t, 'a>(tokens: &'t [Token<'a>], index: usize) -> Option<(Vec<&'t [Token<'a>]>, usize)> {
    if tokens[index].text != "[" {
        return None;
    }
    let (mut depth, mut start, mut parts) = (0usize, index + 1, Vec::new());
    for (at, token) in tokens.iter().enumerate().skip(index) {
        match token.text {
            "[" | "(" | "{" => depth += 1,
            "]" | ")" | "}" => depth -= 1,
            ":" if depth == 1 => {
                parts.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        if depth == 0 {
            parts.push(&tokens[start..at]);
            return (2..=3).contains(&parts.len()).then_some((parts, at + 1 - index));
        }
    }
    None
}

/// How many tokens of `{% set … = %}` and `{% for … in %}` belong to what is assigned.
fn assignment_targets(tokens: &[Token<'_>]) -> usize {
    if is_tag(tokens, "set") {
        tokens.iter().position(|token| token.text == "=").unwrap_or(tokens.len())
    } else if is_tag(tokens, "for") {
        tokens.iter().position(|token| token.text == "in").unwrap_or(0)
    } else {
        0
    }
}

/// `.name` at `index`, where `name` is a method of dict and no call follows.
fn uncalled_attribute<'a>(tokens: &[Token<'a>], index: usize) -> Option<&'a str> {
    let [dot, name, rest @ ..] = tokens.get(index..)? else { return None };
    let called = rest.iter().find(|token| token.kind != Kind::Space).is_some_and(|next| next.text == "(");
    (dot.text == "." && DICT_METHODS.contains(&name.text) && !called).then_some(name.text)
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

    fn rewritten(text: &str) -> String {
        rewrite(text).expect("not too deep")
    }

    #[test]
    fn what_is_too_deep_names_its_line() {
        for deep in ["-".repeat(2000), "x[1:".repeat(2000), "1 ~ ".repeat(2000), "a.".repeat(2000)] {
            let error = rewrite(&format!("one\n{{{{ {deep} 1 }}}}")).expect_err("too deep");
            assert_eq!(error.line, 2);
        }
        let elifs = format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 2 %}".repeat(2000));
        assert!(rewrite(&elifs).is_err());
        let list = format!("{{{{ [{}] }}}}", "1, ".repeat(2000));
        assert_eq!(rewritten(&list), list);
    }

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
            assert_eq!(rewritten(text), text);
        }
    }

    #[test]
    fn generation_tags_keep_their_whitespace_signs() {
        assert_eq!(
            rewritten("a {%- generation +%} b {% endgeneration -%} c"),
            "a {%- with %}{{ __generation_start }}{% if true +%} b {% endif %}{{ __generation_end }}{% endwith -%} c"
        );
    }

    #[test]
    fn dict_methods_without_a_call_are_looked_up_as_python_does() {
        assert_eq!(rewritten("{{ a.items.b }}"), "{{ a.__attribute_items().b }}");
        assert_eq!(rewritten("{{ a['items'] }}"), "{{ a.__item_items() }}");
        assert_eq!(rewritten("{{ ['a', a['items'].x] }}"), "{{ ['a', a.__item_items().x] }}");
    }

    #[test]
    fn slices_become_method_calls() {
        assert_eq!(rewritten("{{ a[1:] }}"), "{{ a.__slice(1, none) }}");
        assert_eq!(
            rewritten("{{ a[::-1][b[:2][0]] }}"),
            "{{ a.__slice(none, none, -1)[b.__slice(none, 2)[0]] }}"
        );
        assert_eq!(rewritten("{{ [{'a': 1}][0] }}"), "{{ [{'a': 1}][0] }}");
    }

    #[test]
    fn strings_are_read_as_python_reads_them() {
        assert_eq!(rewritten(r"{{ '\d\x41\u00e9\n\'\101' }}"), "{{ \"\\\\dAé\\n'A\" }}");
    }
}
