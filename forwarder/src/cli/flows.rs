//! `flows show` and `flows top`: the connections that workers carry, with what they have carried of each.

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::columns;
use super::{Global, unexpected};
use crate::control::api::client::Client;
use crate::control::api::flows::{
    FlowRate, FlowTopReport, FlowTopRequest, FlowTuple, TOP_INTERVAL_MS, TOP_MAX,
};
use crate::control::api::{Format, Rendered, Request, Response};
use crate::control::conntrack::{TupleFields, protocol_name};

/// `flows` and its subcommand; without one all flows are shown.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct FlowsArgs {
    #[command(subcommand)]
    verb: Option<FlowsVerb>,
}

#[derive(Debug, Subcommand)]
enum FlowsVerb {
    /// Show carried flows, with packets and octets of each direction.
    ///
    /// Only what workers have carried is counted, from the IP header on, since the flow was carried first;
    /// packets that the kernel forwarded before are not. `idle=`: milliseconds since a packet was carried.
    #[command(alias = "list", alias = "lst", alias = "ls", alias = "s")]
    Show,
    /// Show the flows that the XDP program forwards by itself (`run --offload`): each is one direction.
    ///
    /// Ports, key, what NAT makes of packets, packets and octets from the IP header on since the flow was offloaded,
    /// `age` and `idle` in milliseconds, and the neighbour that packets are sent to. A flow without protocol stands for
    /// all packets with its addresses.
    Offloaded,
    /// Show the carried flows with the highest rates, again after every interval.
    ///
    /// Flows are in the order of their bits per second, both directions together. Bits are counted from the
    /// IP header on. Flows without packets in the interval are not shown.
    Top(TopArgs),
}

#[derive(Debug, Args)]
struct TopArgs {
    /// Number of flows.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(TOP_MAX)))]
    number: u32,
    /// Seconds over which rates are measured, 0.1 to 30.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: u32,
    /// Number of intervals; without it, until interrupted.
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// An interval in milliseconds, from seconds.
fn parse_interval(text: &str) -> Result<u32, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    // Casts saturate; NaN becomes 0.
    let interval_ms = (seconds * 1e3).round() as u32;
    match TOP_INTERVAL_MS.contains(&interval_ms) {
        true => Ok(interval_ms),
        false => Err("expected 0.1 to 30 seconds".to_owned()),
    }
}

/// Requests flows or rates and prints them.
pub fn flows(global: &Global, args: &FlowsArgs) -> Result<()> {
    match &args.verb {
        None | Some(FlowsVerb::Show) => show(global, false),
        Some(FlowsVerb::Offloaded) => show(global, true),
        Some(FlowsVerb::Top(args)) => top(global, args),
    }
}

fn show(global: &Global, is_offloaded: bool) -> Result<()> {
    let output = global.output();
    let format = if output.json { Format::Json } else { Format::Text };
    let family = global.family();
    let request = match is_offloaded {
        true => Request::OffloadShow { format, family },
        false => Request::FlowShow { format, family },
    };
    match global.ask(&request)? {
        Response::Rendered(Rendered::Text(text)) => output.text(&text),
        Response::Rendered(Rendered::Json(value)) => output.json(&value),
        other => Err(unexpected(&other)),
    }
}

