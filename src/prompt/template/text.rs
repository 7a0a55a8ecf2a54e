//! Python's strings: white space, lines, words, cases and their `repr`.

use std::fmt::Write;

use minijinja::{Error, State, Value};

use super::budget::spend;
use super::methods::is_blank;
use super::objects::refuse;

/// Python's white space: Unicode's, and the four separators of ASCII.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn stripped(chars: Option<&str>) -> impl Fn(char) -> bool + '_ {
    move |c| chars.map_or_else(|| is_space(c), |chars| chars.contains(c))
}

/// `str.strip`.
pub fn strip<'a>(text: &'a str, chars: Option<&str>) -> &'a str {
    strip_end(strip_start(text, chars), chars)
}

/// `str.lstrip`.
pub fn strip_start<'a>(text: &'a str, chars: Option<&str>) -> &'a str {
    text.trim_start_matches(stripped(chars))
}

/// `str.rstrip`.
pub fn strip_end<'a>(text: &'a str, chars: Option<&str>) -> &'a str {
    text.trim_end_matches(stripped(chars))
}

/// `str.split` and `str.rsplit`.
pub fn split<'a>(
    s: &'a str,
    separator: Option<&str>,
    most: Option<usize>,
    from_end: bool,
) -> Result<Vec<&'a str>, Error> {
    let most = most.unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match separator {
        Some("") => return refuse("an empty separator"),
        Some(separator) if from_end => s.rsplitn(most + 1, separator).collect(),
        Some(separator) => s.splitn(most + 1, separator).collect(),
        None => split_space(s, most, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts)
}

/// Words between white space; what is left after the last split keeps its other space.
fn split_space(s: &str, most: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = s;
    loop {
        rest = if from_end {
            strip_end(rest, None)
        } else {
            strip_start(rest, None)
        };
        if rest.is_empty() {
            return parts;
        }
        if parts.len() == most {
            parts.push(rest);
            return parts;
        }
        let word = match from_end {
            true => rest.rsplit(is_space).next(),
            false => rest.split(is_space).next(),
        };
        let word = word.expect("splitting gives one part at least");
        parts.push(word);
        rest = match from_end {
            true => &rest[..rest.len() - word.len()],
            false => &rest[word.len()..],
        };
    }
}

