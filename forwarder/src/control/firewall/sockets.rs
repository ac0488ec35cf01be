//! Netlink sockets that ask for rules. They stay open: a question costs no descriptor, and can be put
//! also when there are none left.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

use crate::control::netlink::query::NlSock;

/// The sockets, opened with the first question. After an error they are to be dropped: an answer may
/// still be under way.
#[derive(Debug, Default)]
pub struct Sockets {
    route: Option<NlSock>,
    netfilter: Option<NlSock>,
    xfrm: Option<NlSock>,
}

impl Sockets {
    /// Of NETLINK_ROUTE.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn route(&mut self) -> io::Result<&mut NlSock> {
        match open(&mut self.route, NETLINK_ROUTE)? {
            Some(socket) => Ok(socket),
            None => Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT)),
        }
    }

    /// Of NETLINK_NETFILTER; `None`: the kernel has no such protocol (yet).
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn netfilter(&mut self) -> io::Result<Option<&mut NlSock>> {
        open(&mut self.netfilter, NETLINK_NETFILTER)
    }

    /// Of NETLINK_XFRM; `None`: the kernel has no such protocol (yet).
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
