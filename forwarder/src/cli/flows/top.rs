//! `flows top`: the flows with the highest rates.

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::filter::FilterArgs;
use crate::cli::output::columns;
use crate::cli::units::{parse_interval, si};
use crate::cli::{Global, unexpected};
use crate::control::api::client::Client;
use crate::control::api::flow_filter::prefixes;
use crate::control::api::flow_rows::{EntryTuple, entry_protocol, prefix_text};
use crate::control::api::flows::{
    FlowRate, FlowTopReport, FlowTopRequest, FlowTuple, RateKey, TOP_MAX,
};
use crate::control::api::{Request, Response};
use crate::control::conntrack::{TupleFields, has_ports, protocol_name};

/// Arguments of `flows top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Number of flows.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(TOP_MAX)))]
    number: u32,
    /// Seconds over which rates are measured, 0.1 to 30.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: u32,
    /// Show this many intervals one after the other, and end; without it, until interrupted.
    #[arg(short = 'c', long, visible_alias = "count", value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
    /// By which rate flows are sorted.
    #[arg(long, value_name = "RATE", default_value = "bits")]
    sort: Sort,
    #[command(flatten)]
    filter: FilterArgs,
}

/// By which rate flows are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Bits per second.
    Bits,
    /// Packets per second.
    Packets,
}

/// Requests rates and prints them.
pub fn top(global: &Global, args: &TopArgs) -> Result<()> {
    let mut client = Client::connect(&global.control())?;
    let request = Request::FlowTop(FlowTopRequest {
        interval_ms: args.interval,
        flows: args.number,
        sort: match args.sort {
            Sort::Bits => RateKey::Bits,
            Sort::Packets => RateKey::Packets,
        },
        filter: args.filter.filter(global)?,
    });
    let output = global.output();
    let mut intervals = 0;
    while args.batch.is_none_or(|count| intervals < count) {
        let report = match client.ask(&request)? {
            Response::FlowTop(report) => report,
            other => return Err(unexpected(&other)),
        };
        if output.json {
            output.json(&to_json(&report))?;
        } else if args.batch.is_none() {
            output.text_anew(&to_text(&report))?;
        } else {
            let separator = if intervals > 0 { "\n" } else { "" };
            output.text(&format!("{separator}{}", to_text(&report)))?;
        }
        intervals += 1;
    }
    Ok(())
}

/// Per second.
fn rate(count: u64, report: &FlowTopReport) -> f64 {
    count as f64 * 1e9 / report.interval_ns.max(1) as f64
}

/// Adds counts and rates of a direction.
fn add_rates(value: &mut Value, flow: &FlowRate, at: usize, report: &FlowTopReport) {
    value["packets"] = json!(flow.packets[at]);
    value["octets"] = json!(flow.octets[at]);
    value["packets_per_s"] = json!(rate(flow.packets[at], report));
    value["bits_per_s"] = json!(8.0 * rate(flow.octets[at], report));
    value["offloaded"] = json!(flow.offloaded[at]);
}

/// The rates as JSON.
pub fn to_json(report: &FlowTopReport) -> Value {
    let direction = |flow: &FlowRate, at: usize, tuple: &FlowTuple| {
        let mut value = json!(TupleFields::of(&tuple.tuple()));
        add_rates(&mut value, flow, at, report);
        value
    };
    let flow = |flow: &FlowRate| {
        let mut value = match &flow.tuples[..] {
            [original, reply] => json!({
                "protocol": protocol_name(original.2),
                "protonum": original.2,
                "original": direction(flow, 0, original),
                "reply": direction(flow, 1, reply),
            }),
            of => {
                let tuple = of.first().map(|tuple| EntryTuple::of(&tuple.tuple()));
                let mut value = json!({ "tuple": tuple });
                add_rates(&mut value, flow, 0, report);
                value
            }
        };
        for (name, interface) in [("iif", &flow.iif), ("oif", &flow.oif)] {
            if let Some(interface) = interface {
                value[name] = json!(interface);
            }
        }
        value
    };
    json!({
        "interval_s": report.interval_ns as f64 / 1e9,
        "carried": report.carried,
        "entries": report.entries,
        "flows": report.flows.iter().map(flow).collect::<Value>(),
    })
}

