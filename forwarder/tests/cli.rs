//! The program's commands against a mock daemon with fixed answers: output and exit codes. No root.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ferroute::control::api::capture::Message;
use ferroute::control::api::flows::{
    FlowCountReport, FlowFindReport, FlowRate, FlowShowRequest, FlowTopReport, FlowTuple,
};
use ferroute::control::api::rules::Rules;
use ferroute::control::api::server::{Answer, ControlHandler, Follow, Server};
use ferroute::control::api::{
    CaptureEnd, CaptureGrant, CapturePort, CaptureRequest, Counters, DropsReport, Filter, Format,
    LatencyReport, MirrorStatus, NamedCount, Object, PairLatency, PortReport, Rendered, Request,
    Response, RouteGetRequest, ShowRequest, StatReport, State, StatusReport, WorkerReport,
};
use serde_json::{Value, json};

/// Reports `forwarding` from the third status request on.
#[derive(Default)]
struct Daemon {
    asked: AtomicUsize,
}

impl ControlHandler for Daemon {
    fn handle(&self, request: Request) -> Answer {
        let response = match request {
            Request::Status => self.status(),
            Request::Show(ShowRequest { object: Object::Route, filter, format, .. }) => {
                routes(&filter, format)
            }
            Request::Show(_) => Response::error("only routes are known here"),
            Request::RouteGet(RouteGetRequest { addrs, format: Format::Json, .. }) => {
                let answers = addrs.iter().map(|addr| json!({"dst": addr, "dev": "eth0"}));
                Response::Rendered(Rendered::Json(answers.collect()))
            }
            Request::RouteGet(RouteGetRequest { addrs, .. }) => {
                let lines = addrs.iter().map(|addr| format!("noroute {addr}\n"));
                Response::Rendered(Rendered::Text(lines.collect()))
            }
            Request::Stat => Response::Stat(stat()),
            Request::Counters => Response::Counters(stat()),
            Request::Drops => Response::Drops(drops()),
            Request::Rules { format } => {
                return Answer::List(format, Box::new(Rules::new(None, format)));
            }
            Request::FlowFind(request) => Response::FlowFind(FlowFindReport {
                netns: None,
                flows: vec![None; request.tuples.len()],
            }),
            Request::FlowShow(FlowShowRequest { format: Format::Text, list, filter }) => {
                let text = format!("{list:?} {:?} udp 17\n", filter.protocol);
                Response::Rendered(Rendered::Text(text))
            }
            Request::FlowShow(_) => Response::Rendered(Rendered::Json(json!([]))),
            Request::FlowCount(_) => {
                Response::FlowCount(FlowCountReport { carried: 3, entries: 2, offloaded: 4 })
            }
            Request::FlowTop(request) => Response::FlowTop(FlowTopReport {
                interval_ns: u64::from(request.interval_ms) * 1_000_000,
                carried: 3,
                entries: 0,
                flows: vec![flow_rate()],
            }),
            Request::Latency { .. } => Response::Latency(latency()),
            Request::Capture(request) => return capture(&request),
            Request::Trace(_) => Response::error("no packets here"),
            Request::Reload => Response::error("refused, nothing changes"),
            Request::Subscribe(_) => Response::error("no events here"),
        };
        response.into()
    }
}

impl Daemon {
    fn status(&self) -> Response {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        Response::Status(Box::new(StatusReport {
            state: if asked < 2 { State::Starting } else { State::Forwarding },
            pid: 1,
            version: "0".into(),
            driver: "af_xdp".into(),
            uptime_seconds: 0,
            ports: Vec::new(),
            workers: Vec::new(),
            mirror: MirrorStatus::default(),
            carried_flows: None,
            offloaded_flows: None,
            ipsec_policies: None,
            ipsec_sas: None,
            warnings: Vec::new(),
        }))
    }
}

fn routes(filter: &Filter, format: Format) -> Response {
    Response::Rendered(match format {
        Format::Text => Rendered::Text("10.0.0.0/8 dev eth0\n".repeat(100_000)),
        Format::Json => Rendered::Json(json!([{"table": filter.table, "dev": filter.dev}])),
    })
}

