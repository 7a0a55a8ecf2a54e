//! Columns that line up.

use std::fmt::Write as _;

/// Rows under a heading, two spaces in: the first `texts` columns to the left, the others to the
/// right.
#[must_use]
pub fn table<const N: usize>(texts: usize, rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Writing into a string cannot fail.
            let _ = if column < texts {
                write!(line, "  {cell:<width$}")
            } else {
                write!(line, "  {cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let text = table(1, &[row(["pod", "tokens", ""]), row(["pod-10", "7", "é"])]);
        assert_eq!(text, "  pod     tokens\n  pod-10       7  é\n");
    }
}