fn to_text(report: &FlowTopReport) -> String {
    let titles = [
        "proto",
        "source",
        "destination",
        "packets/s",
        "bits/s",
        "packets/s back",
        "bits/s back",
        "offload",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for flow in report.flows.iter().filter_map(|flow| FlowRow::of(flow, report)) {
        let mut row = vec![flow.protocol.to_owned(), flow.source, flow.destination];
        for rates in flow.rates {
            let text = |at: usize| rates.map_or_else(|| "-".to_owned(), |rates| si(rates[at]));
            row.extend([text(0), text(1)]);
        }
        row.push(flow.offload.to_owned());
        rows.push(row);
    }
    let seconds = report.interval_ns as f64 / 1e9;
    let FlowTopReport { carried, entries, .. } = report;
    format!("#{seconds:.1} s, carried flows: {carried}, entries: {entries}\n{}", columns(&rows))
}

/// A flow as a row of a table.
#[derive(Debug)]
pub struct FlowRow {
    /// Its name or number; `all`.
    pub protocol: &'static str,
    /// Address and port, or a prefix.
    pub source: String,
    /// Likewise.
    pub destination: String,
    /// Packets and bits per second of each direction; `None`: an entry of the offload table has one direction.
    pub rates: [Option<[f64; 2]>; 2],
    /// Which directions the XDP program forwards by itself.
    pub offload: &'static str,
}

impl FlowRow {
    /// Of a flow of a report. `None`: it has no tuple.
    pub fn of(flow: &FlowRate, report: &FlowTopReport) -> Option<FlowRow> {
        let tuple = flow.tuples.first()?;
        let FlowTuple(source, destination, protocol, source_port, destination_port) = *tuple;
        let [source, destination] = match has_ports(protocol) {
            true => [(source, source_port), (destination, destination_port)]
                .map(|(address, port)| SocketAddr::new(address, port).to_string()),
            false => prefixes(&tuple.tuple()).map(prefix_text),
        };
        let rates = |at: usize| {
            let has = at < flow.tuples.len();
            has.then(|| [rate(flow.packets[at], report), 8.0 * rate(flow.octets[at], report)])
        };
        Some(FlowRow {
            protocol: entry_protocol(protocol),
            source,
            destination,
            rates: [rates(0), rates(1)],
            offload: offload(flow),
        })
    }
}

/// Which directions the XDP program forwards by itself.
fn offload(flow: &FlowRate) -> &'static str {
    match (flow.offloaded, flow.tuples.len()) {
        ([true, _], 1) => "yes",
        ([true, true], _) => "both",
        ([true, false], _) => "original",
        ([false, true], _) => "reply",
        ([false, false], _) => "no",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> FlowTopReport {
        let address = |text: &str| -> std::net::IpAddr { text.parse().expect("an address") };
        let (client, server) = (address("2001:db8::1"), address("2001:db8::2"));
        FlowTopReport {
            interval_ns: 2_000_000_000,
            carried: 7,
            entries: 2,
            flows: vec![
                FlowRate {
                    tuples: vec![
                        FlowTuple(client, server, 17, 1024, 53),
                        FlowTuple(server, client, 17, 53, 1024),
                    ],
                    packets: [2000, 1],
                    octets: [250_000, 40],
                    offloaded: [true, false],
                    iif: Some("lan".into()),
                    oif: None,
                },
                FlowRate {
                    tuples: vec![FlowTuple(address("10.0.0.1"), address("10.7.1.0"), 254, 0, 0)],
                    packets: [20, 0],
                    octets: [800, 0],
                    offloaded: [true, false],
                    iif: Some("lan".into()),
                    oif: Some("wan".into()),
                },
            ],
        }
    }

    #[test]
    fn rates_are_per_second() {
        assert_eq!(
            to_text(&report()),
            "#2.0 s, carried flows: 7, entries: 2\n\
             proto  source              destination       packets/s  bits/s  packets/s back  bits/s back  offload\n\
             udp    [2001:db8::1]:1024  [2001:db8::2]:53  1.00k      1.00M   0.50            160          original\n\
             all    10.0.0.1            10.7.1.0/24       10.0       3.20k   -               -            yes\n"
        );
        let json = to_json(&report());
        let flow = &json["flows"][0];
        assert_eq!(flow["original"]["bits_per_s"], 1_000_000.0);
        assert_eq!(
            (&flow["original"]["dport"], &flow["original"]["offloaded"]),
            (&json!(53), &json!(true))
        );
        assert_eq!((&flow["reply"]["packets_per_s"], &flow["iif"]), (&json!(0.5), &json!("lan")));
        let entry = &json["flows"][1];
        assert_eq!(
            (&entry["tuple"]["dstlen"], &entry["packets_per_s"]),
            (&json!(24), &json!(10.0))
        );
        assert_eq!((&json["interval_s"], &json["carried"]), (&json!(2.0), &json!(7)));
    }
}
