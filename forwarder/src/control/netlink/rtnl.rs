//! The two rtnetlink sockets: one that only listens to events, one that only asks, so that events
//! never stand between the parts of a dump. Both belong to the network namespace of the thread
//! that opens them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;

use crate::control::netlink::message::{Message, Messages, Request};

/// RTNLGRP_*: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE,
/// IPV4_NETCONF, IPV6_NETCONF, NEXTHOP.
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];
/// RTNLGRP_NEXTHOP came with Linux 5.3; without it there are no nexthop objects to follow.
const GROUP_NEXTHOP: u32 = 32;

/// A datagram of a dump is at most 32 KiB; an event with a full RTA_MULTIPATH at most 64 KiB and
/// some.
const BUFFER_OCTETS: usize = 256 * 1024;
/// How long the kernel may take to answer; only a bug or a stopped machine takes longer.
const ANSWER_SECONDS_MAX: i64 = 30;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// Why the kernel could not be asked or heard.
#[derive(Debug, Error)]
pub enum SockError {
    /// A socket call failed.
    #[error("netlink: {what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("netlink: {what}: {source}{}", if text.is_empty() { String::new() } else { format!(" ({text})") })]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The error it answered with.
        source: io::Error,
        /// Its own words, when it has some.
        text: String,
    },
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> SockError {
    move |source| SockError::Io { what, source }
}

/// What [`Events::receive`] found.
#[derive(Debug)]
pub enum Received<'a> {
    /// Messages.
    Datagram(&'a [u8]),
    /// The kernel could not queue events (ENOBUFS): some are lost.
    Overrun,
    /// Nothing more now.
    Empty,
}

/// The socket that listens.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes to everything that is mirrored, with a receive buffer of `rcvbuf_octets` (by
    /// SO_RCVBUFFORCE where allowed; the kernel doubles it for its own bookkeeping).
    pub fn open(rcvbuf_octets: usize) -> Result<Events, SockError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("socket"))?;
        // SO_RCVBUFFORCE wants CAP_NET_ADMIN; without it net.core.rmem_max limits.
        if setsockopt(&socket, sockopt::RcvBufForce, &rcvbuf_octets).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &rcvbuf_octets)
                .map_err(|errno| failed("SO_RCVBUF")(errno.into()))?;
        }
        socket.set_non_blocking(true).map_err(failed("O_NONBLOCK"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed("bind"))?;
        for group in GROUPS {
            match socket.add_membership(group) {
                Err(_) if group == GROUP_NEXTHOP => {}
                result => result.map_err(failed("NETLINK_ADD_MEMBERSHIP"))?,
            }
        }
        Ok(Events { socket, buffer: Vec::with_capacity(BUFFER_OCTETS) })
    }

    /// The next datagram; never waits.
    pub fn receive(&mut self) -> Result<Received<'_>, SockError> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Ok((_, from)) if from.port_number() != 0 => {} // not the kernel
                // Cut off: as good as lost.
                Ok((len, _)) if len > self.buffer.len() => return Ok(Received::Overrun),
                Ok(_) => return Ok(Received::Datagram(&self.buffer)),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(Received::Empty),
                    Some(libc::ENOBUFS) => return Ok(Received::Overrun),
                    Some(libc::EINTR) => {}
                    _ => return Err(failed("receive events")(error)),
                },
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpEnd {
    /// It is one picture.
    Complete,
    /// Something changed meanwhile (NLM_F_DUMP_INTR): to be asked for again.
    Interrupted,
}

/// The socket that asks.
#[derive(Debug)]
pub struct Requests {
    socket: Socket,
    buffer: Vec<u8>,
    seq: u32,
}

impl Requests {
    /// Opens it.
    pub fn open() -> Result<Requests, SockError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("socket"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed("bind"))?;
        // Both are refused by kernels that do not know them, and can be done without: strict
        // checking only makes the kernel heed a dump's filters.
        let _unsupported = socket.set_netlink_get_strict_chk(true);
        let _unsupported = socket.set_ext_ack(true);
        let timeout = TimeVal::seconds(ANSWER_SECONDS_MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| failed("SO_RCVTIMEO")(errno.into()))?;
        Ok(Requests { socket, buffer: Vec::with_capacity(BUFFER_OCTETS), seq: 0 })
    }

    /// Asks for all objects of a kind: RTM_GET* `kind` with its fixed `header`.
    pub fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        header: &[u8],
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<DumpEnd, SockError> {
        self.send(what, Request::new(kind, NLM_F_REQUEST | NLM_F_DUMP, header))?;
        let mut end = DumpEnd::Complete;
        loop {
            self.receive(what)?;
            let mut messages = Messages::new(&self.buffer);
            for message in messages.by_ref().filter(|message| message.seq == self.seq) {
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    end = DumpEnd::Interrupted;
                }
                match message.kind {
                    NLMSG_DONE => {
                        refused(what, &message)?;
                        return Ok(end);
                    }
                    NLMSG_ERROR => refused(what, &message)?,
                    NLMSG_NOOP => {}
                    _ => each(&message),
                }
            }
            if messages.broken() {
                end = DumpEnd::Interrupted;
            }
        }
    }

    /// Sends a request that changes something, and waits for the acknowledgement.
    pub fn change(
        &mut self,
        what: &'static str,
        request: impl FnOnce(u16) -> Request,
    ) -> Result<(), SockError> {
        self.send(what, request(NLM_F_REQUEST | NLM_F_ACK))?;
        loop {
            self.receive(what)?;
            for message in Messages::new(&self.buffer).filter(|message| message.seq == self.seq) {
                if message.kind == NLMSG_ERROR {
                    return refused(what, &message);
                }
            }
        }
    }

    fn send(&mut self, what: &'static str, request: Request) -> Result<(), SockError> {
        self.seq = self.seq.wrapping_add(1);
        let octets = request.finish(self.seq);
        self.socket.send_to(&octets, &SocketAddr::new(0, 0), 0).map_err(failed(what))?;
        Ok(())
    }

    fn receive(&mut self, what: &'static str) -> Result<(), SockError> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                Ok((_, from)) if from.port_number() == 0 => return Ok(()),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(failed(what)(error)),
            }
        }
    }
}

/// An error the kernel answered with; none in an acknowledgement.
fn refused(what: &'static str, message: &Message<'_>) -> Result<(), SockError> {
    match message.error() {
        Some((errno, text)) if errno < 0 => {
            let source = io::Error::from_raw_os_error(errno.saturating_neg());
            Err(SockError::Refused { what, source, text })
        }
        _ => Ok(()),
    }
}
