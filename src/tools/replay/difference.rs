//! A prediction that was not exact, and how it is told.

use std::io::Write;

use serde::Serialize;

/// How a prediction missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// For a reason that a picker can know of.
    Explained,
    /// For none.
    Wrong,
    /// Nobody knows which rank served.
    NotPredicted,
}

/// A request that was not predicted exactly.
#[derive(Debug, Serialize)]
pub struct Difference {
    pub request: i64,
    pub phase: String,
    pub verdict: Verdict,
    pub predicted: u64,
    pub reported: u64,
    pub why: &'static str,
}

/// Says it, in a line.
pub fn complain(difference: &Difference, json: bool, to: &mut impl Write) -> anyhow::Result<()> {
    let Difference {
        request,
        phase,
        verdict,
        predicted,
        reported,
        why,
    } = difference;
    let verdict = match verdict {
        _ if json => {
            serde_json::to_writer(&mut *to, difference)?;
            return Ok(writeln!(to)?);
        }
        Verdict::NotPredicted => {
            return Ok(writeln!(
                to,
                "request {request} ({phase}): not predicted: {why}"
            )?);
        }
        Verdict::Explained => "explained",
        Verdict::Wrong => "wrong",
    };
    writeln!(
        to,
        "request {request} ({phase}): {verdict}: predicted {predicted}, reported {reported}: {why}"
    )?;
    Ok(())
}
