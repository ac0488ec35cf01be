//! The self-check: parts of the kernel's state are dumped again in turn and compared, because not all of its changes cause
//! an event: router advertisements change lifetimes and preferences of routes, for example. A difference that no event
//! explains is counted, and mended by the dump.
//!
//! A dump takes the control thread as long as the kernel needs for it. It is not made while events are waiting, and not
//! of parts with more objects than [`OBJECTS_MAX`]: those have events and the dumps that doubts cause.

use std::time::{Duration, Instant};

use super::follow::{Follower, Parts};
use super::state::Family;
use super::{Changes, Mirror, MirrorError};
use crate::control::netlink::rtnl::Requests;
use crate::control::netlink::socket::SockError;

/// Interval between the checks of two parts: each part is checked once a second.
const INTERVAL: Duration = Duration::from_millis(140);
/// A check takes at most this part of the control thread's time.
const REST: u32 = 200;
/// A dump of so many routes takes some 10 ms.
const OBJECTS_MAX: usize = 8192;

/// Parts that are checked, each with its number of objects.
const PARTS: [Part; 7] = [
    (|state| state.links = true, |follower| follower.state.links.len()),
    (
        |state| state.rules = true,
        |follower| Family::ALL.iter().map(|family| follower.state.rules(*family).len()).sum(),
    ),
    (|state| state.nexthops = true, |follower| follower.state.nexthops.len()),
    (|state| state.netconf = true, |follower| follower.state.netconf.len()),
    (|state| state.neighs = true, |follower| follower.state.neighs.len()),
    (|state| state.routes4 = true, |follower| follower.state.routes4.len()),
    (|state| state.routes6 = true, |follower| follower.state.routes6.len()),
];

type Part = (fn(&mut Parts), fn(&Follower) -> usize);

/// What is checked next, and when.
#[derive(Debug)]
pub(super) struct SelfCheck {
    turn: usize,
    pub(super) due: Instant,
}

impl SelfCheck {
    pub(super) fn new(now: Instant) -> SelfCheck {
        SelfCheck { turn: 0, due: now + INTERVAL }
    }
}

impl Mirror {
    /// Checks a part of the state if it is time, and no events wait.
    pub(super) fn self_check(
        &mut self,
        now: Instant,
        changes: Changes,
    ) -> Result<Changes, MirrorError> {
        if now < self.self_check.due || changes.more || self.follower.is_in_doubt() {
            return Ok(changes);
        }
        let begun = Instant::now();
        self.self_check.due = now + INTERVAL;
        self.self_check.turn = (self.self_check.turn + 1) % PARTS.len();
        let Some((mark, objects)) = PARTS.get(self.self_check.turn) else { return Ok(changes) };
        if objects(&self.follower) > OBJECTS_MAX {
            return Ok(changes);
        }
        let mut part = Parts::default();
        mark(&mut part);
        let events = self.follower.counters.events;
        let is_different = match self.follower.compare(&mut self.requests, part, now) {
            Ok(is_different) => is_different,
            // The next one may succeed; what is missing now is dumped again.
            Err(SockError::Refused { .. }) => false,
            Err(_) => {
                self.requests = Requests::open()?;
                self.follower.lose(part, now);
                false
            }
        };
        let more = self.drain(now)?;
        // Otherwise an event was on its way.
        if is_different && self.follower.counters.events == events {
            self.follower.counters.corrections += 1;
        }
        self.self_check.due = now + INTERVAL.max(begun.elapsed() * REST);
        let after = self.settle(now, more)?;
        Ok(Changes {
            links: changes.links || after.links,
            local_addresses: changes.local_addresses || after.local_addresses,
            ..after
        })
    }
}
