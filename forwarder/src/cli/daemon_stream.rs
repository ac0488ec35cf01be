//! Messages that the daemon sends for as long as a command runs (`capture`, `trace`).

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::process::signals::Signals;

/// Waits until the daemon has sent something, a signal has come, or the time is up.
pub fn wait(stream: &UnixStream, signals: &Signals, timeout: PollTimeout) -> Result<()> {
    let mut fds = [
        PollFd::new(stream.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).context("poll(2)"),
    }
}

/// Appends what is available to `read`, up to `octets`. `false`: the connection has ended.
pub fn receive(mut stream: &UnixStream, read: &mut Vec<u8>, octets: usize) -> Result<bool> {
    let had = read.len();
    read.resize(had + octets, 0);
    let result = stream.read(&mut read[had..]);
    read.truncate(had + result.as_ref().map_or(0, |&octets| octets));
    match result {
        Ok(octets) => Ok(octets > 0),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
        Err(error) => Err(error).context("reading from the daemon"),
    }
}
