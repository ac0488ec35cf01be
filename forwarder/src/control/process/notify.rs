//! Messages to the service manager, by the protocol of sd_notify(3): ready, reloading, stopping, a line of
//! status, and the watchdog's pings.
//!
//! Nothing here blocks: the socket is non-blocking, and what the manager has no room for now is sent later.
//! Pings are not kept, because an old one says nothing about the present. The environment is read once, and
//! no program is executed that could inherit it.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The manager's socket: a path, or `@` and a name in the abstract namespace.
const SOCKET: &str = "NOTIFY_SOCKET";
/// The time in microseconds after which the manager restarts a process that sends no ping.
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// The process that is meant by it.
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// Maximum messages that wait until the manager has room; further ones are dropped.
const WAITING_MAX: usize = 64;
/// The start, or a reload, has ended.
const READY: &str = "READY=1\n";
/// Key of the line of status.
const STATUS: &str = "STATUS=";

/// The service manager, if there is one that wants to be notified.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Time after which a process without pings is restarted.
    watchdog: Option<Duration>,
    /// The last line of status.
    status: String,
    waiting: VecDeque<String>,
}

impl Notifier {
    /// The manager that the environment names. `None`: none, or one that cannot be notified, which the process
    /// works without.
    pub fn from_environment() -> Option<Notifier> {
        let address = address(&env::var_os(SOCKET)?)?;
        let text = |name| env::var(name).ok();
        let watchdog = watchdog(text(WATCHDOG_USEC), text(WATCHDOG_PID), std::process::id());
        Notifier::new(address, watchdog).ok()
    }

    fn new(address: SocketAddr, watchdog: Option<Duration>) -> io::Result<Notifier> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Notifier { socket, address, watchdog, status: String::new(), waiting: VecDeque::new() })
    }

    /// Time after which the manager restarts the process if it gets no ping.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The start, or a reload, has ended.
    pub fn ready(&mut self) {
        self.send(READY.into());
    }

    /// A reload begins, at `now_ns` of CLOCK_MONOTONIC.
    pub fn reloading(&mut self, now_ns: u64) {
        self.send(format!("RELOADING=1\nMONOTONIC_USEC={}\n", now_ns / 1000));
    }

    /// The process is about to end.
    pub fn stopping(&mut self) {
        self.send("STOPPING=1\n".into());
    }

    /// Sets the line of status; control characters become spaces.
    pub fn set_status(&mut self, status: &str) {
        let status: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if status == self.status {
            return;
        }
        // Only the newest is of use.
        self.waiting.retain(|message| !message.starts_with(STATUS));
        self.send(format!("{STATUS}{status}\n"));
        self.status = status;
    }

    /// Tells the watchdog that the process works. Returns whether the manager has it.
    pub fn ping(&mut self) -> bool {
        self.flush() && self.try_send("WATCHDOG=1\n").is_ok()
    }

    /// Sends what had to wait. Returns whether nothing waits any more.
    pub fn flush(&mut self) -> bool {
        while let Some(message) = self.waiting.front() {
            match self.try_send(message) {
                Err(error) if !is_gone(&error) => return false,
                // A manager that is gone is not told later what was news to the one before.
                Ok(()) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
        true
    }

    fn send(&mut self, message: String) {
        // Without READY the start or a reload would not end. It is sent once for each.
        if self.waiting.len() < WAITING_MAX || message == READY {
            self.waiting.push_back(message);
        }
        self.flush();
    }

    fn try_send(&self, message: &str) -> io::Result<()> {
        // A datagram is sent whole or not at all.
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(drop)
    }
}

/// Whether no manager receives messages. Otherwise it or the kernel has no room for one now, or a signal interrupted the
/// call, and it is sent again.
fn is_gone(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    matches!(error.kind(), ConnectionRefused | NotFound | PermissionDenied)
}

fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        // AF_VSOCK, by which a virtual machine notifies its host's manager, is for its first process.
        _ => None,
    }
}

