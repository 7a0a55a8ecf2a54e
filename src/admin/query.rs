//! What stands behind a `?`.

use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

/// Keys and values, decoded, in order; a key may come again.
pub fn pairs(query: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
}

/// A value that is to be a number.
///
/// # Errors
/// A line for whoever asked.
pub fn number<T: FromStr<Err: Display>>(key: &str, value: &str) -> Result<T, String> {
    let parsed = value.parse::<T>();
    parsed.map_err(|error| format!("{key}: {value:?}: {error}\n"))
}

/// The answer to a key that is not known.
#[must_use]
pub fn unknown(key: &str, known: &[&str]) -> String {
    format!("{key}: is not one of {}\n", known.join(", "))
}
