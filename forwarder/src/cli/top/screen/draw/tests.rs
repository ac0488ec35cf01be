//! The screen in sizes from a single cell to a large terminal.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::super::rates::tests::sample;
use super::super::super::sample::News;
use super::*;
use crate::control::api::flows::{FlowRate, FlowTopReport, FlowTuple};

const THEME: Theme = Theme { colours: true, utf8: true };

fn flows(count: u8) -> FlowTopReport {
    let flow = |n: u8| {
        let [client, server] = [[10, 0, 0, n], [10, 0, 1, 1]].map(std::net::IpAddr::from);
        FlowRate {
            tuples: vec![
                FlowTuple(client, server, 6, 1024, 443),
                FlowTuple(server, client, 6, 443, 1024),
            ],
            packets: [10, u64::from(n)],
            octets: [15_000, 260],
            offloaded: [true, true],
            iif: None,
            oif: None,
        }
    };
    let flows: Vec<FlowRate> = (0..count).map(flow).collect();
    FlowTopReport { interval_ns: 1_000_000_000, carried: count.into(), entries: 0, flows }
}

/// Two measurements, in which all that is counted is counted once.
fn model(ports: usize, flow_count: u8) -> Model {
    let start = Instant::now();
    let mut model = Model::default();
    for n in [1, 2] {
        model.take(News::Sample(Box::new(sample(start + Duration::from_secs(n), ports, n))));
    }
    model.take(News::Flows(flows(flow_count)));
    model
}

fn screen(model: &Model, state: &mut State, size: (u16, u16), theme: Theme) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("a terminal");
    terminal.draw(|frame| draw(frame.buffer_mut(), model, state, theme)).expect("is drawn");
    let cells = &terminal.backend().buffer().content;
    let lines = cells.chunks(usize::from(size.0.max(1)));
    let text = |line: &[ratatui::buffer::Cell]| line.iter().map(|cell| cell.symbol()).collect();
    lines.map(text).map(|line: String| line.trim_end().to_owned()).collect()
}

fn shown(model: &Model, size: (u16, u16)) -> Vec<String> {
    screen(model, &mut State::new(1000), size, THEME)
}

#[test]
fn an_80_by_24_terminal_shows_every_list() {
    let lines = shown(&model(2, 3), (80, 24));
    let text = lines.join("\n");
    assert_eq!(lines[0], "forwarding in userspace  up 1m01s  every 1 s  ferroute 0.1.0  pid 7");
    assert!(
        lines[1].starts_with("rx 400pkt/s 102kbit/s  tx 390pkt/s 0.00bit/s  drop 3.00/s  kernel"),
        "{text}"
    );
    for (line, start) in lines[2..].iter().zip(["Workers", "worker 0", "Ports", "eth0", "eth1"]) {
        assert!(line.starts_with(start), "{start}\n{text}");
    }
    for part in [
        " 75.0%",
        "51.2k",
        "Latency, last 1.0 s",
        "eth0 → eth1",
        "1.00 µs",
        "Drops and punts",
        "IP_RPFILTER",
        "to kernel, by XDP",
        "Flows, last 1.0 s",
        "10.0.0.2:1024 → 10.0.1.1:443",
        "120k",
        "qQuit ?Help",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(lines.len(), 24);
}

#[test]
fn a_large_terminal_has_two_columns_and_a_graph() {
    let lines = shown(&model(2, 3), (200, 60));
    let text = lines.join("\n");
    assert!(lines[2].starts_with("received, highest 102kbit/s"), "{text}");
    assert!(lines[5].ends_with('█'), "{text}");
    let both = |a: &str, b: &str| lines.iter().any(|line| line.contains(a) && line.contains(b));
    assert!(both("Workers", "Drops and punts"), "{text}");
    assert!(text.contains("native copy"), "there is room for modes\n{text}");
}

#[test]
fn a_tiny_terminal_shows_what_matters_most() {
    let lines = shown(&model(2, 3), (20, 5));
    assert_eq!(lines[0], "forwarding in users…", "{lines:?}");
    assert!(lines[2].starts_with("Ports"), "{lines:?}");
    assert_eq!(lines[3], "eth0             100", "{lines:?}");
    assert!(lines[4].starts_with("qQuit"), "{lines:?}");
    assert_eq!(shown(&model(2, 3), (30, 1)), ["forwarding in userspace"]);
}

#[test]
fn no_size_and_no_state_panics() {
    let mut lost = model(64, 200);
    lost.take(News::Lost("it is gone\x1b[2J".repeat(40)));
    let models = [Model::default(), model(0, 0), model(2, 3), model(64, 200), lost];
    let widths = [0, 1, 2, 3, 5, 12, 13, 14, 20, 40, 79, 80, 159, 160, 161, 200, 500];
    let heights = [0, 1, 2, 3, 4, 5, 6, 10, 24, 35, 36, 60, 200];
    for model in &models {
        for size in widths.iter().flat_map(|w| heights.iter().map(move |h| (*w, *h))) {
            let mut state = State::new(1000);
            for key in "x?xz/ab".chars() {
                screen(model, &mut state, size, Theme { utf8: key == 'x', ..THEME });
                state.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE));
            }
        }
    }
}

