//! The ports of one worker by number, and how they share its frames. Both drivers of AF_XDP sockets
//! use it; opening and closing of sockets is theirs.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::error::OpenError;
use super::socket::Poller;
use super::{Options, PortInfo, PortState, XdpStatistics};
use crate::io::FrameAccounting;

/// Minimum frames that a port has to receive into, for any number of ports: a burst.
const FILL_LEAST: usize = 64;
/// Ports beyond those expected for which there is memory. There may be numbers for far more: a NIC's
/// queues are counted as if each could be in use, on every port that may come.
const LATER_MAX: usize = 1024;

/// An open port: a socket on one queue.
pub(in crate::io) trait SocketPort {
    /// The socket.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sets the number of frames to receive into; the number with which the port was opened is not
    /// exceeded. Excess frames are freed as packets arrive.
    fn set_fill(&mut self, frames: u32);

    /// The kernel's counters of the socket.
    fn statistics(&self) -> io::Result<XdpStatistics>;

    /// The interface state as noticed while sending. Makes no system call.
    fn tx_state(&self) -> PortState;

    /// The state of the port. Checks whether the interface still exists, which a port that only
    /// receives does not notice.
    fn info(&mut self) -> PortInfo;

    /// Whether poll(2) on the socket would send packets.
    fn sends_in_poll(&mut self) -> bool;

    /// Frames on the receiving and on the sending side.
    fn frames(&self) -> (usize, usize);

    /// Packets on the sending side that are neither sent nor dropped yet.
    fn sending(&self) -> usize;
}

/// The ports of one worker.
#[derive(Debug)]
pub(in crate::io) struct PortTable<P> {
    ports: Vec<Option<P>>,
    /// No port with this or a higher number is open.
    used: usize,
    /// Up to this number of open ports, each gets all the frames it wants.
    expected: usize,
    /// Up to this number of open ports, each gets at least a burst of frames.
    foreseen: usize,
    options: Options,
    /// By port: the kernel's counters of closed sockets.
    closed: Vec<XdpStatistics>,
    poller: Poller,
}

impl<P> PortTable<P> {
    /// Numbers for `ports` ports, none of them open. Returns the number of frames that a worker needs
    /// for `expected` ports and for a burst each of up to 1024 more.
    ///
    /// # Errors
    /// [`OpenError::BadOptions`]: ring sizes are not powers of two, or too many frames.
    pub(in crate::io) fn new(
        ports: usize,
        expected: usize,
        options: &Options,
    ) -> Result<(PortTable<P>, u32), OpenError> {
        let later = ports.saturating_sub(expected).min(LATER_MAX);
        let frames = frames(options, expected, later)?;
        let table = PortTable {
            ports: (0..ports).map(|_| None).collect(),
            used: 0,
            expected,
            foreseen: expected + later,
            options: options.clone(),
            closed: vec![XdpStatistics::default(); ports],
            poller: Poller::new(ports),
        };
        Ok((table, frames))
    }

    /// Options that all ports share.
    pub(in crate::io) fn options(&self) -> &Options {
        &self.options
    }

    /// One more than the highest number of an open port.
    #[inline]
    pub(in crate::io) fn used(&self) -> usize {
        self.used
    }

    /// An open port.
    #[inline]
    pub(in crate::io) fn get(&self, port: u16) -> Option<&P> {
        self.ports.get(usize::from(port))?.as_ref()
    }

    /// An open port.
    #[inline]
    pub(in crate::io) fn get_mut(&mut self, port: u16) -> Option<&mut P> {
        self.ports.get_mut(usize::from(port))?.as_mut()
    }

    /// The open ports with their numbers.
    #[inline]
    pub(in crate::io) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut P)> {
        let ports = self.ports[..self.used].iter_mut().enumerate();
        ports.filter_map(|(number, port)| Some((number as u16, port.as_mut()?)))
    }

    fn open(&self) -> impl Iterator<Item = &P> {
        self.ports.iter().flatten()
    }

    /// Checks that port number `port` exists and is not open.
    ///
    /// # Errors
    /// [`OpenError::PortInUse`].
    pub(in crate::io) fn check_free(&self, port: u16) -> Result<(), OpenError> {
        match self.ports.get(usize::from(port)) {
            Some(None) => Ok(()),
            _ => Err(OpenError::PortInUse(port)),
        }
    }

    /// Frames to receive into that the next port should get.
    pub(in crate::io) fn share_of_next(&self) -> usize {
        self.share(self.open().count() + 1)
    }

    /// Frames to receive into that the next port gets, on interface `ifname`, when `free` frames are
    /// free.
    ///
    /// # Errors
    /// [`OpenError::NoFrames`].
    pub(in crate::io) fn fill_of_next(
        &self,
        ifname: &str,
        free: usize,
    ) -> Result<usize, OpenError> {
        let no_frames =
            |free, wanted| Err(OpenError::NoFrames { ifname: ifname.to_owned(), free, wanted });
        let open = self.open().count() + 1;
        let mut fill = self.share(open);
        if open > self.expected {
            // A share for each that may still come, and what is needed beside the rings.
            let least = fill_least(&self.options);
            let reserve = self.options.reserve as usize;
            let kept = self.foreseen.saturating_sub(open) * least + reserve;
            let left = free.saturating_sub(kept);
            // One that nobody foresaw takes nothing that the others need.
            if open > self.foreseen && left < least {
                return no_frames(left, least);
            }
            fill = left.max(least).min(fill);
        }
        if free < fill { no_frames(free, fill) } else { Ok(fill) }
    }

    /// Frames that each of `open` ports has to receive into.
    fn share(&self, open: usize) -> usize {
        let fill = self.options.rings.fill as usize;
        match open > self.expected {
            false => fill,
            true => (fill * self.expected / open).max(fill_least(&self.options)),
        }
    }

    /// Call when a port number is used for another interface: drops the counters of closed sockets.
    pub(in crate::io) fn forget_statistics(&mut self, port: u16) {
        if let Some(closed) = self.closed.get_mut(usize::from(port)) {
            *closed = XdpStatistics::default();
        }
    }
}

