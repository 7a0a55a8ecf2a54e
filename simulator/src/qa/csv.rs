//! The table as a file, as pandas writes and reads it.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context as _, ensure};

use super::rows::Row;

const COLUMNS: [&str; 8] = [
    "prompt_tokens",
    "generation_tokens",
    "ttft",
    "generation_time",
    "user_id",
    "question_id",
    "launch_time",
    "finish_time",
];

/// The file's text. Numbers are spelt as Python spells them: as short as reads back the same.
#[must_use]
pub fn write(rows: &[Row]) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for row in rows {
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{},{},{:?},{:?},{},{},{:?},{:?}",
            row.prompt_tokens,
            row.generation_tokens,
            row.ttft,
            row.generation_time,
            row.user_id,
            row.question_id,
            row.launch_time,
            row.finish_time
        );
    }
    text
}

/// Reads one, whatever the order of its columns and whichever there are besides.
///
/// # Errors
/// A column is missing, or a cell is no number; says where.
pub fn read(text: &str) -> anyhow::Result<Vec<Row>> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .collect();
    for column in COLUMNS {
        ensure!(names.contains(&column), "no column {column}");
    }
    let filled = (2..).zip(lines).filter(|(_, line)| !line.trim().is_empty());
    filled
        .map(|(number, line)| read_row(&names, line).with_context(|| format!("line {number}")))
        .collect()
}

fn read_row(names: &[&str], line: &str) -> anyhow::Result<Row> {
    let cells: HashMap<&str, &str> = names.iter().copied().zip(line.split(',')).collect();
    let number = |column: &str| -> anyhow::Result<f64> {
        let cell = cells
            .get(column)
            .with_context(|| format!("no cell for {column}"))?;
        let value = cell.trim().parse();
        value.with_context(|| format!("{column} is {cell:?}, which is no number"))
    };
    // pandas may have made counts 12.0 where it once had a hole in the column.
    let count = |column: &str| number(column).map(|value| value as u64);
    Ok(Row {
        prompt_tokens: count(COLUMNS[0])?,
        generation_tokens: count(COLUMNS[1])?,
        ttft: number(COLUMNS[2])?,
        generation_time: number(COLUMNS[3])?,
        user_id: count(COLUMNS[4])?,
        question_id: count(COLUMNS[5])?,
        launch_time: number(COLUMNS[6])?,
        finish_time: number(COLUMNS[7])?,
        cached_tokens: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let one = Row {
            question_id: 1,
            cached_tokens: None,
            ..row(7, 1_764_146_000.123_456_7, 0.25)
        };
        let text = write(&[one]);
        assert_eq!(
            text,
            "prompt_tokens,generation_tokens,ttft,generation_time,user_id,question_id,launch_time,finish_time\n\
             1000,50,0.25,2.0,7,1,1764146000.1234567,1764146002.3734567\n"
        );
        assert_eq!(read(&text).expect("our own"), [one]);
    }

    #[test]
    fn a_broken_file_is_named_by_line_and_column() {
        let why = |text: &str| format!("{:#}", read(text).expect_err("broken"));
        assert!(why("prompt_tokens,ttft\n").contains("generation_tokens"));
        let text = write(&[row(1, 0.0, 0.5), row(1, 9.0, 0.5)]).replace(",9.0,", ",soon,");
        assert!(
            why(&text).contains("line 3: launch_time is \"soon\""),
            "{}",
            why(&text)
        );
    }
}