fn stat() -> StatReport {
    let worker = WorkerReport {
        mib: Counters::from([("IpForwDatagrams".into(), 7), ("IpInHdrErrors".into(), 0)]),
        ..WorkerReport::default()
    };
    let port = PortReport {
        ifname: "eth0".into(),
        counters: Counters::from([("rx_packets".into(), 9)]),
        ..PortReport::default()
    };
    StatReport { workers: vec![worker], ports: vec![port], offload: None }
}

/// A thousand frames in each direction, one with 1 to 1000 ns, the other with 1 µs.
fn latency() -> LatencyReport {
    let pair = |iif: &str, oif: &str, counts| PairLatency {
        iif: iif.to_owned(),
        oif: oif.to_owned(),
        counts,
    };
    let there = pair("eth0", "eth1", (1..=1000).map(|ns| (ns, 1)).collect());
    let back = pair("eth1", "eth0", vec![(1000, 1000)]);
    LatencyReport {
        sample: 1,
        resets: 0,
        age_us: 2_000_000,
        ports: vec!["eth0".into(), "eth1".into()],
        offloaded: None,
        pairs: vec![there, back],
    }
}

fn flow_rate() -> FlowRate {
    let [from, to] = [[10, 0, 0, 1], [192, 0, 2, 1]].map(std::net::IpAddr::from);
    FlowRate {
        tuples: vec![FlowTuple(from, to, 17, 5, 53), FlowTuple(to, from, 17, 53, 5)],
        packets: [1000, 0],
        octets: [100_000, 0],
        offloaded: [false; 2],
        iif: None,
        oif: None,
    }
}

/// A packet in each direction and a drop; then, when the client has ended, the account.
struct Copies;

fn capture(request: &CaptureRequest) -> Answer {
    if request.filter.iter().any(|insn| insn.k == 4242) {
        return Response::error("this filter has its reasons").into();
    }
    let port = |ifname: &str, ifindex| CapturePort { ifname: ifname.into(), ifindex, mac: [2; 6] };
    let ports = vec![port("eth0", 2), port("eth1", 3)];
    Answer::Follow(Response::Capture(CaptureGrant { ports, pid: 1 }), Box::new(Copies))
}

impl Follow for Copies {
    fn follow(self: Box<Self>, mut stream: &UnixStream) -> std::io::Result<()> {
        let record = |port: u8, kind: u8, reason: u8| {
            let mut record = vec![0; 24];
            (record[8], record[12], record[16], record[18], record[19]) =
                (60, 60, port, kind, reason);
            record.resize(84, 0xff);
            record
        };
        let records = [record(0, 1, 0), record(1, 2, 0), record(0, 3, 2)].concat();
        Message::Packets(&records).write(stream)?;
        stream.read_to_end(&mut Vec::new())?;
        Message::End(CaptureEnd { matched: 5, lost: 2, stopping: false }).write(stream)
    }
}

#[test]
fn captured_packets_are_printed_or_written_and_counted() {
    let lab = Lab::new();
    let output = lab.run("capture -c 3 -i eth0 udp port 53");
    let (text, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(text.starts_with("0.000000000 eth0     In   ff:ff:ff:ff:ff:ff > "), "{text}");
    assert!(text.contains("\n0.000000000 eth1     Out  "), "{text}");
    assert!(text.lines().last().expect("a line").ends_with(" [OTHERHOST]"), "{text}");
    assert!(said.contains("capturing on eth0\n3 packets captured\n5 packets received by filter\n"));
    assert!(said.contains("2 packets lost by the capture: "), "{said}");
    let json = lab.text("-j capture -c 3");
    let last: Value = serde_json::from_str(json.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&last["direction"], &last["reason"]), (&json!("drop"), &json!("OTHERHOST")));
    assert_eq!(lab.text("-j capture -c 1").lines().count(), 1);
    let file = lab.run("capture -c 3 -w -");
    assert!(file.stdout.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "{file:?}");

    let refused = lab.run("capture udp port 4242");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(refused.stderr, b"ferroute: this filter has its reasons\n");
    for line in ["capture host and", "capture -c 0", "capture -B 0", "capture -Q up"] {
        assert_eq!(lab.run(line).status.code(), Some(2), "{line}");
    }
}

