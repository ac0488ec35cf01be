//! `ferroute top` on a terminal, which tmux is, and with `--batch`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, nft};
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::tmux::Tmux;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Connections are tracked, so that workers carry them.
const STATEFUL: &str = "table inet fw { chain forward { type filter hook forward priority 0; policy drop; \
                        ct state established,new accept; }; }";

/// The foreground of what is as it should be.
const GREEN: &str = "\x1b[38;5;2m";

/// A ping that goes on until dropped.
struct Ping(Child);

impl Ping {
    fn start(lab: &Lab) -> Result<Ping> {
        let mut command = lab.left.command("ping");
        command.args(["-q", "-i", "0.01", RIGHT4]).stdout(Stdio::null());
        Ok(Ping(command.spawn()?))
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command line of `top`, and a path at which a daemon's control socket is, or that of the next one.
struct Top {
    tmux: Tmux,
    dir: tempfile::TempDir,
}

impl Top {
    /// Starts `top` with more arguments; words before it are variables of its environment.
    fn start(running: &Ferroute, (columns, lines): (u16, u16), line: &str) -> Result<Top> {
        let this = Top { tmux: Tmux::start(columns, lines)?, dir: tempfile::tempdir()? };
        this.point_to(running)?;
        this.tmux.type_line("echo before $((1 + 1))")?;
        this.tmux.wait_for("output", |screen| screen.contains("before 2"))?;
        this.again(line)?;
        Ok(this)
    }

    fn again(&self, line: &str) -> Result<()> {
        let (variables, args) = line.split_once('|').unwrap_or(("", line));
        let socket = self.dir.path().join("control");
        let program = ferroute::binary();
        self.tmux.type_line(&format!(
            "{variables} {} --control {} top {args}; echo status $?",
            program.display(),
            socket.display()
        ))
    }

    /// An empty screen but for what a terminal that is restored shows again.
    fn clear(&self) -> Result<()> {
        self.tmux.type_line(r"printf '\033[H\033[2J'; echo before $((1 + 1))")?;
        let is_empty = |screen: &str| screen.starts_with("before 2");
        self.tmux.wait_for("an empty screen", is_empty).map(drop)
    }

    fn point_to(&self, running: &Ferroute) -> Result<()> {
        let link = self.dir.path().join("control");
        let _ = fs::remove_file(&link);
        Ok(std::os::unix::fs::symlink(running.control(), link)?)
    }

    /// Waits until all of these are on the screen.
    fn shows(&self, parts: &[&str]) -> Result<String> {
        self.tmux.wait_for(&format!("{parts:?}"), |screen| {
            self.tmux.is_alternate().unwrap_or(false)
                && parts.iter().all(|part| screen.contains(part))
        })
    }

    /// Waits until the shell has the terminal again, as it was.
    fn has_ended(&self, status: &str) -> Result<()> {
        let screen = self.tmux.wait_for(status, |screen| screen.contains(status))?;
        ensure!(screen.contains("before 2"), "the screen is lost:\n{screen}");
        ensure!(!self.tmux.is_alternate()? && self.tmux.has_cursor()?, "{screen}");
        self.tmux.type_line("stty -a; echo done $((1 + 1))")?;
        let screen = self.tmux.wait_for("settings", |screen| screen.contains("done 2"))?;
        let words: Vec<&str> = screen.split([' ', '\n', ';']).collect();
        let has = |word| words.contains(&word);
        ensure!(has("icanon") && has("echo") && has("isig") && has("opost"), "{screen}");
        Ok(())
    }

    /// Sends a signal to the program that runs in the shell.
    fn signal(&self, signal: Signal) -> Result<()> {
        let shell = self.tmux.shell_pid()?;
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        let pid = children.split_whitespace().next().context("no program runs")?;
        Ok(kill(Pid::from_raw(pid.parse()?), signal)?)
    }
}

/// The word of a row after its name.
fn word<'a>(screen: &'a str, row: &str, at: usize) -> Option<&'a str> {
    let line = screen.lines().find(|line| line.starts_with(row))?;
    line.split_whitespace().nth(at)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn top_draws_at_each_size_and_restores_the_terminal() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let running = Ferroute::start_with(&lab, &["--latency-sample", "1"])?;
    let _ping = Ping::start(&lab)?;
    let top = Top::start(&running, (80, 24), "-i 0.2")?;
    let tmux = &top.tmux;
    let has_rate = |screen: &str| {
        let rate = word(screen, "rt-left ", 1).and_then(|rate| rate.parse().ok());
        rate.is_some_and(|rate: f64| rate > 0.0)
    };
    let screen = tmux.wait_for("rates", |screen| {
        has_rate(screen) && screen.contains("rt-left → rt-right") && screen.contains(" µs")
    })?;
    for part in ["forwarding in userspace", "every 0.2 s", "worker 0", "Latency, last", "Drops"] {
        ensure!(screen.contains(part), "{part}\n{screen}");
    }
    ensure!(screen.lines().nth(23).is_some_and(|keys| keys.starts_with("qQuit")), "{screen}");
    ensure!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    ensure!(tmux.coloured_screen()?.contains(GREEN), "no colour");

