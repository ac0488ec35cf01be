//! Traffic control: classifiers of every queueing discipline of an interface, and tcx programs.
//!
//! Userspace receives before the ingress and sends past the egress. What a filter does is not
//! looked at: one that only chooses a class for shaping counts as one that drops.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::control::netdev::nic::find;
use crate::control::netlink::message::{Message, u32_at};
use crate::control::netlink::query::NlSock;
use crate::io::af_xdp::bpf::{TcxHook, tcx_programs};

const RTM_GETQDISC: u16 = 38;
const RTM_GETTCLASS: u16 = 42;
const RTM_GETTFILTER: u16 = 46;
/// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and (…, TC_H_MIN_EGRESS).
const TC_H_INGRESS: u32 = 0xffff_fff2;
const TC_H_EGRESS: u32 = 0xffff_fff3;
/// Parent of the discipline at the root of an interface.
const TC_H_ROOT: u32 = 0xffff_ffff;
/// Parent of filters: the discipline at the root, whatever its handle.
const ROOT: u32 = 0;
/// `struct tcmsg` in octets: family, ifindex, handle, parent, info.
const TC_HEADER: usize = 20;
const TCA_KIND: u16 = 1;

/// A queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Qdisc {
    ifindex: u32,
    /// 0: made by the kernel, and can only be named as the root.
    handle: u32,
    is_root: bool,
    kind: String,
}

impl Qdisc {
    /// Where its filters may be: as parents for [`filters_at`], and in words.
    fn attachments(&self) -> Vec<(u32, &'static str)> {
        match self.kind.as_str() {
            "clsact" => vec![(TC_H_INGRESS, "ingress"), (TC_H_EGRESS, "egress")],
            "ingress" => vec![(TC_H_INGRESS, "ingress")],
            _ if self.handle == 0 && self.is_root => vec![(ROOT, "egress")],
            _ if self.handle == 0 => vec![],
            _ => vec![(self.handle, "egress")],
        }
    }

    /// Whether its classes can have filters of their own (`tcf_block` of the class operations); of
    /// the others only the discipline itself has.
    fn has_filters_by_class(&self) -> bool {
        ["htb", "hfsc", "cbq", "atm"].contains(&self.kind.as_str())
    }
}

/// All queueing disciplines of the namespace.
///
/// # Errors
/// What the kernel answers with.
pub fn qdiscs() -> io::Result<BTreeSet<Qdisc>> {
    let found = NlSock::open(NETLINK_ROUTE)?.dump(RTM_GETQDISC, &[0; TC_HEADER], |message| {
        let kind = find(message.attrs(TC_HEADER), TCA_KIND)?.string();
        Some(Qdisc {
            ifindex: u32_at(message.payload, 4)?,
            handle: u32_at(message.payload, 8)?,
            is_root: u32_at(message.payload, 12)? == TC_H_ROOT,
            kind,
        })
    })?;
    Ok(found.into_iter().collect())
}

/// Whether an interface has a clsact or ingress qdisc.
pub fn has_clsact(qdiscs: &BTreeSet<Qdisc>, ifindex: u32) -> bool {
    qdiscs.iter().any(|q| q.ifindex == ifindex && (q.kind == "clsact" || q.kind == "ingress"))
}

/// A line for each kind of filter at each place of an interface. `qdiscs`: those of the namespace.
///
/// # Errors
/// What the kernel answers with.
pub fn filters(name: &str, ifindex: u32, qdiscs: &BTreeSet<Qdisc>) -> io::Result<BTreeSet<String>> {
    let own = || qdiscs.iter().filter(|qdisc| qdisc.ifindex == ifindex);
    let mut found = BTreeSet::new();
    // Without any, the interface has no discipline that could have filters.
    if own().next().is_none() {
        return Ok(found);
    }
    let mut socket = NlSock::open(NETLINK_ROUTE)?;
    let mut look = |parent, place: &str, at: &str| -> io::Result<()> {
        let kinds = filters_at(&mut socket, ifindex, parent)?;
        found.extend(kinds.into_iter().map(|kind| {
            format!(
                "tc filter ({kind}) at the {place} of {name}{at} (see tc filter show dev {name}"
            ) + &show(parent)
        }));
        Ok(())
    };
    for qdisc in own() {
        let at = match qdisc.kind.as_str() {
            "clsact" | "ingress" => String::new(),
            kind => format!(", qdisc {kind} {}", handle(qdisc.handle)),
        };
        for (parent, place) in qdisc.attachments() {
            look(parent, place, &at)?;
        }
        if qdisc.has_filters_by_class() {
            for class in classes(ifindex, qdisc.handle)? {
                look(class, "egress", &format!(", class {}", handle(class)))?;
            }
        }
    }
    Ok(found)
}

