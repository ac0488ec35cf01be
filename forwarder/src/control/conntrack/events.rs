//! The events of the connection tracking table.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use socket2::{SockFilter, SockRef};

use super::entry::{
    Entry, IPS_ASSURED, IPS_SEEN_REPLY, TCP_CONNTRACK_CLOSE_WAIT, TCP_CONNTRACK_TIME_WAIT,
};
use super::parse;
use super::uapi::*;
use crate::control::netlink::events::{self, Group};
use crate::control::netlink::message::{Message, Messages};
use crate::control::netlink::query::NlSock;
use crate::wire::Protocol;

/// `struct nlmsghdr` in octets, and in it the number of the socket that requested a change, or 0.
const NLMSG_HEADER: usize = 16;
const NLMSG_PID: u32 = 12;

const GROUPS: [Group; 3] = [
    Group::Required(NFNLGRP_CONNTRACK_NEW),
    Group::Required(NFNLGRP_CONNTRACK_UPDATE),
    Group::Required(NFNLGRP_CONNTRACK_DESTROY),
];

/// How many datagrams one call receives, each of which has one event: a few milliseconds of work, after
/// which the caller can do something else.
const DATAGRAMS_MAX: usize = 1024;

/// Which events of entries that are not assured are received, each with those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unassured {
    /// Of ESP and AH.
    Ipsec,
    /// Of IP in IP (IPv4 and IPv6).
    Tunnels,
    /// Of all protocols whose entries are never assured, and which workers carry: also of ICMP and ICMPv6.
    #[default]
    All,
}

impl Unassured {
    fn protocols(self) -> &'static [Protocol] {
        const ALL: [Protocol; 6] = [
            Protocol::ESP,
            Protocol::AH,
            Protocol::IPIP,
            Protocol::IPV6,
            Protocol::ICMP,
            Protocol::ICMPV6,
        ];
        match self {
            Unassured::Ipsec => &ALL[..2],
            Unassured::Tunnels => &ALL[..4],
            Unassured::All => &ALL,
        }
    }
}

