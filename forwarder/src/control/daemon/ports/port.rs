//! One port: an interface that was named or matched by a pattern, and its state.
//!
//! ```text
//! Absent ──interface appears──▶ Opening ──▶ Active ──gone, unfit──▶ Closing ──▶ Absent, Waiting
//!                                  └─fails─▶ Waiting ──cause is gone──▶ Opening
//! ```
//! While it is not Active it is the kernel's: nothing is steered to userspace, and nothing is lost.

use std::time::{Duration, Instant};

use xdp_prog::{QueueCounters, REASONS};

use super::active::ActivePort;
use super::error::PortError;
use crate::control::steering::{PortProgram, QueueCounts};
use crate::io::af_xdp::BoundMode;
use crate::tables::Link;

/// The longest pause between two attempts to open a port is 2^6 seconds.
const RETRY_DOUBLINGS: u32 = 6;
/// A port that fails earlier than this after it was opened was not stable.
const STABLE_TIMEOUT: Duration = Duration::from_secs(10);
/// An unstable port is reopened at once this many times, then with the pauses of one that cannot be opened.
const PROMPT_REOPENINGS: u32 = 3;

/// The state of a port.
#[derive(Debug)]
pub(in crate::control::daemon) enum PortState {
    /// No interface of that name.
    Absent,
    /// The interface cannot be served as it is.
    Waiting(Waiting),
    /// The port thread opens sockets and attaches the program.
    Opening(Opening),
    /// Its frames come to userspace.
    Active(Box<ActivePort>),
    /// The port thread detaches the program and closes sockets.
    Closing(Closing),
}

/// Why a port waits, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control::daemon) struct Waiting {
    /// Why it is not served; printed after its name.
    pub(super) why: String,
    pub(super) until: Until,
}

/// When a waiting port is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// When an event reports that the obstacle is gone.
    Event,
    /// At a time; earlier when the MTU, in octets, has changed.
    Time { at: Instant, mtu: u32 },
    /// When this worker gives heartbeats again.
    Worker(usize),
}

/// State of a port that is being opened.
#[derive(Debug)]
pub(in crate::control::daemon) struct Opening {
    mtu: u32,
    /// Why it was waiting before.
    before: Option<String>,
}

/// State of a port that is being closed.
#[derive(Debug)]
pub(in crate::control::daemon) struct Closing {
    ifindex: u32,
    /// The program's counters, which count until it is detached, and its number of queues.
    counts: (QueueCounts, u32),
    /// The state afterwards; `None`: absent.
    then: Option<Waiting>,
}

/// When a port is tried again that could not be opened or is unstable.
#[derive(Debug)]
struct Attempts {
    /// Consecutive attempts that failed or led to an unstable port.
    count: u32,
    /// When the next one is due.
    next: Instant,
}

impl Attempts {
    fn none() -> Attempts {
        Attempts { count: 0, next: Instant::now() }
    }

    /// Each pause is twice the previous one, because some NICs reset their link each time.
    fn begin(&mut self, now: Instant) {
        self.count += 1;
        self.next = now + Duration::from_secs(1 << self.count.min(RETRY_DOUBLINGS));
    }

    /// An open port has failed by itself. Returns when it may be reopened.
    fn after_failure(&mut self, opened: Instant, now: Instant) -> Instant {
        if now.saturating_duration_since(opened) >= STABLE_TIMEOUT {
            self.count = 0;
        }
        if self.count <= PROMPT_REOPENINGS { now } else { self.next.max(now) }
    }
}

/// An interface that was named or matched by a pattern.
#[derive(Debug)]
pub(in crate::control::daemon) struct Port {
    /// The port's number at the workers.
    pub(in crate::control::daemon) index: u16,
    /// Name of its interface.
    pub(in crate::control::daemon) ifname: String,
    /// A pattern matched it; it was not named.
    pub(in crate::control::daemon) matched: bool,
    /// Since when its number has been free, if it is.
    pub(super) idle_since: Instant,
    /// The workers are still to be notified that the number is this interface's, see `WorkerCalls::rename`.
    pub(super) naming: Option<u64>,
    /// It has been open before.
    pub(super) was_open: bool,
    mac: [u8; 6],
    /// Counts of its detached programs, summed over all queues.
    xdp_counted_before: QueueCounters,
    attempts: Attempts,
    state: PortState,
}

