//! Rates as text and as JSON, for scripts.
//!
//! Text: tables, each with a title that begins with `#`. Each row begins with the kind of what it is about, so that
//! `awk '$1 == "port"'` selects it. Numbers have no prefixes of SI.

use serde_json::{Value, json};

use super::rates::{LatencyRows, PacketRates, PortRates, Rates, ReasonRate, WorkerRates};
use crate::cli::flows::top::{self, FlowRow};
use crate::cli::output::columns;
use crate::control::api::flows::FlowTopReport;
use crate::histogram::Summary;

/// One object: everything that [`to_text`] has, and the percentiles since the start.
pub fn to_json(rates: &Rates, flows: Option<&FlowTopReport>) -> Value {
    let status = &rates.status;
    let PacketRates { received, sent, dropped, to_kernel, offloaded, .. } = rates.packets;
    json!({
        "time": jiff::Timestamp::now().to_string(),
        "interval_s": rates.interval.map(|interval| interval.as_secs_f64()),
        "state": status.state,
        "version": status.version,
        "pid": status.pid,
        "uptime_s": status.uptime_seconds,
        "packets": {
            "received_per_s": received,
            "sent_per_s": sent,
            "dropped_per_s": dropped,
            "to_kernel_per_s": to_kernel,
            "offloaded_per_s": offloaded,
            "incomplete": rates.packets.is_incomplete,
        },
        "carried_flows": status.carried_flows,
        "offloaded_flows": status.offloaded_flows,
        "ports": rates.ports.iter().map(port_json).collect::<Value>(),
        "workers": rates.workers.iter().map(worker_json).collect::<Value>(),
        "reasons": rates.reasons.iter().map(reason_json).collect::<Value>(),
        "latency": latency_json(&rates.latency),
        "latency_total": latency_json(&rates.latency_total),
        "flows": flows.map(top::to_json),
        "warnings": status.warnings,
    })
}

fn port_json(port: &PortRates) -> Value {
    json!({
        "ifname": port.ifname,
        "state": port.state,
        "mode": port.mode,
        "rx_packets_per_s": port.rx_packets,
        "rx_bits_per_s": 8.0 * port.rx_octets,
        "tx_packets_per_s": port.tx_packets,
        "tx_bits_per_s": 8.0 * port.tx_octets,
        "dropped_per_s": port.dropped,
        "to_kernel_per_s": port.to_kernel,
    })
}

fn worker_json(worker: &WorkerRates) -> Value {
    json!({
        "worker": worker.worker,
        "cpu": worker.cpu,
        "busy": worker.busy,
        "received_per_s": worker.packets.map(|packets| packets.received),
        "sent_per_s": worker.packets.map(|packets| packets.sent),
        "dropped_per_s": worker.packets.map(|packets| packets.dropped),
        "silent": worker.is_silent,
    })
}

fn reason_json(reason: &ReasonRate) -> Value {
    json!({
        "fate": reason.fate.name(),
        "reason": reason.name,
        "per_s": reason.rate,
        "count": reason.count,
    })
}

fn latency_json(latency: &LatencyRows) -> Value {
    let pair = |(iif, oif, summary): &(String, String, Summary)| {
        let mut value = json!(summary);
        (value["iif"], value["oif"]) = (json!(iif), json!(oif));
        value
    };
    json!({
        "sample": latency.sample,
        "pairs": latency.pairs.iter().map(pair).collect::<Value>(),
        "total": latency.total,
    })
}

/// A row of a table: its cells.
fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn number(value: f64) -> String {
    format!("{value:.1}")
}

