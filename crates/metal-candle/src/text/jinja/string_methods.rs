//! Methods of Python's strings. Positions count characters, as in Python.

use minijinja::{
    Error, ErrorKind, Value,
    formatting::{self, FormatStyle},
    value::Tuple,
};

use super::{budget::spend, invalid, methods::Arguments, values::to_text};

/// Calls `text.method(args)`.
pub(super) fn call(text: &str, method: &str, args: &Arguments<'_>) -> Result<Value, Error> {
    let simple = |value: Value| args.at_most(0).map(|()| value);
    match method {
        "upper" => simple(text.to_uppercase().into()),
        "lower" | "casefold" => simple(text.to_lowercase().into()),
        "capitalize" => simple(capitalize(text).into()),
        "title" => simple(title(text).into()),
        "swapcase" => simple(text.chars().flat_map(swap_case).collect::<String>().into()),
        "isspace" => simple((!text.is_empty() && text.chars().all(is_space)).into()),
        "isalpha" => simple((!text.is_empty() && text.chars().all(char::is_alphabetic)).into()),
        "isalnum" => simple((!text.is_empty() && text.chars().all(char::is_alphanumeric)).into()),
        "isnumeric" | "isdigit" | "isdecimal" => {
            simple((!text.is_empty() && text.chars().all(char::is_numeric)).into())
        }
        "isascii" => simple(text.is_ascii().into()),
        "islower" => simple(one_case(text, char::is_lowercase, char::is_uppercase).into()),
        "isupper" => simple(one_case(text, char::is_uppercase, char::is_lowercase).into()),
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => split_lines(text, args),
        "partition" => {
            partition(text, args, text_argument(args, 0, "sep").map(|sep| text.find(&sep))?, false)
        }
        "rpartition" => {
            partition(text, args, text_argument(args, 0, "sep").map(|sep| text.rfind(&sep))?, true)
        }
        "startswith" => with_affixes(args, |affix| text.starts_with(affix)),
        "endswith" => with_affixes(args, |affix| text.ends_with(affix)),
        "removeprefix" => {
            let affix = text_argument(args, 0, "prefix")?;
            args.at_most(1).map(|()| text.strip_prefix(&*affix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let affix = text_argument(args, 0, "suffix")?;
            args.at_most(1).map(|()| text.strip_suffix(&*affix).unwrap_or(text).into())
        }
        "replace" => replace(text, args),
        "count" => {
            let what = text_argument(args, 0, "sub")?;
            args.at_most(1).map(|()| text.matches(&*what).count().into())
        }
        "find" | "rfind" | "index" | "rindex" => find(text, method, args),
        "join" => join(text, args),
        "ljust" | "rjust" | "center" | "zfill" => pad(text, method, args),
        "format" => formatting::format(FormatStyle::StrFormat, text, &args.all()).map(Value::from),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Python's whitespace: Unicode's, and the four separators of ASCII.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// `str.strip`, with the characters to strip or whitespace.
pub(super) fn trimmed<'a>(text: &'a str, characters: Option<&str>, start: bool, end: bool) -> &'a str {
    let strips = |character: char| match characters {
        Some(set) => set.contains(character),
        None => is_space(character),
    };
    let text = if start { text.trim_start_matches(strips) } else { text };
    if end { text.trim_end_matches(strips) } else { text }
}

/// First character in title case, the rest lower.
pub(super) fn capitalize(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(title_case).unwrap_or_default();
    first + &rest.as_str().to_lowercase()
}

/// The lines of a text by all of Python's line ends, with the end of each.
pub(super) fn lines(text: &str) -> Vec<(&str, &str)> {
    let breaks = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(breaks) {
        let length = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push((&rest[..at], &rest[at..at + length]));
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push((rest, ""));
    }
    lines
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        let cased = character.is_lowercase() || character.is_uppercase();
        match (cased, inside) {
            (true, false) => out.push_str(&title_case(character)),
            (true, true) => out.extend(character.to_lowercase()),
            (false, _) => out.push(character),
        }
        inside = cased;
    }
    out
}

/// A character as it starts a capitalised word: ligatures and digraphs only raise their first letter.
fn title_case(character: char) -> String {
    let digraph = match character {
        '\u{1c4}'..='\u{1c6}' => Some('\u{1c5}'),
        '\u{1c7}'..='\u{1c9}' => Some('\u{1c8}'),
        '\u{1ca}'..='\u{1cc}' => Some('\u{1cb}'),
        '\u{1f1}'..='\u{1f3}' => Some('\u{1f2}'),
        _ => None,
    };
    if let Some(digraph) = digraph {
        return digraph.into();
    }
    let mut upper = character.to_uppercase();
    match character {
        'ß' | '\u{587}' | '\u{fb00}'..='\u{fb17}' => {
            let first = upper.next().into_iter();
            first.chain(upper.flat_map(char::to_lowercase)).collect()
        }
        _ => upper.collect(),
    }
}

fn swap_case(character: char) -> Vec<char> {
    if character.is_uppercase() {
        character.to_lowercase().collect()
    } else {
        character.to_uppercase().collect()
    }
}

fn one_case(text: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(other)
}

/// A string argument.
fn text_argument(args: &Arguments<'_>, position: usize, name: &str) -> Result<String, Error> {
    let value = args.required(position, name)?;
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| invalid(format!("argument {name:?} must be a string, not {}", value.kind())))
}

