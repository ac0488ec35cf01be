//! Checks of an interface's queues and of the workers that serve them: numbers, RSS, interrupts, NUMA.

use std::collections::BTreeSet;
use std::fs;
use std::thread::available_parallelism;

use super::Finding;
use crate::control::api::WorkerStatus;
use crate::control::config::CpuList;
use crate::control::netdev::nic::{self, Nic, Queues};
use crate::control::netdev::{ethtool, irq, sysfs};

/// How the daemon serves a port.
#[derive(Debug, Default)]
pub struct Served<'a> {
    /// RX queues that it serves; 0: unknown, or none.
    pub queues: u32,
    /// Its workers; empty: it does not run.
    pub workers: &'a [WorkerStatus],
}

/// All findings about the queues of one port.
pub fn examine(nic: &Nic, served: &Served<'_>) -> Vec<Finding> {
    let queues = match nic::queues(nic.ifindex) {
        Ok(queues) => queues,
        Err(error) => {
            let message = format!("the number cannot be read: {error}");
            return vec![Finding::warn("queues", message, format!("see ethtool -l {}", nic.name))];
        }
    };
    let cpus = available_parallelism().map_or(1, |cpus| cpus.get());
    let mut findings = vec![Finding::ok("queues", format!("{} RX, {cpus} CPUs", queues.rx))];
    let table = ethtool::rss_table(nic.ifindex).ok().flatten();
    let open = if served.queues > 0 { served.queues } else { queues.rx };
    findings.push(rss(&nic.name, table.as_deref(), queues, open));
    findings.extend(interrupts(nic, served.workers));
    findings.extend(numa(nic, served.workers));
    findings
}

/// `queues`: those of the interface; `open`: the first `open` have, or would have, a socket.
fn rss(name: &str, table: Option<&[u32]>, queues: Queues, open: u32) -> Finding {
    let set = queues.command(name, open);
    let Some(table) = table else {
        let message = "no RSS table, or the kernel does not report it";
        return match open < queues.rx {
            true => Finding::warn(
                "rss",
                format!(
                    "{message}; queues from {open} on have no socket, the kernel gets their packets"
                ),
                set,
            ),
            false => Finding::ok("rss", message),
        };
    };
    let used: BTreeSet<u32> = table.iter().copied().collect();
    let lost: Vec<String> = used.range(open..).map(u32::to_string).collect();
    if !lost.is_empty() {
        let message = format!(
            "the table has packets for queue {}, which has no socket: the kernel gets them",
            lost.join(", ")
        );
        return Finding::warn("rss", message, format!("ethtool -X {name} equal {open}, or {set}"));
    }
    if used.len() < open as usize {
        let message = format!("the table has packets for {} of {open} queues", used.len());
        return Finding::warn("rss", message, format!("ethtool -X {name} equal {open}"));
    }
    Finding::ok("rss", format!("flows are spread over all {open} queue(s)"))
}

/// The CPU of the worker that serves a queue.
fn worker_cpu(ifname: &str, queue: u32, workers: &[WorkerStatus]) -> Option<u32> {
    let serves = |worker: &&WorkerStatus| {
        worker.ports.iter().any(|port| port.ifname == ifname && port.queues.contains(&queue))
    };
    workers.iter().find(serves)?.cpu
}

fn interrupts(nic: &Nic, workers: &[WorkerStatus]) -> Vec<Finding> {
    let found = match irq::of_queues(&nic.name, nic.ifindex) {
        Ok(found) if found.is_empty() => {
            return vec![Finding::ok("irq", "no interrupt of a queue: nothing to pin")];
        }
        Ok(found) => found,
        Err(error) => {
            let message = format!("interrupts cannot be read: {error}");
            return vec![Finding::warn("irq", message, "run the doctor as root")];
        }
    };
    let mut findings = Vec::new();
    for irq::QueueIrq { queue, irq } in found {
        let Ok(cpus) = irq::cpus(irq) else { continue };
        let what = format!("interrupt {irq} of queue {queue} may go to CPU {cpus}");
        findings.push(match worker_cpu(&nic.name, queue, workers) {
            Some(cpu) if cpus != cpu.to_string() => Finding::warn(
                "irq",
                format!("{what}, its worker is on CPU {cpu}"),
                format!(
                    "run with --pin-irqs (and without irqbalance), or echo {cpu} > \
                     /proc/irq/{irq}/smp_affinity_list"
                ),
            ),
            Some(_) => Finding::ok("irq", format!("{what}, its worker's")),
            None => Finding::ok("irq", what),
        });
    }
    findings
}

