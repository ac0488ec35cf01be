//! Poll modes: each forwards and counts its polls, an idle router uses almost no CPU, and settings of
//! interfaces for busy polling are restored.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::ping::ping_each;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute::by_kernel, threads};
use serde_json::Value;

/// Maximum CPU usage without traffic, as a fraction of a core.
const IDLE_CPU_MAX: f64 = 0.02;
/// Length of a measurement, which is repeated, because something else may have caused the usage.
const MEASURE_TIME: Duration = Duration::from_secs(3);
const MEASUREMENTS: usize = 5;

fn count(ferroute: &Ferroute, name: &str) -> Result<u64> {
    ferroute.json(&["stat"])?["polling"][name].as_u64().with_context(|| format!("no {name}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn each_poll_mode_forwards_and_counts_its_polls() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    for mode in ["busy", "adaptive", "interrupt"] {
        let lab = Lab::up()?;
        let mut ferroute = Ferroute::start_with(&lab, &["--poll", mode])?;
        all_answered(&lab, &ferroute)?;
        ferroute.forwarded_all_itself()?;
        ensure!(count(&ferroute, "polls_with_packets")? > 0, "{mode}: no poll found a packet");
        ensure!(count(&ferroute, "polls")? >= count(&ferroute, "polls_with_packets")?);
        let (sleeps, idle_ns) = (count(&ferroute, "sleeps")?, count(&ferroute, "idle_ns")?);
        ensure!((sleeps == 0) == (mode == "busy"), "{mode}: slept {sleeps} times");
        let woken = || {
            let _ = ping_each(&lab.left, RIGHT4, 1);
            count(&ferroute, "wakeups").is_ok_and(|wakeups| wakeups > 0)
        };
        ensure!(mode == "busy" || eventually(woken), "{mode}: no packet ever woke a worker");
        ensure!(
            eventually(|| count(&ferroute, "idle_ns").is_ok_and(|now| now > idle_ns)),
            "{mode}"
        );
        let link = ferroute.json(&["link", "show", "-d", "dev", "rt-left"])?;
        ensure!(link[0]["port"]["poll"] == mode, "{link}");
        ensure!(ferroute.ask(&["stat"])?.contains("#polling, worker 0\n"));
        ferroute.terminate()?;
    }
    Ok(())
}

/// Pings; the error contains the router's counters.
fn all_answered(lab: &Lab, ferroute: &Ferroute) -> Result<()> {
    ping_each(&lab.left, RIGHT4, 20).with_context(|| ferroute.account())
}

/// CPU time of all threads of a process.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for thread in threads::read_each(pid, "schedstat")? {
        // The first number is nanoseconds on the CPU (Documentation/scheduler/sched-stats.rst).
        sum += thread.text.split(' ').next().context("empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_idle_router_leaves_the_cpu_alone() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    all_answered(&lab, &ferroute)?;
    let Some(pid) = ferroute.pid() else { return Ok(()) };
    let mut used = Vec::new();
    for _ in 0..MEASUREMENTS {
        let (begun, before) = (Instant::now(), cpu_time(pid)?);
        std::thread::sleep(MEASURE_TIME);
        used.push((cpu_time(pid)? - before).as_secs_f64() / begun.elapsed().as_secs_f64());
        if used.last().is_some_and(|used| *used < IDLE_CPU_MAX) {
            break;
        }
    }
    ensure!(used.last().is_some_and(|used| *used < IDLE_CPU_MAX), "of a core, idle: {used:?}");
    // It still responds to packets.
    all_answered(&lab, &ferroute)?;
    ferroute.forwarded_all_itself()
}

/// Settings of the NAPI instances of the router's left port: polls without packets, nanoseconds; from sysfs
/// if the kernel has them only per device.
fn settings(ferroute: &Ferroute, lab: &Lab) -> Result<Vec<(u64, u64)>> {
    let link = ferroute.json(&["link", "show", "-d", "dev", "rt-left"])?;
    let set = |napi: &Value| {
        let number = |name: &str| napi["settings"][name].as_u64();
        Some((number("defer_hard_irqs")?, number("gro_flush_timeout")?))
    };
    let napis = link[0]["napi"].as_array().context("no list")?;
    let found: Vec<_> = napis.iter().filter_map(set).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let read = |name: &str| -> Result<u64> {
        Ok(lab.router.run(&format!("cat /sys/class/net/rt-left/{name}"))?.trim().parse()?)
    };
    Ok(vec![(read("napi_defer_hard_irqs")?, read("gro_flush_timeout")?)])
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn settings_for_busy_polling_are_restored_even_after_a_crash() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    // With GRO a veth keeps its NAPI instances when no XDP program is attached, as a NIC does.
    lab.router.run("ethtool -K rt-left gro on")?;
    let original = (3, 30_000);
    for (name, value) in [("napi_defer_hard_irqs", original.0), ("gro_flush_timeout", original.1)] {
        let line = format!("echo {value} > /sys/class/net/rt-left/{name}");
        ensure!(lab.router.command("sh").args(["-c", &line]).status()?.success(), "{line}");
    }
    for killed in [false, true] {
        let mut busy = Ferroute::start_with(&lab, &["--poll", "busy", "--busy-budget", "32"])?;
        let while_busy = settings(&busy, &lab)?;
        ensure!(while_busy.iter().all(|set| *set == (2, 200_000)), "{while_busy:?}");
        all_answered(&lab, &busy)?;
        if killed {
            busy.kill()?
        } else {
            busy.terminate()?
        }
        let mut next = Ferroute::start(&lab)?;
        let now = settings(&next, &lab)?;
        ensure!(now.iter().all(|set| *set == original), "killed: {killed}, {now:?}");
        ensure!(next.said().contains("restored what an earlier run") == killed, "{}", next.said());
        next.terminate()?;
    }
    Ok(())
}
