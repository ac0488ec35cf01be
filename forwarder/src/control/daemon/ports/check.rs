//! Checks whether the kernel still has what open ports need: every second, and after every pause in which
//! the kernel could not be followed.
//!
//! An interface may be removed and created again with the same name and index, or be moved to another
//! network namespace and back; another process may detach the program. Then frames no longer reach userspace, or
//! are lost on transmit, possibly without any event.

use std::collections::BTreeMap;

use super::handoff::worker_of;
use super::open::strips_tags;
use super::port::Port;
use super::thread::PortContext;
use crate::control::netdev::nic::{self, Queues};
use crate::control::steering::Witness;
use crate::io::af_xdp::PortState;

/// An open port, and what is compared with the kernel's state.
#[derive(Debug)]
pub(super) struct CheckRequest {
    pub(super) index: u16,
    /// Number of the opening; the port may have been reopened since.
    pub(super) generation: u64,
    ifindex: u32,
    queues: u32,
    had: Queues,
    /// `None`: no descriptor was left for it.
    program: Option<Witness>,
}

impl CheckRequest {
    /// `None`: the port is not open.
    pub(super) fn of(port: &Port) -> Option<CheckRequest> {
        let active = port.active()?;
        Some(CheckRequest {
            index: port.index,
            generation: active.generation,
            ifindex: active.ifindex,
            queues: active.queues,
            had: active.had,
            program: active.program.witness().ok(),
        })
    }
}

/// What is wrong with a port that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// Its sockets are bound to an interface that is gone, even if there is another of the same name and
    /// index.
    SocketsUnbound,
    /// Its program is no longer attached.
    ProgramGone,
    /// It strips VLAN tags now.
    Unfit(String),
    /// Its number of queues has changed.
    QueuesChanged,
    /// Its sockets do not send although its link is up.
    StaysDown,
}

impl Finding {
    /// Whether the port itself failed; otherwise its interface has changed.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self, Finding::ProgramGone | Finding::Unfit(_) | Finding::StaysDown)
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Finding::SocketsUnbound => {
                "its AF_XDP sockets are no longer bound: it was removed or moved to another namespace"
            }
            Finding::ProgramGone => "its XDP program was detached",
            Finding::Unfit(why) => why,
            Finding::QueuesChanged => "its number of queues has changed",
            Finding::StaysDown => "its AF_XDP sockets do not send although its link is up",
        })
    }
}

/// The result of checking a port.
#[derive(Debug)]
pub(super) struct CheckResult {
    pub(super) index: u16,
    pub(super) generation: u64,
    pub(super) finding: Option<Finding>,
    /// Whether one of its sockets does not send; only [`check_tx_states`] determines it.
    pub(super) is_down: bool,
}

/// Checks the kernel's state of ports. Takes the RTNL lock several times.
pub(super) fn check_ports(requests: &[CheckRequest]) -> Vec<CheckResult> {
    let nics = if requests.is_empty() { Vec::new() } else { nic::read().unwrap_or_default() };
    let result = |request: &CheckRequest| {
        let nic = nics.iter().find(|nic| nic.ifindex == request.ifindex);
        let finding = if request.program.as_ref().is_some_and(|program| !program.is_attached()) {
            Some(Finding::ProgramGone)
        } else if let Some(why) = nic.and_then(strips_tags) {
            Some(Finding::Unfit(why))
        } else {
            let queues = nic::queues(request.ifindex);
            queues.is_ok_and(|now| now != request.had).then_some(Finding::QueuesChanged)
        };
        let (index, generation) = (request.index, request.generation);
        CheckResult { index, generation, finding, is_down: false }
    };
    requests.iter().map(result).collect()
}

/// Asks the workers which ports do not send. Without an answer of a worker, the result is unchanged.
pub(super) fn check_tx_states(
    requests: &[CheckRequest],
    results: &mut [CheckResult],
    with: &mut PortContext,
) {
    let workers = with.workers.len();
    let mut slots: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
    let mut port_of: BTreeMap<(usize, u16), u16> = BTreeMap::new();
    for request in requests {
        for queue in 0..request.queues {
            let (worker, slot) = (worker_of(queue, workers), with.slot(request.index, queue));
            slots.entry(worker).or_default().push(slot);
            port_of.insert((worker, slot), request.index);
        }
    }
    for (worker, slots) in slots {
        for (slot, state) in with.workers.tx_states(worker, slots).unwrap_or_default() {
            let is_down = matches!(state, Some(PortState::Down | PortState::Gone));
            let port = port_of.get(&(worker, slot));
            if let Some(result) = results.iter_mut().find(|result| Some(&result.index) == port) {
                result.is_down |= is_down;
            }
        }
    }
}
