//! Python's `json.dumps`.

use std::fmt::Write;

use super::{Json, Object};
use crate::config::Dialect;

/// The arguments of `json.dumps` that chat templates use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Style {
    /// Escape everything beyond ASCII.
    pub ensure_ascii: bool,
    /// What indents a level; one line without.
    pub indent: Option<String>,
    /// Between items.
    pub item_separator: String,
    /// Between key and value.
    pub key_separator: String,
    /// Members in the order of their keys.
    pub sort_keys: bool,
    /// Whose numbers, and whose notion of ASCII.
    pub dialect: Dialect,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
            dialect: Dialect::Python,
        }
    }
}

impl Json {
    /// Python's `json.dumps(value, ensure_ascii=False)`; none where a string cannot be encoded.
    #[must_use]
    pub fn dumps(&self) -> Option<String> {
        self.dumps_in(&Style::default())
    }

    /// Python's `json.dumps` in a style; none where a string cannot be encoded.
    #[must_use]
    pub fn dumps_in(&self, style: &Style) -> Option<String> {
        let mut out = String::new();
        Writer {
            style,
            out: &mut out,
        }
        .value(self, 0)?;
        Some(out)
    }
}

struct Writer<'a> {
    style: &'a Style,
    out: &'a mut String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Json, depth: usize) -> Option<()> {
        match value {
            Json::Null => self.out.push_str("null"),
            Json::Bool(yes) => self.out.push_str(if *yes { "true" } else { "false" }),
            Json::Int(number) => {
                write!(self.out, "{number}").expect("a String takes everything");
            }
            Json::BigInt(digits) => self.out.push_str(digits),
            Json::Float(number) => self.out.push_str(&match self.style.dialect {
                Dialect::Python => float_json(*number),
                Dialect::Rust => serde_json::Value::from(*number).to_string(),
            }),
            Json::Str(text) => self.string(text),
            Json::LoneSurrogate => return None,
            Json::List(items) => {
                self.items("[]", items.iter(), depth, |w, item| {
                    w.value(item, depth + 1)
                })?;
            }
            Json::Object(object) => self.object(object, depth)?,
        }
        Some(())
    }

    fn object(&mut self, object: &Object, depth: usize) -> Option<()> {
        let mut members: Vec<_> = object.iter().collect();
        if self.style.sort_keys {
            members.sort_by(|one, two| one.0.cmp(two.0));
        }
        self.items("{}", members.into_iter(), depth, |w, (key, value)| {
            w.string(key);
            w.out.push_str(&w.style.key_separator);
            w.value(value, depth + 1)
        })
    }

    fn items<I: ExactSizeIterator>(
        &mut self,
        brackets: &str,
        items: I,
        depth: usize,
        mut one: impl FnMut(&mut Self, I::Item) -> Option<()>,
    ) -> Option<()> {
        let (open, close) = brackets.split_at(1);
        let empty = items.len() == 0;
        self.out.push_str(open);
        for (position, item) in items.enumerate() {
            if position > 0 {
                self.out.push_str(&self.style.item_separator);
            }
            self.new_line(depth + 1);
            one(self, item)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push_str(close);
        Some(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        let mut plain = 0;
        for (at, c) in text.char_indices() {
            let escaped =
                c < ' ' || c == '"' || c == '\\' || (self.style.ensure_ascii && !self.is_plain(c));
            if escaped {
                self.out.push_str(&text[plain..at]);
                plain = at + c.len_utf8();
                self.escape(c);
            }
        }
        self.out.push_str(&text[plain..]);
        self.out.push('"');
    }

    /// Python escapes DEL as well.
    fn is_plain(&self, c: char) -> bool {
        (' '..='~').contains(&c) || (c == '\u{7f}' && self.style.dialect == Dialect::Rust)
    }

    fn escape(&mut self, c: char) {
        let short = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(self.out, "\\u{unit:04x}").expect("a String takes everything");
                }
                return;
            }
        };
        self.out.push_str(short);
    }
}

fn float_json(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    float_repr(number)
}

/// Python's `repr(float)`: the shortest digits that read back the same, with an exponent from
/// `1e+16` on and below `1e-04`.
#[must_use]
pub fn float_repr(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let (digits, exponent) = shortest(number);
    let sign = if number.is_sign_negative() { "-" } else { "" };
    let (first, rest) = digits.split_at(1);
    match exponent {
        -4..0 => format!("{sign}0.{}{digits}", "0".repeat((-exponent - 1) as usize)),
        0..16 => {
            let whole = exponent as usize + 1;
            let digits = format!("{digits:0<whole$}");
            let (whole, part) = digits.split_at(whole);
            format!("{sign}{whole}.{}", if part.is_empty() { "0" } else { part })
        }
        _ => {
            let point = if rest.is_empty() { "" } else { "." };
            let direction = if exponent < 0 { '-' } else { '+' };
            format!(
                "{sign}{first}{point}{rest}e{direction}{:02}",
                exponent.unsigned_abs()
            )
        }
    }
}

/// The fewest digits that read back the same, and the exponent of the first. Where two numbers of
/// so few digits are equally near, Python takes the even one and Rust the upper: 890663775828858.25
/// ends in .2 or .3. Rust's rounding to a number of digits agrees with Python.
fn shortest(number: f64) -> (String, i32) {
    let number = number.abs();
    let fewest = format!("{number:e}");
    let count = fewest
        .bytes()
        .take_while(|byte| *byte != b'e')
        .filter(u8::is_ascii_digit)
        .count();
    let even = format!("{number:.*e}", count - 1);
    let scientific = if even.parse() == Ok(number) {
        even
    } else {
        fewest
    };
    let (digits, exponent) = scientific
        .split_once('e')
        .expect("{:e} always has an exponent");
    let exponent = exponent.parse().expect("{:e} writes a decimal exponent");
    (digits.replace('.', ""), exponent)
}
