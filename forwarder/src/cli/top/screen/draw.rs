//! The whole screen: two or three lines about the router, the lists, a line with keys.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use std::time::Duration;

use super::super::rates::Rates;
use super::lists;
use super::model::Model;
use super::state::{Drawn, List, PerList, State};
use super::table::{Table, View, put, text_width};
use super::theme::{self, Theme};
use crate::cli::status::duration;
use crate::cli::units::si;
use crate::control::api;
use crate::control::process::terminal::printable;

/// From this width on, lists are in two columns.
const TWO_COLUMNS_WIDTH: u16 = 160;
/// From this height on, there is a graph, of so many lines.
const GRAPH_FROM_HEIGHT: u16 = 36;
const GRAPH_HEIGHT: u16 = 4;
/// Lines of a list that is on the screen at all: its title and a row.
const LIST_HEIGHT_MIN: u16 = 2;
/// Which lists are left out first where there is too little room.
const LEFT_OUT_FIRST: PerList<List> =
    [List::Latency, List::Flows, List::Workers, List::Reasons, List::Ports];

const HELP: [(&str, &str); 19] = [
    ("q F10 ^C", "quit"),
    ("? h F1", "this help; each key leaves it"),
    ("Tab 1-5", "select a list: workers, ports, latency, drops, flows"),
    ("Enter z", "show the selected list alone, or all"),
    ("arrows j k", "scroll the selected list"),
    ("PgUp PgDn", "by a page; Home, End: to its ends"),
    ("< > F6", "sort it by another column"),
    ("I r", "in the other direction"),
    ("/ F4", "only rows with a text: Enter keeps, Esc ends it"),
    ("f", "show or hide flows, which are only counted while shown"),
    ("l", "latency: of the last interval, or since the start"),
    ("b", "bits or octets (B) per second"),
    ("p Z", "pause: nothing is asked of the daemon"),
    ("+ -", "a longer or shorter interval"),
    ("^L ^Z", "draw again; stop, as in the shell"),
    ("", ""),
    ("kernel/s", "left to the kernel by XDP, or by workers"),
    ("of the peak", "of the highest rate that a port had since top runs"),
    ("latency", "time in userspace of the frames that are measured"),
];

/// Draws everything, and notes in the state what is visible.
pub fn draw(buffer: &mut Buffer, model: &Model, state: &mut State, theme: Theme) {
    let area = buffer.area;
    state.drawn.iter_mut().for_each(|drawn| drawn.page = None);
    if area.is_empty() {
        return;
    }
    let keys = Rect { y: area.bottom() - 1, height: 1, ..area };
    // On the only line there is, the state of the router matters more than the keys.
    let mut rest = Rect { height: (area.height - 1).max(1), ..area };
    for (text, style) in head(model, state, theme) {
        if rest.is_empty() {
            break;
        }
        draw_segments(buffer, Rect { height: 1, ..rest }, &text, style);
        rest = without_top(rest, 1);
    }
    if state.has_help {
        draw_help(buffer, rest, theme);
    } else if let Some(rates) = &model.rates {
        if area.height >= GRAPH_FROM_HEIGHT && !state.is_alone {
            let (graph, below) = (Rect { height: GRAPH_HEIGHT, ..rest }, GRAPH_HEIGHT);
            draw_graph(buffer, graph, model, state.octets, theme);
            rest = without_top(rest, below);
        }
        draw_lists(buffer, rest, model, rates, state, theme);
        if model.lost_for(Duration::from_millis(state.interval_ms.into())).is_some() {
            buffer.set_style(rest, theme.faint());
        }
    }
    if area.height > 1 {
        draw_keys(buffer, keys, state, theme);
    }
    if !theme.utf8 {
        theme::to_ascii(buffer);
    }
}

fn without_top(area: Rect, lines: u16) -> Rect {
    let lines = lines.min(area.height);
    Rect { y: area.y + lines, height: area.height - lines, ..area }
}