fn drops() -> DropsReport {
    let named = |reason: &str, count| NamedCount {
        reason: reason.into(),
        count,
        help: "What it means.".into(),
    };
    DropsReport { drops: vec![named("IP_CSUM", 3), named("NOMEM", 0)], punts: Vec::new() }
}

struct Lab {
    _directory: tempfile::TempDir,
    _server: Server,
    control: PathBuf,
}

impl Lab {
    fn new() -> Lab {
        let directory = tempfile::tempdir().expect("a directory");
        let control = directory.path().join("control.sock");
        let server = Server::start(&control, Arc::new(Daemon::default())).expect("starts");
        Lab { _directory: directory, _server: server, control }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferroute"));
        command.args(line.split(' ')).env("FERROUTE_CONTROL", &self.control);
        command
    }

    fn run(&self, line: &str) -> Output {
        let output = self.command(line).stdin(Stdio::null()).output().expect("starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
        output
    }

    /// The output of a command that must succeed.
    fn text(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.text(line)).expect("JSON")
    }
}

#[test]
fn configurations_are_checked_and_shown() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().expect("a directory"));
    let path = dir.path().join("f.toml");
    let path = path.to_str().expect("a path");
    let write = |text: &str| std::fs::write(path, text).expect("writes");
    let default = lab.text("config default");
    write(&default.replace("#interfaces = ", "interfaces = "));
    assert_eq!(lab.text(&format!("config check {path}")), format!("{path}: valid\n"));
    // What `run` would refuse is said.
    for without in [default.as_str(), "", "[run]\n"] {
        write(without);
        let said = lab.text(&format!("config check {path}"));
        assert_eq!(said, format!("{path}: valid; it names no interfaces, so `run` needs -i\n"));
    }
    write(&default.replace("#interfaces = ", "interfaces = "));
    let shown = lab.text(&format!("config show -c {path} --mode copy"));
    assert!(shown.starts_with("[run]\ninterfaces = [\"eth0\", \"lan*\"]\n"), "{shown}");
    assert!(
        shown.contains("\nmode = \"copy\"\n") && shown.contains("\nrx_ring = 2048\n"),
        "{shown}"
    );
    // What is shown has the same effect.
    write(&shown);
    assert_eq!(lab.text(&format!("config show -c {path}")), shown);
    let json = lab.json(&format!("config show -j -c {path}"));
    assert_eq!((&json["run"]["mode"], &json["run"]["tx_ring"]), (&json!("copy"), &json!(2048)));
    assert_eq!(
        lab.json("config schema")["properties"]["run"]["properties"]["queues"]["maximum"],
        256
    );
    for (text, message) in [
        ("[run]\noffload_flow = 3\n", ":2:1: unknown field `offload_flow`"),
        ("[run]\noffload_flow = 3\n", "; did you mean `offload_flows`?"),
        ("[run]\nmode = \"zero-copy\"\n", "; did you mean `zerocopy`?"),
        ("[run]\nmax_ports = 300\n", ":2:13: "),
        ("[run]\nbusy_budget = 3\n", "--poll busy only"),
        ("[runs]\n", "; did you mean `run`?"),
    ] {
        write(text);
        let output = lab.run(&format!("config check {path}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}{said}");
        assert!(said.contains(message) && said.contains("f.toml"), "{text}{said}");
    }
    write("[run]\nqueues = 1\n");
    assert!(
        lab.run(&format!("config check {path}")).status.success(),
        "-i may name the interfaces"
    );
    assert_eq!(lab.run(&format!("config show -c {path}")).status.code(), Some(2));
    assert_eq!(lab.run("reload").status.code(), Some(1));
}

