//! `monitor`: events, drops and counters as they come, a line each.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::poll::PollTimeout;
use serde_json::Value;

use super::output::{self, Output};
use super::{Global, daemon_stream, unexpected};
use crate::control::api::client::{Client, ClientError};
use crate::control::api::subscribe::{
    Body, CountChange, DropsChange, INTERVAL_MS_MAX, INTERVAL_MS_MIN, Line, SubscribeRequest,
    SubscriptionSnapshot, Topic,
};
use crate::control::api::{Counters, Request, Response, StatReport};
use crate::control::process::signals::Signals;

/// Octets per read from the daemon.
const READ: usize = 64 << 10;
/// How long --reconnect waits until it tries again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

const ABOUT: &str = "\
Without an object, events of all kinds are shown: those of state, ports, tables, rules, offload, workers, config \
and ipsec. `all` is the same with the kind before each line, and with drops. Objects:

  state     forwarding begins or stops, and why
  ports     interfaces become ports or are left to the kernel, up and down
  tables    workers got new tables; notifications of the kernel were lost; the self-check found a difference
  rules     the nftables ruleset was read again; rules that only the kernel can apply
  offload   flow offload on, off or paused
  workers   a worker or the control thread stalls, and the kernel forwards
  config    the configuration file was read again
  ipsec     policies and security associations
  drops     what was dropped or handed to the kernel, by reason, at each interval
  counters  counters of ports that have changed, at each interval
  events    all but drops and counters
  label     the kind before each line

With -j a JSON object is printed for each line; the first has the state. docs/API.md describes them.

  ferroute monitor -j ports | jq -c .event

If events come faster than they are printed, some are lost, and their number is printed. Ends with Ctrl-C, or \
with exit code 1 when the daemon ends.";

/// Flags of `monitor`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct MonitorArgs {
    /// What to show [default: events].
    #[arg(value_enum, value_name = "OBJECT", hide_possible_values = true)]
    objects: Vec<Word>,
    /// Print the time before each line, as `ip monitor -t` does.
    #[arg(short, long)]
    timestamp: bool,
    /// Print the time in the same line, as `ip monitor -ts` does.
    #[arg(long, conflicts_with = "timestamp")]
    tshort: bool,
    /// Seconds between two lines of drops and counters, 0.1 to 60.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: u64,
    /// When the daemon has ended, does not run yet or has no room for one more subscription, try again each second.
    #[arg(long)]
    reconnect: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Word {
    All,
    Label,
    Events,
    State,
    #[value(alias = "port")]
    Ports,
    #[value(alias = "table")]
    Tables,
    #[value(alias = "rule")]
    Rules,
    Offload,
    #[value(alias = "worker")]
    Workers,
    Config,
    Ipsec,
    #[value(alias = "drop")]
    Drops,
    #[value(alias = "counter")]
    Counters,
}

/// Seconds, in milliseconds.
fn interval(text: &str) -> Result<u64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    let ms = (seconds * 1000.0).round();
    match ms >= INTERVAL_MS_MIN as f64 && ms <= INTERVAL_MS_MAX as f64 {
        true => Ok(ms as u64),
        false => Err("must be 0.1 to 60".to_owned()),
    }
}

impl MonitorArgs {
    fn request(&self) -> SubscribeRequest {
        let mut topics: Vec<Topic> = Vec::new();
        for word in &self.objects {
            topics.extend_from_slice(match word {
                Word::All => &[Topic::Events, Topic::Drops],
                Word::Label => &[],
                Word::Events => &[Topic::Events],
                Word::State => &[Topic::State],
                Word::Ports => &[Topic::Ports],
                Word::Tables => &[Topic::Tables],
                Word::Rules => &[Topic::Rules],
                Word::Offload => &[Topic::Offload],
                Word::Workers => &[Topic::Workers],
                Word::Config => &[Topic::Config],
                Word::Ipsec => &[Topic::Ipsec],
                Word::Drops => &[Topic::Drops],
                Word::Counters => &[Topic::Counters],
            });
        }
        if topics.is_empty() {
            topics.push(Topic::Events);
        }
        topics.sort_unstable();
        topics.dedup();
        SubscribeRequest { topics, interval_ms: self.interval }
    }