impl Port {
    /// A port without an interface.
    pub(super) fn new(index: u16, ifname: &str) -> Port {
        Port {
            index,
            ifname: ifname.to_owned(),
            matched: false,
            idle_since: Instant::now(),
            naming: None,
            was_open: false,
            mac: [0; 6],
            xdp_counted_before: [0; REASONS],
            attempts: Attempts::none(),
            state: PortState::Absent,
        }
    }

    /// A port without an interface, for a name that a pattern matches.
    pub(super) fn matched(index: u16, ifname: &str) -> Port {
        Port { matched: true, ..Port::new(index, ifname) }
    }

    /// Its state.
    pub(super) fn state(&self) -> &PortState {
        &self.state
    }

    /// Why it is or is not served, as `status` prints it.
    pub(in crate::control::daemon) fn describe(&self) -> &str {
        match &self.state {
            PortState::Absent => "absent",
            PortState::Opening(_) => "opening",
            PortState::Active(_) => "forwarding",
            PortState::Waiting(waiting) => &waiting.why,
            PortState::Closing(closing) => closing.then.as_ref().map_or("absent", |then| &then.why),
        }
    }

    /// Whether it is shown to users: not only a number that another interface may take.
    pub(in crate::control::daemon) fn is_listed(&self) -> bool {
        !self.matched || !matches!(self.state, PortState::Absent)
    }

    /// Its hardware address, as last known.
    pub(in crate::control::daemon) fn mac(&self) -> [u8; 6] {
        self.active().map_or(self.mac, ActivePort::mac)
    }

    /// What it has while it is active.
    pub(in crate::control::daemon) fn active(&self) -> Option<&ActivePort> {
        match &self.state {
            PortState::Active(active) => Some(active),
            _ => None,
        }
    }

    pub(in crate::control::daemon) fn active_mut(&mut self) -> Option<&mut ActivePort> {
        match &mut self.state {
            PortState::Active(active) => Some(active),
            _ => None,
        }
    }

    /// Whether its frames are redirected to userspace.
    pub(in crate::control::daemon) fn is_active(&self) -> bool {
        self.active().is_some()
    }

    /// Ifindex of its interface while it is active; 0 otherwise.
    pub(in crate::control::daemon) fn ifindex(&self) -> u32 {
        self.active().map_or(0, |active| active.ifindex)
    }

    /// Ifindex of its interface while packets arrive on it or may still be in rings.
    pub(super) fn table_ifindex(&self) -> Option<u32> {
        match &self.state {
            PortState::Active(active) => Some(active.ifindex),
            PortState::Closing(closing) => Some(closing.ifindex),
            _ => None,
        }
    }

    /// RX queues served.
    pub(in crate::control::daemon) fn queues(&self) -> u32 {
        self.active().map_or(0, |active| active.queues)
    }

    /// TX queues: the first `tx_queues` of the served queues can send.
    pub(in crate::control::daemon) fn tx_queues(&self) -> u32 {
        self.active().map_or(0, |active| active.tx_queues)
    }

    /// How its sockets are bound.
    pub(in crate::control::daemon) fn bind_mode(&self) -> Option<BoundMode> {
        self.active().map(|active| active.bind_mode)
    }

    /// Why its sockets are not bound zero-copy, if they are not.
    pub(in crate::control::daemon) fn no_zerocopy(&self) -> Option<&str> {
        self.active()?.no_zerocopy.as_deref()
    }

    /// Whether packets may take several frames.
    pub(in crate::control::daemon) fn multi_buffer(&self) -> bool {
        self.active().is_some_and(|active| active.multi_buffer)
    }

    /// What its programs did with frames: the counters of the attached one with its number of queues, and
    /// the counts of earlier ones by [`xdp_prog::Reason`].
    pub(in crate::control::daemon) fn xdp_counts(
        &self,
    ) -> (Option<(QueueCounts, u32)>, QueueCounters) {
        let counts = match &self.state {
            PortState::Active(active) => Some((active.program.counts(), active.queues)),
            PortState::Closing(closing) => Some(closing.counts.clone()),
            _ => None,
        };
        (counts, self.xdp_counted_before)
    }

    /// The attached program.
    pub(in crate::control::daemon) fn program(&self) -> Option<&PortProgram> {
        self.active().map(|active| &active.program)
    }

    /// Message about queues without a socket that get packets, and what to do.
    pub(in crate::control::daemon) fn unserved(&self) -> Option<String> {
        self.active()?.unserved_queues(&self.ifname)
    }

