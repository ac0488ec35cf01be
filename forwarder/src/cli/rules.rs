//! `rules show`: the nftables ruleset that workers apply.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{Global, unexpected};
use crate::control::api::{Format, Rendered, Request, Response};

/// `rules` and its subcommand; without one the ruleset is shown.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct RulesArgs {
    #[command(subcommand)]
    verb: Option<RulesVerb>,
}

#[derive(Debug, Subcommand)]
enum RulesVerb {
    /// Show tables, chains, rules, sets and counters in nft's syntax.
    ///
    /// A rule that is left to the kernel is marked, with the reason: packets that reach it are handed to the
    /// kernel. While connections are tracked, a rule is marked `per packet` if packets of carried connections reach it
    /// and its result may differ between packets of one connection, with the expression that makes it so; for rules that are
    /// left to the kernel it is said if no such packet reaches them.
    ///
    /// Expressions that this version cannot write in nft's syntax are in brackets, as
    /// `nft --debug=netlink` prints them.
    ///
    /// Counters show what the kernel had counted when the ruleset was last read, plus what workers have counted.
    /// Packets that the kernel has processed after that reading are not included; `nft list ruleset` shows the
    /// kernel's own counters, without those of the workers.
    #[command(alias = "list", alias = "lst", alias = "ls", alias = "s")]
    Show,
}

/// Requests the ruleset and prints it.
pub fn rules(global: &Global, args: &RulesArgs) -> Result<()> {
    let (None | Some(RulesVerb::Show)) = args.verb;
    let output = global.output();
    let format = if output.json { Format::Json } else { Format::Text };
    match global.ask(&Request::Rules { format })? {
        Response::Rendered(Rendered::Text(text)) => output.text(&text),
        Response::Rendered(Rendered::Json(value)) => output.json(&value),
        other => Err(unexpected(&other)),
    }
}
