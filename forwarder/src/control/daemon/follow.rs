//! Ports as their interfaces come, change and go.

use anyhow::Result;

use super::patterns::Matching;
use super::port::{Equipment, Port, State};
use super::{BUSY_TRIES_LATER, Daemon};
use crate::say;
use crate::tables::{Link, Links};

impl Daemon {
    /// Takes every port to where its interface is now: first those that give way, then those that
    /// come, for an interface may have the name of another port now.
    pub(super) fn follow_links(
        &mut self,
        matching: &Matching,
        tries: u32,
        must: bool,
    ) -> Result<()> {
        let links = self.links();
        self.look_at_comers(matching, &links);
        let prospects: Vec<Prospect<'_>> =
            self.ports.iter().map(|port| self.prospect(port, &links, matching)).collect();
        let (ports, with) = self.ports_and_equipment(tries);
        let mut gave_way = false;
        for (port, prospect) in ports.iter_mut().zip(&prospects) {
            gave_way |= give_way(port, prospect, &with)?;
        }
        let mut tries = tries;
        if gave_way {
            // Before a number is another interface's, nothing is sent by it any more.
            self.tell_mirror();
            // What was closed just now stays busy for a while, and may have another name.
            tries = tries.max(BUSY_TRIES_LATER);
        }
        let (ports, mut with) = self.ports_and_equipment(tries);
        let mut came = false;
        for (port, prospect) in ports.iter_mut().zip(prospects) {
            came |= come(port, prospect, &mut with, must && !port.matched)?;
        }
        if came {
            self.tell_mirror();
        }
        Ok(())
    }

    /// The ports, and what serving them takes.
    pub(super) fn ports_and_equipment(&mut self, tries: u32) -> (&mut [Port], Equipment<'_>) {
        let with = Equipment {
            steering: &mut self.steering,
            punt: self.punter.device(),
            workers: &self.workers,
            options: &self.options,
            max_ports: self.max_ports,
            rounds: self.rounds,
            cpus: &self.cpus,
            crossroads: &mut self.crossroads,
            tries,
        };
        (&mut self.ports, with)
    }

    /// Which interfaces are ports now.
    pub(super) fn tell_mirror(&mut self) {
        let active = self.ports.iter().filter(|port| port.state == State::Active);
        let active: Vec<(u32, u16)> = active.map(|port| (port.ifindex, port.index)).collect();
        self.mirror.set_ports(&active);
    }

    fn prospect<'a>(&self, port: &Port, links: &'a Links, matching: &Matching) -> Prospect<'a> {
        let link = links.named(&port.ifname);
        let link = link.filter(|_| is_wanted(port, matching));
        let is_up = link.is_some_and(|link| self.is_up(link.ifindex));
        Prospect {
            link,
            is_up,
            obstacle: link.and_then(|link| Port::obstacle(link, is_up)),
            hindrance: link.and_then(|_| self.hindered.get(&port.ifname).cloned()),
        }
    }

    /// Rules on matched interfaces that are about to become ports.
    fn look_at_comers(&mut self, matching: &Matching, links: &Links) {
        let there = |port: &Port| {
            let link = links.named(&port.ifname);
            port.state == State::Active && link.is_some_and(|link| link.ifindex == port.ifindex)
        };
        let coming = |port: &&Port| port.matched && is_wanted(port, matching) && !there(port);
        let coming = self.ports.iter().filter(coming).map(|port| port.ifname.clone());
        let coming: Vec<String> = coming.collect();
        if coming.is_empty() || self.options.ignore_firewall {
            return;
        }
        // They may be newer than what was read last.
        self.firewall.read_all();
        let hindered = self.hindrances(coming.iter().map(String::as_str));
        for name in &coming {
            self.hindered.remove(name);
        }
        self.hindered.extend(hindered);
    }
}

/// Whether a port is to have the interface of its name: one that a pattern takes has to match still,
/// and to be up when it comes.
fn is_wanted(port: &Port, matching: &Matching) -> bool {
    match matching.get(&port.ifname) {
        Some(is_up) => *is_up || port.state != State::Absent,
        None => !port.matched,
    }
}

/// What there is for a port.
struct Prospect<'a> {
    /// Its interface; `None`: there is none, or it is not to be a port.
    link: Option<&'a Link>,
    /// Administratively.
    is_up: bool,
    /// Why the interface cannot be a port as it is.
    obstacle: Option<String>,
    /// Rules on it that would be bypassed.
    hindrance: Option<String>,
}

/// Gives a port back to the kernel whose interface is gone, another one, or unfit now, or is to be
/// opened anew. Returns whether it was served.
fn give_way(port: &mut Port, prospect: &Prospect<'_>, with: &Equipment<'_>) -> Result<bool> {
    let Some(link) = prospect.link else { return Ok(leave(port, with)) };
    if port.state != State::Active {
        return Ok(false);
    }
    // Down and active is no obstacle: nothing arrives, and the sockets wait with the link.
    let obstacle = prospect.obstacle.as_ref().filter(|_| link.up);
    if port.ifindex != link.ifindex {
        say!("interface {} is another one now", port.ifname);
        port.deactivate(State::Absent, with);
    } else if let Some(why) = prospect.hindrance.as_ref().or(obstacle) {
        say!("interface {}: {why}; left to the kernel", port.ifname);
        port.deactivate(State::Waiting(why.clone()), with);
    } else if prospect.obstacle.is_none() && port.is_outgrown(link) {
        say!("interface {}: its MTU is {} now; it is opened anew for that", port.ifname, link.mtu);
        port.deactivate(State::Absent, with);
    } else {
        port.follow(link, &with.punt)?;
        return Ok(false);
    }
    Ok(true)
}

/// Serves a port that can be. `must`: one that cannot is an error. Returns whether it is served from
/// now on.
fn come(
    port: &mut Port,
    prospect: Prospect<'_>,
    with: &mut Equipment<'_>,
    must: bool,
) -> Result<bool> {
    let Some(link) = prospect.link.filter(|_| port.state != State::Active) else {
        return Ok(false);
    };
    if port.matched && port.state == State::Absent && !prospect.is_up {
        // It may stay so for good, and waits without a place.
        return Ok(false);
    }
    if let Some(why) = prospect.obstacle.or(prospect.hindrance) {
        if port.is_hindered_by(why) {
            say!("interface {}: {}; left to the kernel", port.ifname, port.state.describe());
        }
        return Ok(false);
    }
    let due = port.is_unhindered() || port.mtu_changed(link) || port.retry_is_due();
    if !must && !due && port.state != State::Absent {
        return Ok(false);
    }
    let before = port.state.clone();
    match port.activate(link, with) {
        Ok(()) if port.matched => say!("interface {} is a port now", port.ifname),
        Ok(()) if must => {}
        Ok(()) => say!("interface {} is back", port.ifname),
        Err(error) if must => return Err(error),
        Err(_) => {
            // Tried again and again: told once.
            if port.state != before {
                say!("interface {}: {}; left to the kernel", port.ifname, port.state.describe());
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// A port's interface is gone, or not to be a port any longer. Returns whether it was one.
fn leave(port: &mut Port, with: &Equipment<'_>) -> bool {
    let was_active = port.state == State::Active;
    if port.state != State::Absent {
        port.deactivate(State::Absent, with);
        match port.matched {
            false => say!("interface {} is gone; waiting for it to return", port.ifname),
            true => say!(
                "interface {} is gone, or belongs to another: it is no port any more",
                port.ifname
            ),
        }
    }
    was_active
}
