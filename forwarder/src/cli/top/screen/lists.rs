//! The lists: what is known, as tables.

use std::borrow::Cow;

use ratatui::style::Style;

use super::super::rates::{Fate, LatencyRows, PortRates, Rates, ReasonRate, WorkerRates};
use super::model::Model;
use super::state::{List, State};
use super::table::{Cell, Column, Table};
use super::theme::Theme;
use crate::cli::flows::top::FlowRow;
use crate::cli::units::si;
use crate::histogram::{Summary, format_ns};

/// What a port's state is called while it forwards.
pub const FORWARDING: &str = "forwarding";

/// A list, sorted and filtered as chosen.
pub fn table(list: List, model: &Model, rates: &Rates, state: &State, theme: Theme) -> Table {
    let mut table = match list {
        List::Workers => workers(&rates.workers, theme),
        List::Ports => ports(&rates.ports, model.peak, state.octets, theme),
        List::Latency => latency(rates, state.latency_total, theme),
        List::Reasons => reasons(&rates.reasons, theme),
        List::Flows => flows(model, state.octets, theme),
    };
    table.filter(&state.filter);
    if let Some(sort) = state.sorts[list as usize] {
        table.sort(sort);
    }
    table
}

/// A rate, faint if it is 0.
fn rate(value: f64, theme: Theme) -> Cell {
    Cell::number(value, si(value), if value == 0.0 { theme.faint() } else { Style::new() })
}

/// A rate that should be 0.
fn bad_rate(value: f64, theme: Theme) -> Cell {
    Cell::number(value, si(value), if value == 0.0 { theme.faint() } else { theme.bad() })
}

/// Octets per second, as bits unless octets are chosen.
pub fn octets_or_bits(octets: f64, as_octets: bool) -> f64 {
    if as_octets { octets } else { 8.0 * octets }
}

/// Their unit.
pub fn unit(as_octets: bool) -> &'static str {
    if as_octets { "B/s" } else { "bit/s" }
}

fn workers(workers: &[WorkerRates], theme: Theme) -> Table {
    let rows = workers.iter().map(|worker| {
        let name = format!("worker {}", worker.worker);
        let style = if worker.is_silent { theme.bad() } else { theme.strong() };
        let cpu = worker.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
        let busy = match worker.busy {
            Some(busy) => Cell::bar(busy, format!("{:>5.1}%", 100.0 * busy), theme.bar(busy)),
            None => Cell::number(-1.0, "silent".to_owned(), theme.bad()),
        };
        let packets = worker.packets;
        let unknown = || Cell::number(-1.0, "-".to_owned(), theme.faint());
        let known = |value: Option<f64>, cell: fn(f64, Theme) -> Cell| {
            value.map_or_else(unknown, |value| cell(value, theme))
        };
        vec![
            Cell { content: super::table::Content::Text(name), ..number(worker.worker, style) },
            Cell::number(worker.cpu.map_or(-1.0, f64::from), cpu, Style::new()),
            busy,
            known(packets.map(|it| it.received), rate),
            known(packets.map(|it| it.sent), rate),
            known(packets.map(|it| it.dropped), bad_rate),
        ]
    });
    Table {
        title: "Workers".into(),
        columns: vec![
            Column::text("worker", 15, 0),
            Column::number("CPU", 4, 2),
            Column::rest("busy", 13, 0),
            Column::number("rx pkt/s", 8, 1),
            Column::number("tx pkt/s", 8, 3),
            Column::number("drop/s", 7, 4),
        ],
        rows: rows.collect(),
        empty: "none".into(),
    }
}

fn number(value: u32, style: Style) -> Cell {
    Cell::number(value.into(), value.to_string(), style)
}

fn ports(ports: &[PortRates], peak: f64, octets: bool, theme: Theme) -> Table {
    let rows = ports.iter().map(|port| {
        let data = |value: f64| {
            let value = octets_or_bits(value, octets);
            rate(value, theme)
        };
        let highest = port.rx_octets.max(port.tx_octets);
        let share = if peak > 0.0 { highest / peak } else { 0.0 };
        let is_forwarding = port.state == FORWARDING;
        let last = match is_forwarding {
            true => Cell::bar(share, String::new(), theme.good()),
            // Its bar would be empty: the kernel forwards what arrives there.
            false => Cell::text(&port.state, theme.bad()),
        };
        vec![
            Cell::text(&port.ifname, if is_forwarding { theme.strong() } else { theme.bad() }),
            rate(port.rx_packets, theme),
            data(port.rx_octets),
            rate(port.tx_packets, theme),
            data(port.tx_octets),
            bad_rate(port.dropped, theme),
            rate(port.to_kernel, theme),
            last,
            Cell::text(&port.mode, Style::new()),
        ]
    });
    let (rx, tx) = if octets { ("rx B/s", "tx B/s") } else { ("rx bit/s", "tx bit/s") };
    Table {
        title: "Ports".into(),
        columns: vec![
            Column::text("port", 15, 0),
            Column::number("rx pkt/s", 8, 1),
            Column::number(rx, 8, 2),
            Column::number("tx pkt/s", 8, 3),
            Column::number(tx, 8, 4),
            Column::number("drop/s", 7, 5),
            Column::number("kernel/s", 8, 6),
            Column::rest("of the peak", 10, 7),
            Column::text("mode", 16, 8),
        ],
        rows: rows.collect(),
        empty: "none".into(),
    }
}