/// Parts of a line; those that do not fit are left out.
type Segments = Vec<(String, Style)>;

/// Lines about the router, each with the style of its whole line.
fn head(model: &Model, state: &State, theme: Theme) -> Vec<(Segments, Style)> {
    let Some(rates) = &model.rates else {
        let text = match &model.lost {
            Some((_, why)) => printable(why).into_owned(),
            None => "waiting for the daemon's answer".to_owned(),
        };
        return vec![(vec![(text, Style::new())], Style::new())];
    };
    let mut lines = vec![(first_line(model, rates, state, theme), Style::new())];
    lines.push((second_line(rates, state, theme), Style::new()));
    if let Some((_, why)) = &model.lost {
        lines.push((vec![(printable(why).into_owned(), theme.bad())], Style::new()));
    } else if let Some(warning) = warning(rates) {
        lines.push((vec![(printable(&warning).into_owned(), theme.odd())], Style::new()));
    }
    lines
}

/// Who forwards, since when.
fn first_line(model: &Model, rates: &Rates, state: &State, theme: Theme) -> Segments {
    let status = &rates.status;
    let forwarding = status.ports.iter().filter(|port| port.state == lists::FORWARDING).count();
    let interval = Duration::from_millis(state.interval_ms.into());
    let (text, style) = match (model.lost_for(interval), status.state) {
        (Some(lost), _) => (
            format!("no answer for {}: trying again", duration(lost.as_secs())),
            theme.bad().add_modifier(Modifier::REVERSED),
        ),
        (None, api::State::Forwarding) => ("forwarding in userspace".into(), theme.good()),
        (None, api::State::Degraded) => {
            let all = status.ports.len();
            (format!("degraded: {forwarding} of {all} ports in userspace"), theme.odd())
        }
        (None, api::State::Starting) => ("starting: the kernel forwards".into(), theme.odd()),
        (None, api::State::Stopping) => ("stopping: the kernel forwards".into(), theme.odd()),
    };
    let mut line = vec![(text, style)];
    if state.is_paused {
        line.push(("PAUSED".into(), theme.odd().add_modifier(Modifier::REVERSED)));
    }
    if !state.filter.is_empty() {
        line.push((format!("filter: {}", printable(&state.filter)), theme.odd()));
    }
    line.extend([
        (format!("up {}", duration(status.uptime_seconds)), Style::new()),
        (format!("every {} s", f64::from(state.interval_ms) / 1e3), Style::new()),
        (format!("ferroute {}", printable(&status.version)), theme.faint()),
        (format!("pid {}", status.pid), theme.faint()),
        (format!("driver {}", printable(&status.driver)), theme.faint()),
    ]);
    line
}

/// Rates of the whole router.
fn second_line(rates: &Rates, state: &State, theme: Theme) -> Segments {
    let packets = &rates.packets;
    if rates.interval.is_none() {
        return vec![("rates follow with the next answer".into(), theme.faint())];
    }
    let data = |octets: f64| {
        let value = lists::octets_or_bits(octets, state.octets);
        format!("{}{}", si(value), lists::unit(state.octets))
    };
    let dropped = if packets.dropped > 0.0 { theme.bad() } else { Style::new() };
    let mut line = vec![
        (format!("rx {}pkt/s {}", si(packets.received), data(packets.rx_octets)), theme.strong()),
        (format!("tx {}pkt/s {}", si(packets.sent), data(packets.tx_octets)), theme.strong()),
        (format!("drop {}/s", si(packets.dropped)), dropped),
        (format!("kernel {}/s", si(packets.to_kernel)), Style::new()),
    ];
    if packets.is_incomplete {
        line.push(("without silent workers".into(), theme.bad()));
    }
    if rates.status.offloaded_flows.is_some() && packets.received > 0.0 {
        let share = (100.0 * packets.offloaded / packets.received).clamp(0.0, 100.0);
        line.push((format!("XDP {share:.0}%"), theme.good()));
    }
    let status = &rates.status;
    let number = |name, value: Option<u64>| value.map(|n| (format!("{name} {n}"), Style::new()));
    line.extend(number("carried flows", status.carried_flows));
    line.extend(number("offloaded flows", status.offloaded_flows));
    line.extend(number("routes", Some(status.mirror.routes4 + status.mirror.routes6)));
    line.extend(number("neighbours", Some(status.mirror.neighbours)));
    line.extend(number("IPsec policies", status.ipsec_policies));
    line
}