/// A classic BPF program (Documentation/networking/filter.rst): see [`Events::leave_out`].
fn filter(own: [u32; 2], unassured: Unassured) -> Vec<SockFilter> {
    const UNASSURED: u8 = 26;
    // The instructions before those that compare the protocol.
    const COMPARED: u8 = 39;
    let protocols = unassured.protocols();
    let drop = COMPARED + protocols.len() as u8;
    let pass = drop + 1;
    let mut program = Vec::with_capacity(usize::from(pass) + 1);
    // Jumps are relative to the next instruction.
    let mut op = |code: u32, k: u32, target: [Option<u8>; 2]| {
        let next = program.len() as u8 + 1;
        let [jt, jf] = target.map(|at| at.map_or(0, |at| at - next));
        program.push(SockFilter::new(code as u16, jt, jf, k));
    };
    const NEXT: [Option<u8>; 2] = [None, None];
    let (load, load_octet) = (libc::BPF_LD | libc::BPF_W, libc::BPF_LD | libc::BPF_B);
    let jump = |how| libc::BPF_JMP | how | libc::BPF_K;
    // The offset of attribute X of those that begin at offset A, or that are nested in the one at A; or 0.
    let find = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;
    let find_nested = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR_NEST) as u32;
    let attrs = (NLMSG_HEADER + NFGEN_HEADER) as u32;
    // After the header of the attribute.
    let value = 4;
    op(load | libc::BPF_ABS, NLMSG_PID, NEXT);
    // A load converts from network byte order, which it does not have.
    for own in own {
        op(jump(libc::BPF_JEQ), own.to_be(), [Some(drop), None]);
    }
    op(libc::BPF_LD | libc::BPF_IMM, attrs, NEXT);
    op(libc::BPF_LDX | libc::BPF_IMM, CTA_STATUS.into(), NEXT);
    op(load_octet | libc::BPF_ABS, find, NEXT);
    op(jump(libc::BPF_JEQ), 0, [Some(pass), None]);
    op(libc::BPF_MISC | libc::BPF_TAX, 0, NEXT);
    op(load | libc::BPF_IND, value, NEXT);
    op(jump(libc::BPF_JSET), IPS_ASSURED, [None, Some(UNASSURED)]);
    op(load | libc::BPF_ABS, NLMSG_PID, NEXT);
    op(jump(libc::BPF_JEQ), 0, [None, Some(pass)]);
    op(libc::BPF_LD | libc::BPF_IMM, attrs, NEXT);
    op(libc::BPF_LDX | libc::BPF_IMM, CTA_PROTOINFO.into(), NEXT);
    op(load_octet | libc::BPF_ABS, find, NEXT);
    for kind in [CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE] {
        op(jump(libc::BPF_JEQ), 0, [Some(pass), None]);
        op(libc::BPF_LDX | libc::BPF_IMM, kind.into(), NEXT);
        op(load_octet | libc::BPF_ABS, find_nested, NEXT);
    }
    op(jump(libc::BPF_JEQ), 0, [Some(pass), None]);
    op(libc::BPF_MISC | libc::BPF_TAX, 0, NEXT);
    op(load_octet | libc::BPF_IND, value, NEXT);
    op(jump(libc::BPF_JGE), TCP_CONNTRACK_CLOSE_WAIT.into(), [None, Some(pass)]);
    op(jump(libc::BPF_JGT), TCP_CONNTRACK_TIME_WAIT.into(), [Some(pass), Some(drop)]);
    // Without a reply it is not carried.
    op(jump(libc::BPF_JSET), IPS_SEEN_REPLY, [None, Some(drop)]);
    op(libc::BPF_LD | libc::BPF_IMM, attrs, NEXT);
    op(libc::BPF_LDX | libc::BPF_IMM, CTA_TUPLE_ORIG.into(), NEXT);
    op(load_octet | libc::BPF_ABS, find, NEXT);
    for kind in [CTA_TUPLE_PROTO, CTA_PROTO_NUM] {
        op(jump(libc::BPF_JEQ), 0, [Some(drop), None]);
        op(libc::BPF_LDX | libc::BPF_IMM, kind.into(), NEXT);
        op(load_octet | libc::BPF_ABS, find_nested, NEXT);
    }
    op(jump(libc::BPF_JEQ), 0, [Some(drop), None]);
    op(libc::BPF_MISC | libc::BPF_TAX, 0, NEXT);
    op(load_octet | libc::BPF_IND, value, NEXT);
    for protocol in protocols {
        op(jump(libc::BPF_JEQ), protocol.0.into(), [Some(pass), None]);
    }
    op(libc::BPF_RET | libc::BPF_K, 0, NEXT);
    op(libc::BPF_RET | libc::BPF_K, u32::MAX, NEXT);
    program
}

/// The number of a socket in events of the changes that it requests. If it is not known, one that no event has: 0 is in
/// events of packets.
pub fn own_number(requests: &NlSock) -> u32 {
    requests.port_number().filter(|number| *number != 0).unwrap_or(u32::MAX)
}

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It was added.
    New(Entry),
    /// It changed; also by [`super::update()`].
    Update(Entry),
    /// It was removed.
    Destroy(Entry),
}

impl Event {
    /// Decodes a message; `None` if it does not have the expected form.
    pub fn of(message: &Message<'_>) -> Option<Event> {
        // `ctnetlink_conntrack_event` sets both flags for added entries and none for changed ones.
        let is_new = message.flags & (NLM_F_CREATE | NLM_F_EXCL) != 0;
        let event = match message.kind {
            IPCTNL_MSG_CT_NEW if is_new => Event::New,
            IPCTNL_MSG_CT_NEW => Event::Update,
            IPCTNL_MSG_CT_DELETE => Event::Destroy,
            _ => return None,
        };
        parse::entry(message).map(event)
    }
}

