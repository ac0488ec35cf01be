//! `drops`: every drop reason, and what was handed back to the kernel.

use anyhow::Result;
use clap::Args;

use super::output::columns;
use super::{Global, unexpected};
use crate::control::api::{NamedCount, Request, Response};

/// Flags of `drops`.
#[derive(Debug, Args)]
pub struct DropsArgs {
    /// Also show reasons that are zero.
    #[arg(short, long)]
    zeros: bool,
}

/// Requests the report and prints it.
pub fn drops(global: &Global, args: &DropsArgs) -> Result<()> {
    let mut report = match global.ask(&Request::Drops)? {
        Response::Drops(report) => report,
        other => return Err(unexpected(&other)),
    };
    let output = global.output();
    report.drops.retain(|drop| args.zeros || drop.count != 0);
    report.punts.retain(|punt| args.zeros || punt.count != 0);
    if output.json {
        return output.json(&report);
    }
    output.text(&text("dropped", &report.drops))?;
    output.text(&text("handed to the kernel", &report.punts))
}

fn text(title: &str, counts: &[NamedCount]) -> String {
    let mut rows = vec![vec![format!("#{title}")]];
    if counts.is_empty() {
        rows.push(vec!["none".into()]);
    }
    for NamedCount { reason, count, help } in counts {
        rows.push(vec![reason.clone(), count.to_string(), help.clone()]);
    }
    let (title, rows) = rows.split_at(1);
    columns(title) + &columns(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_count_and_meaning() {
        let count = NamedCount {
            reason: "IP_CSUM".into(),
            count: 12,
            help: "IPv4 header checksum wrong.".into(),
        };
        assert_eq!(
            text("dropped", &[count]),
            "#dropped\nIP_CSUM  12  IPv4 header checksum wrong.\n"
        );
        assert_eq!(text("dropped", &[]), "#dropped\nnone\n");
    }
}