/// A number argument that may be absent or None.
fn number_argument(args: &Arguments<'_>, position: usize, name: &str) -> Result<Option<i64>, Error> {
    match args.optional(position, name)? {
        Some(value) if !value.is_none() => value
            .as_i64()
            .map(Some)
            .ok_or_else(|| invalid(format!("argument {name:?} must be a number, not {}", value.kind()))),
        _ => Ok(None),
    }
}

fn strip(text: &str, args: &Arguments<'_>, start: bool, end: bool) -> Result<Value, Error> {
    let characters = args.optional(0, "chars")?.filter(|value| !value.is_none());
    args.at_most(1)?;
    let characters = match &characters {
        Some(value) => Some(value.as_str().ok_or_else(|| invalid("strip takes the characters as a string"))?),
        None => None,
    };
    Ok(trimmed(text, characters, start, end).into())
}

fn split(text: &str, args: &Arguments<'_>, from_end: bool) -> Result<Value, Error> {
    let separator = args.optional(0, "sep")?.filter(|value| !value.is_none());
    let limit = usize::try_from(number_argument(args, 1, "maxsplit")?.unwrap_or(-1)).ok();
    args.at_most(2)?;
    let pieces: Vec<&str> = match &separator {
        None if from_end => split_spaces_from_end(text, limit),
        None => split_spaces(text, limit),
        Some(separator) => {
            let separator =
                separator.as_str().ok_or_else(|| invalid("split takes its separator as a string"))?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let count = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
            if from_end {
                let mut pieces: Vec<&str> = text.rsplitn(count, separator).collect();
                pieces.reverse();
                pieces
            } else {
                text.splitn(count, separator).collect()
            }
        }
    };
    Ok(Value::from(pieces.into_iter().map(Value::from).collect::<Vec<_>>()))
}

fn split_spaces(text: &str, limit: Option<usize>) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = match rest.find(is_space) {
            Some(end) if limit.is_none_or(|limit| pieces.len() < limit) => end,
            _ => rest.len(),
        };
        let piece = &rest[..end];
        pieces.push(if limit == Some(pieces.len()) { piece.trim_end_matches(is_space) } else { piece });
        rest = rest[end..].trim_start_matches(is_space);
    }
    pieces
}

fn split_spaces_from_end(text: &str, limit: Option<usize>) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let start = match rest.rfind(is_space) {
            Some(at) if limit.is_none_or(|limit| pieces.len() < limit) => {
                at + rest[at..].chars().next().map_or(0, char::len_utf8)
            }
            _ => 0,
        };
        let piece = &rest[start..];
        pieces.push(if limit == Some(pieces.len()) { piece.trim_start_matches(is_space) } else { piece });
        rest = rest[..start].trim_end_matches(is_space);
    }
    pieces.reverse();
    pieces
}

