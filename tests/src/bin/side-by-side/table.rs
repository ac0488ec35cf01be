//! The table of results: as text for a terminal, as Markdown, and (by serde) as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::host::Host;
use crate::rounds::{Row, SectionResult};

/// All results of a run.
#[derive(Debug, Serialize)]
pub struct Results {
    pub host: Host,
    pub quick: bool,
    /// It was ended early.
    pub interrupted: bool,
    pub sections: Vec<SectionResult>,
}

/// Terminal columns to which notes are wrapped.
const WIDTH: usize = 98;

/// The texts of a row.
struct Cells {
    name: String,
    median: String,
    range: String,
    ratio: String,
    said: String,
}

impl Results {
    /// Records the machine's state; there are no results yet.
    pub fn begin(quick: bool) -> Self {
        Self { host: Host::look(), quick, interrupted: false, sections: Vec::new() }
    }

    /// Records the machine's state again.
    pub fn end(&mut self) {
        self.host.look_again();
    }

    /// The table for a terminal.
    pub fn text(&self) -> String {
        let mut text = self.head().join("\n") + "\n";
        for section in &self.sections {
            let title = format!("{}, {} rounds", section.title, section.rounds);
            let _ = writeln!(
                text,
                "\n{title:<44} {:>10} {:>21} {:>13}",
                "median", "min – max", "Ferroute ÷ peer"
            );
            let mut told = Reported::default();
            each_metric(section, |metric, rows| {
                let _ = writeln!(text, "  {metric}");
                for row in rows {
                    let Cells { name, median, range, ratio, said } = cells(row, &mut told);
                    let line =
                        format!("    {name:<40} {median:>10} {range:>21} {ratio:>13}  {said}");
                    let _ = writeln!(text, "{}", line.trim_end());
                }
            });
            text += &wrapped(&section.note);
        }
        text
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = self.head().iter().map(|line| format!("- {line}\n")).collect::<String>();
        for section in &self.sections {
            let _ = write!(
                text,
                "\n### {}\n\n| | median | min – max | Ferroute ÷ peer |\n\
                 | --- | ---: | ---: | ---: |\n",
                section.title
            );
            let mut told = Reported::default();
            each_metric(section, |metric, rows| {
                let _ = writeln!(text, "| **{metric}** | | | |");
                for row in rows {
                    let Cells { name, median, range, ratio, said } = cells(row, &mut told);
                    let said = if said.is_empty() { said } else { format!(": {said}") };
                    let _ = writeln!(text, "| {name}{said} | {median} | {range} | {ratio} |");
                }
            });
            let _ = write!(text, "\n{} rounds. {}\n", section.rounds, section.note);
        }
        text
    }

    fn head(&self) -> Vec<String> {
        let mut head = self.host.lines();
        if self.quick {
            head.push("a quick run: it shows that everything runs; its figures are rough".into());
        }
        if self.interrupted {
            head.push("ended early: the rounds so far".into());
        }
        head
    }
}

/// Entrants of a section whose failure has been printed.
type Reported<'a> = std::collections::HashSet<&'a str>;

fn each_metric<'a>(section: &'a SectionResult, mut f: impl FnMut(&str, &'a [Row])) {
    for rows in section.rows.chunk_by(|a, b| a.metric == b.metric) {
        f(rows[0].title, rows);
    }
}

/// Wrapped to a terminal's width.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        let line = out.len() - out.rfind('\n').map_or(0, |at| at + 1);
        out += if line == 0 {
            "  "
        } else if line + word.len() > WIDTH {
            "\n  "
        } else {
            " "
        };
        out += word;
    }
    out + "\n"
}

fn cells<'a>(row: &'a Row, told: &mut Reported<'a>) -> Cells {
    let digits = row.digits;
    let figure = |value: f64| format!("{value:.digits$}");
    let missing = || (String::from("–"), String::new());
    let (median, range) = row.spread.map_or_else(missing, |spread| {
        (figure(spread.median), format!("{} – {}", figure(spread.min), figure(spread.max)))
    });
    let said = match (&row.failed, row.spread) {
        (None, _) => String::new(),
        // Once per section is enough.
        (Some(_), None) if !told.insert(&row.entrant) => "not measured, see above".into(),
        (Some(why), None) => format!("not measured: {why}"),
        (Some(why), Some(_)) => {
            let count = row.values.iter().flatten().count();
            format!("{count} of {} rounds: {why}", row.values.len())
        }
    };
    let ratio = row.ratio.map_or(String::new(), |ratio| format!("{:.2}", ratio.median));
    // An error may have several lines, and a bar would end a Markdown cell.
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/");
    Cells { name: row.entrant.clone(), median, range, ratio, said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Spread;

    fn row(entrant: &str, values: &[f64], failed: Option<&str>) -> Row {
        Row {
            metric: "pps",
            title: "packets, Mpps",
            entrant: entrant.into(),
            values: values.iter().copied().map(Some).collect(),
            spread: Spread::of(values.to_vec()),
            ratio: (entrant != "Ferroute").then(|| Spread::of(vec![0.5; values.len()])).flatten(),
            failed: failed.map(str::to_owned),
            digits: 1,
        }
    }

    fn results() -> Results {
        let rows = vec![
            row("Ferroute", &[1.0, 2.0, 4.0], None),
            row("testpmd", &[2.0, 4.0], None),
            row("absent", &[], Some("dpdk-testpmd is not installed;\nscripts/setup installs it")),
        ];
        let section =
            SectionResult { title: "In memory".into(), note: "A note.".into(), rounds: 3, rows };
        Results { host: Host::default(), quick: true, interrupted: false, sections: vec![section] }
    }

    #[test]
    fn the_table_has_median_range_and_ratio() {
        let text = results().text();
        let line = |name: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(name));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(line("Ferroute").as_deref(), Some("Ferroute 2.0 1.0 – 4.0"), "{text}");
        assert_eq!(line("testpmd").as_deref(), Some("testpmd 3.0 2.0 – 4.0 0.50"), "{text}");
    }

    #[test]
    fn missing_results_have_the_reason_in_their_row() {
        let why = "not measured: dpdk-testpmd is not installed; scripts/setup installs it";
        let (text, markdown) = (results().text(), results().markdown());
        assert!(text.lines().any(|line| line.contains("absent") && line.ends_with(why)), "{text}");
        assert!(markdown.contains(&format!("| absent: {why} | – |  |  |")), "{markdown}");
    }
}
