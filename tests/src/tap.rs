//! Sends and receives whole frames on a port, by packet sockets.
//!
//! A tap also sees what its own host sends; tests distinguish directions by MAC address.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

use crate::Netns;

/// Large enough for every frame of a test that reads late.
const RECEIVE_BUFFER_OCTETS: usize = 64 << 20;
/// A queue may be full for a while; a frame that is refused for longer is too long for the link.
const SENDING_MAX: Duration = Duration::from_secs(2);

/// A packet socket bound to one port of one namespace.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Opens a tap on `port` in `namespace`.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, and when there is no such port.
    pub fn open(namespace: &Netns, port: &str) -> Result<Self> {
        namespace.enter(|| {
            // The list of addresses provides a link-layer address without unsafe code.
            let address = getifaddrs()?
                .filter(|entry| entry.interface_name == port)
                .find_map(|entry| entry.address.as_ref().and_then(|a| a.as_link_addr().copied()))
                .with_context(|| format!("no port {port} in {}", namespace.name()))?;
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_OCTETS)?;
            bind(socket.as_raw_fd(), &address)?;
            let tap = Self { socket };
            // Frames received before the socket was bound may belong to another port.
            tap.drain();
            Ok(tap)
        })
    }

    /// Sends a frame of 14 octets or more, without a frame check sequence.
    ///
    /// # Errors
    /// When the port is down or the frame is longer than its MTU allows.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let end = Instant::now() + SENDING_MAX;
        loop {
            match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::ENOBUFS | Errno::EAGAIN) if Instant::now() < end => {
                    std::thread::yield_now();
                }
                Err(errno) => {
                    return Err(errno).with_context(|| format!("sending {} octets", frame.len()));
                }
            }
        }
    }

    /// The next frame, if one has arrived.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 16];
        let octets = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()).ok()?;
        frame.truncate(octets);
        Some(frame)
    }

    /// The first frame within `timeout` for which `wanted` is true; other frames are discarded.
    pub fn wait_for(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let end = Instant::now() + timeout;
        loop {
            while let Some(frame) = self.receive() {
                if wanted(&frame) {
                    return Some(frame);
                }
            }
            let left = end.checked_duration_since(Instant::now())?;
            wait(&[self], left);
        }
    }

    /// Discards frames that have arrived.
    pub fn drain(&self) {
        while self.receive().is_some() {}
    }
}

/// Sleeps until one of `taps` has a frame, at most for `timeout`.
pub fn wait(taps: &[&Tap], timeout: Duration) {
    let mut fds: Vec<_> =
        taps.iter().map(|tap| PollFd::new(tap.socket.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    // Interrupted or not: the caller checks for frames next.
    let _ = poll(&mut fds, timeout);
}
