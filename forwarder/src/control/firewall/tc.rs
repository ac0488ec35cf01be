//! Traffic control: classifiers of all qdiscs of an interface.
//!
//! Userspace receives packets before the ingress and sends them past the egress. The effect of a
//! filter is not examined: one that only selects a class for shaping counts as one that drops.

use std::collections::BTreeSet;
use std::io;

use crate::control::netdev::nic::find;
use crate::control::netlink::message::{Message, u32_at};
use crate::control::netlink::query::NlSock;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTCLASS: u16 = 40;
const RTM_DELTCLASS: u16 = 41;
const RTM_GETTCLASS: u16 = 42;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const RTM_NEWACTION: u16 = 48;
const RTM_GETACTION: u16 = 50;
const RTM_NEWCHAIN: u16 = 100;
const RTM_DELCHAIN: u16 = 101;
/// Used as ifindex for filters of a block (include/uapi/linux/rtnetlink.h).
const TCM_IFINDEX_MAGIC_BLOCK: u32 = 0xffff_ffff;
/// TC_H_CLSACT: handle of every clsact and ingress qdisc.
const CLSACT: u32 = 0xffff_0000;
/// TC_H_MIN_MASK: the class within its qdisc.
const MINOR: u32 = 0xffff;
/// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and (…, TC_H_MIN_EGRESS).
const TC_H_INGRESS: u32 = 0xffff_fff2;
const TC_H_EGRESS: u32 = 0xffff_fff3;
/// Parent of the root qdisc of an interface.
const TC_H_ROOT: u32 = 0xffff_ffff;
/// Parent of filters of the root qdisc, regardless of its handle.
const ROOT: u32 = 0;
/// `struct tcmsg` in octets: family, ifindex, handle, parent, info.
const TC_HEADER: usize = 20;
const TCA_KIND: u16 = 1;

/// A qdisc.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Qdisc {
    pub ifindex: u32,
    /// 0: created by the kernel; it can only be addressed as the root.
    pub handle: u32,
    pub is_root: bool,
    pub kind: String,
}

impl Qdisc {
    /// Whether it has this interface and handle.
    pub fn is(&self, ifindex: u32, handle: u32) -> bool {
        self.ifindex == ifindex && self.handle == handle
    }

    /// Whether it holds filters of received packets, or of both directions.
    pub fn is_clsact(&self) -> bool {
        self.kind == "clsact" || self.kind == "ingress"
    }

    /// Whether a parent is this qdisc or one of its classes.
    pub fn has(&self, parent: u32) -> bool {
        self.attachments().contains(&parent) || parent & !MINOR == self.handle && self.handle != 0
    }

    /// Parents at which its own filters may be.
    fn attachments(&self) -> Vec<u32> {
        match self.kind.as_str() {
            "clsact" => vec![TC_H_INGRESS, TC_H_EGRESS],
            "ingress" => vec![TC_H_INGRESS],
            _ if self.handle == 0 && self.is_root => vec![ROOT],
            _ if self.handle == 0 => vec![],
            _ => vec![self.handle],
        }
    }

    /// Whether its classes can have filters of their own (`tcf_block` of the class operations);
    /// otherwise only the qdisc itself can.
    fn has_filters_by_class(&self) -> bool {
        ["htb", "hfsc", "cbq", "atm"].contains(&self.kind.as_str())
    }
}

