//! `reload`: has the daemon read its configuration file again.

use anyhow::Result;
use clap::Args;

use super::{Global, unexpected};
use crate::control::api::{ReloadReport, Request, Response};
use crate::control::config::effective::toml_text;

/// Flags of `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {}

/// Requests it and prints which keys have changed.
pub fn reload(global: &Global, _: &ReloadArgs) -> Result<()> {
    let report = match global.ask(&Request::Reload)? {
        Response::Reload(report) => report,
        other => return Err(unexpected(&other)),
    };
    let output = global.output();
    if output.json {
        return output.json(&report);
    }
    output.text(&text(&report))
}

fn text(report: &ReloadReport) -> String {
    let mut text = String::new();
    if report.changes.is_empty() {
        text += &format!("{}: no key has changed\n", report.file.display());
    }
    for change in &report.changes {
        let effect = if change.applied { "applied" } else { "needs a restart" };
        let value = |value: &Option<_>| value.as_ref().map_or("not set".to_owned(), toml_text);
        let (from, to) = (value(&change.from), value(&change.to));
        text += &format!("{}: {effect}: {from} -> {to}\n", change.key);
    }
    for warning in &report.warnings {
        text += &format!("note {warning}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::config::reload::KeyChange;

    #[test]
    fn what_needs_a_restart_is_named() {
        let change = |key: &str, applied| KeyChange {
            key: key.into(),
            from: Some(json!(64)),
            to: None,
            applied,
        };
        let mut report = ReloadReport {
            file: "/etc/f.toml".into(),
            changes: vec![change("offload_threshold", true), change("queues", false)],
            warnings: vec!["interface x does not exist".into()],
        };
        assert_eq!(
            text(&report),
            "offload_threshold: applied: 64 -> not set\nqueues: needs a restart: 64 -> not set\n\
             note interface x does not exist\n"
        );
        report = ReloadReport { changes: vec![], warnings: vec![], ..report };
        assert_eq!(text(&report), "/etc/f.toml: no key has changed\n");
    }
}
