//! A template's text before it is parsed: what Jinja's lexer reads otherwise than minijinja's.

use std::iter::Peekable;
use std::str::Chars;

use super::Dialect;

/// Tokens that one tag may hold, 2000. Both parsers recurse over expressions, a few hundred
/// bytes of stack a token: below 1 MB. Real templates hold 200.
const TAG_TOKENS_MAX: usize = 2000;
/// `elif`s that one template may hold; the parser recurses over them, 1 kB each.
const ELIFS_MAX: usize = 500;

/// Whether a template's nesting could use up the stack of whoever parses it.
pub fn is_deep(source: &str) -> bool {
    let (mut tokens, mut elifs) = (0, 0);
    let mut rest = source;
    while let Some((_, tag)) = next_tag(rest) {
        let end = tag_end(tag);
        let inner = &tag[..end];
        if !tag.starts_with("{#") {
            tokens = inner.len().min(inner.split(is_boundary).count());
            elifs += usize::from(keyword(inner).1 == "elif");
        }
        if tokens > TAG_TOKENS_MAX || elifs > ELIFS_MAX {
            return true;
        }
        rest = &tag[end..];
    }
    false
}

/// Whether a token may end before or after this character; more often than it does.
fn is_boundary(c: char) -> bool {
    !c.is_alphanumeric() && c != '_'
}

/// The text with Jinja's line ends, Python's string escapes, and `{% generation %}` blocks, which
/// only mark what an assistant said, as blocks that minijinja knows: what is set inside stays
/// inside.
pub fn normalize(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    rewrite(&source, Dialect::Python)
}

/// The text with `{% generation %}` blocks made known, and minijinja's own ways otherwise.
pub fn with_known_blocks(source: &str) -> String {
    rewrite(source, Dialect::Rust)
}

fn rewrite(source: &str, dialect: Dialect) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = next_tag(rest) {
        out.push_str(before);
        let end = tag_end(tag);
        let (inner, after) = tag.split_at(end);
        rest = after;
        let (at, word) = keyword(inner);
        match word {
            "generation" | "endgeneration" if is_bare(&inner[at + word.len()..]) => {
                out.push_str(&inner[..at]);
                out.push_str(if word == "generation" {
                    "with"
                } else {
                    "endwith"
                });
                out.push_str(&inner[at + word.len()..]);
            }
            _ if inner.starts_with("{#") || dialect == Dialect::Rust => out.push_str(inner),
            "raw" if is_bare(&inner[at + word.len()..]) => {
                let raw = raw_end(rest);
                // Jinja trims no line end here; minijinja does.
                match inner.strip_suffix("%}") {
                    Some(tag) if !tag.ends_with(['-', '+']) => {
                        out.push_str(tag);
                        out.push_str("+%}");
                    }
                    _ => out.push_str(inner),
                }
                out.push_str(&rest[..raw]);
                rest = &rest[raw..];
            }
            _ => strings(inner, &mut out),
        }
    }
    out.push_str(rest);
    out
}

/// The text before the next tag, and what begins with it.
fn next_tag(text: &str) -> Option<(&str, &str)> {
    let bytes = text.as_bytes();
    let at = (0..bytes.len().saturating_sub(1))
        .find(|at| bytes[*at] == b'{' && matches!(bytes[at + 1], b'{' | b'%' | b'#'))?;
    Some(text.split_at(at))
}

/// The bytes of the tag that a text begins with; strings in it may hold its end.
fn tag_end(tag: &str) -> usize {
    let bytes = tag.as_bytes();
    let close: &[u8] = match bytes[1] {
        b'{' => b"}}",
        b'%' => b"%}",
        _ => b"#}",
    };
    let (mut at, mut quote, mut braces) = (2, None, 0_usize);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (None, byte @ (b'"' | b'\'')) if close != b"#}" => quote = Some(byte),
            (None, b'}') if braces > 0 => braces -= 1,
            (None, _) if bytes[at..].starts_with(close) => return at + 2,
            (None, b'{') if close == b"}}" => braces += 1,
            _ => {}
        }
        at += 1;
    }
    tag.len()
}

/// Where a tag's first word stands, and the word.
fn keyword(tag: &str) -> (usize, &str) {
    if !tag.starts_with("{%") {
        return (0, "");
    }
    let lead = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let word = lead.find(is_boundary).unwrap_or(lead.len());
    (tag.len() - lead.len(), &lead[..word])
}

/// Whether nothing but a tag's end follows.
fn is_bare(rest: &str) -> bool {
    let rest = rest.trim_start().trim_start_matches(['-', '+']);
    rest == "%}"
}

/// Where the text of a raw block ends.
fn raw_end(text: &str) -> usize {
    let mut at = 0;
    while let Some(tag) = text[at..].find("{%") {
        at += tag;
        if keyword(&text[at..]).1 == "endraw" {
            return at;
        }
        at += 2;
    }
    text.len()
}

/// Copies a tag, the strings in it with the escapes that minijinja reads as Python does.
fn strings(tag: &str, out: &mut String) {
    let mut chars = tag.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => escape(&mut chars, out),
            (Some(open), c) if open == c => {
                quote = None;
                out.push(c);
            }
            (None, '"' | '\'') => {
                quote = Some(c);
                out.push(c);
            }
            _ => out.push(c),
        }
    }
}

/// What follows a backslash in Python's `unicode-escape`. A `\N{name}` stays, and fails to parse.
fn escape(chars: &mut Peekable<Chars>, out: &mut String) {
    match chars.next() {
        Some('\n') => {}
        Some('a') => out.push_str("\\x07"),
        Some('v') => out.push_str("\\x0b"),
        Some('U') => {
            let digits: String = { chars }.take(8).collect();
            let c = u32::from_str_radix(&digits, 16)
                .ok()
                .and_then(char::from_u32);
            // Not a character: an escape that minijinja refuses, too.
            match c {
                Some(c @ ('\\' | '\'' | '"')) => out.extend(['\\', c]),
                Some(c) => out.push(c),
                None => out.push_str("\\u"),
            }
        }
        Some('N') => out.push_str("\\u"),
        Some(c @ ('\\' | '\'' | '"' | 'b' | 'f' | 'n' | 'r' | 't' | 'u' | 'x' | '0'..='7')) => {
            out.extend(['\\', c]);
        }
        Some(c) => out.extend(['\\', '\\', c]),
        None => out.push('\\'),
    }
}