/// All qdiscs of the namespace. `socket`: of NETLINK_ROUTE.
///
/// # Errors
/// The kernel's error.
pub fn qdiscs(socket: &mut NlSock) -> io::Result<BTreeSet<Qdisc>> {
    let found = socket.dump(RTM_GETQDISC, &[0; TC_HEADER], |message| {
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
    qdiscs.iter().any(|qdisc| qdisc.ifindex == ifindex && qdisc.is_clsact())
}

/// Parents at which filters of a qdisc may be, including its classes. `socket`: of NETLINK_ROUTE.
///
/// # Errors
/// The kernel's error.
pub fn parents(socket: &mut NlSock, qdisc: &Qdisc) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::from_iter(qdisc.attachments());
    if qdisc.has_filters_by_class() {
        let class = |message: &Message<'_>| u32_at(message.payload, 8);
        found.extend(dump(socket, RTM_GETTCLASS, qdisc.ifindex, qdisc.handle, class)?);
    }
    Ok(found)
}

/// Kinds of the filters in all chains of a parent, including shared blocks (`tc_dump_tfilter`).
/// `socket`: of NETLINK_ROUTE.
///
/// # Errors
/// The kernel's error.
pub fn filters(socket: &mut NlSock, ifindex: u32, parent: u32) -> io::Result<BTreeSet<String>> {
    let kinds = dump(socket, RTM_GETTFILTER, ifindex, parent, |message| {
        Some(find(message.attrs(TC_HEADER), TCA_KIND)?.string())
    })?;
    Ok(kinds.into_iter().collect())
}

/// Describes filters of a kind at a parent of an interface. `qdiscs`: those of the namespace.
pub fn describe(
    name: &str,
    ifindex: u32,
    parent: u32,
    kind: &str,
    qdiscs: &BTreeSet<Qdisc>,
) -> String {
    let is_of = |qdisc: &&Qdisc| match parent {
        ROOT => qdisc.is_root && qdisc.handle == 0,
        parent => qdisc.handle == parent,
    };
    let qdisc = || qdiscs.iter().filter(|qdisc| qdisc.ifindex == ifindex).find(is_of);
    let at = match parent {
        TC_H_INGRESS | TC_H_EGRESS => String::new(),
        parent if parent & MINOR != 0 => format!(", class {}", handle(parent)),
        parent => {
            let kind = qdisc().map_or("of an unknown kind", |qdisc| &qdisc.kind);
            format!(", qdisc {kind} {}", handle(parent))
        }
    };
    let place = if parent == TC_H_INGRESS { "ingress" } else { "egress" };
    let show = show(parent);
    format!("tc filter ({kind}) at the {place} of {name}{at} (see tc filter show dev {name}{show}")
}

/// The end of the command that shows the filters of a parent.
fn show(parent: u32) -> String {
    match parent {
        TC_H_INGRESS => " ingress)".to_owned(),
        TC_H_EGRESS => " egress)".to_owned(),
        ROOT => ")".to_owned(),
        parent => format!(" parent {})", handle(parent)),
    }
}

/// A handle in the format of tc: 1:10.
fn handle(handle: u32) -> String {
    match handle & MINOR {
        0 => format!("{:x}:", handle >> 16),
        minor => format!("{:x}:{minor:x}", handle >> 16),
    }
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
        // The interface or its qdisc was removed meanwhile.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        found => found,
    }
}

/// The part of traffic control that a notification is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A qdisc of an interface was added, removed or changed.
    Qdisc { ifindex: u32, handle: u32 },
    /// A class of a qdisc, by their handles.
    Class { ifindex: u32, qdisc: u32, class: u32 },
    /// Filters at a parent.
    Parent { ifindex: u32, parent: u32 },
    /// Filters of a block that several interfaces share.
    Block,
    /// Unknown: anything may have changed.
    All,
}

