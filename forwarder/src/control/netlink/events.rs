//! A non-blocking netlink socket that receives the multicast groups of one protocol.

use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use zeroize::Zeroize;

use super::BUFFER_OCTETS;
use super::socket::{SockError, failed};

/// The result of [`Events::receive`].
#[derive(Debug)]
pub enum Received<'a> {
    /// A datagram of messages.
    Datagram(&'a [u8]),
    /// The kernel could not queue events (ENOBUFS): some are lost.
    Overrun,
    /// No datagram is queued.
    Empty,
}

/// A multicast group of a netlink protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Subscribing fails without it.
    Required(u32),
    /// Ignored on kernels without this group.
    Optional(u32),
}

/// The socket for events.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes to groups of a NETLINK_* protocol, with a receive buffer of `rcvbuf_octets` (by
    /// SO_RCVBUFFORCE if permitted; the kernel doubles it for its overhead).
    ///
    /// # Errors
    /// EPROTONOSUPPORT if the kernel has no such protocol.
    pub fn open(
        protocol: isize,
        groups: &[Group],
        rcvbuf_octets: usize,
    ) -> Result<Events, SockError> {
        let mut socket = Socket::new(protocol).map_err(failed("socket"))?;
        // SO_RCVBUFFORCE requires CAP_NET_ADMIN; without it net.core.rmem_max is the limit.
        if setsockopt(&socket, sockopt::RcvBufForce, &rcvbuf_octets).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &rcvbuf_octets)
                .map_err(|errno| failed("SO_RCVBUF")(errno.into()))?;
        }
        socket.set_non_blocking(true).map_err(failed("O_NONBLOCK"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed("bind"))?;
        for group in groups {
            match *group {
                Group::Optional(group) => drop(socket.add_membership(group)),
                Group::Required(group) => {
                    socket.add_membership(group).map_err(failed("NETLINK_ADD_MEMBERSHIP"))?;
                }
            }
        }
        Ok(Events { socket, buffer: Vec::with_capacity(BUFFER_OCTETS) })
    }

    /// Receives the next datagram; does not block.
    ///
    /// # Errors
    /// Errors of recv(2) other than EAGAIN, EINTR and ENOBUFS.
    pub fn receive(&mut self) -> Result<Received<'_>, SockError> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Ok((_, from)) if from.port_number() != 0 => {} // not the kernel
                // Truncated: messages are lost.
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

    /// Overwrites the receive buffer, after notifications with secrets.
    pub fn wipe(&mut self) {
        self.buffer.zeroize();
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