#[test]
fn status_fails_until_packets_are_forwarded_and_may_wait_for_it() {
    let lab = Lab::new();
    let first = lab.run("status");
    assert_eq!(first.status.code(), Some(1));
    assert!(first.stdout.starts_with(b"starting pid 1"), "{first:?}");
    assert!(lab.text("status --wait 20").starts_with("forwarding pid 1"));
    assert_eq!(lab.json("-j status")["state"], "forwarding");
}

#[test]
fn without_a_daemon_the_message_says_what_to_do() {
    let lab = Lab::new();
    for line in ["status", "route", "stat", "drops", "rules", "flows", "link show"] {
        let output = lab.run(&format!("--control /nonexistent/control.sock {line}"));
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.starts_with("ferroute: no ferroute runs here"), "{stderr}");
        assert!(stderr.contains("/nonexistent/control.sock") && stderr.contains("--control"));
    }
}

#[test]
fn errors_of_the_daemon_and_of_usage_have_different_exit_codes() {
    let lab = Lab::new();
    let refused = lab.run("link show");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(refused.stderr, b"ferroute: only routes are known here\n");
    for line in ["route show bogus", "route get x", "run", "run -i a -i a", "nonsense"] {
        assert_eq!(lab.run(line).status.code(), Some(2), "{line}");
    }
}

#[test]
fn filters_reach_the_daemon() {
    let lab = Lab::new();
    assert_eq!(lab.json("-j route"), json!([{"table": 254, "dev": null}]));
    let some = lab.json("-j -6 route show dev eth0 table all");
    assert_eq!(some, json!([{"table": null, "dev": "eth0"}]));
}

#[test]
fn route_get_takes_one_address_or_a_list() {
    let lab = Lab::new();
    let nowhere = lab.run("route get 192.0.2.1");
    assert_eq!((nowhere.status.code(), &*nowhere.stdout), (Some(1), &b"noroute 192.0.2.1\n"[..]));
    let mut child = lab.command("-j route get -");
    child.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // More than fit into one request.
    for n in 0..25_000u32 {
        writeln!(stdin, "{}", std::net::Ipv4Addr::from(n)).expect("writes");
    }
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success());
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).expect("one array");
    assert_eq!(answers.len(), 25_000);
    assert_eq!(answers[24_999]["dst"], "0.0.97.167");
}

#[test]
fn counters_are_shown_as_nstat_does() {
    let lab = Lab::new();
    assert_eq!(
        lab.text("stat"),
        "#ferroute\nIpForwDatagrams                 7\n#queues, worker 0: no queue\n"
    );
    assert!(lab.text("stat -z").contains("IpInHdrErrors                   0\n"));
    assert_eq!(lab.json("-j stat")["mib"]["IpInHdrErrors"], 0);
    assert_eq!(lab.json("-j stat --port eth0")[0]["counters"]["rx_packets"], 9);
    assert_eq!(lab.run("stat --port eth1").status.code(), Some(1));
    assert_eq!(lab.text("rules show"), "no nftables ruleset is applied by the workers\n");
    assert_eq!(lab.json("-j rules"), json!([]));
    assert!(lab.text("drops").starts_with("#dropped\nIP_CSUM  3  What it means.\n#handed"));
    assert_eq!(lab.json("-j drops -z")["drops"].as_array().map(Vec::len), Some(2));
}

#[test]
fn rates_of_flows_are_printed_once_per_interval() {
    let lab = Lab::new();
    let text = lab.text("flows top -i 0.5 -c 2");
    let row =
        "udp    10.0.0.1:5  192.0.2.1:53  2.00k      1.60M   0.00            0.00         no\n";
    assert_eq!(text.matches(row).count(), 2, "{text}");
    let text = lab.text("flows top -j -c 3");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[2]["flows"][0]["original"]["packets_per_s"], 1000.0);
    assert_eq!(lab.text("flows"), "Flows None udp 17\n");
    assert_eq!(lab.text("flows show -v -p udp"), "Details Some(17) udp 17\n");
    assert_eq!(lab.text("flows offloaded"), "Entries None udp 17\n");
    assert_eq!(lab.text("flows count"), "5 (3 carried, 2 entries; 4 offloaded)\n");
    let count = json!({"flows": 5, "carried": 3, "entries": 2, "offloaded": 4});
    assert_eq!(lab.json("flows count -j"), count);
    assert_eq!(lab.run("flows show -s 10.0.0.1 -d 2001:db8::1").status.code(), Some(2));
    assert_eq!(lab.json("flows show -j"), json!([]));
}