/// The watchdog's time; `None`: it is off, or another process is meant.
fn watchdog(usec: Option<String>, pid: Option<String>, own_pid: u32) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
    let usec = usec?.parse().ok().filter(|usec| *usec > 0 && is_ours)?;
    Some(Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (UnixDatagram, Notifier) {
        let name = format!("@ferroute-test-{}-{name}", std::process::id());
        let address = address(OsStr::new(&name)).expect("an address");
        let manager = UnixDatagram::bind_addr(&address).expect("binds");
        manager.set_nonblocking(true).expect("is set");
        (manager, Notifier::new(address, None).expect("a socket"))
    }

    /// All messages that have arrived.
    fn received(manager: &UnixDatagram) -> Vec<String> {
        let mut octets = [0; 1000];
        let mut next = || manager.recv(&mut octets).ok().map(|n| octets[..n].to_vec());
        let text = |octets: Vec<u8>| String::from_utf8(octets).expect("text");
        std::iter::from_fn(&mut next).map(text).collect()
    }

    #[test]
    fn messages_are_those_of_the_protocol() {
        let (manager, mut notifier) = pair("protocol");
        notifier.set_status("2 ports\nREADY=0");
        notifier.ready();
        assert!(notifier.ping());
        notifier.set_status("2 ports\nREADY=0");
        notifier.reloading(1_234_567);
        notifier.stopping();
        assert_eq!(
            received(&manager),
            [
                "STATUS=2 ports READY=0\n",
                "READY=1\n",
                "WATCHDOG=1\n",
                "RELOADING=1\nMONOTONIC_USEC=1234\n",
                "STOPPING=1\n"
            ]
        );
    }

    #[test]
    fn a_manager_that_does_not_read_blocks_nothing_and_gets_the_rest_later() {
        let (manager, mut notifier) = pair("silent");
        while notifier.ping() {}
        notifier.set_status("old");
        notifier.ready();
        notifier.set_status("new");
        (0..1000).for_each(|_| notifier.reloading(0));
        assert!(notifier.waiting.len() <= WAITING_MAX);
        assert!(!notifier.ping() && !notifier.flush());
        let pings = received(&manager);
        assert!(pings.iter().all(|message| message == "WATCHDOG=1\n"));
        let mut later = Vec::new();
        while !notifier.flush() {
            later.extend(received(&manager));
        }
        later.extend(received(&manager));
        assert_eq!(later[..2], ["READY=1\n", "STATUS=new\n"]);
    }

    #[test]
    fn a_message_waits_unless_the_manager_is_gone() {
        for errno in [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::EINTR] {
            assert!(!is_gone(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
        for errno in [libc::ECONNREFUSED, libc::ENOENT, libc::EPERM, libc::EACCES] {
            assert!(is_gone(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
    }

    #[test]
    fn ready_waits_although_there_is_no_room_for_more() {
        let (manager, mut notifier) = pair("ready");
        while notifier.ping() {}
        (0..1000).for_each(|_| notifier.reloading(0));
        notifier.ready();
        let mut later = Vec::new();
        while !notifier.flush() {
            later.extend(received(&manager));
        }
        later.extend(received(&manager));
        assert_eq!(later.last().map(String::as_str), Some(READY));
    }

    #[test]
    fn a_manager_that_is_gone_is_forgotten() {
        let (manager, mut notifier) = pair("gone");
        drop(manager);
        notifier.ready();
        assert!(notifier.flush() && !notifier.ping());
    }

    #[test]
    fn only_sockets_of_this_machine_and_watchdogs_of_this_process_count() {
        for name in ["", "run/notify", "vsock:2:1"] {
            assert!(address(OsStr::new(name)).is_none(), "{name}");
        }
        assert!(address(OsStr::new("/run/systemd/notify")).is_some());
        let some = |text: &str| Some(text.to_owned());
        let ten = Some(Duration::from_secs(10));
        assert_eq!(watchdog(some("10000000"), some("7"), 7), ten);
        assert_eq!(watchdog(some("10000000"), None, 7), ten);
        for (usec, pid) in [("10000000", "8"), ("0", "7"), ("x", "7"), ("10000000", "")] {
            assert_eq!(watchdog(some(usec), some(pid), 7), None, "{usec} {pid}");
        }
        assert_eq!(watchdog(None, some("7"), 7), None);
    }
}