/// What matters most of what `status` says in addition.
fn warning(rates: &Rates) -> Option<String> {
    let status = &rates.status;
    let mirror = &status.mirror;
    let stalled = mirror.stalled_ms.map(|ms| {
        format!(
            "the control thread has had no turn for {:.1} s: ports and tables are that old",
            ms as f64 / 1e3
        )
    });
    let unmirrored = mirror.unmirrored.iter().map(|what| format!("left to the kernel: {what}"));
    let mut all = stalled.into_iter().chain(status.warnings.iter().cloned()).chain(unmirrored);
    let first = all.next()?;
    match all.count() {
        0 => Some(first),
        more => Some(format!("({} notes, see status) {first}", more + 1)),
    }
}

/// Writes parts with two blanks between, as many as fit. The first one is cut off if it does not fit.
fn draw_segments(buffer: &mut Buffer, line: Rect, segments: &Segments, style: Style) {
    buffer.set_style(line, style);
    let mut x = line.x;
    for (at, (text, style)) in segments.iter().enumerate() {
        let (width, room) = (text_width(text), line.right().saturating_sub(x));
        if at > 0 && width > room {
            break;
        }
        put(buffer, (x, line.y, width.min(room)), text, false, *style);
        x = x.saturating_add(width.min(room)).saturating_add(2);
    }
}

/// What is received by all ports, with the last measurement at the right.
fn draw_graph(buffer: &mut Buffer, area: Rect, model: &Model, octets: bool, theme: Theme) {
    if area.height < 2 {
        return;
    }
    let highest = model.history.iter().copied().fold(0.0, f64::max);
    let top = si(lists::octets_or_bits(highest, octets));
    let label = format!("received, highest {top}{}", lists::unit(octets));
    put(buffer, (area.x, area.y, area.width), &label, false, theme.faint());
    let bars = without_top(area, 1);
    let shown = model.history.iter().rev().take(usize::from(bars.width));
    for (value, x) in shown.zip((bars.left()..bars.right()).rev()) {
        let lines = if highest > 0.0 { value / highest * f64::from(bars.height) } else { 0.0 };
        for (at, y) in (bars.top()..bars.bottom()).rev().enumerate() {
            let part = theme::column(lines - at as f64);
            buffer.set_string(x, y, part.to_string(), theme.good());
        }
    }
}

fn draw_lists(
    buffer: &mut Buffer,
    area: Rect,
    model: &Model,
    rates: &Rates,
    state: &mut State,
    theme: Theme,
) {
    let all: Vec<(List, Table)> = List::ALL
        .iter()
        .filter(|list| **list != List::Flows || state.has_flows)
        .map(|list| (*list, lists::table(*list, model, rates, state, theme)))
        .collect();
    for (list, table) in &all {
        let drawn = &mut state.drawn[*list as usize];
        (drawn.columns, drawn.rows) = (table.columns.len(), table.rows.len());
    }
    let of = |lists: &[List]| -> Vec<&(List, Table)> {
        all.iter().filter(|(list, _)| lists.contains(list)).collect()
    };
    let groups: Vec<(Rect, Vec<&(List, Table)>)> = if state.is_alone {
        vec![(area, of(&[state.selected]))]
    } else if area.width >= TWO_COLUMNS_WIDTH {
        let half = (area.width - 2) / 2;
        let left = Rect { width: half, ..area };
        let right = Rect { x: area.x + half + 2, width: area.width - half - 2, ..area };
        vec![
            (left, of(&[List::Workers, List::Ports, List::Latency])),
            (right, of(&[List::Reasons, List::Flows])),
        ]
    } else {
        vec![(area, of(&List::ALL))]
    };
    for (area, lists) in groups {
        draw_column(buffer, area, &lists, state, theme);
    }
}

