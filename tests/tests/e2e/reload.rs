//! The configuration file, read again: what changes without a restart, what is refused, and that packets keep
//! being forwarded meanwhile.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::bpf::Attached;
use ferroute_tests::freeze::StoppedThread;
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::stream::Stream;
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, eventually, ferroute};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::filters::last_arrival;
use super::offload::{lab_with_gro, offloaded};

/// The interfaces of the lab, and what tests need: no flow is offloaded, and a machine that is busy changes nothing.
const BOTH: &str = "interfaces = [\"rt-left\", \"rt-right\"]\noffload = \"off\"\n\
                    worker_timeout_ms = 30000\ncontrol_timeout_ms = 30000\n";
const SEND_INTERVAL: Duration = Duration::from_millis(2);

/// The same with other interfaces.
fn ports(names: &str) -> String {
    BOTH.replace(r#"["rt-left", "rt-right"]"#, names)
}

/// A daemon with a file.
struct Configured {
    ferroute: Ferroute,
    lab: Lab,
    dir: TempDir,
}

impl Configured {
    fn start(run: &str) -> Result<Option<Configured>> {
        Self::start_in(Lab::up()?, run)
    }

    fn start_in(lab: Lab, run: &str) -> Result<Option<Configured>> {
        if ferroute::by_kernel() {
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("f.toml");
        fs::write(&path, format!("[run]\n{run}"))?;
        let args = ["-c", path.to_str().context("a path")?];
        let ferroute = Ferroute::start_in(&lab.router, &args)?;
        Ok(Some(Configured { ferroute, lab, dir }))
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("f.toml")
    }

    fn write(&self, run: &str) -> Result<()> {
        Ok(fs::write(self.path(), format!("[run]\n{run}"))?)
    }

    /// The changes by key: whether each is in effect.
    fn reload(&self, run: &str) -> Result<Value> {
        self.write(run)?;
        let report = self.ferroute.json(&["reload"])?;
        let changes = report["changes"].as_array().context("no changes")?.iter();
        Ok(changes
            .map(|it| (it["key"].as_str().unwrap_or("?").to_owned(), it["applied"].clone()))
            .collect())
    }

    fn hang_up(&self) -> Result<()> {
        let pid = self.ferroute.pid().context("a process")?;
        Ok(kill(Pid::from_raw(pid as i32), Signal::SIGHUP)?)
    }

    /// Names of the ports, and their states.
    fn ports(&self) -> Result<Vec<(String, String)>> {
        // `status` fails while a named port is not open.
        let output = self.ferroute.command(&["-j", "status"]).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let ports = report["ports"].as_array().context("no ports")?.iter();
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        Ok(ports.map(|port| (text(&port["ifname"]), text(&port["state"]))).collect())
    }

    fn until_ports(&self, expected: &[&str]) -> Result<()> {
        let are_open = |ports: Vec<(String, String)>| {
            ports.iter().map(|(name, _)| name).eq(expected)
                && ports.iter().all(|(_, state)| state == "forwarding" || state == "no carrier")
        };
        ensure!(
            eventually(|| self.ports().is_ok_and(are_open)),
            "not {expected:?} but {:?}\n{}",
            self.ports(),
            self.ferroute.said()
        );
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn ports_are_added_and_removed_while_others_forward() -> Result<()> {
    let Some(it) = Configured::start(BOTH)? else { return Ok(()) };
    for line in
        ["link add more0 type veth peer name more1", "link set more0 up", "link set more1 up"]
    {
        it.lab.router.run(&format!("ip {line}"))?;
    }
    let stream = Stream::start(&it.lab.left, &it.lab.right, RIGHT4, SEND_INTERVAL)?;
    ensure!(stream.flows(50));
    it.ferroute.forwarded_all_itself()?;
    // By the command, then by signal.
    let three = ports(r#"["rt-left", "rt-right", "more0"]"#);
    ensure!(it.reload(&three)? == json!({ "interfaces": true }));
    it.until_ports(&["rt-left", "rt-right", "more0"])?;
    it.write(&ports(r#"["rt-left", "rt-right", "more1"]"#))?;
    it.hang_up()?;
    it.until_ports(&["rt-left", "rt-right", "more1"])?;
    let pattern = ports(r#"["rt-left", "rt-right", "more*"]"#);
    ensure!(it.reload(&pattern)? == json!({ "interfaces": true }));
    ensure!(eventually(|| it.ports().is_ok_and(|ports| ports.len() == 4)), "{:?}", it.ports());
    ensure!(it.reload(BOTH)? == json!({ "interfaces": true }));
    it.until_ports(&["rt-left", "rt-right"])?;
    ensure!(stream.flows(50));
    it.ferroute.forwarded_all_itself().context("the ports that stayed")?;
    ensure!(stream.stop().lost() == 0);
    // A port that packets pass: the kernel forwards them.
    let stream = Stream::start(&it.lab.left, &it.lab.right, RIGHT4, SEND_INTERVAL)?;
    ensure!(it.reload(&ports(r#"["rt-right"]"#))? == json!({ "interfaces": true }));
    it.until_ports(&["rt-right"])?;
    stream.until_flowing(50, EVENT_TIMEOUT)?;
    ensure!(eventually(|| it.ferroute.forwarded_by_kernel().is_ok_and(|kernel| kernel.v4 > 50)));
    ensure!(it.reload(BOTH)? == json!({ "interfaces": true }));
    it.until_ports(&["rt-left", "rt-right"])?;
    it.ferroute.until_in_userspace(Duration::from_millis(200), EVENT_TIMEOUT)?;
    ensure!(stream.flows(50));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_of_a_port_hold_while_it_becomes_a_matched_one_and_back() -> Result<()> {
    let Some(it) = Configured::start(BOTH)? else { return Ok(()) };
    it.lab.router.run("tc qdisc add dev rt-right clsact")?;
    let stream = Stream::start(&it.lab.left, &it.lab.right, RIGHT4, Duration::from_micros(100))?;
    ensure!(stream.flows(50));
    let Some(filter) = Attached::new(&it.lab.router, "drop tc dev rt-right egress")? else {
        return Ok(());
    };
    last_arrival(&stream).context("a rule of a named port")?;
    let before = stream.received();
    let state = || it.ports().map(|ports| ports.into_iter().map(|(_, state)| state).collect());
    let until = |is: &dyn Fn(&str) -> bool| {
        let right = |ports: Vec<String>| ports.get(1).is_some_and(|state| is(state));
        ensure!(eventually(|| state().is_ok_and(right)), "{:?}", state());
        Ok(())
    };
    for round in 0..10 {
        it.reload(&ports(r#"["rt-left", "rt-*"]"#))?;
        until(&|state| state.contains("would be bypassed"))?;
        it.reload(BOTH)?;
        until(&|state| state == "forwarding")?;
        let passed = stream.received() - before;
        ensure!(passed == 0, "{passed} packets bypassed the rule in round {round}");
    }
    drop(filter);
    it.lab.router.run("tc filter del dev rt-right egress")?;
    ensure!(stream.flows(50));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_named_interface_without_room_is_a_degraded_state_until_there_is_room() -> Result<()> {
    let run = |names: &str| format!("{}max_ports = 2\n", ports(names));
    let Some(it) = Configured::start(&run(r#"["rt-left", "rt-right"]"#))? else { return Ok(()) };
    it.lab.router.run("ip link add more0 type veth peer name more1")?;
    it.lab.router.run("ip link set more0 up")?;
    it.lab.router.run("ip link set more1 up")?;
    let status = || -> Result<Value> {
        // Its exit status is 1 unless everything is forwarded.
        let output = it.ferroute.command(&["-j", "status"]).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    // The number of the removed port is free in a while.
    ensure!(it.reload(&run(r#"["rt-left", "more0"]"#))? == json!({ "interfaces": true }));
    let now = status()?;
    ensure!(now["state"] == "degraded", "{now}");
    ensure!(now["warnings"].to_string().contains("interface more0 waits until"), "{now}");
    it.until_ports(&["rt-left", "more0"])?;
    ensure!(
        eventually(|| status().is_ok_and(|now| now["state"] == "forwarding")),
        "{:?}",
        status()
    );
    let said = it.ferroute.said();
    ensure!(!said.contains("there is no room"), "{said}");
    // A matched port has the last number.
    ensure!(
        it.reload(&run(r#"["rt-left", "rt-right", "more0*"]"#))? == json!({ "interfaces": true })
    );
    let now = status()?;
    ensure!(now["state"] == "degraded", "{now}");
    ensure!(now["warnings"].to_string().contains("there is no room"), "{now}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_file_that_is_wrong_is_refused_and_nothing_changes() -> Result<()> {
    let Some(mut it) = Configured::start(BOTH)? else { return Ok(()) };
    for (run, message) in [
        ("interface = [\"rt-left\"]\n", "f.toml:2:1: unknown field `interface`"),
        ("interfaces = [\"rt-left\"]\noffload_threshold = 0\n", "f.toml:3:21: "),
        ("interfaces = []\n", "no interface is named"),
        ("interfaces = [\"rt-left\"]\nbusy_budget = 5\n", "--poll busy only"),
    ] {
        it.write(run)?;
        let output = it.ferroute.command(&["reload"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(said.contains("refused, nothing changes: ") && said.contains(message), "{said}");
        it.until_ports(&["rt-left", "rt-right"])?;
    }
    let logged = || it.ferroute.said().matches("reload refused, nothing changes").count();
    let before = logged();
    it.hang_up()?;
    ensure!(eventually(|| logged() > before), "{}", it.ferroute.said());
    fs::remove_file(it.path())?;
    ensure!(
        it.ferroute.ask(&["reload"]).is_err_and(|error| error.to_string().contains("No such file"))
    );
    // Opening it would wait for a writer.
    nix::unistd::mkfifo(&it.path(), nix::sys::stat::Mode::S_IRUSR)?;
    it.hang_up()?;
    ensure!(
        it.ferroute.ask(&["reload"]).is_err_and(|error| error.to_string().contains("not a file"))
    );
    it.until_ports(&["rt-left", "rt-right"])?;
    ensure!(it.ferroute.is_running());
    it.ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn keys_take_effect_or_are_named_as_needing_a_restart() -> Result<()> {
    let both = BOTH.replace("\"off\"", "\"on\"");
    let start = format!("{both}offload_threshold = 60000\n");
    let Some(it) = Configured::start_in(lab_with_gro()?, &start)? else { return Ok(()) };
    let run = format!("{start}rx_ring = 512\ncpus = \"0\"\nlatency_sample = 1\n");
    ensure!(it.reload(&run)? == json!({ "rx_ring": false, "cpus": false, "latency_sample": true }));
    // What is not in effect is named again.
    ensure!(it.reload(&run)? == json!({ "rx_ring": false, "cpus": false }));
    let said = it.ferroute.said();
    ensure!(said.contains("reload: latency_sample: applied: 64 -> 1"), "{said}");
    ensure!(said.contains("reload: cpus: needs a restart: not set -> \"0\""), "{said}");
    // Each frame is measured after the next one that would have been.
    let measured = || -> Result<u64> {
        let report = it.ferroute.json(&["latency"])?;
        report["total"]["count"].as_u64().with_context(|| report.to_string())
    };
    it.lab.left.run(&format!("ping -q -c 100 -i 0.005 {RIGHT4}"))?;
    let before = measured()?;
    it.lab.left.run(&format!("ping -q -c 3 -i 0.01 {RIGHT4}"))?;
    ensure!(measured()? - before == 6, "{} of 6 frames were measured", measured()? - before);
    // A flow is offloaded after so many packets, and with `off` none is.
    let stream = Stream::start(&it.lab.left, &it.lab.right, RIGHT4, SEND_INTERVAL)?;
    ensure!(stream.flows(100));
    let offloaded = || offloaded(&it.ferroute);
    ensure!(offloaded()? == 0, "with a threshold of 60000");
    let few = format!("{both}offload_threshold = 7\nlatency_sample = 1\n");
    ensure!(it.reload(&few)? == json!({ "offload_threshold": true }));
    ensure!(eventually(|| offloaded().is_ok_and(|packets| packets > 100)), "{:?}", offloaded());
    let off = few.replace("\"on\"", "\"off\"");
    ensure!(it.reload(&off)? == json!({ "offload": true }));
    let before = offloaded()?;
    ensure!(stream.flows(100) && offloaded()? == before, "flows are offloaded with `off`");
    ensure!(it.reload(&few)? == json!({ "offload": true }));
    ensure!(eventually(|| offloaded().is_ok_and(|packets| packets > before + 100)));
    ensure!(stream.stop().lost() == 0);
    it.ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn time_outs_take_effect() -> Result<()> {
    let Some(it) = Configured::start(BOTH)? else { return Ok(()) };
    let pid = it.ferroute.pid().context("a process")?;
    let stream = Stream::start(&it.lab.left, &it.lab.right, RIGHT4, SEND_INTERVAL)?;
    ensure!(stream.flows(50));
    let stopped = StoppedThread::stop(pid, "fr-worker0")?;
    stream.until_dry(EVENT_TIMEOUT).context("with the time-out of the start")?;
    drop(stopped);
    stream.until_flowing(50, EVENT_TIMEOUT)?;
    it.write(&BOTH.replace("worker_timeout_ms = 30000", "worker_timeout_ms = 100"))?;
    let said = it.ferroute.ask(&["reload"])?;
    ensure!(said == "worker_timeout_ms: applied: 30000 -> 100\n", "{said}");
    let stopped = StoppedThread::stop(pid, "fr-worker0")?;
    stream.until_flowing(100, Duration::from_secs(10)).context("the kernel does not forward")?;
    drop(stopped);
    it.ferroute.until_in_userspace(Duration::from_millis(200), EVENT_TIMEOUT)?;
    // Of the control thread: workers forward on without it for 30 seconds, then for 0.3.
    let by_kernel = || Ok::<_, anyhow::Error>(it.ferroute.forwarded_by_kernel()?.v4);
    let stopped = StoppedThread::stop(pid, "ferroute")?;
    let before = by_kernel()?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(by_kernel()? == before, "the kernel forwards within the time-out");
    drop(stopped);
    it.write(&BOTH.replace("control_timeout_ms = 30000", "control_timeout_ms = 300"))?;
    let said = it.ferroute.ask(&["reload"])?;
    ensure!(said.contains("control_timeout_ms: applied: 30000 -> 300\n"), "{said}");
    it.ferroute.until_in_userspace(Duration::from_millis(200), EVENT_TIMEOUT)?;
    let _stopped = StoppedThread::stop(pid, "ferroute")?;
    let before = by_kernel()?;
    ensure!(eventually(|| by_kernel().is_ok_and(|now| now > before + 50)));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_hangup_without_a_file_ends_the_process_and_with_one_it_is_a_reload() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let (lab, dir) = (Lab::up()?, tempfile::tempdir()?);
    let (path, notify) = (dir.path().join("f.toml"), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&notify)?;
    manager.set_read_timeout(Some(EVENT_TIMEOUT))?;
    let next = || -> Result<String> {
        loop {
            let mut octets = [0; 1000];
            let len = manager.recv(&mut octets).context("no message from it")?;
            let message = String::from_utf8(octets[..len].to_vec())?;
            if !message.starts_with("STATUS=") {
                return Ok(message);
            }
        }
    };
    fs::write(&path, format!("[run]\n{BOTH}"))?;
    let args = ["-c", path.to_str().context("a path")?];
    let variables = [("NOTIFY_SOCKET", notify.to_str().context("a path")?)];
    let mut ferroute = Ferroute::launch_with(&lab.router, &args, &variables)?;
    ensure!(next()? == "READY=1\n");
    let pid = Pid::from_raw(ferroute.pid().context("a process")? as i32);
    for run in [BOTH, "interfaces = 1\n"] {
        fs::write(&path, format!("[run]\n{run}"))?;
        kill(pid, Signal::SIGHUP)?;
        let reloading = next()?;
        ensure!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        ensure!(next()? == "READY=1\n");
        ensure!(ferroute.is_running());
    }
    ferroute.terminate()?;
    ensure!(next()? == "STOPPING=1\n");

    let mut ferroute = Ferroute::start(&lab)?;
    let refused = ferroute.ask(&["reload"]);
    ensure!(refused.is_err_and(|error| error.to_string().contains("without a configuration file")));
    kill(Pid::from_raw(ferroute.pid().context("a process")? as i32), Signal::SIGHUP)?;
    ensure!(eventually(|| !ferroute.is_running()), "SIGHUP does not end it");
    Ok(())
}