    /// Whether it waits for something without an event that may have happened.
    pub(super) fn wants_retry(&self, now: Instant, is_alive: &dyn Fn(usize) -> bool) -> bool {
        let PortState::Waiting(waiting) = &self.state else { return false };
        match waiting.until {
            Until::Event => false,
            Until::Time { at, .. } => now >= at,
            Until::Worker(worker) => is_alive(worker),
        }
    }

    /// Whether it is to be opened on an interface of this MTU, in octets, that has no obstacle.
    pub(super) fn is_due(&self, mtu: u32, now: Instant, is_alive: &dyn Fn(usize) -> bool) -> bool {
        match &self.state {
            PortState::Absent => true,
            PortState::Waiting(waiting) => match waiting.until {
                Until::Event => true,
                Until::Time { at, mtu: before } => now >= at || mtu != before,
                Until::Worker(worker) => is_alive(worker),
            },
            _ => false,
        }
    }

    /// Changes to Opening.
    pub(super) fn begin_opening(&mut self, link: &Link) {
        self.attempts.begin(Instant::now());
        self.mac = link.mac;
        let before = match &self.state {
            PortState::Waiting(waiting) => Some(waiting.why.clone()),
            _ => None,
        };
        self.state = PortState::Opening(Opening { mtu: link.mtu, before });
    }

    /// Changes to Active, or to Waiting if it could not be opened. Returns whether this is to be logged.
    pub(super) fn end_opening(&mut self, result: Result<Box<ActivePort>, &PortError>) -> bool {
        let (mtu, before) = match &mut self.state {
            PortState::Opening(opening) => (opening.mtu, opening.before.take()),
            _ => (0, None),
        };
        match result {
            Ok(active) => {
                self.state = PortState::Active(active);
                self.was_open = true;
                true
            }
            Err(error) => {
                let until = match error {
                    PortError::WorkerStalled(worker) => Until::Worker(*worker),
                    _ => Until::Time { at: self.attempts.next, mtu },
                };
                self.wait(Waiting { why: error.to_string(), until });
                before.as_deref() != Some(self.describe())
            }
        }
    }

    /// Changes to Waiting; it was not open. Returns whether this is to be logged.
    pub(super) fn wait(&mut self, waiting: Waiting) -> bool {
        let news = self.describe() != waiting.why;
        self.state = PortState::Waiting(waiting);
        news
    }

    /// Its interface is gone or is no longer to be a port. Returns whether there was one. An open port must
    /// be closed instead.
    pub(super) fn forget_interface(&mut self) -> bool {
        let had_one = matches!(self.state, PortState::Waiting(_));
        if had_one {
            self.attempts = Attempts::none();
            self.idle_since = Instant::now();
            self.state = PortState::Absent;
        }
        had_one
    }

    /// Changes to Closing, because of its interface or the user. Returns what is to be closed; `None`: it
    /// is not open.
    pub(super) fn begin_closing(&mut self, then: Option<Waiting>) -> Option<Box<ActivePort>> {
        let active = self.active()?;
        let (ifindex, counts) = (active.ifindex, (active.program.counts(), active.queues));
        self.mac = self.mac();
        self.attempts = Attempts::none();
        self.idle_since = Instant::now();
        match std::mem::replace(
            &mut self.state,
            PortState::Closing(Closing { ifindex, counts, then }),
        ) {
            PortState::Active(active) => Some(active),
            _ => None,
        }
    }

    /// As [`Port::begin_closing`], to be reopened. `itself`: the port itself failed, not its interface
    /// changed; pauses grow if this goes on.
    pub(super) fn begin_reopening(&mut self, why: String, itself: bool) -> Option<Box<ActivePort>> {
        let (opened, mtu) = self.active().map(|active| (active.opened, active.mtu))?;
        let now = Instant::now();
        let mut attempts = std::mem::replace(&mut self.attempts, Attempts::none());
        let at = if itself { attempts.after_failure(opened, now) } else { now };
        let active = self.begin_closing(Some(Waiting { why, until: Until::Time { at, mtu } }));
        if itself {
            self.attempts = attempts;
        }
        active
    }

    /// Changes from Closing to the next state.
    pub(super) fn end_closing(&mut self) {
        if let PortState::Closing(closing) = &mut self.state {
            let then = closing.then.take();
            add_counts(&mut self.xdp_counted_before, &closing.counts);
            self.idle_since = Instant::now();
            self.state = then.map_or(PortState::Absent, PortState::Waiting);
        }
    }
}

