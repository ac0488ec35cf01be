//! The program's verbs against a daemon made of fixed answers: outputs and exit codes. No root.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ferroute::control::api::{
    Counters, DropsReport, Filter, Format, MirrorStatus, NamedCount, Object, PortReport, Rendered,
    Request, Response, RouteGetRequest, ShowRequest, StatReport, State, StatusReport, WorkerReport,
};
use ferroute::control::server::{ControlHandler, Server};
use serde_json::{Value, json};

/// Forwards from the third time on that it is asked how it goes.
#[derive(Default)]
struct Daemon {
    asked: AtomicUsize,
}

impl ControlHandler for Daemon {
    fn handle(&self, request: Request) -> Response {
        match request {
            Request::Status => self.status(),
            Request::Show(ShowRequest { object: Object::Route, filter, format }) => {
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
            Request::Drops => Response::Drops(drops()),
        }
    }
}

impl Daemon {
    fn status(&self) -> Response {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        Response::Status(StatusReport {
            state: if asked < 2 { State::Starting } else { State::Forwarding },
            pid: 1,
            version: "0".into(),
            uptime_seconds: 0,
            ports: Vec::new(),
            workers: Vec::new(),
            mirror: MirrorStatus::default(),
            warnings: Vec::new(),
        })
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
    StatReport { workers: vec![worker], ports: vec![port] }
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

    /// The output of a line that must succeed.
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
    for line in ["status", "route", "stat", "drops", "link show"] {
        let output = lab.run(&format!("--control /nonexistent/control.sock {line}"));
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.starts_with("ferroute: no ferroute runs here"), "{stderr}");
        assert!(stderr.contains("/nonexistent/control.sock") && stderr.contains("--control"));
    }
}

#[test]
fn what_the_daemon_refuses_and_wrong_words_differ_in_their_code() {
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
    // More than one request takes.
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
    assert_eq!(lab.text("stat"), "#ferroute\nIpForwDatagrams                 7\n");
    assert!(lab.text("stat -z").contains("IpInHdrErrors                   0\n"));
    assert_eq!(lab.json("-j stat")["mib"]["IpInHdrErrors"], 0);
    assert_eq!(lab.json("-j stat --port eth0")[0]["counters"]["rx_packets"], 9);
    assert_eq!(lab.run("stat --port eth1").status.code(), Some(1));
    assert!(lab.text("drops").starts_with("#dropped\nIP_CSUM  3  What it means.\n#handed"));
    assert_eq!(lab.json("-j drops -z")["drops"].as_array().map(Vec::len), Some(2));
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
