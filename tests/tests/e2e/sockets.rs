//! A socket or program that no longer belongs to its interface is replaced, whatever the cause and whether
//! or not there was an event, and userspace forwards again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::freeze::{StoppedProcess, StoppedThread};
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::ping::ping;
use ferroute_tests::{Ferroute, Lab, eventually};
use serde_json::Value;

use crate::queues::{Direction, all_arrive, lopsided, set_queues};

/// Time-outs short enough for a test to wait for them, and longer than a thread is without its CPU on a
/// busy machine.
const LIMITS: [&str; 4] = ["--worker-timeout", "1500", "--control-timeout", "2000"];
/// Longer than both.
const STOP_TIME: Duration = Duration::from_millis(2500);

/// `None`: the kernel forwards, and there is nothing to test.
fn start(lab: &Lab) -> Result<Option<Ferroute>> {
    let ferroute = Ferroute::start_with(lab, &LIMITS)?;
    Ok(ferroute.pid().is_some().then_some(ferroute))
}

/// Waits until packets pass and the kernel forwards none of them.
fn back_in_userspace(lab: &Lab, ferroute: &Ferroute) -> Result<()> {
    let passes = || -> Result<bool> {
        let before = ferroute.forwarded_by_kernel()?;
        let report = ping(&lab.left, &format!("-c 3 -i 0.1 -W 1 {RIGHT4}"))?;
        Ok(report.received == 3 && ferroute.forwarded_by_kernel()? == before)
    };
    let back = eventually(|| passes().unwrap_or(false));
    ensure!(back, "userspace does not forward again\n{}", status(ferroute)?);
    Ok(())
}