/// The rest of the command that shows the filters of a parent.
fn show(parent: u32) -> String {
    match parent {
        TC_H_INGRESS => " ingress)".to_owned(),
        TC_H_EGRESS => " egress)".to_owned(),
        ROOT => ")".to_owned(),
        parent => format!(" parent {})", handle(parent)),
    }
}

/// As tc writes it: 1:10.
fn handle(handle: u32) -> String {
    match handle & 0xffff {
        0 => format!("{:x}:", handle >> 16),
        minor => format!("{:x}:{minor:x}", handle >> 16),
    }
}

/// Kinds of the filters of all chains of a parent, those of shared blocks included
/// (`tc_dump_tfilter`).
fn filters_at(socket: &mut NlSock, ifindex: u32, parent: u32) -> io::Result<BTreeSet<String>> {
    let kinds = dump(socket, RTM_GETTFILTER, ifindex, parent, |message| {
        Some(find(message.attrs(TC_HEADER), TCA_KIND)?.string())
    })?;
    Ok(kinds.into_iter().collect())
}

/// Classes of a discipline.
fn classes(ifindex: u32, qdisc: u32) -> io::Result<BTreeSet<u32>> {
    let mut socket = NlSock::open(NETLINK_ROUTE)?;
    let found =
        dump(&mut socket, RTM_GETTCLASS, ifindex, qdisc, |message| u32_at(message.payload, 8));
    Ok(found?.into_iter().collect())
}

fn dump<T>(
    socket: &mut NlSock,
    kind: u16,
    ifindex: u32,
    parent: u32,
    parse: impl FnMut(&Message<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut header = [0; TC_HEADER];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    match socket.dump(kind, &header, parse) {
        // The interface went meanwhile, or its discipline.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        found => found,
    }
}

/// A line for each tcx program of an interface.
///
/// # Errors
/// What the kernel answers with.
pub fn tcx(name: &str, ifindex: u32) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for (hook, place) in [(TcxHook::Ingress, "ingress"), (TcxHook::Egress, "egress")] {
        found.extend(tcx_programs(ifindex, hook)?.ids.into_iter().map(|id| {
            format!("BPF program {id} (tcx {place}) on {name} (see bpftool net show dev {name})")
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_looked_for_where_a_discipline_can_have_them() {
        let qdisc = |handle, kind: &str| {
            let is_root = kind == "fq_codel";
            Qdisc { ifindex: 1, handle, is_root, kind: kind.to_owned() }
        };
        let parents = |qdisc: Qdisc| -> Vec<u32> {
            qdisc.attachments().into_iter().map(|(parent, _)| parent).collect()
        };
        assert_eq!(parents(qdisc(0xffff_0000, "clsact")), [TC_H_INGRESS, TC_H_EGRESS]);
        // Both parents of an ingress qdisc are the same block.
        assert_eq!(parents(qdisc(0xffff_0000, "ingress")), [TC_H_INGRESS]);
        assert_eq!(parents(qdisc(0x0001_0000, "htb")), [0x0001_0000]);
        assert_eq!(parents(qdisc(0, "fq_codel")), [ROOT]);
        assert!(parents(qdisc(0, "pfifo_fast")).is_empty());
        assert!(qdisc(1, "htb").has_filters_by_class() && !qdisc(1, "prio").has_filters_by_class());
    }

    #[test]
    fn handles_are_written_as_tc_does() {
        assert_eq!(handle(0x0001_0000), "1:");
        assert_eq!(handle(0x0001_001a), "1:1a");
        assert_eq!(show(TC_H_EGRESS), " egress)");
        assert_eq!(show(0x0001_0000), " parent 1:)");
    }
}
