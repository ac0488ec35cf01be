//! `flows`: the connections that workers carry, and the flows that the XDP program forwards by itself.
//!
//! Here the lists and numbers; `filter`: which flows; `top`: those with the highest rates.

mod filter;
pub mod top;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use self::filter::FilterArgs;
use self::top::TopArgs;
use super::{Global, unexpected};
use crate::control::api::flows::{FlowCountReport, FlowListKind, FlowShowRequest};
use crate::control::api::{Format, Rendered, Request, Response};

/// `flows` and its subcommand; without one all flows are shown.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct FlowsArgs {
    /// Print JSON with line breaks and indentation.
    // In place of the option of all commands, whose short form is the protocol's here, as in conntrack-tools.
    #[arg(id = "pretty", long = "pretty", global = true)]
    _pretty: bool,
    #[command(subcommand)]
    verb: Option<FlowsVerb>,
}

#[derive(Debug, Subcommand)]
enum FlowsVerb {
    /// Show flows: how their packets are forwarded, and [OFFLOAD] at those that the XDP program forwards by itself.
    ///
    /// First connections that workers carry, with packets and octets of each direction since it is carried, from the
    /// IP header on; packets that the kernel forwarded before are not counted. Then entries of the offload table
    /// (`run --offload`) that are of no connection: each is one direction, and one without protocol (`all`) stands for
    /// all packets with its addresses. `idle=`: milliseconds since a packet was seen.
    #[command(alias = "list", alias = "lst", alias = "ls", alias = "s")]
    Show(ShowArgs),
    /// Show the number of flows, and how many of them the XDP program forwards by itself.
    Count(FilterArgs),
    /// Show the flows with the highest rates, again after every interval.
    ///
    /// Both directions of a connection are compared together. Bits are counted from the IP header on. Flows without
    /// packets in the interval are not shown. On a terminal each interval replaces the last one, unless --batch is
    /// given.
    Top(TopArgs),
    /// Show all entries of the offload table, also those of connections: each is one direction.
    ///
    /// Ports, key, what NAT makes of packets, the neighbour that packets are sent to, packets and octets from the IP
    /// header on since the flow was offloaded, `age` and `idle` in milliseconds. [OFFLOAD]: the entry holds.
    Offloaded(FilterArgs),
}

#[derive(Debug, Default, Args)]
struct ShowArgs {
    /// Show what the entry of an offloaded flow depends on, and why a flow is not offloaded.
    ///
    /// Without rules, Ferroute does not know flows that are not offloaded: with two addresses (-s and -d), the answer
    /// is about packets between them, whether there are any or not.
    #[arg(short = 'v', long)]
    details: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Requests flows, numbers or rates and prints them.
pub fn flows(global: &Global, args: &FlowsArgs) -> Result<()> {
    match &args.verb {
        None => show(global, &FilterArgs::default(), FlowListKind::Flows),
        Some(FlowsVerb::Show(args)) => {
            let list = if args.details { FlowListKind::Details } else { FlowListKind::Flows };
            show(global, &args.filter, list)
        }
        Some(FlowsVerb::Offloaded(filter)) => show(global, filter, FlowListKind::Entries),
        Some(FlowsVerb::Count(filter)) => count(global, filter),
        Some(FlowsVerb::Top(args)) => top::top(global, args),
    }
}

fn show(global: &Global, filter: &FilterArgs, list: FlowListKind) -> Result<()> {
    let output = global.output();
    let format = if output.json { Format::Json } else { Format::Text };
    let filter = filter.filter(global)?;
    match global.ask(&Request::FlowShow(FlowShowRequest { format, filter, list }))? {
        Response::Rendered(Rendered::Text(text)) => output.text(&text),
        Response::Rendered(Rendered::Json(value)) => output.json(&value),
        other => Err(unexpected(&other)),
    }
}

fn count(global: &Global, filter: &FilterArgs) -> Result<()> {
    let output = global.output();
    let FlowCountReport { carried, entries, offloaded } =
        match global.ask(&Request::FlowCount(filter.filter(global)?))? {
            Response::FlowCount(report) => report,
            other => return Err(unexpected(&other)),
        };
    let flows = carried + entries;
    if output.json {
        let value = json!({
            "flows": flows, "carried": carried, "entries": entries, "offloaded": offloaded,
        });
        return output.json(&value);
    }
    output.text(&format!("{flows} ({carried} carried, {entries} entries; {offloaded} offloaded)\n"))
}
