//! Netlink sockets for requests. They stay open, so that a request needs no descriptor and works
//! even if none is left.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

use crate::control::netlink::autoload::Module;
use crate::control::netlink::query::NlSock;

/// The sockets, opened with the first request.
#[derive(Debug)]
pub struct Sockets {
    route: Option<NlSock>,
    netfilter: (Module, Option<NlSock>),
    xfrm: (Module, Option<NlSock>),
}

impl Default for Sockets {
    fn default() -> Sockets {
        let [netfilter, xfrm] = [NFNETLINK, XFRM_USER].map(Module::new);
        Sockets { route: None, netfilter: (netfilter, None), xfrm: (xfrm, None) }
    }
}

/// The module of NETLINK_NETFILTER.
pub const NFNETLINK: &str = "nfnetlink";
/// The module of NETLINK_XFRM.
pub const XFRM_USER: &str = "xfrm_user";

impl Sockets {
    /// Closes the sockets. Call it after an error: a reply may still arrive.
    pub fn close(&mut self) {
        (self.route, self.netfilter.1, self.xfrm.1) = (None, None, None);
    }

    /// The socket of NETLINK_ROUTE.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn route(&mut self) -> io::Result<&mut NlSock> {
        if self.route.is_none() {
            self.route = Some(NlSock::open(NETLINK_ROUTE)?);
        }
        self.route.as_mut().ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTONOSUPPORT))
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

fn open(
    (module, socket): &mut (Module, Option<NlSock>),
    protocol: isize,
) -> io::Result<Option<&mut NlSock>> {
    if socket.is_none() && module.may_be_asked() {
        match NlSock::open(protocol) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                module.set_missing();
            }
            opened => *socket = Some(opened?),
        }
    }
    Ok(socket.as_mut())
}
