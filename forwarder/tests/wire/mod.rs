//! A packet socket on one interface, with which a test sends to a port of ours and receives from it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

pub struct Wire {
    pub socket: OwnedFd,
    address: LinkAddr,
}

impl Wire {
    pub fn on(name: &str) -> Wire {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .expect("a packet socket");
        let address = nix::ifaddrs::getifaddrs()
            .expect("interfaces")
            .filter(|i| i.interface_name == name)
            .find_map(|i| i.address?.as_link_addr().copied())
            .expect("the interface's link address");
        bind(socket.as_raw_fd(), &address).expect("bind to the interface");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 1000)).expect("timeout");
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("receive buffer");
        Wire { socket, address }
    }

    pub fn send(&self, frame: &[u8]) {
        let sent =
            sendto(self.socket.as_raw_fd(), frame, &self.address, MsgFlags::empty()).expect("send");
        assert_eq!(sent, frame.len());
    }

    /// The next frame that `wanted` accepts. `None`: none arrived within `patience`.
    pub fn receive(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let start = Instant::now();
        let mut frame = vec![0; 1 << 14];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(len) if wanted(&frame[..len]) => return Some(frame[..len].to_vec()),
                Err(_) if start.elapsed() >= patience => return None,
                _ => {}
            }
        }
    }
}
