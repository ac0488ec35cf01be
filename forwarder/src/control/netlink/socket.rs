//! The socket for requests: sends one request and passes on the reply messages, up to the last one.
//! [`super::query`] and [`super::rtnl`] use it.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;
use zeroize::Zeroize;

use super::BUFFER_OCTETS;
use super::message::{Message, Messages, Request};

/// Timeout for a reply of the kernel; only a bug or a stopped machine exceeds it.
const ANSWER_SECONDS_MAX: i64 = 30;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// Why a request or subscription failed.
#[derive(Debug, Error)]
pub enum SockError {
    /// A socket call failed.
    #[error("netlink: {what}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("netlink: {what}: {source}{}", if text.is_empty() { String::new() } else { format!(" ({text})") })]
    Refused {
        /// The request.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
        /// The kernel's error text, if any.
        text: String,
    },
}

impl From<SockError> for io::Error {
    /// The errno alone.
    fn from(error: SockError) -> io::Error {
        match error {
            SockError::Io { source, .. } | SockError::Refused { source, .. } => source,
        }
    }
}

pub(super) fn failed(what: &'static str) -> impl Fn(io::Error) -> SockError {
    move |source| SockError::Io { what, source }
}

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpEnd {
    /// The dump is consistent.
    Complete,
    /// Objects changed during the dump (NLM_F_DUMP_INTR): repeat it.
    Interrupted,
}

impl DumpEnd {
    /// Combines the results of two dumps that belong together.
    #[must_use]
    pub fn and(self, other: DumpEnd) -> DumpEnd {
        if self == DumpEnd::Complete { other } else { self }
    }
}

/// The socket for requests.
#[derive(Debug)]
pub(super) struct AskSocket {
    socket: Socket,
    buffer: Vec<u8>,
    seq: u32,
}