#[test]
fn latency_is_reported_per_port_pair_and_in_total() {
    let lab = Lab::new();
    let text = lab.text("latency");
    assert!(text.contains("\neth0   eth1  1000   500 ns   900 ns   990 ns   999 ns "), "{text}");
    let report = lab.json("-j latency");
    assert_eq!((&report["sample"], &report["seconds"]), (&json!(1), &json!(2.0)));
    let there = &report["pairs"][0];
    assert_eq!((&there["iif"], &there["oif"]), (&json!("eth0"), &json!("eth1")));
    for (name, value) in [("count", 1000), ("p50_ns", 500), ("p99.9_ns", 999), ("max_ns", 1000)] {
        assert_eq!(there[name], value, "{name}");
    }
    assert_eq!(report["total"]["count"], 2000);
    let one = lab.json("-j latency --port-pair :eth0");
    assert_eq!((&one["total"]["count"], &one["total"]["min_ns"]), (&json!(1000), &json!(1000)));
    let stranger = lab.run("latency --port-pair eth7:");
    assert_eq!(stranger.status.code(), Some(1));
    let expected = "ferroute: eth7 is not a port of the daemon; it has eth0, eth1\n";
    assert_eq!(String::from_utf8_lossy(&stranger.stderr), expected);
}

#[test]
fn latency_is_written_to_files_or_instead_of_the_table() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (hgrm, log, svg) = (path("a.hgrm"), path("a.log"), path("a.svg"));
    assert!(lab.text(&format!("latency --hgrm {hgrm} --log {log} --svg {svg}")).contains("total"));
    let read = |path: &str| std::fs::read_to_string(path).expect("is there");
    assert_eq!(read(&hgrm), lab.text("latency --hgrm -"), "and no table");
    assert!(read(&hgrm).contains("Total count    =         2000]"));
    assert!(read(&svg).contains("\neth0:eth1\n"));
    let begins = |text: &str| read(&log).lines().filter(|l| l.starts_with(text)).count();
    assert_eq!(begins("Tag=eth0:eth1,0.000,2.000,1000.000,HIST"), 1, "{}", read(&log));
    assert_eq!(begins("0.000,2.000,1000.000,HIST"), 1);

    assert_eq!(lab.run("latency --hgrm - --svg -").status.code(), Some(2));
    let full = lab.run("latency --svg /dev/full");
    assert_eq!(full.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&full.stderr);
    assert!(stderr.contains("cannot write /dev/full: No space left on device"), "{stderr}");
    // Before the daemon is asked to reset its counters.
    let wrong = lab.run("--control /nonexistent/s latency --reset --log /nonexistent/log");
    let stderr = String::from_utf8_lossy(&wrong.stderr);
    assert!(stderr.contains("cannot write /nonexistent/log: No such file"), "{stderr}");
}

#[test]
fn latency_is_watched_until_the_reader_leaves() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let line = format!("-j latency --watch --log {}", log.display());
    let mut child = lab.command(&line).stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for _ in 0..3 {
        let line = lines.next().expect("another second").expect("reads");
        let report: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(report["total"]["count"], 2000);
    }
    drop(lines);
    assert!(child.wait().expect("ends").success());
    let log = std::fs::read_to_string(log).expect("is there");
    // The third line of output is printed before the second interval is written.
    assert!(log.lines().filter(|l| l.starts_with("Tag=eth1:eth0,")).count() >= 1, "{log}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let lab = Lab::new();
    let mut child = lab.command("route");
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut start = [0; 10];
    stdout.read_exact(&mut start).expect("reads");
    drop(stdout);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn completions_and_manual_are_made() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(lab.text(&format!("completions {shell}")).contains("nexthop"), "{shell}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    lab.text(&format!("man {}", directory.path().display()));
    assert!(directory.path().join("ferroute-run.1").exists());
}