/// Output of `status`, whatever its exit status.
fn status(ferroute: &Ferroute) -> Result<String> {
    let output = ferroute.command(&["status"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ifindex(lab: &Lab, ifname: &str) -> Result<String> {
    let text = lab.router.run(&format!("ip -o link show {ifname}"))?;
    Ok(text.split(':').next().context("no ifindex")?.to_owned())
}

/// Addresses and routes of the right link, as `scripts/lab` set them.
fn set_up_right(lab: &Lab) -> Result<()> {
    lab.router.ip_batch(
        &[],
        "addr add 198.18.2.1/24 dev rt-right\naddr add 2001:db8:2::1/64 dev rt-right nodad\n\
         link set rt-right up\n",
    )
}

/// Deletes and recreates the right link, with the same ifindex in the router.
fn replace_right(lab: &Lab) -> Result<()> {
    let index = ifindex(lab, "rt-right")?;
    lab.router.run("ip link del rt-right")?;
    lab.router.run(&format!(
        "ip link add name rt-right index {index} address 02:f0:00:00:02:01 type veth peer name right \
         netns {} address 02:f0:00:00:02:02",
        lab.right.name()
    ))?;
    ensure!(ifindex(lab, "rt-right")? == index, "it has another index");
    set_up_right(lab)?;
    lab.right.ip_batch(
        &[],
        "addr add 198.18.2.2/24 dev right\naddr add 2001:db8:2::2/64 dev right nodad\n\
         link set right up\nroute add default via 198.18.2.1\nroute add default via 2001:db8:2::1\n",
    )
}

/// Moves the router's right port to another namespace and back. Its ifindex stays the same.
fn move_right(lab: &Lab) -> Result<()> {
    let index = ifindex(lab, "rt-right")?;
    lab.router.run(&format!("ip link set rt-right netns {}", lab.left.name()))?;
    lab.left.run(&format!("ip link set rt-right netns {}", lab.router.name()))?;
    ensure!(ifindex(lab, "rt-right")? == index, "it has another index");
    set_up_right(lab)
}

fn rename_right(lab: &Lab) -> Result<()> {
    lab.router.ip_batch(
        &[],
        "link set rt-right down\nlink set rt-right name other\nlink set other name rt-right\n\
         link set rt-right up\n",
    )?;
    lab.router.ip_batch(&[], "addr replace 2001:db8:2::1/64 dev rt-right nodad\n")
}

fn down_and_up(lab: &Lab) -> Result<()> {
    lab.router.ip_batch(
        &[],
        "link set rt-right down\nlink set rt-right up\n\
         addr replace 2001:db8:2::1/64 dev rt-right nodad\n",
    )
}

/// The BPF program on an interface of the router.
fn program(lab: &Lab, ifname: &str) -> Result<u64> {
    let links: Value =
        serde_json::from_str(&lab.router.run(&format!("ip -j -d link show {ifname}"))?)?;
    links[0]["xdp"]["prog"]["id"].as_u64().with_context(|| format!("no program: {links:#}"))
}

fn bpftool(lab: &Lab, line: &str) -> Result<Value> {
    Ok(serde_json::from_str(&lab.router.run(&format!("bpftool -j {line}"))?)?)
}

/// Detaches the program of the right port, as any privileged process can.
fn detach_right(lab: &Lab) -> Result<()> {
    let program = program(lab, "rt-right")?;
    let links = bpftool(lab, "link show")?;
    let of = |link: &&Value| link["prog_id"].as_u64() == Some(program);
    let link = links.as_array().into_iter().flatten().find(of).context("no link")?;
    lab.router.run(&format!("bpftool link detach id {}", link["id"])).map(drop)
}

/// Deletes the socket of queue 0 of the right port from its map.
fn empty_map_of_right(lab: &Lab) -> Result<()> {
    let program = bpftool(lab, &format!("prog show id {}", program(lab, "rt-right")?))?;
    for id in program["map_ids"].as_array().into_iter().flatten() {
        if bpftool(lab, &format!("map show id {id}"))?["type"] == "xskmap" {
            return lab.router.run(&format!("bpftool map delete id {id} key 0 0 0 0")).map(drop);
        }
    }
    anyhow::bail!("no map of sockets: {program:#}")
}

type Change = fn(&Lab) -> Result<()>;

const CHANGES: [(&str, Change); 6] = [
    ("removed and created again", replace_right),
    ("moved away and back", move_right),
    ("renamed and named as before", rename_right),
    ("down and up", down_and_up),
    ("its program detached", detach_right),
    ("its socket taken out of the map", empty_map_of_right),
];

/// Fails unless all frames are accounted for at the end.
fn ends_well(mut ferroute: Ferroute) -> Result<()> {
    ferroute.terminate()?;
    let said = ferroute.said();
    ensure!(!said.contains("lost frames") && !said.contains("bug"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn changes_of_a_port_while_stopped_are_noticed_afterwards() -> Result<()> {
    let lab = Lab::up()?;
    let Some(ferroute) = start(&lab)? else { return Ok(()) };
    back_in_userspace(&lab, &ferroute)?;
    for (what, change) in CHANGES {
        let stopped = StoppedProcess::stop(ferroute.pid().context("no process")?)?;
        change(&lab).context(what)?;
        std::thread::sleep(STOP_TIME);
        // The kernel forwards meanwhile.
        let through =
            || ping(&lab.left, &format!("-c 1 -W 1 {RIGHT4}")).is_ok_and(|ping| ping.received == 1);
        ensure!(eventually(through), "{what}: nothing passes while it is stopped");
        drop(stopped);
        back_in_userspace(&lab, &ferroute).with_context(|| format!("{what}, while stopped"))?;
    }
    ends_well(ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn changes_of_a_port_while_running_are_noticed_with_and_without_an_event() -> Result<()> {
    let lab = Lab::up()?;
    let Some(ferroute) = start(&lab)? else { return Ok(()) };
    back_in_userspace(&lab, &ferroute)?;
    for (what, change) in CHANGES {
        change(&lab).context(what)?;
        back_in_userspace(&lab, &ferroute).with_context(|| what)?;
    }
    ends_well(ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn queues_added_while_it_is_stopped_are_served_afterwards() -> Result<()> {
    let lab = lopsided((4, 4), (1, 1))?;
    let Some(ferroute) = start(&lab)? else { return Ok(()) };
    let stopped = StoppedProcess::stop(ferroute.pid().context("no process")?)?;
    set_queues(&lab.router, "rt-right", (4, 4))?;
    set_queues(&lab.right, "right", (4, 4))?;
    std::thread::sleep(STOP_TIME);
    drop(stopped);
    let queues = || -> Option<u64> {
        let status = ferroute.json(&["status"]).ok()?;
        status["ports"].as_array()?.iter().find(|port| port["ifname"] == "rt-right")?["queues"]
            .as_u64()
    };
    ensure!(eventually(|| queues() == Some(4)), "{}", status(&ferroute)?);
    back_in_userspace(&lab, &ferroute)?;
    all_arrive(&lab, Direction::ToLeft, 2).with_context(|| ferroute.account())?;
    ends_well(ferroute)
}

/// A counter of the port's XDP program.
fn counted(ferroute: &Ferroute, ifname: &str, reason: &str) -> Result<u64> {
    let stat = ferroute.json(&["stat"])?;
    let ports = stat["ports"].as_array().context("no ports")?;
    let port = ports.iter().find(|port| port["ifname"] == ifname).context("no such port")?;
    port["xdp"][reason].as_u64().with_context(|| format!("no {reason}: {stat:#}"))
}

/// Starts Ferroute, has it forward with several workers, and stops its worker 0. `None`: the kernel
/// forwards, or there is only one CPU.
fn start_and_stop_one_of_two_workers(lab: &Lab) -> Result<Option<(Ferroute, StoppedThread)>> {
    let Some(ferroute) = start(lab)? else { return Ok(None) };
    let workers = ferroute.json(&["status"])?["workers"].as_array().map_or(0, Vec::len);
    if workers < 2 {
        return Ok(None);
    }
    all_arrive(lab, Direction::ToRight, 1)?;
    let pid = ferroute.pid().context("no process")?;
    Ok(Some((ferroute, StoppedThread::stop(pid, "fr-worker0")?)))
}

fn forwards_again_and_ends_well(lab: &Lab, ferroute: Ferroute) -> Result<()> {
    back_in_userspace(lab, &ferroute)?;
    all_arrive(lab, Direction::ToRight, 2).with_context(|| ferroute.account())?;
    ends_well(ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_stalled_worker_does_not_block_the_control_thread_when_links_flap() -> Result<()> {
    let lab = Lab::with_queues(2)?;
    let Some((ferroute, stopped)) = start_and_stop_one_of_two_workers(&lab)? else {
        return Ok(());
    };
    let stalled = counted(&ferroute, "rt-left", "pass_control_stalled")?;
    for _ in 0..3 {
        down_and_up(&lab)?;
        std::thread::sleep(STOP_TIME / 3);
    }
    let carried = |reason: &str| counted(&ferroute, "rt-left", reason);
    let (steered, passed) = (carried("steer_ipv4")?, carried("pass_worker_stalled")?);
    all_arrive(&lab, Direction::ToRight, 2).with_context(|| ferroute.account())?;
    ensure!(carried("steer_ipv4")? > steered, "userspace forwards nothing of the other queue");
    ensure!(carried("pass_worker_stalled")? > passed, "the kernel has nothing of the queue");
    ensure!(carried("pass_control_stalled")? == stalled, "the control thread stalled");
    drop(stopped);
    forwards_again_and_ends_well(&lab, ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn flows_that_a_stalled_worker_would_send_are_left_to_the_kernel() -> Result<()> {
    // Only worker 0 has a queue of the right port.
    let lab = lopsided((2, 2), (1, 1))?;
    let Some((ferroute, stopped)) = start_and_stop_one_of_two_workers(&lab)? else {
        return Ok(());
    };
    std::thread::sleep(STOP_TIME);
    let steered = counted(&ferroute, "rt-left", "steer_ipv4")?;
    all_arrive(&lab, Direction::ToRight, 2).with_context(|| ferroute.account())?;
    ensure!(counted(&ferroute, "rt-left", "steer_ipv4")? == steered, "{}", ferroute.account());
    drop(stopped);
    forwards_again_and_ends_well(&lab, ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_returns_to_a_stalled_worker_when_that_continues() -> Result<()> {
    let lab = Lab::up()?;
    let Some(ferroute) = start(&lab)? else { return Ok(()) };
    back_in_userspace(&lab, &ferroute)?;
    let pid = ferroute.pid().context("no process")?;
    let stopped = StoppedThread::stop(pid, "fr-worker0")?;
    let turns = counted(&ferroute, "rt-left", "pass_control_stalled")?;
    // Its sockets can be neither closed nor opened.
    for _ in 0..2 {
        replace_right(&lab)?;
        std::thread::sleep(STOP_TIME / 2);
    }
    let waits = |status: &str| {
        let port = |line: &&str| line.starts_with("port rt-right");
        status.lines().find(port).is_some_and(|line| line.contains("worker 0 does not answer"))
    };
    let waits = eventually(|| status(&ferroute).is_ok_and(|status| waits(&status)));
    ensure!(waits, "{}", status(&ferroute)?);
    let through =
        || ping(&lab.left, &format!("-c 1 -W 1 {RIGHT4}")).is_ok_and(|ping| ping.received == 1);
    ensure!(eventually(through), "the kernel does not forward");
    ensure!(counted(&ferroute, "rt-left", "pass_control_stalled")? == turns, "{}", ferroute.said());
    drop(stopped);
    back_in_userspace(&lab, &ferroute)?;
    ends_well(ferroute)
}