    tmux.resize(200, 60)?;
    let screen = top.shows(&["received, highest", "native copy"])?;
    ensure!(
        screen.lines().any(|line| line.contains("Workers") && line.contains("Drops and punts")),
        "{screen}"
    );
    tmux.resize(20, 5)?;
    tmux.wait_for("a small screen", |screen| {
        screen.lines().nth(2).is_some_and(|line| line.starts_with("Ports"))
            && screen.lines().nth(3).is_some_and(|line| line.starts_with("rt-"))
    })?;
    tmux.resize(1, 1)?;
    tmux.resize(80, 24)?;
    top.shows(&["forwarding in userspace", "Latency, last", "qQuit"])?;

    tmux.press(&["?"])?;
    top.shows(&["this help", "draw again"])?;
    tmux.press(&["Escape"])?;
    tmux.press(&["l"])?;
    top.shows(&["Latency, since the start"])?;
    tmux.press(&["p"])?;
    top.shows(&["PAUSED"])?;
    tmux.press(&["p", "+"])?;
    top.shows(&["every 0.5 s"])?;
    tmux.press(&["2", "Enter"])?;
    tmux.wait_for("ports alone", |screen| {
        screen.contains("Ports") && !screen.contains("Workers") && has_rate(screen)
    })?;
    tmux.press(&["/", "r", "i", "g", "h", "t", "Enter"])?;
    tmux.wait_for("a filter", |screen| {
        screen.contains("filter: right")
            && screen.contains("\nrt-right")
            && !screen.contains("\nrt-left")
    })?;
    // Stopped and continued by the shell.
    tmux.press(&["C-z"])?;
    tmux.wait_for("the shell", |screen| screen.contains("before 2") && screen.contains("Stopped"))?;
    ensure!(!tmux.is_alternate()? && tmux.has_cursor()?);
    tmux.type_line("fg; echo status $?")?;
    top.shows(&["filter: right", "\nrt-right"])?;
    // Stopped by another process.
    top.signal(Signal::SIGTSTP)?;
    let is_stopped = |screen: &str| screen.matches("Stopped").count() > 1;
    tmux.wait_for("the shell again", is_stopped)?;
    ensure!(!tmux.is_alternate()? && tmux.has_cursor()?);
    tmux.type_line("fg; echo status $?")?;
    top.shows(&["filter: right", "\nrt-right"])?;
    tmux.press(&["q"])?;
    top.has_ended("status 0")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn top_restores_the_terminal_after_signals_and_needs_neither_colours_nor_utf8() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let running = Ferroute::start_with(&lab, &["--latency-sample", "1"])?;
    let _ping = Ping::start(&lab)?;
    let top = Top::start(&running, (80, 24), "LC_ALL=C NO_COLOR=1|-d 0.2")?;
    let screen = top.shows(&["forwarding in userspace", "rt-left > rt-right", "[", " us"])?;
    ensure!(screen.is_ascii(), "{screen}");
    let coloured = top.tmux.coloured_screen()?;
    // Neither a foreground nor a background of the palette.
    ensure!(!coloured.contains("[38;") && !coloured.contains("[48;"), "{coloured:?}");
    top.signal(Signal::SIGTERM)?;
    top.has_ended("status 0")?;
    top.clear()?;
    top.again("-d 0.2")?;
    top.shows(&["forwarding in userspace"])?;
    top.signal(Signal::SIGINT)?;
    top.has_ended("status 0")?;
    top.clear()?;
    top.again("-d 0.2")?;
    top.shows(&["forwarding in userspace"])?;
    top.signal(Signal::SIGQUIT)?;
    top.has_ended("status 0")?;
    // As many measurements as are asked for.
    top.clear()?;
    top.again("-d 0.2 -n 2")?;
    top.has_ended("status 0")?;
    top.clear()?;
    top.again("TERM=dumb|")?;
    top.has_ended("status 2")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn top_says_that_the_daemon_is_gone_and_goes_on_with_the_next() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut running = Ferroute::start(&lab)?;
    let ping = Ping::start(&lab)?;
    let top = Top::start(&running, (100, 30), "-i 0.2")?;
    top.shows(&["forwarding in userspace", "worker 0"])?;
    let pid = Pid::from_raw(running.pid().context("a process")? as i32);
    kill(pid, Signal::SIGSTOP)?;
    let silent = top.shows(&["no answer for", "trying again"]);
    kill(pid, Signal::SIGCONT)?;
    silent?;
    top.tmux.wait_for("an answer", |screen| screen.starts_with("forwarding in userspace"))?;
    running.terminate()?;
    top.shows(&["no answer for", "no ferroute runs here", "worker 0"])?;
    drop(running);
    let running = Ferroute::start(&lab)?;
    top.point_to(&running)?;
    let pid = format!("pid {}", running.pid().context("a process")?);
    let screen = top.shows(&["forwarding in userspace", &pid])?;
    ensure!(!screen.contains("no answer"), "{screen}");
    drop(ping);
    top.tmux.wait_for("rates", |screen| word(screen, "rt-left ", 1) == Some("0.00"))?;
    top.tmux.press(&["C-c"])?;
    top.has_ended("status 0")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn top_shows_flows_while_they_are_wanted() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start(&lab)?;
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    let top = Top::start(&running, (80, 24), "-i 0.3")?;
    let flow = format!("{} → {RIGHT4}:5001", talk.peer);
    top.shows(&["Flows, last 0.3 s", &flow])?;
    let threads = || -> Result<usize> {
        let pid = running.pid().context("a process")?;
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        Ok(tasks.filter(|task| name(task).is_ok_and(|it| it == "fr-client\n")).count())
    };
    let count_is = |count: usize| eventually(|| threads().is_ok_and(|it| it == count));
    ensure!(count_is(2), "one connection for counters, one for flows");
    top.tmux.press(&["f"])?;
    top.tmux.wait_for("no flows", |screen| !screen.contains("Flows, last"))?;
    top.tmux.press(&["5"])?;
    top.shows(&["Flows, last 0.3 s", &flow])?;
    top.tmux.press(&["q"])?;
    top.has_ended("status 0")?;
    let batch = running.json(&["top", "--batch", "1", "-i", "0.5"])?;
    let rate = &batch["flows"]["flows"][0]["original"]["packets_per_s"];
    ensure!(rate.as_f64() > Some(0.0), "{batch}");
    ensure!(count_is(0), "connections remain");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn top_prints_for_scripts_until_nobody_reads() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let running = Ferroute::start_with(&lab, &["--latency-sample", "1"])?;
    let _ping = Ping::start(&lab)?;
    let text = running.ask(&["top", "-b", "-n", "2", "-i", "0.3"])?;
    ensure!(text.matches("#router ").count() == 2, "{text}");
    for row in ["port     rt-left", "worker   0", "latency   rt-left", "#flow"] {
        let start: Vec<&str> = row.split_whitespace().collect();
        let is_it =
            |line: &str| line.split_whitespace().take(start.len()).eq(start.iter().copied());
        ensure!(text.lines().any(is_it), "{row}\n{text}");
    }
    let mut json = running.command(&["-j", "top", "--batch", "-i", "0.2", "--flows", "0"]);
    let mut child = json.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    for _ in 0..3 {
        let line = lines.next().context("no line")??;
        let value: Value = serde_json::from_str(&line)?;
        ensure!(value["packets"]["received_per_s"].as_f64() > Some(0.0), "{line}");
        ensure!(value["latency"]["total"]["count"].as_u64() > Some(0), "{line}");
        ensure!(value["flows"].is_null() && value["state"] == "forwarding", "{line}");
        let length = value["interval_s"].as_f64().context("no interval")?;
        ensure!(length >= Duration::from_millis(200).as_secs_f64() * 0.9, "{line}");
    }
    drop(lines);
    let mut said = String::new();
    child.stderr.take().context("a pipe")?.read_to_string(&mut said)?;
    ensure!(child.wait()?.success() && said.is_empty(), "{said}");
    // Rates of flows are measured for others, as many as there may be.
    let others: Result<Vec<Child>> = (0..4)
        .map(|_| {
            let mut other = running.command(&["flows", "top", "--batch", "1", "-i", "30"]);
            Ok(other.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
        })
        .collect();
    let mut others = others?;
    let mut output = None;
    let is_refused = eventually(|| {
        output = running.command(&["-j", "top", "-b", "1", "-i", "0.1"]).output().ok();
        output.as_ref().is_some_and(|it| String::from_utf8_lossy(&it.stderr).contains("no flows"))
    });
    for other in &mut others {
        let _ = other.kill();
        let _ = other.wait();
    }
    let output = output.context("no output")?;
    let value: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    ensure!(is_refused && output.status.success() && value["flows"].is_null(), "{output:?}");
    // Neither a terminal nor --batch.
    let output = running.command(&["top"]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("--batch"), "{said}");
    Ok(())
}