impl<P: SocketPort> PortTable<P> {
    /// Adds an open port, with a number that [`Self::check_free`] has accepted. Other ports may get
    /// fewer frames.
    pub(in crate::io) fn insert(&mut self, number: u16, port: P) {
        self.ports[usize::from(number)] = Some(port);
        self.update();
    }

    /// Removes a port to close it. Other ports may get more frames.
    pub(in crate::io) fn take(&mut self, number: u16) -> Option<P> {
        let taken = self.ports.get_mut(usize::from(number))?.take()?;
        self.update();
        Some(taken)
    }

    fn update(&mut self) {
        let share = self.share(self.open().count()) as u32;
        self.ports.iter_mut().flatten().for_each(|port| port.set_fill(share));
        self.used = self.ports.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    }

    /// Keeps the counters of a socket that is about to be closed.
    pub(in crate::io) fn keep_statistics(&mut self, number: u16, port: &P) {
        if let (Ok(counted), Some(sum)) =
            (port.statistics(), self.closed.get_mut(usize::from(number)))
        {
            sum.add(&counted);
        }
    }

    /// The kernel's counters of a port, including sockets that were closed before.
    ///
    /// # Errors
    /// Errors of getsockopt(2); ENOENT for an invalid port number.
    pub(in crate::io) fn statistics(&self, port: u16) -> io::Result<XdpStatistics> {
        let unknown = || io::Error::from_raw_os_error(libc::ENOENT);
        let mut counted = *self.closed.get(usize::from(port)).ok_or_else(unknown)?;
        if let Some(port) = self.get(port) {
            counted.add(&port.statistics()?);
        }
        Ok(counted)
    }

    /// See [`PacketIo::wait`](crate::io::PacketIo::wait).
    pub(in crate::io) fn wait(
        &mut self,
        timeout: Duration,
        wakeup: Option<BorrowedFd<'_>>,
    ) -> bool {
        // In copy mode poll(2) sends from the TX ring and does not report the result (xsk_poll):
        // ports with packets to send are left out, and checked after the sleep.
        let ports = self.ports[..self.used].iter_mut().flatten();
        let fds = ports.filter_map(|port| (!port.sends_in_poll()).then(|| port.fd()));
        self.poller.wait(fds.chain(wakeup), timeout)
    }

    /// Frames of the open ports.
    pub(in crate::io) fn accounting(&self) -> FrameAccounting {
        let mut accounting = FrameAccounting::default();
        for port in self.open() {
            let (rx, tx) = port.frames();
            accounting.fill_and_rx += rx;
            accounting.tx_and_completion += tx;
            accounting.sending += port.sending();
        }
        accounting
    }
}

/// Minimum frames that a port has to receive into.
fn fill_least(options: &Options) -> usize {
    FILL_LEAST.min(options.rings.fill as usize)
}