/// Draws lists below each other.
fn draw_column(
    buffer: &mut Buffer,
    mut area: Rect,
    lists: &[&(List, Table)],
    state: &mut State,
    theme: Theme,
) {
    let wanted: Vec<(List, u16)> =
        lists.iter().map(|(list, table)| (*list, table.height())).collect();
    for ((list, table), height) in lists.iter().zip(heights(&wanted, area.height)) {
        if height == 0 {
            continue;
        }
        let (at, rows) = (*list as usize, usize::from(height - 1));
        state.drawn[at] =
            Drawn { columns: table.columns.len(), rows: table.rows.len(), page: Some(rows) };
        state.limit_offset(*list);
        let view = View {
            is_selected: *list == state.selected,
            sort: state.sorts[at],
            offset: state.offsets[at],
        };
        table.draw(buffer, Rect { height, ..area }, view, theme);
        area = without_top(area, height);
    }
}

/// Divides lines between lists: each gets what it wants, as far as there is room; those that want more share the rest
/// equally.
fn heights(wanted: &[(List, u16)], available: u16) -> Vec<u16> {
    let mut heights = vec![0; wanted.len()];
    let mut left = available;
    // Those that matter most get their least first.
    for list in LEFT_OUT_FIRST.iter().rev() {
        let Some(at) = wanted.iter().position(|(it, _)| it == list) else { continue };
        let least = LIST_HEIGHT_MIN.min(wanted[at].1);
        if least <= left {
            heights[at] = least;
            left -= least;
        }
    }
    loop {
        let mut has_grown = false;
        for (height, (_, wanted)) in heights.iter_mut().zip(wanted) {
            if left > 0 && *height > 0 && *height < *wanted {
                *height += 1;
                left -= 1;
                has_grown = true;
            }
        }
        if !has_grown {
            return heights;
        }
    }
}

fn draw_keys(buffer: &mut Buffer, line: Rect, state: &State, theme: Theme) {
    if state.is_editing {
        let text = format!("Filter: {}_", printable(&state.filter));
        let help = "Enter keep  Esc end".to_owned();
        let segments = vec![(text, theme.strong()), (help, theme.faint())];
        return draw_segments(buffer, line, &segments, Style::new());
    }
    const KEYS: [(&str, &str); 11] = [
        ("q", "Quit"),
        ("?", "Help"),
        ("Tab", "List"),
        ("Enter", "Alone"),
        ("<>", "Sort"),
        ("/", "Filter"),
        ("p", "Pause"),
        ("+-", "Interval"),
        ("f", "Flows"),
        ("l", "Latency"),
        ("b", "Octets"),
    ];
    let mut x = line.x;
    let label = Style::new().add_modifier(Modifier::REVERSED);
    for (key, what) in KEYS {
        let needed = text_width(key) + text_width(what) + 1;
        if needed > line.right().saturating_sub(x) {
            return;
        }
        put(buffer, (x, line.y, text_width(key)), key, false, theme.strong());
        x += text_width(key);
        put(buffer, (x, line.y, text_width(what)), what, false, label);
        x += text_width(what) + 1;
    }
}

fn draw_help(buffer: &mut Buffer, area: Rect, theme: Theme) {
    for ((keys, what), y) in HELP.iter().zip(area.top()..area.bottom()) {
        let width = 13.min(area.width);
        put(buffer, (area.x, y, width), keys, false, theme.strong());
        put(buffer, (area.x + width, y, area.width - width), what, false, Style::new());
    }
}

#[cfg(test)]
mod tests;