impl Notice {
    /// Parses a message of RTNLGRP_TC; `None`: it is about actions, which have no effect without a
    /// filter, and a filter counts regardless of its actions.
    pub fn of(message: &Message<'_>) -> Option<Notice> {
        if (RTM_NEWACTION..=RTM_GETACTION).contains(&message.kind) {
            return None;
        }
        let word = |at| u32_at(message.payload, at);
        let (Some(ifindex), Some(id), Some(parent)) = (word(4), word(8), word(12)) else {
            return Some(Notice::All);
        };
        Some(match message.kind {
            RTM_NEWQDISC | RTM_DELQDISC => Notice::Qdisc { ifindex, handle: id },
            RTM_NEWTCLASS | RTM_DELTCLASS => {
                Notice::Class { ifindex, qdisc: id & !MINOR, class: id }
            }
            RTM_NEWTFILTER | RTM_DELTFILTER | RTM_NEWCHAIN | RTM_DELCHAIN => match parent {
                _ if ifindex == TCM_IFINDEX_MAGIC_BLOCK => Notice::Block,
                // The same place has several names.
                parent if parent & !MINOR == CLSACT => Notice::Qdisc { ifindex, handle: CLSACT },
                parent => Notice::Parent { ifindex, parent },
            },
            _ => Notice::All,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_where_a_qdisc_can_have_them() {
        let qdisc = |handle, kind: &str| {
            let is_root = kind == "fq_codel";
            Qdisc { ifindex: 1, handle, is_root, kind: kind.to_owned() }
        };
        let parents = |qdisc: Qdisc| qdisc.attachments();
        assert_eq!(parents(qdisc(0xffff_0000, "clsact")), [TC_H_INGRESS, TC_H_EGRESS]);
        // Both parents of an ingress qdisc are the same block.
        assert_eq!(parents(qdisc(0xffff_0000, "ingress")), [TC_H_INGRESS]);
        assert_eq!(parents(qdisc(0x0001_0000, "htb")), [0x0001_0000]);
        assert_eq!(parents(qdisc(0, "fq_codel")), [ROOT]);
        assert!(parents(qdisc(0, "pfifo_fast")).is_empty());
        assert!(qdisc(1, "htb").has_filters_by_class() && !qdisc(1, "prio").has_filters_by_class());
    }

    #[test]
    fn notifications_name_the_place_and_unknown_ones_concern_all() {
        let notice = |kind, ifindex: u32, handle: u32, parent: u32| {
            let words = [0, ifindex, handle, parent, 0];
            let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            Notice::of(&Message { kind, flags: 0, seq: 0, payload: &payload })
        };
        let about = |kind, ifindex, handle, parent| {
            notice(kind, ifindex, handle, parent).expect("is about filters")
        };
        let (ifindex, handle) = (7, 0x1_0000);
        assert_eq!(about(RTM_DELQDISC, 7, handle, 0), Notice::Qdisc { ifindex, handle });
        let class = Notice::Class { ifindex, qdisc: handle, class: 0x1_0005 };
        assert_eq!(about(RTM_DELTCLASS, 7, 0x1_0005, handle), class);
        let filters = Notice::Parent { ifindex, parent: 0x1_0005 };
        assert_eq!(about(RTM_NEWTFILTER, 7, 0x8000_0000, 0x1_0005), filters);
        // `tc filter add … parent ffff:` and `… ingress` are the same place.
        let clsact = Notice::Qdisc { ifindex, handle: CLSACT };
        assert_eq!(about(RTM_NEWTFILTER, 7, 0, CLSACT), clsact);
        assert_eq!(about(RTM_DELTFILTER, 7, 0, TC_H_EGRESS), clsact);
        assert_eq!(about(RTM_NEWCHAIN, TCM_IFINDEX_MAGIC_BLOCK, 0, 1), Notice::Block);
        assert_eq!(about(99, 7, 0, 0), Notice::All);
        let cut = Message { kind: RTM_NEWTFILTER, flags: 0, seq: 0, payload: &[0; 15] };
        assert_eq!(Notice::of(&cut), Some(Notice::All));
        // RTM_NEWACTION, RTM_DELACTION, RTM_GETACTION.
        assert!([48, 49, 50].iter().all(|kind| notice(*kind, 0, 0, 0).is_none()));
    }

    #[test]
    fn filters_are_described_by_where_they_are() {
        let qdisc =
            |handle, is_root, kind: &str| Qdisc { ifindex: 1, handle, is_root, kind: kind.into() };
        let qdiscs = BTreeSet::from([
            qdisc(0, false, "pfifo"),
            qdisc(0, true, "fq_codel"),
            qdisc(0x1_0000, false, "htb"),
        ]);
        let at = |parent| describe("eth0", 1, parent, "u32", &qdiscs);
        let line =
            |at, show| format!("tc filter (u32) at the {at} (see tc filter show dev eth0{show})");
        assert_eq!(at(TC_H_INGRESS), line("ingress of eth0", " ingress"));
        assert_eq!(at(ROOT), line("egress of eth0, qdisc fq_codel 0:", ""));
        assert_eq!(at(0x1_0000), line("egress of eth0, qdisc htb 1:", " parent 1:"));
        assert_eq!(at(0x1_0005), line("egress of eth0, class 1:5", " parent 1:5"));
    }

    #[test]
    fn handles_are_written_as_tc_does() {
        assert_eq!(handle(0x0001_0000), "1:");
        assert_eq!(handle(0x0001_001a), "1:1a");
        assert_eq!(show(TC_H_EGRESS), " egress)");
        assert_eq!(show(0x0001_0000), " parent 1:)");
    }
}