/// Adds up a program's counts of its queues.
pub(in crate::control::daemon) fn add_counts(
    sum: &mut QueueCounters,
    (counts, queues): &(QueueCounts, u32),
) {
    for queue in counts.queues(*queues).unwrap_or_default() {
        sum.iter_mut().zip(queue).for_each(|(sum, count)| *sum += count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: &dyn Fn(usize) -> bool = &|_| true;
    const STALLED: &dyn Fn(usize) -> bool = &|_| false;
    const MTU: u32 = 1500;

    fn link(ifindex: u32) -> Link {
        Link { mtu: MTU, mac: [2; 6], ..Link::new(ifindex, "eth0") }
    }

    fn failed(port: &mut Port, error: &PortError) -> bool {
        port.begin_opening(&link(5));
        assert_eq!(port.describe(), "opening");
        port.end_opening(Err(error))
    }

    #[test]
    fn a_port_that_cannot_be_opened_says_why_once_and_is_tried_after_growing_pauses() {
        let mut port = Port::new(0, "eth0");
        assert!(port.is_due(MTU, Instant::now(), STALLED));
        let mut pause = Duration::ZERO;
        for attempt in 0..3 {
            let before = Instant::now();
            assert_eq!(failed(&mut port, &PortError::Gone), attempt == 0);
            assert_eq!((port.describe(), port.is_active()), ("is gone", false));
            let PortState::Waiting(Waiting { until: Until::Time { at, mtu }, .. }) = *port.state()
            else {
                panic!("{port:?}")
            };
            assert_eq!(mtu, MTU);
            assert!(at - before > pause, "{attempt}");
            pause = at - before;
            assert!(!port.wants_retry(before, ALIVE) && port.wants_retry(at, ALIVE));
            // It may be fit with another MTU.
            assert!(!port.is_due(MTU, before, ALIVE) && port.is_due(MTU + 1, before, ALIVE));
        }
        assert!(failed(&mut port, &PortError::Unfit("is a VLAN".into())), "another cause is news");
    }

    #[test]
    fn a_port_of_a_worker_that_does_not_answer_is_tried_when_it_does() {
        let mut port = Port::new(0, "eth0");
        failed(&mut port, &PortError::WorkerStalled(1));
        let far = Instant::now() + Duration::from_secs(3600);
        assert!(!port.wants_retry(far, STALLED) && !port.is_due(MTU, far, STALLED));
        let only_1 = |worker| worker == 1;
        let now = Instant::now();
        assert!(port.wants_retry(now, &only_1) && port.is_due(MTU, now, &only_1));
    }

    #[test]
    fn an_obstacle_is_news_once_and_an_event_ends_it() {
        let mut port = Port::new(0, "eth0");
        let obstacle = || Waiting { why: "down".into(), until: Until::Event };
        assert!(port.wait(obstacle()));
        assert!(!port.wait(obstacle()));
        assert!(!port.wants_retry(Instant::now(), ALIVE));
        assert!(port.is_due(MTU, Instant::now(), STALLED));
    }

    #[test]
    fn a_matched_interface_that_is_gone_is_not_listed() {
        let mut port = Port::matched(3, "tap0");
        assert!(!port.is_listed());
        failed(&mut port, &PortError::Gone);
        assert!(port.is_listed());
        assert!(port.forget_interface() && !port.is_listed());
        assert!(!port.forget_interface(), "there was none any more");
        assert!(Port::new(0, "eth0").is_listed(), "it was named");
    }

    #[test]
    fn a_port_that_is_not_open_cannot_be_closed() {
        let mut port = Port::new(0, "eth0");
        assert!(port.begin_closing(None).is_none());
        port.begin_opening(&link(5));
        assert!(
            port.begin_closing(None).is_none() && port.begin_reopening("".into(), true).is_none()
        );
        assert_eq!(port.describe(), "opening");
        port.end_closing();
        assert_eq!(port.describe(), "opening");
    }

    #[test]
    fn a_port_that_fails_by_itself_is_reopened_at_once_only_a_few_times() {
        let now = Instant::now();
        let mut attempts = Attempts::none();
        for attempt in 1..=5 {
            attempts.begin(now);
            let at = attempts.after_failure(now, now);
            assert_eq!(at == now, attempt <= PROMPT_REOPENINGS, "{attempt}");
        }
        // A port that was stable for a while starts over.
        assert_eq!(attempts.after_failure(now, now + STABLE_TIMEOUT), now + STABLE_TIMEOUT);
        assert_eq!(attempts.count, 0);
    }
}
