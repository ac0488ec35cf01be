//! The events of the connection tracking table.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::entry::Entry;
use super::parse;
use super::uapi::*;
use crate::control::netlink::events::{self, Group};
use crate::control::netlink::message::{Message, Messages};

const GROUPS: [Group; 3] = [
    Group::Required(NFNLGRP_CONNTRACK_NEW),
    Group::Required(NFNLGRP_CONNTRACK_UPDATE),
    Group::Required(NFNLGRP_CONNTRACK_DESTROY),
];

/// How many datagrams one call receives, each of which has one event: a few milliseconds of work, after
/// which the caller can do something else.
const DATAGRAMS_MAX: usize = 1024;

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
