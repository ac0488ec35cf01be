//! `stat`: counters, as nstat prints them.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::status::worker_ports;
use super::{Global, unexpected};
use crate::control::api::{Counters, PortReport, Request, Response, StatReport};

/// Flags of `stat`.
#[derive(Debug, Args)]
pub struct StatArgs {
    /// Also show counters that are zero.
    #[arg(short, long)]
    zeros: bool,
    /// Show each port's counters, or those of one port.
    #[arg(long, value_name = "NAME", num_args = 0..=1)]
    port: Option<Option<String>>,
}

/// Requests the report and prints it. JSON has everything, including zeros.
pub fn stat(global: &Global, args: &StatArgs) -> Result<()> {
    let report = match global.ask(&Request::Stat)? {
        Response::Stat(report) => report,
        other => return Err(unexpected(&other)),
    };
    let ports = match &args.port {
        None => &[][..],
        Some(None) => &report.ports[..],
        Some(Some(name)) => one_port(&report, name)?,
    };
    let output = global.output();
    match (output.json, args.port.is_some()) {
        (true, true) => output.json(&ports),
        (true, false) => output.json(&json!({
            "mib": report.mib(),
            "drops": report.drops(),
            "punts": report.punts(),
            "packets": report.packets(),
            "frames": report.frames(),
            "polling": report.polling(),
            "handoffs": report.handoffs(),
            "offload": report.offload,
            "ports": report.ports,
            "workers": report.workers,
        })),
        (false, true) => output.text(&port_text(ports, args.zeros)),
        (false, false) => output.text(&text(&report, args.zeros)),
    }
}

fn one_port<'a>(report: &'a StatReport, name: &str) -> Result<&'a [PortReport]> {
    match report.ports.iter().position(|port| port.ifname == name) {
        Some(at) => Ok(&report.ports[at..=at]),
        None => {
            let names: Vec<&str> = report.ports.iter().map(|port| port.ifname.as_str()).collect();
            bail!("{name} is not a port of the daemon; it has {}", names.join(", "))
        }
    }
}

fn text(report: &StatReport, zeros: bool) -> String {
    let mut text = section("ferroute", &report.mib(), zeros);
    text += &section("drops", &report.drops(), zeros);
    text += &section("handed to the kernel", &report.punts(), zeros);
    text += &section("packets", &report.packets(), zeros);
    text += &section("frames", &report.frames(), zeros);
    if let Some(offload) = &report.offload {
        text += &section("packets, offloaded to XDP", &offload.packets, zeros);
        text += &section("flows, offloaded to XDP", &offload.flows, zeros);
    }
    for worker in &report.workers {
        text += &section(&format!("polling, worker {}", worker.worker), &worker.polling, zeros);
        let ports = worker_ports(worker.worker, &worker.ports);
        text += &format!("#queues, worker {}: {ports}\n", worker.worker);
        text += &lines(&worker.handoffs, zeros);
    }
    text
}

fn port_text(ports: &[PortReport], zeros: bool) -> String {
    let mut text = String::new();
    for port in ports {
        text += &section(&port.ifname, &port.counters, zeros);
        text += &section(&format!("{} AF_XDP", port.ifname), &port.driver, zeros);
        text += &section(&format!("{} XDP program", port.ifname), &port.xdp, zeros);
    }
    text
}

/// nstat's format: `#title`, then name and count on each line.
fn section(title: &str, counters: &Counters, zeros: bool) -> String {
    let lines = lines(counters, zeros);
    if lines.is_empty() { lines } else { format!("#{title}\n{lines}") }
}

fn lines(counters: &Counters, zeros: bool) -> String {
    let shown = counters.iter().filter(|(_, count)| zeros || **count != 0);
    shown.map(|(name, count)| format!("{name:<31} {count}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_shown_when_asked_for() {
        let counters = Counters::from([("IpForwDatagrams".into(), 3), ("IpInHdrErrors".into(), 0)]);
        assert_eq!(
            section("ferroute", &counters, false),
            "#ferroute\nIpForwDatagrams                 3\n"
        );
        assert_eq!(section("ferroute", &counters, true).lines().count(), 3);
        assert_eq!(section("ferroute", &Counters::new(), true), "");
    }

    #[test]
    fn an_unknown_port_is_refused_and_the_ports_are_listed() {
        let port = |name: &str| PortReport { ifname: name.into(), ..PortReport::default() };
        let report = StatReport { ports: vec![port("a"), port("b")], ..StatReport::default() };
        assert_eq!(one_port(&report, "b").expect("is there")[0].ifname, "b");
        let error = one_port(&report, "c").expect_err("is not").to_string();
        assert_eq!(error, "c is not a port of the daemon; it has a, b");
    }
}