/// The CPUs of a NUMA node.
fn node_cpus(node: u32) -> Option<Vec<usize>> {
    let list = fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).ok()?;
    Some(list.trim().parse::<CpuList>().ok()?.cpus().to_vec())
}

fn numa(nic: &Nic, workers: &[WorkerStatus]) -> Option<Finding> {
    let node = sysfs::numa_node(&nic.name, nic.ifindex).ok()??;
    let near = node_cpus(node)?;
    Some(of_node(node, &near, workers))
}

fn of_node(node: u32, near: &[usize], workers: &[WorkerStatus]) -> Finding {
    let far: Vec<String> = workers
        .iter()
        .filter_map(|worker| worker.cpu)
        .filter(|cpu| !near.contains(&(*cpu as usize)))
        .map(|cpu| cpu.to_string())
        .collect();
    if far.is_empty() {
        return Finding::ok("numa", format!("at node {node}"));
    }
    let cpus: Vec<String> = near.iter().map(usize::to_string).collect();
    let message = format!("at node {node}, but workers are on CPU {} of another", far.join(","));
    Finding::warn("numa", message, format!("choose from its CPUs: --cpus {}", cpus.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::WorkerPort;
    use crate::control::doctor::Level;
    use crate::control::netdev::nic::QueuesSetBy;

    #[test]
    fn a_used_queue_that_is_not_served_is_reported_with_a_remedy() {
        let nic = |rx| Queues { rx, tx: rx, rx_max: 4, tx_max: 4, set_by: QueuesSetBy::Combined };
        let finding = rss("p", Some(&[0, 1, 2, 3]), nic(4), 2);
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.message.contains("queue 2, 3"), "{}", finding.message);
        let advice = finding.advice.expect("what to do");
        assert_eq!(advice, "ethtool -X p equal 2, or ethtool -L p combined 2");
        assert_eq!(rss("p", Some(&[0, 1, 0, 1]), nic(4), 2).level, Level::Ok);
        assert_eq!(rss("p", Some(&[0, 0]), nic(2), 2).level, Level::Warn);
        assert_eq!(rss("p", None, nic(2), 2).level, Level::Ok);
        let veth = rss("p", None, Queues { set_by: QueuesSetBy::Apart, ..nic(4) }, 2);
        assert_eq!(veth.level, Level::Warn);
        assert_eq!(veth.advice.as_deref(), Some("ethtool -L p rx 2 tx 2"));
    }

    #[test]
    fn workers_at_another_node_are_reported_with_local_cpus() {
        let worker = |cpu| WorkerStatus { cpu: Some(cpu), ..WorkerStatus::default() };
        assert_eq!(of_node(1, &[2, 3], &[worker(2), worker(3)]).level, Level::Ok);
        let finding = of_node(1, &[2, 3], &[worker(2), worker(0)]);
        assert_eq!(finding.level, Level::Warn);
        assert_eq!(finding.advice.as_deref(), Some("choose from its CPUs: --cpus 2,3"));
    }

    #[test]
    fn the_worker_of_a_queue_is_found_by_the_queues_it_serves() {
        let port = |queues: &[u32]| WorkerPort {
            ifname: "p".into(),
            queues: queues.into(),
            ..WorkerPort::default()
        };
        let worker = |cpu, ports| WorkerStatus { cpu: Some(cpu), ports, ..WorkerStatus::default() };
        let workers = [worker(4, vec![port(&[0, 2])]), worker(5, vec![port(&[1])])];
        assert_eq!(worker_cpu("p", 1, &workers), Some(5));
        assert_eq!(worker_cpu("p", 2, &workers), Some(4));
        assert_eq!((worker_cpu("p", 3, &workers), worker_cpu("q", 0, &workers)), (None, None));
    }
}