fn top(global: &Global, args: &TopArgs) -> Result<()> {
    let mut client = Client::connect(&global.control())?;
    let request = Request::FlowTop(FlowTopRequest {
        interval_ms: args.interval,
        flows: args.number,
        family: global.family(),
    });
    let output = global.output();
    let mut intervals = 0;
    while args.count.is_none_or(|count| intervals < count) {
        let report = match client.ask(&request)? {
            Response::FlowTop(report) => report,
            other => return Err(unexpected(&other)),
        };
        if output.json {
            output.json(&to_json(&report))?;
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

fn to_json(report: &FlowTopReport) -> Value {
    let direction = |flow: &FlowRate, at: usize| {
        let mut value = json!(TupleFields::of(&flow.tuples[at].tuple()));
        value["packets"] = json!(flow.packets[at]);
        value["octets"] = json!(flow.octets[at]);
        value["packets_per_s"] = json!(rate(flow.packets[at], report));
        value["bits_per_s"] = json!(8.0 * rate(flow.octets[at], report));
        value
    };
    let flow = |flow: &FlowRate| {
        let protocol = flow.tuples[0].2;
        json!({
            "protocol": protocol_name(protocol),
            "protonum": protocol,
            "original": direction(flow, 0),
            "reply": direction(flow, 1),
        })
    };
    json!({
        "interval_s": report.interval_ns as f64 / 1e9,
        "carried": report.carried,
        "flows": report.flows.iter().map(flow).collect::<Value>(),
    })
}

fn to_text(report: &FlowTopReport) -> String {
    let titles =
        ["proto", "source", "destination", "packets/s", "bits/s", "packets/s back", "bits/s back"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for flow in &report.flows {
        let FlowTuple(source, destination, protocol, source_port, destination_port) =
            flow.tuples[0];
        let mut row = vec![
            protocol_name(protocol).to_owned(),
            SocketAddr::new(source, source_port).to_string(),
            SocketAddr::new(destination, destination_port).to_string(),
        ];
        for (packets, octets) in flow.packets.iter().zip(&flow.octets) {
            row.push(si(rate(*packets, report)));
            row.push(si(8.0 * rate(*octets, report)));
        }
        rows.push(row);
    }
    let seconds = report.interval_ns as f64 / 1e9;
    format!("#{seconds:.1} s, carried flows: {}\n{}", report.carried, columns(&rows))
}

/// Three digits and a prefix of SI.
fn si(value: f64) -> String {
    let mut value = value;
    for prefix in ["", "k", "M", "G"] {
        match value {
            // What is rounded up to 1000 has the next prefix.
            ..9.995 => return format!("{value:.2}{prefix}"),
            ..99.95 => return format!("{value:.1}{prefix}"),
            ..999.5 => return format!("{value:.0}{prefix}"),
            _ => value /= 1e3,
        }
    }
    format!("{value:.1}T")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> FlowTopReport {
        let address = |text: &str| text.parse().expect("an address");
        let (client, server) = (address("2001:db8::1"), address("2001:db8::2"));
        FlowTopReport {
            interval_ns: 2_000_000_000,
            carried: 7,
            flows: vec![FlowRate {
                tuples: [
                    FlowTuple(client, server, 17, 1024, 53),
                    FlowTuple(server, client, 17, 53, 1024),
                ],
                packets: [2000, 1],
                octets: [250_000, 40],
            }],
        }
    }

    #[test]
    fn rates_are_per_second() {
        assert_eq!(
            to_text(&report()),
            "#2.0 s, carried flows: 7\n\
             proto  source              destination       packets/s  bits/s  packets/s back  bits/s back\n\
             udp    [2001:db8::1]:1024  [2001:db8::2]:53  1.00k      1.00M   0.50            160\n"
        );
        let json = to_json(&report());
        assert_eq!(json["flows"][0]["original"]["bits_per_s"], 1_000_000.0);
        assert_eq!(json["flows"][0]["original"]["dport"], 53);
        assert_eq!(json["flows"][0]["reply"]["packets_per_s"], 0.5);
        assert_eq!((&json["interval_s"], &json["carried"]), (&json!(2.0), &json!(7)));
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0.00"),
            (9.99, "9.99"),
            (9.999, "10.0"),
            (99.96, "100"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1_234_567.0, "1.23M"),
            (98_765_432_100.0, "98.8G"),
            (1.5e15, "1500.0T"),
        ] {
            assert_eq!(si(value), text, "{value}");
        }
    }

    #[test]
    fn intervals_are_seconds() {
        assert_eq!((parse_interval("1"), parse_interval("0.25")), (Ok(1000), Ok(250)));
        for text in ["0", "-1", "NaN", "inf", "31", "x"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