    fn has_labels(&self) -> bool {
        self.objects.iter().any(|word| matches!(word, Word::All | Word::Label))
    }
}

/// Prints lines until a signal comes or the daemon ends.
pub fn monitor(global: &Global, args: &MonitorArgs) -> Result<ExitCode> {
    let signals = Signals::take()?;
    // Errors since the last connection.
    let mut said = BTreeSet::new();
    loop {
        match watch(global, args, &signals) {
            Ok(true) => return Ok(ExitCode::SUCCESS),
            Err(error) if output::is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
            Ok(false) if args.reconnect => {
                said.clear();
                output::note(format_args!(
                    "ferroute: the daemon has ended; waiting for the next one"
                ));
            }
            Err(error) if args.reconnect && may_pass(&error) => {
                let text = format!("ferroute: {error:#}; --reconnect tries again each second");
                if said.insert(text.clone()) {
                    output::note(format_args!("{text}"));
                }
            }
            Ok(false) => bail!("the daemon has ended"),
            Err(error) => return Err(error),
        }
        if wait_for_signal(&signals)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Whether another attempt may succeed without a change to the command line: no daemon runs, it has closed the connection or
/// is too slow, or refuses for the moment.
fn may_pass(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(ClientError::NotRunning { .. }) => true,
        Some(ClientError::Io { error, .. }) => matches!(
            error.kind(),
            ErrorKind::UnexpectedEof
                | ErrorKind::BrokenPipe
                | ErrorKind::ConnectionReset
                | ErrorKind::TimedOut
                // connect(2), when too many connections wait to be accepted.
                | ErrorKind::WouldBlock
        ),
        // The daemon says so, for example when there are too many subscriptions.
        Some(ClientError::Refused(why)) => why.ends_with("try again"),
        _ => false,
    }
}

/// Pauses before the next attempt. Returns whether a signal has come.
fn wait_for_signal(signals: &Signals) -> Result<bool> {
    // Nobody sends anything here.
    let (idle, _other) = UnixStream::pair().context("socketpair(2)")?;
    let ms = RECONNECT_INTERVAL.as_millis() as u16;
    daemon_stream::wait(&idle, signals, PollTimeout::from(ms))?;
    Ok(signals.came())
}

/// Prints the lines of one connection. Returns whether a signal has come; otherwise the daemon has ended.
fn watch(global: &Global, args: &MonitorArgs, signals: &Signals) -> Result<bool> {
    let mut client = Client::connect(&global.control())?;
    match client.ask(&Request::Subscribe(args.request())) {
        Ok(Response::Subscribe(_)) => {}
        Ok(other) => return Err(unexpected(&other)),
        Err(ClientError::Refused(why)) if why.contains("unknown variant `subscribe`") => bail!(
            "the daemon is older than this program and has no subscriptions; restart it: \
             systemctl restart ferroute"
        ),
        Err(error) => return Err(error.into()),
    }
    let (stream, mut read) = client.into_stream();
    stream.set_nonblocking(true)?;
    let mut printer = Printer {
        out: global.output(),
        timestamp: args.timestamp,
        tshort: args.tshort,
        labels: args.has_labels(),
        counted: None,
        ports: BTreeMap::new(),
    };
    loop {
        if printer.lines(&mut read)? {
            return Ok(false);
        }
        if signals.came() {
            return Ok(true);
        }
        daemon_stream::wait(&stream, signals, PollTimeout::NONE)?;
        if !daemon_stream::receive(&stream, &mut read, READ)? {
            return Ok(false);
        }
    }
}

struct Printer {
    out: Output,
    timestamp: bool,
    tshort: bool,
    labels: bool,
    /// The time of the last line of counters.
    counted: Option<Timestamp>,
    /// Counters of the ports in the last line of counters.
    ports: BTreeMap<String, Counters>,
}

impl Printer {
    /// Prints the lines that have come completely, and removes them from `read`. Returns whether one of them is the end.
    fn lines(&mut self, read: &mut Vec<u8>) -> Result<bool> {
        let octets = std::mem::take(read);
        for line in octets.split_inclusive(|octet| *octet == b'\n') {
            if line.last() != Some(&b'\n') {
                *read = line.to_vec();
                break;
            }
            if self.line(line)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn line(&mut self, line: &[u8]) -> Result<bool> {
        let value: Value =
            serde_json::from_slice(line).context("invalid message from the daemon")?;
        let is_end = value.get("end").is_some();
        if self.out.json {
            self.out.json(&value)?;
            return Ok(is_end);
        }
        match Line::deserialize_from(&value) {
            Some(line) => self.text(line)?,
            // Of a newer daemon.
            None => self.out.text(&format!("{value}\n"))?,
        }
        Ok(is_end)
    }

    fn text(&mut self, line: Line) -> Result<()> {
        let (label, lines) = match line.body {
            Body::Snapshot(snapshot) => return self.begin(&line.time, &snapshot),
            Body::End {} => return Ok(()),
            Body::Counters(report) => ("COUNTERS", self.counters(&line.time, &report)),
            Body::Drops(change) => ("DROPS", drops(&change)),
            Body::Event(event) => (label(event.topic()), vec![event.to_string()]),
            Body::Lost(lost) => (
                "LOST",
                vec![format!("{lost} events were lost: they came faster than they were printed")],
            ),
        };
        let mut text = String::new();
        for what in lines {
            let label = if self.labels { format!("[{label}]") } else { String::new() };
            text.push_str(&format!("{}{label}{what}\n", self.time(&line.time)));
        }
        self.out.text(&text)
    }

    /// Says what the state is, on standard error: it is no event.
    fn begin(&mut self, time: &str, snapshot: &SubscriptionSnapshot) -> Result<()> {
        if let Some(report) = &snapshot.counters {
            self.counters(time, report);
        }
        let status = &snapshot.status;
        let ports: Vec<String> =
            status.ports.iter().map(|port| format!("{} {}", port.ifname, port.state)).collect();
        output::note(format_args!(
            "ferroute: {}, ports: {}",
            status.state.name(),
            if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
        ));
        Ok(())
    }

    /// The time of a line in the local time zone, as `ip` prints it.
    fn time(&self, time: &str) -> String {
        if !self.timestamp && !self.tshort {
            return String::new();
        }
        let Ok(time) = time.parse::<Timestamp>() else { return format!("[{time}] ") };
        let local = time.to_zoned_datetime(TimeZone::system());
        match self.tshort {
            true => format!("[{}] ", local.strftime("%Y-%m-%dT%H:%M:%S.%6f")),
            false => format!(
                "Timestamp: {} {} usec\n",
                local.strftime("%a %b %e %H:%M:%S %Y"),
                time.subsec_nanosecond() / 1000
            ),
        }
    }

    /// A line for each port whose counters have changed since the last report. `time`: of the report. The daemon leaves out
    /// reports while they are not read, so that more than the requested interval may have passed.
    fn counters(&mut self, time: &str, report: &StatReport) -> Vec<String> {
        let now = time.parse::<Timestamp>().ok();
        let before = std::mem::replace(&mut self.counted, now);
        let seconds = now.zip(before).map(|(now, before)| now.duration_since(before).as_secs_f64());
        // It is unknown if the clock was set back.
        let seconds = seconds.filter(|seconds| *seconds >= 0.0);
        let passed = seconds.map_or_else(String::new, |seconds| format!("in {seconds:.2} s: "));
        let mut lines = Vec::new();
        for port in &report.ports {
            let Some(before) = self.ports.insert(port.ifname.clone(), port.counters.clone()) else {
                continue;
            };
            let change = |(name, count): (&String, &u64)| {
                let new = count.saturating_sub(before.get(name).copied().unwrap_or(0));
                (new > 0).then(|| format!("{name} +{new}"))
            };
            let changes: Vec<String> = port.counters.iter().filter_map(change).collect();
            if !changes.is_empty() {
                lines.push(format!("{}: {passed}{}", port.ifname, changes.join(", ")));
            }
        }
        lines
    }
}

impl Line {
    fn deserialize_from(value: &Value) -> Option<Line> {
        serde::Deserialize::deserialize(value).ok()
    }
}

fn label(topic: Topic) -> &'static str {
    match topic {
        Topic::Counters => "COUNTERS",
        Topic::Drops => "DROPS",
        Topic::Events => "EVENT",
        Topic::State => "STATE",
        Topic::Ports => "PORT",
        Topic::Tables => "TABLES",
        Topic::Rules => "RULES",
        Topic::Offload => "OFFLOAD",
        Topic::Workers => "WORKER",
        Topic::Config => "CONFIG",
        Topic::Ipsec => "IPSEC",
    }
}

fn drops(change: &DropsChange) -> Vec<String> {
    let row = |what: &str, row: &CountChange| {
        let CountChange { reason, count, new, help } = row;
        format!("{what} {reason} +{new}, {count} since the start: {help}")
    };
    let drops = change.drops.iter().map(|it| row("dropped", it));
    drops.chain(change.punts.iter().map(|it| row("to the kernel", it))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printer(tshort: bool) -> Printer {
        Printer {
            out: Output::new(false, false),
            timestamp: !tshort,
            tshort,
            labels: false,
            counted: None,
            ports: BTreeMap::new(),
        }
    }

    #[test]
    fn times_are_printed_as_ip_does() {
        let long = printer(false).time("2026-01-02T03:04:05.000006Z");
        assert!(long.starts_with("Timestamp: ") && long.ends_with(" 2026 6 usec\n"), "{long}");
        let short = printer(true).time("2026-01-02T03:04:05.000006Z");
        assert!(short.starts_with("[2026-01-0") && short.ends_with(":05.000006] "), "{short}");
    }

    #[test]
    fn only_counters_that_changed_are_printed() {
        let report = |rx| StatReport {
            ports: vec![crate::control::api::PortReport {
                ifname: "eth0".into(),
                counters: Counters::from([("rx_packets".into(), rx), ("tx_packets".into(), 3)]),
                ..Default::default()
            }],
            ..StatReport::default()
        };
        let mut printer = printer(true);
        let mut counters =
            |time: &str, rx| printer.counters(&format!("2026-01-02T03:{time}Z"), &report(rx));
        assert!(counters("04:05.000006", 1).is_empty(), "the first is the beginning");
        assert_eq!(counters("04:05.501000", 5), ["eth0: in 0.50 s: rx_packets +4"]);
        assert!(counters("04:06.001000", 5).is_empty());
        // Since the last report, even if that had nothing; it was not read for a while.
        assert_eq!(counters("04:31.001000", 9), ["eth0: in 25.00 s: rx_packets +4"]);
        // The clock was set back.
        assert_eq!(counters("03:00.000000", 10), ["eth0: rx_packets +1"]);
    }

    #[test]
    fn only_errors_that_may_pass_are_tried_again() {
        let io = |kind: ErrorKind| ClientError::Io { path: "/x".into(), error: kind.into() };
        let not_running =
            ClientError::NotRunning { path: "/x".into(), error: ErrorKind::NotFound.into() };
        let refused = |why: &str| ClientError::Refused(why.to_owned());
        for error in [
            not_running,
            io(ErrorKind::UnexpectedEof),
            io(ErrorKind::ConnectionReset),
            refused("16 subscriptions are running, which is the maximum; end one, and try again"),
        ] {
            let text = error.to_string();
            assert!(may_pass(&error.into()), "{text}");
        }
        // A path that is too long, a socket of another type.
        let prototype = std::io::Error::from_raw_os_error(libc::EPROTOTYPE);
        for error in [
            io(ErrorKind::InvalidInput),
            ClientError::Io { path: "/x".into(), error: prototype },
            ClientError::NotPermitted { path: "/x".into() },
            refused("subscribe: no topics; name at least one, such as events"),
        ] {
            let text = error.to_string();
            assert!(!may_pass(&error.into()), "{text}");
        }
        assert!(!may_pass(&anyhow::anyhow!("try again")));
    }

    #[test]
    fn intervals_are_seconds_within_the_daemons_limits() {
        assert_eq!(interval("0.1"), Ok(100));
        assert_eq!(interval("60"), Ok(60_000));
        for wrong in ["0.05", "61", "nan", "-1", "x", ""] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
