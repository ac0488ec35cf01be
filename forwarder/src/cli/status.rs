//! `status`: shows whether packets are forwarded, and can wait until they are.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::Args;

use super::output::{Colour, coloured, columns};
use super::{Global, unexpected};
use crate::control::api::{
    PortStatus, Request, Response, State, StatusReport, WorkerPort, WorkerStatus,
};

/// Interval between requests while waiting.
const REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Wait up to this many seconds until packets are forwarded.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "expected a number of seconds".to_owned())
}

/// Prints the state; success if packets are forwarded.
pub fn status(global: &Global, args: &StatusArgs) -> Result<ExitCode> {
    let report = wait(global, args.wait.unwrap_or_default())?;
    let output = global.output();
    if output.json {
        output.json(&report)?;
    } else {
        output.text(&text(&report))?;
    }
    Ok(if report.state == State::Forwarding { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Repeats the request until packets are forwarded or the time is over. Returns the last answer.
fn wait(global: &Global, timeout: Duration) -> Result<StatusReport> {
    let start = Instant::now();
    loop {
        let answer = match global.ask(&Request::Status) {
            Ok(Response::Status(report)) if report.state == State::Forwarding => {
                return Ok(*report);
            }
            Ok(Response::Status(report)) => Ok(*report),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => Err(error),
        };
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            let waited = timeout.as_secs_f64();
            return answer.map_err(|error| match waited {
                0.0 => error,
                _ => anyhow!("waited {waited} s: {error:#}"),
            });
        }
        thread::sleep(REQUEST_INTERVAL.min(left));
    }
}

fn text(report: &StatusReport) -> String {
    let colour = match report.state {
        State::Forwarding => Colour::Good,
        State::Starting | State::Degraded | State::Stopping => Colour::Odd,
    };
    let mut text = format!(
        "{} pid {} version {} driver {} up {}\n",
        coloured(report.state.name(), colour),
        report.pid,
        report.version,
        report.driver,
        duration(report.uptime_seconds)
    );
    text += &ports(&report.ports);
    text += &workers(&report.workers);
    let mirror = &report.mirror;
    text += &format!(
        "mirror {} generation {} links {} addrs {} routes {} + {} rules {} nexthops {} neighbours \
         {} resyncs {} corrections {}\n",
        if mirror.ready { "ready" } else { "not ready" },
        mirror.generation,
        mirror.links,
        mirror.addrs,
        mirror.routes4,
        mirror.routes6,
        mirror.rules,
        mirror.nexthops,
        mirror.neighbours,
        mirror.resyncs,
        mirror.corrections
    );
    if let Some(flows) = report.offloaded_flows {
        text += &format!("offloaded flows: {flows}\n");
    }
    if let Some(flows) = report.carried_flows {
        text += &format!(
            "connections {flows} carried; packets of others are left to the kernel, which tracks them\n"
        );
    }
    if let Some(policies) = report.ipsec_policies {
        let sas = report.ipsec_sas.clone().unwrap_or_default();
        let fate = match sas.of_file {
            true => "of the file; what workers have no SA for is dropped".to_owned(),
            false => {
                format!("kernel {}; what workers have no SA for is left to the kernel", sas.kernel)
            }
        };
        text += &format!(
            "ipsec {policies} policies, SAs: workers {} in, {} out, {fate}\n",
            sas.inbound, sas.outbound
        );
        let fate = if sas.of_file { "dropped" } else { "left to the kernel" };
        for reason in &sas.reasons {
            text += &format!("{} {fate}: ipsec: {reason}\n", coloured("note", Colour::Odd));
        }
    }
    for what in &mirror.unmirrored {
        text += &format!("{} left to the kernel: {what}\n", coloured("note", Colour::Odd));
    }
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", coloured("warning", Colour::Odd));
    }
    text
}

fn ports(ports: &[PortStatus]) -> String {
    let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    let any_vlans = ports.iter().any(|port| !port.vlans.is_empty());
    let row = |port: &PortStatus| {
        let mut row = vec![
            format!("port {}", port.ifname),
            port.state.clone(),
            format!("xdp {}", or_dash(&port.xdp_mode)),
            format!("bind {}", or_dash(&port.bind_mode)),
            format!("queues {}", port.queues),
            format!("mtu {}", port.mtu),
        ];
        row.extend(any_vlans.then(|| format!("vlans {}", port.vlans.len())));
        row
    };
    columns(&ports.iter().map(row).collect::<Vec<_>>())
}

fn workers(workers: &[WorkerStatus]) -> String {
    let row = |worker: &WorkerStatus| {
        let busy = 100.0 * worker.busy_loops as f64 / worker.loops.max(1) as f64;
        vec![
            format!("worker {}", worker.worker),
            format!("cpu {}", worker.cpu.map_or("any".into(), |cpu| cpu.to_string())),
            worker_ports(worker.worker, &worker.ports),
            format!("loops {} ({busy:.1} % busy)", worker.loops),
        ]
    };
    columns(&workers.iter().map(row).collect::<Vec<_>>())
}

/// `eth0 queues 0,2, eth1 by worker 0`: what a worker serves, and which worker sends for it.
pub(super) fn worker_ports(worker: u32, ports: &[WorkerPort]) -> String {
    let one = |port: &WorkerPort| {
        let queues: Vec<String> = port.queues.iter().map(u32::to_string).collect();
        let mut text = port.ifname.clone();
        match &queues[..] {
            [] => {}
            [queue] => text += &format!(" queue {queue}"),
            _ => text += &format!(" queues {}", queues.join(",")),
        }
        if port.sends_by != worker {
            text += &format!(" by worker {}", port.sends_by);
        }
        text
    };
    let ports: Vec<String> = ports.iter().map(one).collect();
    if ports.is_empty() { "no queue".to_owned() } else { ports.join(", ") }
}

/// `59s`, `1m05s`, `2h00m`, `3d04h`.
pub(super) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{IpsecSas, MirrorStatus};

    #[test]
    fn durations_are_short() {
        let shown = [0, 59, 65, 7200, 86400 * 3 + 3600 * 4].map(duration);
        assert_eq!(shown, ["0s", "59s", "1m05s", "2h00m", "3d04h"]);
    }

    #[test]
    fn the_text_has_every_port_and_warning() {
        let port = PortStatus {
            ifname: "eth0".into(),
            state: "forwarding".into(),
            xdp_mode: "native".into(),
            vlans: vec!["eth0.1".into(), "eth0.2".into()],
            ..PortStatus::default()
        };
        let served = |ifname: &str, queues: &[u32], sends_by| WorkerPort {
            ifname: ifname.into(),
            queues: queues.into(),
            sends_by,
        };
        let worker = WorkerStatus {
            loops: 200,
            busy_loops: 50,
            ports: vec![served("eth0", &[0, 2], 0), served("eth1", &[], 1)],
            ..WorkerStatus::default()
        };
        let report = StatusReport {
            state: State::Forwarding,
            pid: 7,
            version: "0.1.0".into(),
            driver: "af_xdp".into(),
            uptime_seconds: 61,
            ports: vec![port],
            workers: vec![worker],
            mirror: MirrorStatus { unmirrored: vec!["route X".into()], ..Default::default() },
            carried_flows: Some(2),
            offloaded_flows: None,
            ipsec_policies: Some(2),
            ipsec_sas: Some(IpsecSas {
                inbound: 1,
                reasons: vec!["esp: why".into()],
                ..IpsecSas::default()
            }),
            warnings: vec!["mind the gap".into()],
        };
        let mut dropping = report.clone();
        dropping.ipsec_sas.as_mut().expect("has some").of_file = true;
        let of_file = text(&dropping);
        for part in [
            "ipsec 2 policies, SAs: workers 1 in, 0 out, of the file; what workers have no SA for is dropped\n",
            "note dropped: ipsec: esp: why\n",
        ] {
            assert!(of_file.contains(part), "{part:?} is not in\n{of_file}");
        }
        let text = text(&report);
        for part in [
            "forwarding pid 7 version 0.1.0 driver af_xdp up 1m01s\n",
            "port eth0  forwarding  xdp native  bind -  queues 0  mtu 0  vlans 2\n",
            "worker 0  cpu any  eth0 queues 0,2, eth1 by worker 1  loops 200 (25.0 % busy)\n",
            "connections 2 carried; packets of others are left to the kernel, which tracks them\n",
            "ipsec 2 policies, SAs: workers 1 in, 0 out, kernel 0; what workers have no SA for is left to the kernel\n",
            "note left to the kernel: ipsec: esp: why\n",
            "note left to the kernel: route X\n",
            "warning mind the gap\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn seconds_may_have_a_fraction() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "-1", "x", "nan", "1e99"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
