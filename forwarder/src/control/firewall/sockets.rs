//! Netlink sockets for requests. They stay open, so that a request needs no descriptor and works
//! even if none is left.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

use crate::control::netlink::query::NlSock;

/// The sockets, opened with the first request. Drop them after an error: a reply may still arrive.
#[derive(Debug, Default)]
pub struct Sockets {
    route: Option<NlSock>,
    netfilter: Option<NlSock>,
    xfrm: Option<NlSock>,
}

impl Sockets {
    /// The socket of NETLINK_ROUTE.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn route(&mut self) -> io::Result<&mut NlSock> {
        match open(&mut self.route, NETLINK_ROUTE)? {
            Some(socket) => Ok(socket),
            None => Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT)),
        }
    }

    /// The socket of NETLINK_NETFILTER; `None`: the kernel has no such protocol (yet).
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn netfilter(&mut self) -> io::Result<Option<&mut NlSock>> {
        open(&mut self.netfilter, NETLINK_NETFILTER)
    }

    /// The socket of NETLINK_XFRM; `None`: the kernel has no such protocol (yet).
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn xfrm(&mut self) -> io::Result<Option<&mut NlSock>> {
        open(&mut self.xfrm, NETLINK_XFRM)
    }
}

fn open(socket: &mut Option<NlSock>, protocol: isize) -> io::Result<Option<&mut NlSock>> {
    if socket.is_none() {
        *socket = match NlSock::open(protocol) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            opened => Some(opened?),
        };
    }
    Ok(socket.as_mut())
}