fn latency(rates: &Rates, is_total: bool, theme: Theme) -> Table {
    let rows = if is_total { &rates.latency_total } else { &rates.latency };
    let time = match (is_total, rates.interval) {
        (true, _) => "since the start".into(),
        (false, Some(interval)) => format!("last {:.1} s", interval.as_secs_f64()),
        (false, None) => "not measured yet".into(),
    };
    let LatencyRows { sample, pairs, total } = rows;
    let cells = |name: &str, style: Style, summary: &Summary| {
        let Summary { count, p50_ns, p90_ns, p99_ns, p99_9_ns, max_ns, .. } = *summary;
        let ns = |ns: u64| Cell::number(ns as f64, format_ns(ns), Style::new());
        let mut cells = vec![
            Cell::text(name, style),
            Cell::number(count as f64, si_count(count), Style::new()),
        ];
        cells.extend([p50_ns, p90_ns, p99_ns, p99_9_ns, max_ns].map(ns));
        cells
    };
    let mut list: Vec<Vec<Cell>> = Vec::new();
    if pairs.len() > 1 {
        list.push(cells("all", theme.strong(), total));
    }
    let pair = |(iif, oif, summary): &(String, String, Summary)| {
        cells(&format!("{iif} → {oif}"), Style::new(), summary)
    };
    list.extend(pairs.iter().map(pair));
    let empty = match sample {
        0 => "not measured: the daemon was started with --latency-sample 0".to_owned(),
        1 => "no frames passed userspace".to_owned(),
        n => format!("no frame was measured; one in {n} is (run --latency-sample)"),
    };
    Table {
        title: format!("Latency, {time}"),
        columns: vec![
            Column::rest("in → out", 26, 0),
            Column::number("frames", 7, 3),
            Column::number("p50", 8, 1),
            Column::number("p90", 8, 4),
            Column::number("p99", 8, 2),
            Column::number("p99.9", 8, 5),
            Column::number("max", 8, 6),
        ],
        rows: list,
        empty,
    }
}

/// A count: exact as long as it is short.
fn si_count(count: u64) -> String {
    if count < 1_000_000 { count.to_string() } else { si(count as f64) }
}

fn reasons(reasons: &[ReasonRate], theme: Theme) -> Table {
    let rows = reasons.iter().map(|reason| {
        let style = match (reason.rate > 0.0, reason.fate) {
            (false, _) => theme.faint(),
            (true, Fate::Dropped) => theme.bad(),
            (true, Fate::Punted | Fate::Passed) => Style::new(),
        };
        let fate = match reason.fate {
            Fate::Dropped => "dropped",
            Fate::Punted => "to kernel, by workers",
            Fate::Passed => "to kernel, by XDP",
        };
        vec![
            Cell::text(&reason.name, style),
            Cell::text(fate, style),
            Cell::number(reason.rate, si(reason.rate), style),
            Cell::number(reason.count as f64, si_count(reason.count), style),
        ]
    });
    Table {
        title: "Drops and punts".into(),
        columns: vec![
            Column::rest("reason", 20, 0),
            Column::text("fate", 21, 2),
            Column::number("pkt/s", 8, 0),
            Column::number("total", 8, 1),
        ],
        rows: rows.collect(),
        empty: "nothing was dropped or left to the kernel".into(),
    }
}

fn flows(model: &Model, octets: bool, theme: Theme) -> Table {
    let empty: Cow<'_, str> = match (&model.flows, &model.no_flows) {
        (_, Some(why)) => why.as_str().into(),
        (None, None) => "being counted".into(),
        (Some(_), None) => "no flow that is carried or offloaded had packets".into(),
    };
    let mut rows = Vec::new();
    let mut title = "Flows".to_owned();
    if let Some(report) = &model.flows {
        title = format!("Flows, last {:.1} s", report.interval_ns as f64 / 1e9);
        for flow in report.flows.iter().filter_map(|flow| FlowRow::of(flow, report)) {
            let [there, back] = flow.rates.map(|rates| {
                let [packets, bits] = rates.unwrap_or_default();
                [packets, octets_or_bits(bits / 8.0, octets)]
            });
            let offload = if flow.offload == "no" { theme.faint() } else { theme.good() };
            rows.push(vec![
                Cell::text(&format!("{} → {}", flow.source, flow.destination), Style::new()),
                Cell::text(flow.protocol, Style::new()),
                rate(there[0], theme),
                rate(there[1], theme),
                rate(back[0], theme),
                rate(back[1], theme),
                Cell::text(flow.offload, offload),
            ]);
        }
    }
    let (data, data_back) = if octets { ("B/s", "B/s back") } else { ("bit/s", "bit/s bk") };
    Table {
        title,
        columns: vec![
            Column::rest("source → destination", 35, 0),
            Column::text("proto", 5, 3),
            Column::number("pkt/s", 7, 2),
            Column::number(data, 8, 1),
            Column::number("pkt/s bk", 8, 5),
            Column::number(data_back, 8, 4),
            Column::text("offload", 8, 6),
        ],
        rows,
        empty: crate::control::process::terminal::printable(&empty).into_owned(),
    }
}

/// The column of the flows' packets, by which the daemon can choose flows as well.
pub const FLOW_PACKETS: [usize; 2] = [2, 4];