fn split_lines(text: &str, args: &Arguments<'_>) -> Result<Value, Error> {
    let keep = args.optional(0, "keepends")?.is_some_and(|value| value.is_true());
    args.at_most(1)?;
    let pieces = lines(text)
        .into_iter()
        .map(|(line, end)| if keep { Value::from(format!("{line}{end}")) } else { Value::from(line) });
    Ok(Value::from(pieces.collect::<Vec<_>>()))
}

fn partition(text: &str, args: &Arguments<'_>, at: Option<usize>, last: bool) -> Result<Value, Error> {
    let separator = text_argument(args, 0, "sep")?;
    args.at_most(1)?;
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let parts = match at {
        Some(at) => [&text[..at], &separator, &text[at + separator.len()..]],
        None if last => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn with_affixes(args: &Arguments<'_>, matches: impl Fn(&str) -> bool) -> Result<Value, Error> {
    let affix = args.required(0, "affix")?;
    args.at_most(1)?;
    let kinds = || invalid("startswith and endswith take a string or a tuple of strings");
    if let Some(affix) = affix.as_str() {
        return Ok(matches(affix).into());
    }
    for item in affix.try_iter().map_err(|_| kinds())? {
        if matches(item.as_str().ok_or_else(kinds)?) {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn replace(text: &str, args: &Arguments<'_>) -> Result<Value, Error> {
    let (old, new) = (text_argument(args, 0, "old")?, text_argument(args, 1, "new")?);
    let count = number_argument(args, 2, "count")?.unwrap_or(-1);
    args.at_most(3)?;
    spend(text.matches(&*old).count().saturating_mul(new.len()))?;
    Ok(match usize::try_from(count) {
        Ok(count) => text.replacen(&old, &new, count),
        Err(_) => text.replace(&old, &new),
    }
    .into())
}

fn find(text: &str, method: &str, args: &Arguments<'_>) -> Result<Value, Error> {
    let what = text_argument(args, 0, "sub")?;
    let start = number_argument(args, 1, "start")?.unwrap_or(0);
    args.at_most(2)?;
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let first = if start < 0 { (length + start).max(0) } else { start };
    let skipped = usize::try_from(first).unwrap_or(usize::MAX);
    let offset = text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(skipped);
    let tail = offset.map(|at| &text[at..]);
    let found = match method {
        "find" | "index" => tail.and_then(|tail| tail.find(&what).map(|at| &tail[..at])),
        _ => tail.and_then(|tail| tail.rfind(&what).map(|at| &tail[..at])),
    };
    match found {
        Some(before) => Ok(Value::from(skipped + before.chars().count())),
        None if method.ends_with("index") => Err(invalid("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn join(separator: &str, args: &Arguments<'_>) -> Result<Value, Error> {
    let items = args.required(0, "iterable")?;
    args.at_most(1)?;
    let mut pieces = Vec::new();
    for item in items.try_iter()? {
        if item.as_str().is_none() {
            return Err(invalid(format!("join takes strings, not {}", to_text(&item))));
        }
        let piece = to_text(&item);
        spend(piece.len() + separator.len())?;
        pieces.push(piece);
    }
    Ok(pieces.join(separator).into())
}

fn pad(text: &str, method: &str, args: &Arguments<'_>) -> Result<Value, Error> {
    let width = number_argument(args, 0, "width")?.ok_or_else(|| invalid("missing argument \"width\""))?;
    let fill = args.optional(1, "fillchar")?.map_or_else(|| " ".to_owned(), |fill| to_text(&fill));
    args.at_most(2)?;
    let width = usize::try_from(width).unwrap_or(0);
    if width > 100_000 || fill.chars().count() != 1 {
        return Err(invalid("the width must be below 100000 and the fill one character"));
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    if method == "zfill" {
        let digits = text.trim_start_matches(['+', '-']);
        let sign = if text.starts_with(['+', '-']) { &text[..1] } else { "" };
        let digits = if sign.is_empty() { text } else { text.get(1..).unwrap_or(digits) };
        return Ok(format!("{sign}{}{digits}", "0".repeat(missing)).into());
    }
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}
