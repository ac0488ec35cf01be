//! Ports follow their interfaces: as these appear, change and disappear.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::active::ActivePort;
use super::check::Finding;
use super::open::OpenRequest;
use super::port::{Port, PortState, Until, Waiting};
use super::thread::Job;
use super::{Matching, PortManager, Surroundings};
use crate::control::api::event::PortChange;
use crate::skb::JUMBO_MTU;
use crate::tables::Link;

/// How often a busy queue is tried at the start, some 20 ms apart: after a restart the kernel may still be
/// releasing it.
const BUSY_TRIES: u32 = 50;
/// The same after the start: a queue that was just closed stays busy for a while.
const BUSY_TRIES_LATER: u32 = 10;

impl PortManager {
    /// Moves every port towards the state that its interface requires. Ports to be closed come first, and
    /// the others when those are closed, because an interface may have the name of another port now.
    ///
    /// # Errors
    /// When a program's maps cannot be set, or the thread that opens ports has ended.
    pub(in crate::control::daemon) fn follow_links(
        &mut self,
        around: &Surroundings<'_>,
    ) -> Result<()> {
        let matching = around.matching();
        let states: Vec<InterfaceState<'_>> =
            self.ports.iter().map(|port| self.interface_state(port, &matching, around)).collect();
        for (index, state) in states.iter().enumerate() {
            let port = &mut self.ports[index];
            if let Some(active) = port_to_close(port, state, around)? {
                let index = port.index;
                self.close(index, active, &around.punt)?;
            }
        }
        if self.is_closing() {
            return Ok(());
        }
        for (index, state) in states.into_iter().enumerate() {
            let port = &mut self.ports[index];
            if let Some(link) = link_to_open(port, state, around) {
                port.begin_opening(&link);
                let (index, naming) = (port.index, port.naming);
                let generation = self.next_generation;
                self.next_generation += 1;
                let tries = if self.is_starting { BUSY_TRIES } else { BUSY_TRIES_LATER };
                let punt = Arc::clone(&around.punt);
                let request = OpenRequest { index, generation, link, tries, naming, punt };
                self.submit(Job::Open(Box::new(request)))?;
            }
        }
        Ok(())
    }

    fn interface_state<'a>(
        &self,
        port: &Port,
        matching: &Matching,
        around: &'a Surroundings<'_>,
    ) -> InterfaceState<'a> {
        let existing = around.links.named(&port.ifname);
        let link = existing.filter(|_| is_wanted(port, matching));
        let is_up = link.is_some_and(|link| around.is_up(link.ifindex));
        InterfaceState {
            link,
            exists: existing.is_some(),
            is_up,
            obstacle: link.and_then(|link| obstacle(link, is_up)),
            filtered: link.and_then(|_| self.filtered.get(&port.ifname).cloned()),
            is_unread: self.unread.contains(&port.ifname),
        }
    }

    /// Interfaces that are about to become ports, by name and ifindex, whose own rules must be known first.
    /// Not those that wait for something else: each event would cause the rules to be read again.
    pub(in crate::control::daemon) fn coming(
        &self,
        around: &Surroundings<'_>,
    ) -> Vec<(String, u32)> {
        let (matching, now) = (around.matching(), Instant::now());
        let coming = |port: &Port| {
            let link = around.links.named(&port.ifname).filter(|_| is_wanted(port, &matching))?;
            let is_coming = match port.state() {
                PortState::Active(active) => active.ifindex != link.ifindex,
                PortState::Closing(_) => true,
                PortState::Opening(_) => false,
                PortState::Absent | PortState::Waiting(_) => {
                    obstacle(link, around.is_up(link.ifindex)).is_none()
                        && !self.filtered.contains_key(&port.ifname)
                        && port.is_due(link.mtu, now, around.is_alive)
                }
            };
            is_coming.then(|| (port.ifname.clone(), link.ifindex))
        };
        self.ports.iter().filter_map(coming).collect()
    }
}

/// Why an interface cannot be a port as it is; `None`: no obstacle.
pub(in crate::control::daemon) fn obstacle(link: &Link, is_up: bool) -> Option<String> {
    if link.mtu > JUMBO_MTU {
        return Some(format!(
            "MTU {} is larger than {JUMBO_MTU}; lower it: ip link set {} mtu {JUMBO_MTU}",
            link.mtu, link.name
        ));
    }
    (!is_up).then(|| format!("down; bring it up: ip link set {} up", link.name))
}