/// The result of [`Events::receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// All events that were queued were passed on, or none arrived in time.
    Drained,
    /// Events were passed on, and more may be queued.
    More,
    /// Events were lost, because the receive buffer was full. Until all queued events are received the
    /// kernel adds none and reports no further loss (NETLINK_S_CONGESTED). So call [`Events::receive`]
    /// until it returns [`Received::Drained`], and then dump the table.
    Overrun,
}

/// A socket that receives the events of the network namespace of the thread that opens it.
///
/// The kernel sends events only of entries that it added while net.netfilter.nf_conntrack_events was 1, or
/// while it was 2 (the default) and a socket for events was open (`nf_ct_ecache_ext_add`). Changes and
/// removals of other entries, such as all that are older than the first socket, show only in [`super::dump`].
#[derive(Debug)]
pub struct Events {
    socket: events::Events,
    skipped: u64,
}

impl Events {
    /// Subscribes, with a receive buffer of `rcvbuf_octets` (by SO_RCVBUFFORCE if permitted, otherwise by
    /// SO_RCVBUF; the kernel doubles it for its overhead). An event occupies up to some 1 KiB of it.
    ///
    /// # Errors
    /// EPROTONOSUPPORT if the kernel has no nfnetlink. No error reports that it has no ctnetlink: see
    /// [`super::is_available`].
    pub fn open(rcvbuf_octets: usize) -> io::Result<Events> {
        let socket = events::Events::open(NETLINK_NETFILTER, &GROUPS, rcvbuf_octets)?;
        Ok(Events { socket, skipped: 0 })
    }

    /// Subscribes to changes and removals only, as [`Events::open`] does to all: the kernel makes no event of an entry
    /// that it adds.
    ///
    /// # Errors
    /// As of [`Events::open`].
    pub fn open_changes(rcvbuf_octets: usize) -> io::Result<Events> {
        let [_new, changes @ ..] = GROUPS;
        let socket = events::Events::open(NETLINK_NETFILTER, &changes, rcvbuf_octets)?;
        Ok(Events { socket, skipped: 0 })
    }

    /// From now on, leaves out events of changes that sockets with these numbers ([`own_number`]) have requested; of
    /// entries that are not assured, except those of `unassured` that have been replied to; and what the kernel itself
    /// does with a TCP connection in the states CLOSE_WAIT, LAST_ACK and TIME_WAIT, which follow FIN_WAIT. The kernel
    /// drops them without waking anybody up.
    ///
    /// # Errors
    /// Errors of setsockopt(SO_ATTACH_FILTER): what was left out before still is. For a new socket that is nothing:
    /// there are only more events. After a narrower `unassured`, events of the others are still missing.
    pub fn leave_out(&self, own: [u32; 2], unassured: Unassured) -> io::Result<()> {
        SockRef::from(&self.socket.as_fd()).attach_filter(&filter(own, unassured))
    }

    /// Passes on the queued events, at most 1024. If none is queued, waits for one until `timeout`.
    ///
    /// # Errors
    /// Errors of recv(2) and ppoll(2) other than EAGAIN, EINTR and ENOBUFS.
    pub fn receive(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(Event),
    ) -> io::Result<Received> {
        let mut may_wait = !timeout.is_zero();
        let mut datagrams = 0;
        while datagrams < DATAGRAMS_MAX {
            match self.socket.receive()? {
                events::Received::Datagram(octets) => {
                    let mut messages = Messages::new(octets);
                    for message in messages.by_ref() {
                        match Event::of(&message) {
                            Some(event) => each(event),
                            None => self.skipped += 1,
                        }
                    }
                    self.skipped += u64::from(messages.broken());
                    datagrams += 1;
                    may_wait = false;
                }
                events::Received::Overrun => return Ok(Received::Overrun),
                events::Received::Empty if may_wait => {
                    self.wait(timeout)?;
                    may_wait = false;
                }
                events::Received::Empty => return Ok(Received::Drained),
            }
        }
        Ok(Received::More)
    }

    /// Messages that were left out since the socket was opened, because they did not have the expected
    /// form.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn wait(&self, timeout: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
