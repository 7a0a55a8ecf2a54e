//! `strftime`, for `strftime_now`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// `datetime.strftime` in UTC and in the C locale; none for directives that differ from one C
/// library to another, or that no template uses.
pub fn strftime(time: SystemTime, format: &str) -> Option<String> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
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
            Some('w') => (date.weekday, 1),
            Some('u') => ((date.weekday + 6) % 7 + 1, 1),
            Some(other) => {
                let (month, weekday) = (date.month_name(), date.weekday_name());
                match other {
                    'B' => out.push_str(month),
                    'b' | 'h' => out.push_str(&month[..3]),
                    'A' => out.push_str(weekday),
                    'a' => out.push_str(&weekday[..3]),
                    'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                    '%' => out.push('%'),
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    // A time without a zone prints none.
                    'Z' | 'z' => {}
                    'f' => write!(out, "{:06}", since.subsec_micros())
                        .expect("a String takes everything"),
                    'e' => write!(out, "{:2}", date.day).expect("a String takes everything"),
                    other => out.push_str(&strftime(time, compound(other)?)?),
                }
                continue;
            }
            None => {
                return None;
            }
        };
        let width = if padded { number.1 } else { 0 };
        write!(out, "{:0width$}", number.0).expect("a String takes everything");
    }
    Some(out)
}

/// Directives that stand for several.
fn compound(directive: char) -> Option<&'static str> {
    match directive {
        'c' => Some("%a %b %e %H:%M:%S %Y"),
        'D' | 'x' => Some("%m/%d/%y"),
        'F' => Some("%Y-%m-%d"),
        'T' | 'X' => Some("%H:%M:%S"),
        'R' => Some("%H:%M"),
        _ => None,
    }
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
