//! Messages: levels, JSON, and the journal's protocol, of which the test is the journal.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PORTS: [&str; 4] = ["-i", "rt-left", "-i", "rt-right"];

fn launch(lab: &Lab, options: &[&str]) -> Result<Ferroute> {
    Ferroute::start_in(&lab.router, &[&PORTS[..], options].concat())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn messages_are_objects_in_json() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = launch(&lab, &["--log-format", "json"])?;
    lab.right.run("ip link set right down")?;
    let lines = |ferroute: &Ferroute| -> Result<Vec<Value>> {
        let said = ferroute.said();
        said.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
    };
    let down = |line: &Value| {
        line["fields"]["interface"] == "rt-right"
            && line["fields"]["event"] == "port"
            && line["level"] == "warn"
            && line["message"].as_str().is_some_and(|text| text.contains("rt-right"))
    };
    let seen = eventually(|| lines(&ferroute).is_ok_and(|lines| lines.iter().any(down)));
    ensure!(seen, "no message about the port: {}", ferroute.said());
    ferroute.terminate()?;
    for line in lines(&ferroute)? {
        for key in ["time", "level", "target", "message"] {
            ensure!(line[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {line}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn only_messages_of_the_level_are_written_and_a_reload_changes_it() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("r.toml");
    let configure = |level: &str| {
        let text = format!(
            "[run]\ninterfaces = [\"rt-left\", \"rt-right\"]\nlog_level = \"{level}\"\nlog_format = \"text\"\n"
        );
        std::fs::write(&file, text)
    };
    configure("error")?;
    let path = file.to_str().context("a path")?;
    let mut ferroute = Ferroute::start_in(&lab.router, &["-c", path])?;
    ensure!(ferroute.said().is_empty(), "{}", ferroute.said());
    configure("debug")?;
    let said = ferroute.ask(&["reload"])?;
    ensure!(said == "log_level: applied: \"error\" -> \"debug\"\n", "{said}");
    lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
    let seen = eventually(|| ferroute.said().contains("ferroute: tables: "));
    ensure!(seen, "no event of the tables: {}", ferroute.said());
    ferroute.terminate()?;
    ensure!(ferroute.said().contains("ferroute: stopped; "), "{}", ferroute.said());
    Ok(())
}

/// Takes the place of the journal for the program that its arguments start, prints each entry as JSON, and passes on what
/// it gets at standard error.
const JOURNAL: &str = r#"
import json, os, socket, subprocess, sys, threading
os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
reader, writer = os.pipe()
stream = os.fstat(writer)
environment = dict(os.environ, JOURNAL_STREAM=f"{stream.st_dev}:{stream.st_ino}")
child = subprocess.Popen(sys.argv[1:], stderr=writer, env=environment)
os.close(writer)
print(json.dumps({"pid": child.pid}), flush=True)
def texts():
    for line in os.fdopen(reader):
        print(json.dumps({"stderr": line}), flush=True)
threading.Thread(target=texts).start()
def entries():
    while True:
        fields = dict(line.split("=", 1) for line in journal.recv(65536).decode().splitlines())
        print(json.dumps(fields), flush=True)
threading.Thread(target=entries, daemon=True).start()
child.wait()
"#;

fn under_a_journal(lab: &Lab, control: &str) -> Result<Child> {
    let script = "mount -t tmpfs none /run && exec python3 -c \"$0\" \"$@\"";
    let program = ferroute::binary();
    let mut command: Command = lab.router.command("unshare");
    command.args(["--mount", "sh", "-c", script, JOURNAL]);
    command.arg(program).args(["run", "--control", control]).args(PORTS);
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_journal_gets_entries_with_fields() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let control = dir.path().join("control.sock");
    let mut child = under_a_journal(&lab, control.to_str().context("a path")?)?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let mut next = || -> Result<Value> {
        let line = lines.next().context("it has ended")??;
        serde_json::from_str(&line).context(line)
    };
    let pid = next()?["pid"].as_i64().context("a pid")?;
    let start = next()?;
    ensure!(start["PRIORITY"] == "6" && start["SYSLOG_IDENTIFIER"] == "ferroute", "{start}");
    let message = start["MESSAGE"].as_str().context("a message")?;
    ensure!(message.starts_with("forwarding between rt-left"), "{start}");
    ensure!(start["CODE_FILE"].is_string() && start["CODE_LINE"].is_string(), "{start}");
    lab.right.run("ip link set right down")?;
    let down = loop {
        let entry = next()?;
        if entry["FERROUTE_INTERFACE"] == "rt-right" {
            break entry;
        }
    };
    ensure!(down["PRIORITY"] == "4" && down["FERROUTE_EVENT"] == "port", "{down}");
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
    let mut last = Value::Null;
    while let Ok(line) = next() {
        ensure!(line.get("stderr").is_none(), "not to the journal: {line}");
        last = line;
    }
    ensure!(last["MESSAGE"].as_str().is_some_and(|text| text.starts_with("stopped; ")), "{last}");
    ensure!(child.wait()?.success());
    Ok(())
}