/// Whether a port is to use the interface of its name. A matched one must still match, and must be up when
/// it is added.
fn is_wanted(port: &Port, matching: &Matching) -> bool {
    match matching.get(&port.ifname) {
        Some(is_up) => *is_up || !matches!(port.state(), PortState::Absent),
        None => !port.matched,
    }
}

/// The current state of a port's interface, and what prevents its use.
struct InterfaceState<'a> {
    /// `None`: there is no interface, or it is not to be a port.
    link: Option<&'a Link>,
    /// There is an interface of the port's name.
    exists: bool,
    /// Administratively up.
    is_up: bool,
    /// Why the interface cannot be a port as it is.
    obstacle: Option<String>,
    /// Rules on the interface that would be bypassed.
    filtered: Option<String>,
    /// It is not known yet whether it has rules.
    is_unread: bool,
}

/// Prepares to close a port whose interface is gone, replaced or unsuitable now, or that is to be reopened.
/// Returns what is to be closed; `None`: the port stays as it is.
fn port_to_close(
    port: &mut Port,
    state: &InterfaceState<'_>,
    around: &Surroundings<'_>,
) -> Result<Option<Box<ActivePort>>> {
    let Some(link) = state.link else { return Ok(leave(port, state.exists, around)) };
    let Some(active) = port.active() else { return Ok(None) };
    // An active port that is down is no obstacle: nothing arrives, and the sockets stay bound.
    let obstacle = state.obstacle.as_ref().filter(|_| link.up);
    if active.ifindex != link.ifindex {
        around.say(port, PortChange::Replaced, None);
        return Ok(port.begin_closing(None));
    }
    if !active.has_its_sockets() {
        let finding = Finding::SocketsUnbound;
        around.say(port, PortChange::Reopening, Some(&finding.to_string()));
        return Ok(port.begin_reopening(finding.to_string(), finding.is_failure()));
    }
    if let Some(why) = state.filtered.as_ref().or(obstacle) {
        around.say(port, PortChange::Left, Some(why));
        return Ok(port.begin_closing(Some(Waiting { why: why.clone(), until: Until::Event })));
    }
    if state.obstacle.is_none() && active.is_outgrown(link) {
        let why = format!("its MTU is now {}", link.mtu);
        around.say(port, PortChange::Reopening, Some(&why));
        return Ok(port.begin_closing(None));
    }
    if let Some(active) = port.active_mut() {
        active.follow_mac(link, &around.punt)?;
    }
    Ok(None)
}

/// The interface on which a port is to be opened now; `None`: it is not to be opened.
fn link_to_open(
    port: &mut Port,
    state: InterfaceState<'_>,
    around: &Surroundings<'_>,
) -> Option<Link> {
    let link = state.link?;
    match port.state() {
        PortState::Opening(_) | PortState::Active(_) | PortState::Closing(_) => return None,
        // It may stay down permanently, and waits without using a port number.
        PortState::Absent if port.matched && !state.is_up => return None,
        PortState::Absent | PortState::Waiting(_) => {}
    }
    if let Some(why) = state.obstacle.or(state.filtered) {
        if port.wait(Waiting { why, until: Until::Event }) {
            around.say(port, PortChange::Left, Some(port.describe()));
        }
        return None;
    }
    if state.is_unread {
        return None;
    }
    port.is_due(link.mtu, Instant::now(), around.is_alive).then(|| link.clone())
}

/// A port's interface is gone or, if it `exists`, is no longer to be a port. Returns what is to be closed of it.
fn leave(port: &mut Port, exists: bool, around: &Surroundings<'_>) -> Option<Box<ActivePort>> {
    let closing = port.begin_closing(None);
    if closing.is_some() || port.forget_interface() {
        match (port.matched, exists) {
            (false, _) => around.say(port, PortChange::Gone, None),
            (true, false) => around.say(port, PortChange::Removed, None),
            // It is not named any more, or belongs to a bridge or a bond now.
            (true, true) => {
                let why = "neither a name nor a pattern selects it now";
                around.say(port, PortChange::Removed, Some(why));
            }
        }
    }
    closing
}