#[test]
fn sixty_four_ports_are_scrolled() {
    let (model, mut state) = (model(64, 0), State::new(1000));
    let lines = screen(&model, &mut state, (80, 24), THEME);
    let title = |lines: &[String]| {
        lines.iter().find(|line| line.starts_with("Ports")).cloned().unwrap_or_default()
    };
    assert!(lines.iter().any(|line| line.starts_with("eth0 ")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("no flow that is")), "{lines:#?}");
    let press = |state: &mut State, code| state.key(KeyEvent::new(code, KeyModifiers::NONE));
    press(&mut state, KeyCode::End);
    let lines = screen(&model, &mut state, (80, 24), THEME);
    assert!(lines.iter().any(|line| line.starts_with("eth63 ")), "{lines:#?}");
    // Alone it has the whole screen.
    press(&mut state, KeyCode::Enter);
    let lines = screen(&model, &mut state, (80, 24), THEME);
    assert!(title(&lines).contains("45-64/64"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("eth44 ")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("Workers")), "{lines:#?}");
    // Larger, it has no empty lines while rows are above.
    let lines = screen(&model, &mut state, (80, 60), THEME);
    assert!(title(&lines).contains(" 9-64/64"), "{lines:#?}");
}

#[test]
fn without_utf8_everything_is_ascii() {
    let theme = Theme { utf8: false, ..THEME };
    for size in [(80, 24), (200, 60)] {
        let lines = screen(&model(2, 3), &mut State::new(1000), size, theme);
        let text = lines.join("\n");
        assert!(text.is_ascii(), "{text}");
        assert!(text.contains("eth0 > eth1") && text.contains("1.00 us"), "{text}");
        assert!(text.contains("[||||"), "{text}");
    }
}

#[test]
fn a_daemon_that_does_not_answer_is_said_so_and_warnings_are_shown() {
    let mut model = model(2, 0);
    if let Some(rates) = &mut model.rates {
        rates.status.warnings = vec!["nft: a rule\x1b[2J".into(), "more".into()];
        rates.status.state = api::State::Degraded;
        rates.status.ports[1].state = "down".into();
        rates.ports[1].state = "down".into();
    }
    let lines = shown(&model, (80, 24));
    assert!(lines[0].starts_with("degraded: 1 of 2 ports in userspace"), "{lines:#?}");
    assert_eq!(lines[2], "(2 notes, see status) nft: a rule\\x1b[2J");
    assert!(lines.iter().any(|line| line.starts_with("eth1") && line.ends_with("down")));
    model.take(News::Lost("no ferroute runs here".into()));
    let lines = shown(&model, (80, 24));
    assert!(lines[0].starts_with("no answer for 0s: trying again"), "{lines:#?}");
    assert_eq!(lines[2], "no ferroute runs here");
}

#[test]
fn help_names_every_key_and_fits_24_lines() {
    let mut state = State { has_help: true, ..State::new(1000) };
    let lines = screen(&model(2, 3), &mut state, (80, 24), THEME);
    for (keys, what) in HELP {
        let is_there =
            |line: &String| line.starts_with(keys) && line.ends_with(what) && !line.contains('…');
        assert!(lines.iter().any(is_there), "{keys}\n{lines:#?}");
    }
}

#[test]
fn lines_are_divided_by_what_is_wanted() {
    use List::{Flows, Latency, Ports, Reasons, Workers};
    let wanted = [(Workers, 2), (Ports, 3), (Latency, 4), (Reasons, 20), (Flows, 20)];
    for (available, expected) in [
        (0, [0, 0, 0, 0, 0]),
        (1, [0, 0, 0, 0, 0]),
        (2, [0, 2, 0, 0, 0]),
        (3, [0, 3, 0, 0, 0]),
        (4, [0, 2, 0, 2, 0]),
        (9, [2, 3, 0, 2, 2]),
        (21, [2, 3, 4, 6, 6]),
        (100, [2, 3, 4, 20, 20]),
    ] {
        assert_eq!(heights(&wanted, available), expected, "{available}");
    }
}

#[test]
fn latency_changes_between_the_interval_and_the_start() {
    let (model, mut state) = (model(2, 0), State::new(1000));
    let frames = |state: &mut State| {
        let lines = screen(&model, state, (80, 24), THEME);
        let row = lines.iter().find(|line| line.starts_with("eth0 → eth1"));
        let words: Vec<String> =
            row.expect("a row").split_whitespace().map(str::to_owned).collect();
        (lines.iter().any(|line| line.starts_with("Latency, since the start")), words[3].clone())
    };
    assert_eq!(frames(&mut state), (false, "10".into()));
    state.key(KeyEvent::new(KeyCode::Char('l'), KeyModifiers::NONE));
    assert_eq!(frames(&mut state), (true, "20".into()));
}