impl AskSocket {
    /// Opens a socket of a NETLINK_* protocol.
    pub(super) fn open(protocol: isize) -> Result<AskSocket, SockError> {
        let mut socket = Socket::new(protocol).map_err(failed("socket"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed("bind"))?;
        let timeout = TimeVal::seconds(ANSWER_SECONDS_MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| failed("SO_RCVTIMEO")(errno.into()))?;
        Ok(AskSocket { socket, buffer: Vec::with_capacity(BUFFER_OCTETS), seq: 0 })
    }

    /// The number by which the kernel identifies the socket; it is in events of changes that the socket requested.
    pub(super) fn port_number(&self) -> Option<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address).ok().map(|()| address.port_number())
    }

    /// Overwrites the receive buffer with all that its capacity has.
    pub(super) fn wipe(&mut self) {
        self.buffer.zeroize();
    }

    /// For rtnetlink: the kernel applies filters of dumps, and errors have a text.
    pub(super) fn set_strict(&mut self) {
        // Both are optional: older kernels reject them.
        let _unsupported = self.socket.set_netlink_get_strict_chk(true);
        let _unsupported = self.socket.set_ext_ack(true);
    }

    /// Sends a request whose reply ends with NLMSG_DONE (a dump) or NLMSG_ERROR (an
    /// acknowledgement); calls `each` with every message before the end.
    ///
    /// # Errors
    /// [`SockError::Refused`] with the kernel's errno.
    pub(super) fn exchange(
        &mut self,
        what: &'static str,
        request: Request,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<DumpEnd, SockError> {
        self.begin(what, request)?;
        let mut end = DumpEnd::Complete;
        loop {
            let (part, is_last) = self.receive_part(what, &mut each)?;
            end = end.and(part);
            if is_last {
                return Ok(end);
            }
        }
    }

    /// Sends a request as [`AskSocket::exchange`] does, whose reply [`AskSocket::receive_part`] receives.
    pub(super) fn begin(&mut self, what: &'static str, request: Request) -> Result<(), SockError> {
        self.seq = self.seq.wrapping_add(1);
        let request = request.finish(self.seq);
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0).map_err(failed(what)).map(drop)
    }

    /// Receives the next datagram of the reply to the request that was begun: whether it is consistent, and
    /// whether it is the last one.
    ///
    /// # Errors
    /// As of [`AskSocket::exchange`].
    pub(super) fn receive_part(
        &mut self,
        what: &'static str,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(DumpEnd, bool), SockError> {
        self.receive(what, 0)?;
        let mut end = DumpEnd::Complete;
        let mut messages = Messages::new(&self.buffer);
        for message in messages.by_ref().filter(|message| message.seq == self.seq) {
            if message.flags & NLM_F_DUMP_INTR != 0 {
                end = DumpEnd::Interrupted;
            }
            match message.kind {
                NLMSG_NOOP => {}
                // NLMSG_DONE and NLMSG_ERROR contain an errno or 0.
                NLMSG_DONE | NLMSG_ERROR => return refused(what, &message).map(|()| (end, true)),
                _ => each(&message),
            }
        }
        if messages.broken() {
            end = DumpEnd::Interrupted;
        }
        Ok((end, false))
    }

    /// Sends requests in one datagram, of which the last has NLM_F_ACK; returns the answer to each, by their
    /// sequence numbers, and calls `each` with every other message that arrives before the last answer. The
    /// kernel answers them in their order: a request without NLM_F_ACK succeeded if a later one was answered and
    /// it was not. Others without an answer have the error of the socket: ENOBUFS if the receive buffer had no
    /// room for an answer, though the kernel may have done what they request.
    pub(super) fn exchange_all(
        &mut self,
        what: &'static str,
        requests: Vec<Request>,
        mut each: impl FnMut(&Message<'_>),
    ) -> Vec<io::Result<()>> {
        let first = self.seq.wrapping_add(1);
        let mut answers: Vec<Option<io::Result<()>>> = requests.iter().map(|_| None).collect();
        let mut datagram = Vec::new();
        for request in requests {
            self.seq = self.seq.wrapping_add(1);
            datagram.extend(request.finish(self.seq));
        }
        let sent = self.socket.send_to(&datagram, &SocketAddr::new(0, 0), 0);
        let mut errno = sent.err().map(|error| errno_of(&error));
        let (mut is_pending, mut flags) = (errno.is_none() && !answers.is_empty(), 0);
        while is_pending {
            match self.receive(what, flags).map_err(|error| errno_of(&error.into())) {
                Ok(()) => {}
                // The kernel answers while it receives the datagram: no more answers arrive.
                Err(libc::ENOBUFS) => {
                    (errno, flags) = (Some(libc::ENOBUFS), libc::MSG_DONTWAIT);
                    continue;
                }
                Err(other) => {
                    errno = errno.or(Some(other));
                    break;
                }
            }
            for message in Messages::new(&self.buffer) {
                let at = message.seq.wrapping_sub(first) as usize;
                if message.kind != NLMSG_ERROR {
                    each(&message);
                } else if let Some(answer @ None) = answers.get_mut(at) {
                    *answer = Some(refused(what, &message).map_err(io::Error::from));
                    is_pending = at + 1 < answers.len();
                }
            }
        }
        let unanswered = || match errno {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        };
        answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    fn receive(&mut self, what: &'static str, flags: i32) -> Result<(), SockError> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, flags) {
                Ok((_, from)) if from.port_number() == 0 => return Ok(()),
                Ok(_) => {} // not the kernel
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(what)(error)),
            }
        }
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The errno in the kernel's reply; `Ok` for an acknowledgement.
fn refused(what: &'static str, message: &Message<'_>) -> Result<(), SockError> {
    match message.error() {
        Some((errno, text)) if errno < 0 => {
            let source = io::Error::from_raw_os_error(errno.saturating_neg());
            Err(SockError::Refused { what, source, text })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netlink::{NLM_F_ACK, NLM_F_REQUEST};

    const RTM_GETLINK: u16 = 18;

    /// Requests the attributes of an interface that does not exist.
    fn request() -> Request {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&0x7fff_fff0u32.to_ne_bytes());
        Request::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, &header)
    }

    #[test]
    fn answers_without_room_are_errors_and_the_socket_remains_usable() {
        let mut socket = AskSocket::open(netlink_sys::protocols::NETLINK_ROUTE).expect("opens");
        setsockopt(&socket.socket, sockopt::RcvBuf, &1).expect("is set");
        for _ in 0..3 {
            let answers = socket.exchange_all("get", (0..64).map(|_| request()).collect(), |_| {});
            let errnos: Vec<i32> = answers
                .into_iter()
                .map(|answer| answer.expect_err("no such interface").raw_os_error())
                .map(|errno| errno.expect("has one"))
                .collect();
            let (arrived, lost) = errnos.split_at(errnos.partition_point(|it| *it == libc::ENODEV));
            assert!(!arrived.is_empty() && !lost.is_empty(), "{errnos:?}");
            assert!(lost.iter().all(|errno| *errno == libc::ENOBUFS), "{errnos:?}");
            let error = socket.exchange("get", request(), |_| {}).expect_err("no such interface");
            assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::ENODEV));
        }
    }
}
