//! What changes while requests come.

use std::str::FromStr;

use super::clock::{Time, seconds};

/// A change, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// When.
    pub at: Time,
    /// What.
    pub what: What,
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    /// So many pods more; or fewer, the newest first: they finish what they have.
    Scale(i64),
    /// A pod's engine dies with its cache; its requests are placed again.
    Reset(usize),
    /// A pod becomes this many times as slow.
    Slow(usize, f64),
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut words = text.split(':');
            let at = words.next()?.parse::<f64>().ok()?;
            let (kind, value) = (words.next()?, words.next()?);
            let what = match kind {
                "scale" => What::Scale(value.parse().ok()?),
                "reset" => What::Reset(value.parse().ok()?),
                "slow" => What::Slow(value.parse().ok()?, words.next()?.parse().ok()?),
                _ => return None,
            };
            let sane = match what {
                What::Slow(_, factor) => factor.is_finite() && factor > 0.0,
                _ => true,
            };
            let at = seconds(Some(at).filter(|at| at.is_finite() && *at >= 0.0)?);
            (sane && words.next().is_none()).then_some(Self { at, what })
        };
        parse().ok_or_else(|| {
            "write it as SECONDS:scale:+N or :-N, SECONDS:reset:POD or SECONDS:slow:POD:FACTOR, \
             such as 300:slow:0:3"
                .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_and_nonsense_is_told_of() {
        let read = |text: &str| text.parse::<Change>().map(|change| change.what).ok();
        assert_eq!(read("60:scale:+4"), Some(What::Scale(4)));
        assert_eq!(read("60:scale:-1"), Some(What::Scale(-1)));
        assert_eq!(read("1.5:reset:0"), Some(What::Reset(0)));
        assert_eq!(read("9:slow:2:2.5"), Some(What::Slow(2, 2.5)));
        for nonsense in [
            "",
            "9",
            "9:slow:2",
            "9:slow:2:0",
            "x:reset:1",
            "-1:reset:1",
            "9:reset:1:2",
        ] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