/// Frames that `ports` ports need, and `later` more that share their memory.
fn frames(options: &Options, ports: usize, later: usize) -> Result<u32, OpenError> {
    let bad = |what: String| Err(OpenError::BadOptions(what));
    for (name, size) in [("fill", options.rings.fill), ("tx", options.rings.tx)] {
        if !size.is_power_of_two() || size > 1 << 16 {
            return bad(format!("{name} ring of {size} frames: a power of two up to 65536"));
        }
    }
    let per_port = u64::from(options.rings.fill) + u64::from(options.rings.tx);
    let later = (later * fill_least(options)) as u64;
    match u32::try_from(per_port * ports as u64 + later + u64::from(options.reserve)) {
        Ok(frames) if frames > 0 && frames <= 1 << 24 => Ok(frames),
        _ => bad(format!(
            "{ports} queues with {per_port} frames each, and {later} frames for others, are more \
             than 2^24: use smaller rings, or fewer ports"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::super::{BoundMode, PortConfig, RingSizes};
    use super::*;

    /// A port whose socket is a file that is always readable.
    #[derive(Debug)]
    struct Fake {
        file: File,
        fill: u32,
        has_packets_to_send: bool,
    }

    impl Fake {
        fn new() -> Fake {
            let file = File::open("/dev/zero").expect("exists");
            Fake { file, fill: 0, has_packets_to_send: false }
        }
    }

    impl SocketPort for Fake {
        fn fd(&self) -> BorrowedFd<'_> {
            self.file.as_fd()
        }

        fn set_fill(&mut self, frames: u32) {
            self.fill = frames;
        }

        fn statistics(&self) -> io::Result<XdpStatistics> {
            Ok(XdpStatistics { rx_dropped: 1, ..XdpStatistics::default() })
        }

        fn tx_state(&self) -> PortState {
            PortState::Up
        }

        fn info(&mut self) -> PortInfo {
            PortInfo {
                config: PortConfig::default(),
                mode: BoundMode::Copy,
                no_zerocopy: None,
                multi_buffer: false,
                state: PortState::Up,
            }
        }

        fn sends_in_poll(&mut self) -> bool {
            self.has_packets_to_send
        }

        fn frames(&self) -> (usize, usize) {
            (self.fill as usize, 0)
        }

        fn sending(&self) -> usize {
            0
        }
    }

    fn options(fill: u32) -> Options {
        Options { rings: RingSizes { fill, tx: 64 }, reserve: 256, ..Options::default() }
    }

    fn table(ports: usize, expected: usize, fill: u32) -> PortTable<Fake> {
        PortTable::new(ports, expected, &options(fill)).expect("good options").0
    }

    #[test]
    fn port_numbers_beyond_the_limit_take_no_memory() {
        let options = options(64);
        for (ports, expected, wanted) in [
            (4, 4, 4 * 128 + 256),
            (20, 4, 4 * 128 + 16 * 64 + 256),
            (16_128, 4, 4 * 128 + LATER_MAX * 64 + 256),
        ] {
            let (_table, frames) =
                PortTable::<Fake>::new(ports, expected, &options).expect("good options");
            assert_eq!(frames as usize, wanted, "{ports}");
        }
        // 2^24 is the limit for all of them together.
        let all = (1 << 17) - 2;
        assert!(frames(&options, all, 0).is_ok());
        let error = frames(&options, all, LATER_MAX).expect_err("too many").to_string();
        assert!(error.contains("2^24"), "{error}");
    }

    #[test]
    fn more_ports_than_expected_share_the_frames_of_the_expected_ones() {
        let mut table = table(4, 2, 256);
        for (port, share) in [(0, 256), (3, 256), (1, 256 * 2 / 3), (2, 128)] {
            table.check_free(port).expect("free");
            assert_eq!(table.share_of_next(), share);
            table.insert(port, Fake::new());
            assert!(table.iter_mut().all(|(_, port)| port.fill as usize == share));
            assert!(table.check_free(port).is_err(), "in use");
        }
        assert!(table.check_free(4).is_err(), "no such port");
        assert_eq!((table.used(), table.accounting().fill_and_rx), (4, 4 * 128));
        assert!(table.take(3).is_some() && table.take(3).is_none() && table.take(2).is_some());
        assert_eq!((table.used(), table.accounting().fill_and_rx), (2, 2 * 256));
    }

    #[test]
    fn a_port_takes_no_frames_that_others_need() {
        let mut table = table(3, 1, 256);
        let fill = |table: &PortTable<Fake>, free| table.fill_of_next("eth0", free).ok();
        assert_eq!((fill(&table, 255), fill(&table, 256)), (None, Some(256)));
        table.insert(0, Fake::new());
        // A burst for the third port and the reserve are kept, if there is more than a burst.
        assert_eq!((fill(&table, 63), fill(&table, 64)), (None, Some(64)));
        assert_eq!((fill(&table, 256 + 64 + 100), fill(&table, 1000)), (Some(100), Some(128)));
    }

    #[test]
    fn counters_of_closed_sockets_are_kept_until_the_number_is_reused() {
        let mut table = table(1, 1, 64);
        let counted = |table: &PortTable<Fake>| table.statistics(0).expect("a port").rx_dropped;
        for sockets in 1..=2 {
            table.insert(0, Fake::new());
            assert_eq!(counted(&table), sockets);
            let closed = table.take(0).expect("is open");
            table.keep_statistics(0, &closed);
            assert_eq!(counted(&table), sockets);
        }
        table.forget_statistics(0);
        assert_eq!(counted(&table), 0);
        assert!(table.statistics(1).is_err(), "no such port");
    }

    #[test]
    fn ports_with_packets_to_send_are_not_polled() {
        let mut table = table(1, 1, 64);
        table.insert(0, Fake::new());
        assert!(table.wait(Duration::ZERO, None));
        table.get_mut(0).expect("is open").has_packets_to_send = true;
        assert!(!table.wait(Duration::ZERO, None));
    }
}
