//! Memberships of a packet socket that make an interface receive frames for other addresses
//! (packet(7), PACKET_ADD_MEMBERSHIP). The kernel counts them, as `ip -d link` shows (promiscuity,
//! allmulti), and removes them when the socket closes, however the process ends.

#![expect(unsafe_code, reason = "packet sockets have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::io::device::RxMode;

/// Memberships of one interface; removed when dropped.
#[derive(Debug)]
pub(super) struct Membership {
    _socket: OwnedFd,
}

impl Membership {
    /// Joins. The socket is bound to no protocol: it receives nothing.
    ///
    /// # Errors
    /// The kernel's error: EPERM without CAP_NET_RAW, ENODEV.
    pub(super) fn join(ifindex: u32, mode: RxMode) -> io::Result<Membership> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and not owned by anything else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let wanted =
            [(mode.promisc, libc::PACKET_MR_PROMISC), (mode.allmulti, libc::PACKET_MR_ALLMULTI)];
        for (_, kind) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
            let request = libc::packet_mreq {
                mr_ifindex: ifindex as libc::c_int,
                mr_type: kind as libc::c_ushort,
                mr_alen: 0,
                mr_address: [0; 8],
            };
            // SAFETY: points to a value of the given length, valid during the call.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_ADD_MEMBERSHIP,
                    (&raw const request).cast(),
                    size_of::<libc::packet_mreq>() as libc::socklen_t,
                )
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Membership { _socket: socket })
    }
}
