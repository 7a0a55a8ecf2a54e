//! What Python does where Jinja leaves it to Python: printing, stripping, dates.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::prompt::json::{Json, float_repr};

/// Methods of strings, lists and dicts; ours where minijinja's differ from Python's.
pub fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let chars = match args {
        [] => Some(None),
        [one] if one.is_none() => Some(None),
        [one] => one.as_str().map(Some),
        _ => None,
    };
    match (value.as_str(), name, chars) {
        (Some(text), "strip", Some(chars)) => Ok(strip(text, chars).into()),
        (Some(text), "lstrip", Some(chars)) => Ok(strip_start(text, chars).into()),
        (Some(text), "rstrip", Some(chars)) => Ok(strip_end(text, chars).into()),
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// Python's white space: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
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

/// `str(value)`.
pub fn str_of(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => {
            let mut out = String::new();
            repr(value, &mut out, 0);
            out
        }
    }
}

/// `repr(value)`, for the kinds that JSON knows.
fn repr(value: &Value, out: &mut String, depth: usize) {
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match number_of(value) {
            Json::Float(number) => out.push_str(&float_repr(number)),
            _ => out.push_str(&value.to_string()),
        },
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Map if depth < 300 => {
            let map = value.kind() == ValueKind::Map;
            out.push(if map { '{' } else { '[' });
            for (position, item) in value.try_iter().into_iter().flatten().enumerate() {
                if position > 0 {
                    out.push_str(", ");
                }
                repr(&item, out, depth + 1);
                if map {
                    out.push_str(": ");
                    repr(&value.get_item(&item).unwrap_or_default(), out, depth + 1);
                }
            }
            out.push(if map { '}' } else { ']' });
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => {
                write!(out, "\\x{:02x}", u32::from(c)).expect("a String takes everything");
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A template's number as JSON keeps it.
pub fn number_of(value: &Value) -> Json {
    if !value.is_integer() {
        return f64::try_from(value.clone()).map_or(Json::Null, Json::Float);
    }
    value
        .as_i64()
        .map_or_else(|| Json::BigInt(value.to_string().into()), Json::Int)
}

/// `datetime.strftime` in UTC, for the directives that templates use; others print as they are.
pub fn strftime(time: SystemTime, format: &str) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let date = Date::of_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        let padded = directive != Some('-');
        let directive = if padded { directive } else { chars.next() };
        let number = match directive {
            Some('Y') => (date.year, 4),
            Some('y') => (date.year % 100, 2),
            Some('m') => (date.month, 2),
            Some('d') => (date.day, 2),
            Some('j') => (date.day_of_year, 3),
            Some('H') => (hour, 2),
            Some('I') => ((hour + 11) % 12 + 1, 2),
            Some('M') => (minute, 2),
            Some('S') => (second, 2),
            Some(other) => {
                let (month, weekday) = (date.month_name(), date.weekday_name());
                match other {
                    'B' => out.push_str(month),
                    'b' | 'h' => out.push_str(&month[..3]),
                    'A' => out.push_str(weekday),
                    'a' => out.push_str(&weekday[..3]),
                    'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                    '%' => out.push('%'),
                    other => out.extend(['%', other]),
                }
                continue;
            }
            None => {
                out.push('%');
                continue;
            }
        };
        let width = if padded { number.1 } else { 0 };
        write!(out, "{:0width$}", number.0).expect("a String takes everything");
    }
    out
}

struct Date {
    year: u64,
    month: u64,
    day: u64,
    day_of_year: u64,
    weekday: u64,
}

impl Date {
    /// The date so many days after 1970-01-01, a Thursday.
    fn of_days(days: u64) -> Self {
        let weekday = (days + 4) % 7;
        let (mut year, mut left) = (1970, days);
        while left >= year_days(year) {
            left -= year_days(year);
            year += 1;
        }
        let (mut month, day_of_year) = (1, left + 1);
        while left >= month_days(year, month) {
            left -= month_days(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: left + 1,
            day_of_year,
            weekday,
        }
    }

    fn month_name(&self) -> &'static str {
        const NAMES: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        NAMES[(self.month - 1) as usize]
    }

    fn weekday_name(&self) -> &'static str {
        const NAMES: [&str; 7] = [
            "Sunday",
            "Monday",
            "Tuesday",
            "Wednesday",
            "Thursday",
            "Friday",
            "Saturday",
        ];
        NAMES[self.weekday as usize]
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn year_days(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