/// `str.splitlines`.
pub fn lines(s: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let at = rest.find(is_end).unwrap_or(rest.len());
        let end = match rest[at..].chars().next() {
            Some('\r') if rest[at..].starts_with("\r\n") => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        lines.push(&rest[..if keep_ends { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    lines
}

/// `str.expandtabs`.
pub fn expand_tabs(state: &mut State, s: &str, size: usize) -> Result<Value, Error> {
    let tabs = s.matches('\t').count();
    spend(state, tabs.saturating_mul(size))?;
    let (mut out, mut column) = (String::new(), 0);
    for c in s.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}

/// Methods without arguments: cases, and questions about characters. Where Python's Unicode
/// tables are not at hand, they fail.
pub fn cased(s: &str, name: &str) -> Result<Value, Error> {
    let ascii = |answer: fn(&str) -> bool| match s.is_ascii() {
        true => Ok(Value::from(answer(s))),
        false => refuse("a question about characters beyond ASCII"),
    };
    let all = |s: &str, is: fn(u8) -> bool| !s.is_empty() && s.bytes().all(is);
    match name {
        "upper" => Ok(Value::from(s.to_uppercase())),
        "lower" => Ok(Value::from(s.to_lowercase())),
        "capitalize" => capitalize(s).map(Value::from),
        "title" => title(s).map(Value::from),
        "swapcase" if s.is_ascii() => {
            let swapped = s.chars().map(|c| match c.is_ascii_uppercase() {
                true => c.to_ascii_lowercase(),
                false => c.to_ascii_uppercase(),
            });
            Ok(Value::from(swapped.collect::<String>()))
        }
        "casefold" if s.is_ascii() => Ok(Value::from(s.to_ascii_lowercase())),
        "islower" => Ok(Value::from(is_cased(
            s,
            char::is_lowercase,
            char::is_uppercase,
        ))),
        "isupper" => Ok(Value::from(is_cased(
            s,
            char::is_uppercase,
            char::is_lowercase,
        ))),
        "isspace" => Ok(Value::from(is_blank(s))),
        "isascii" => Ok(Value::from(s.is_ascii())),
        "isdigit" | "isnumeric" | "isdecimal" if s.is_ascii() => {
            Ok(Value::from(all(s, |byte| byte.is_ascii_digit())))
        }
        "isalpha" if s.is_ascii() => Ok(Value::from(all(s, |byte| byte.is_ascii_alphabetic()))),
        "isalnum" if s.is_ascii() => Ok(Value::from(all(s, |byte| byte.is_ascii_alphanumeric()))),
        "istitle" => ascii(|s| {
            title(s).is_ok_and(|title| title == s) && s.contains(|c: char| c.is_ascii_alphabetic())
        }),
        "isidentifier" => ascii(|s| {
            s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        }),
        "isprintable" => Ok(Value::from(s.chars().all(is_printable))),
        _ => refuse("a method of strings that is not known"),
    }
}

fn is_cased(s: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    s.chars().any(wanted) && !s.chars().any(|c| other(c) || is_title_letter(c))
}

/// Letters that are an upper and a lower one at once.
fn is_title_letter(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
        || matches!(c, '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// `str.capitalize`.
pub fn capitalize(s: &str) -> Result<String, Error> {
    let mut chars = s.chars();
    let first = chars.next().map_or(Ok(String::new()), title_letter)?;
    // A final sigma depends on what stands before it.
    let rest = s.to_lowercase();
    let lowered: usize = s
        .chars()
        .next()
        .map_or(0, |c| c.to_lowercase().map(char::len_utf8).sum());
    Ok(first + rest.get(lowered..).unwrap_or_default())
}

/// `str.title`: letters after letters are lower.
pub fn title(s: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        let cased = c.is_lowercase() || c.is_uppercase() || is_title_letter(c);
        match (cased, inside) {
            (_, true) if c == 'Σ' => return refuse("a sigma, which may be a final one"),
            (true, false) => out.push_str(&title_letter(c)?),
            (_, true) => out.extend(c.to_lowercase()),
            (false, false) => out.push(c),
        }
        inside = cased;
    }
    Ok(out)
}

/// A letter as a title begins with it: upper, but for some of which we have no table.
fn title_letter(c: char) -> Result<String, Error> {
    if matches!(c, '\u{149}' | '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}' | '\u{390}' | '\u{3b0}' | '\u{1e96}'..='\u{1e9a}' | '\u{1f50}'..='\u{1fff}')
        || matches!(c, '\u{10d0}'..='\u{10ff}')
    {
        return refuse("a letter whose title case is not known");
    }
    let mut upper = c.to_uppercase();
    let first = upper.next().into_iter();
    Ok(first.chain(upper.flat_map(char::to_lowercase)).collect())
}

/// `repr(str)`.
pub fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            _ if code <= 0xff => write!(out, "\\x{code:02x}").expect("a String takes everything"),
            _ if code <= 0xffff => write!(out, "\\u{code:04x}").expect("a String takes everything"),
            _ => write!(out, "\\U{code:08x}").expect("a String takes everything"),
        }
    }
    out.push(quote);
}

/// Whether `repr` shows a character as it is: no control, format, private or separator character.
/// Characters that no version of Unicode assigns are not told apart.
fn is_printable(c: char) -> bool {
    const HIDDEN: &[(u32, u32)] = &[
        (0x7f, 0xa0),
        (0xad, 0xad),
        (0x600, 0x605),
        (0x61c, 0x61c),
        (0x6dd, 0x6dd),
        (0x70f, 0x70f),
        (0x890, 0x891),
        (0x8e2, 0x8e2),
        (0x1680, 0x1680),
        (0x180e, 0x180e),
        (0x2000, 0x200f),
        (0x2028, 0x202f),
        (0x205f, 0x206f),
        (0x3000, 0x3000),
        (0xe000, 0xf8ff),
        (0xfeff, 0xfeff),
        (0xfff0, 0xfffb),
        (0xfffe, 0xffff),
        (0x110bd, 0x110bd),
        (0x110cd, 0x110cd),
        (0x13430, 0x1343f),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0000, 0xe00ff),
        (0xe01f0, 0x10ffff),
    ];
    let code = u32::from(c);
    code >= 0x20
        && !HIDDEN
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&code))
}