/// `-`: it is unknown.
fn number_or_none(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

/// Tables.
pub fn to_text(rates: &Rates, flows: Option<&FlowTopReport>) -> String {
    let mut text = router(rates);
    text += &ports(&rates.ports);
    text += &workers(&rates.workers);
    text += &reasons(&rates.reasons);
    text += &latency(&rates.latency);
    if let Some(report) = flows {
        text += &flow_rows(report);
    }
    for warning in &rates.status.warnings {
        text += &format!("warning {warning}\n");
    }
    text
}

fn router(rates: &Rates) -> String {
    let titles = row([
        "#router",
        "state",
        "uptime_s",
        "interval_s",
        "received/s",
        "sent/s",
        "dropped/s",
        "to_kernel/s",
        "offloaded/s",
        "workers",
    ]);
    let PacketRates { received, sent, dropped, to_kernel, offloaded, .. } = rates.packets;
    let seconds = rates.interval.unwrap_or_default().as_secs_f64();
    let mut cells = row(["router", rates.status.state.name()]);
    cells.extend([rates.status.uptime_seconds.to_string(), format!("{seconds:.2}")]);
    cells.extend([received, sent, dropped, to_kernel, offloaded].map(number));
    // Whether these rates include what all workers counted.
    cells.push(if rates.packets.is_incomplete { "incomplete" } else { "all" }.to_owned());
    columns(&[titles, cells])
}

fn ports(ports: &[PortRates]) -> String {
    let mut rows = vec![row([
        "#port",
        "name",
        "rx_packets/s",
        "rx_bits/s",
        "tx_packets/s",
        "tx_bits/s",
        "dropped/s",
        "to_kernel/s",
        "state",
    ])];
    rows.extend(ports.iter().map(|port| {
        let (rx, tx) = (8.0 * port.rx_octets, 8.0 * port.tx_octets);
        let rates = [port.rx_packets, rx, port.tx_packets, tx, port.dropped, port.to_kernel];
        let mut cells = row(["port", &port.ifname]);
        cells.extend(rates.map(number));
        // The last one, because it may have blanks.
        cells.push(port.state.clone());
        cells
    }));
    columns(&rows)
}

fn workers(workers: &[WorkerRates]) -> String {
    let titles =
        ["#worker", "number", "cpu", "busy_%", "received/s", "sent/s", "dropped/s", "state"];
    let mut rows = vec![row(titles)];
    rows.extend(workers.iter().map(|worker| {
        let mut cells = row(["worker"]);
        let cpu = worker.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
        cells.extend([worker.worker.to_string(), cpu]);
        cells.push(number_or_none(worker.busy.map(|busy| 100.0 * busy)));
        let packets = worker.packets.map(|it| [it.received, it.sent, it.dropped].map(Some));
        cells.extend(packets.unwrap_or_default().map(number_or_none));
        cells.push(if worker.is_silent { "silent" } else { "running" }.to_owned());
        cells
    }));
    columns(&rows)
}

fn reasons(reasons: &[ReasonRate]) -> String {
    let mut rows = vec![row(["#reason", "fate", "name", "packets/s", "count"])];
    rows.extend(reasons.iter().map(|reason| {
        let mut cells = row(["reason", reason.fate.name(), &reason.name]);
        cells.extend([number(reason.rate), reason.count.to_string()]);
        cells
    }));
    columns(&rows)
}

/// Nanoseconds; `-` where nothing was measured.
fn latency(latency: &LatencyRows) -> String {
    let titles = row([
        "#latency",
        "in",
        "out",
        "frames",
        "p50_ns",
        "p90_ns",
        "p99_ns",
        "p99.9_ns",
        "p99.99_ns",
        "max_ns",
    ]);
    let cells = |iif: &str, oif: &str, it: &Summary| {
        let time = |ns: u64| if it.count == 0 { "-".to_owned() } else { ns.to_string() };
        let mut cells = row(["latency", iif, oif]);
        cells.push(it.count.to_string());
        cells.extend(
            [it.p50_ns, it.p90_ns, it.p99_ns, it.p99_9_ns, it.p99_99_ns, it.max_ns].map(time),
        );
        cells
    };
    let mut rows = vec![titles];
    rows.extend(latency.pairs.iter().map(|(iif, oif, summary)| cells(iif, oif, summary)));
    rows.push(cells("all", "all", &latency.total));
    columns(&rows)
}

fn flow_rows(report: &FlowTopReport) -> String {
    let mut rows = vec![row([
        "#flow",
        "proto",
        "source",
        "destination",
        "packets/s",
        "bits/s",
        "packets/s_back",
        "bits/s_back",
        "offload",
    ])];
    for flow in report.flows.iter().filter_map(|flow| FlowRow::of(flow, report)) {
        let mut cells = row(["flow", flow.protocol, &flow.source, &flow.destination]);
        for rates in flow.rates {
            cells.extend([0, 1].map(|at| rates.map_or_else(|| "-".into(), |it| number(it[at]))));
        }
        cells.push(flow.offload.to_owned());
        rows.push(cells);
    }
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::rates::tests::sample;
    use super::*;
    use crate::control::api::flows::{FlowRate, FlowTuple};

    fn rates() -> Rates {
        let start = Instant::now();
        let later = start + Duration::from_millis(500);
        let mut now = sample(later, 2, 2);
        now.status.warnings = vec!["a\x1b[31mb".into()];
        Rates::between(Some(&sample(start, 2, 1)), &now)
    }

    fn flows() -> FlowTopReport {
        let address = |text: &str| -> std::net::IpAddr { text.parse().expect("an address") };
        let (client, server) = (address("10.0.0.1"), address("10.0.1.1"));
        let flow = FlowRate {
            tuples: vec![
                FlowTuple(client, server, 6, 1024, 443),
                FlowTuple(server, client, 6, 443, 1024),
            ],
            packets: [10, 5],
            octets: [15_000, 260],
            offloaded: [true, true],
            iif: None,
            oif: None,
        };
        FlowTopReport { interval_ns: 500_000_000, carried: 1, entries: 0, flows: vec![flow] }
    }

    #[test]
    fn rows_begin_with_their_kind_and_have_as_many_words_as_their_title() {
        let text = to_text(&rates(), Some(&flows()));
        let mut columns = 0;
        for line in text.lines().filter(|line| !line.starts_with("warning ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if line.starts_with('#') {
                columns = words.len();
            }
            assert_eq!(words.len(), columns, "{line}\n{text}");
        }
        for row in [
            "router   forwarding  61        0.50        800.0       780.0   6.0        32.0         600.0        all\n",
            "port   eth1  200.0         102400.0   0.0           0.0        2.0        20.0         forwarding\n",
            "worker   0       3    50.0    200.0       180.0   6.0        running\n",
            "reason   drop  IP_RPFILTER  6.0        6\n",
            "latency   eth0  eth1  10      1000    1000    1000    1000      1000       1000\n",
            "flow   tcp    10.0.0.1:1024  10.0.1.1:443  20.0       240000.0  10.0            4160.0       both\n",
        ] {
            assert!(text.contains(row), "{row:?} is not in\n{text}");
        }
        assert!(!to_text(&rates(), None).contains("#flow"));
    }

    #[test]
    fn what_is_unknown_of_a_silent_worker_is_no_number() {
        let start = Instant::now();
        let mut now = sample(start + Duration::from_secs(1), 1, 2);
        let worker = &mut now.stat.workers[0];
        (worker.packets, worker.silent) = (Default::default(), true);
        let rates = Rates::between(Some(&sample(start, 1, 1)), &now);
        let (text, json) = (to_text(&rates, None), to_json(&rates, None));
        let words = |kind: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(kind)).expect("a row");
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words("worker "), ["worker", "0", "3", "-", "-", "-", "-", "silent"]);
        assert_eq!(words("router ").last().map(String::as_str), Some("incomplete"));
        assert_eq!(json["packets"]["incomplete"], true);
        let worker = &json["workers"][0];
        assert!(worker["busy"].is_null() && worker["received_per_s"].is_null(), "{worker}");
        assert_eq!(worker["silent"], true);
    }

    #[test]
    fn json_has_the_same_in_one_line() {
        let json = to_json(&rates(), Some(&flows()));
        assert!(!json.to_string().contains('\n'));
        assert_eq!((&json["interval_s"], &json["state"]), (&json!(0.5), &json!("forwarding")));
        assert_eq!(json["packets"]["received_per_s"], 800.0);
        assert_eq!(json["ports"][1]["rx_bits_per_s"], 102_400.0);
        assert_eq!(json["workers"][0]["busy"], 0.5);
        assert_eq!(
            json["reasons"][1],
            json!({"fate": "drop", "reason": "IP_RPFILTER", "per_s": 6.0, "count": 6})
        );
        assert_eq!(
            (&json["latency"]["total"]["count"], &json["latency"]["pairs"][0]["oif"]),
            (&json!(10), &json!("eth1"))
        );
        assert_eq!(json["latency_total"]["total"]["count"], 20);
        assert_eq!(json["flows"]["flows"][0]["original"]["bits_per_s"], 240_000.0);
        assert!(to_json(&rates(), None)["flows"].is_null());
    }
}
