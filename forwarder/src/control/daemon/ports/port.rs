//! One port: an interface that was named or that a pattern takes, and how far it is from forwarding.
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
/// A port that failed sooner after it was opened was never sound.
const SOUND: Duration = Duration::from_secs(10);
/// A port that is not sound is opened anew at once so many times, then with the pauses of one that
/// cannot be opened.
const PROMPT_REOPENINGS: u32 = 3;

/// How far a port is.
#[derive(Debug)]
pub(in crate::control::daemon) enum PortState {
    /// No interface of that name.
    Absent,
    /// The interface cannot be served as it is.
    Waiting(Waiting),
    /// The thread for it opens sockets and attaches the program.
    Opening(Opening),
    /// Its frames come to userspace.
    Active(Box<ActivePort>),
    /// The thread for it detaches the program and closes sockets.
    Closing(Closing),
}

/// What a port waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control::daemon) struct Waiting {
    /// Why it is not served, to stand behind its name.
    pub(super) why: String,
    pub(super) until: Until,
}

/// When a port that waits is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// When an obstacle has gone, which an event tells.
    Event,
    /// At a time; earlier when the MTU, in octets, is another one.
    Time { at: Instant, mtu: u32 },
    /// When this worker gives heartbeats again.
    Worker(usize),
}

/// What is known of a port that is being opened.
#[derive(Debug)]
pub(in crate::control::daemon) struct Opening {
    mtu: u32,
    /// Why it was waiting before.
    before: Option<String>,
}

/// What is known of a port that is being closed.
#[derive(Debug)]
pub(in crate::control::daemon) struct Closing {
    ifindex: u32,
    /// What its program counts until it is detached, and on how many queues.
    counts: (QueueCounts, u32),
    /// What it waits for afterwards; `None`: for an interface.
    then: Option<Waiting>,
}

/// When a port is tried again that could not be opened, or does not stay sound.
#[derive(Debug)]
struct Attempts {
    /// In a row, that failed or led to a port that was not sound.
    count: u32,
    /// When the next is due.
    next: Instant,
}

impl Attempts {
    fn none() -> Attempts {
        Attempts { count: 0, next: Instant::now() }
    }

    /// Each pause is twice as long as the one before, for some NICs reset their link each time.
    fn begin(&mut self, now: Instant) {
        self.count += 1;
        self.next = now + Duration::from_secs(1 << self.count.min(RETRY_DOUBLINGS));
    }

    /// An open port has failed by itself. When it may be opened anew.
    fn after_failure(&mut self, opened: Instant, now: Instant) -> Instant {
        if now.saturating_duration_since(opened) >= SOUND {
            self.count = 0;
        }
        if self.count <= PROMPT_REOPENINGS { now } else { self.next.max(now) }
    }
}

/// An interface that was named, or that a pattern takes.
#[derive(Debug)]
pub(in crate::control::daemon) struct Port {
    /// Number among the workers' ports.
    pub(in crate::control::daemon) index: u16,
    /// Of its interface.
    pub(in crate::control::daemon) ifname: String,
    /// A pattern took it.
    pub(in crate::control::daemon) matched: bool,
    /// Since when its number has been free, if it is.
    pub(super) idle_since: Instant,
    /// Workers are still to be told that the number is this interface's, see `WorkerCalls::rename`.
    pub(super) naming: Option<u64>,
    mac: [u8; 6],
    /// What its programs have counted that were detached, all queues together.
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
            mac: [0; 6],
            xdp_counted_before: [0; REASONS],
            attempts: Attempts::none(),
            state: PortState::Absent,
        }
    }

    /// The same, of an interface that a pattern takes.
    pub(super) fn matched(index: u16, ifname: &str) -> Port {
        Port { matched: true, ..Port::new(index, ifname) }
    }

    /// How far it is.
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

    /// Whether it is one for people: not only a place that another interface may take.
    pub(in crate::control::daemon) fn is_listed(&self) -> bool {
        !self.matched || !matches!(self.state, PortState::Absent)
    }

    /// Its hardware address, as far as it has been known.
    pub(in crate::control::daemon) fn mac(&self) -> [u8; 6] {
        self.active().map_or(self.mac, ActivePort::mac)
    }

    /// What it is while it is served.
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

    /// Whether its frames come to userspace.
    pub(in crate::control::daemon) fn is_active(&self) -> bool {
        self.active().is_some()
    }

    /// Of the interface that it is while it is served; 0: of none.
    pub(in crate::control::daemon) fn ifindex(&self) -> u32 {
        self.active().map_or(0, |active| active.ifindex)
    }

    /// Of the interface by which packets come, or of which some may still lie in rings.
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

    /// Of those the first so many can send.
    pub(in crate::control::daemon) fn tx_queues(&self) -> u32 {
        self.active().map_or(0, |active| active.tx_queues)
    }

    /// How its sockets are bound.
    pub(in crate::control::daemon) fn bind_mode(&self) -> Option<BoundMode> {
        self.active().map(|active| active.bind_mode)
    }

    /// Why they are not bound zero-copy, when they are not.
    pub(in crate::control::daemon) fn no_zerocopy(&self) -> Option<&str> {
        self.active()?.no_zerocopy.as_deref()
    }

    /// Whether packets may take several frames.
    pub(in crate::control::daemon) fn multi_buffer(&self) -> bool {
        self.active().is_some_and(|active| active.multi_buffer)
    }

    /// What its programs have done with frames: one that counts still, with the number of its queues,
    /// and those before it by [`xdp_prog::Reason`].
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

    /// Queues without a socket that get packets, and what to do.
    pub(in crate::control::daemon) fn unserved(&self) -> Option<String> {
        self.active()?.unserved_queues(&self.ifname)
    }

    /// Whether it waits for something that no event tells of, and that may have come.
    pub(super) fn wants_retry(&self, now: Instant, is_alive: &dyn Fn(usize) -> bool) -> bool {
        let PortState::Waiting(waiting) = &self.state else { return false };
        match waiting.until {
            Until::Event => false,
            Until::Time { at, .. } => now >= at,
            Until::Worker(worker) => is_alive(worker),
        }
    }

    /// Whether it is to be opened on an interface of this MTU that has no obstacle.
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

    /// Is going to be opened.
    pub(super) fn begin_opening(&mut self, link: &Link) {
        self.attempts.begin(Instant::now());
        self.mac = link.mac;
        let before = match &self.state {
            PortState::Waiting(waiting) => Some(waiting.why.clone()),
            _ => None,
        };
        self.state = PortState::Opening(Opening { mtu: link.mtu, before });
    }

    /// Is open, or could not be opened. Whether that is news.
    pub(super) fn end_opening(&mut self, result: Result<Box<ActivePort>, &PortError>) -> bool {
        let (mtu, before) = match &mut self.state {
            PortState::Opening(opening) => (opening.mtu, opening.before.take()),
            _ => (0, None),
        };
        match result {
            Ok(active) => {
                self.state = PortState::Active(active);
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

    /// Waits, without having been open. Whether that is news.
    pub(super) fn wait(&mut self, waiting: Waiting) -> bool {
        let news = self.describe() != waiting.why;
        self.state = PortState::Waiting(waiting);
        news
    }

    /// Its interface is gone, or not to be a port any longer. Whether there was one. One that is open
    /// is to be closed instead.
    pub(super) fn forget_interface(&mut self) -> bool {
        let had_one = matches!(self.state, PortState::Waiting(_));
        if had_one {
            self.attempts = Attempts::none();
            self.idle_since = Instant::now();
            self.state = PortState::Absent;
        }
        had_one
    }

    /// Begins to be closed, because of its interface or of the user. What is to be closed; `None`: it
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

    /// The same, to be opened anew. `itself`: it is the port that failed, not its interface that
    /// became another one, so that pauses grow should this go on.
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

    /// Is closed.
    pub(super) fn end_closing(&mut self) {
        if let PortState::Closing(closing) = &mut self.state {
            let then = closing.then.take();
            add_counts(&mut self.xdp_counted_before, &closing.counts);
            self.idle_since = Instant::now();
            self.state = then.map_or(PortState::Absent, PortState::Waiting);
        }
    }
}

/// Adds what a program has counted on its queues.
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
            // With another MTU it may be fit.
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
    fn an_obstacle_is_news_once_and_its_end_is_told_by_an_event() {
        let mut port = Port::new(0, "eth0");
        let obstacle = || Waiting { why: "down".into(), until: Until::Event };
        assert!(port.wait(obstacle()));
        assert!(!port.wait(obstacle()));
        assert!(!port.wants_retry(Instant::now(), ALIVE));
        assert!(port.is_due(MTU, Instant::now(), STALLED));
    }

    #[test]
    fn the_place_of_a_matched_interface_that_is_gone_is_not_listed() {
        let mut port = Port::matched(3, "tap0");
        assert!(!port.is_listed());
        failed(&mut port, &PortError::Gone);
        assert!(port.is_listed());
        assert!(port.forget_interface() && !port.is_listed());
        assert!(!port.forget_interface(), "there was none any more");
        assert!(Port::new(0, "eth0").is_listed(), "somebody named it");
    }

    #[test]
    fn what_is_not_open_cannot_be_closed() {
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
    fn a_port_that_fails_by_itself_is_reopened_at_once_but_not_time_and_again() {
        let now = Instant::now();
        let mut attempts = Attempts::none();
        for attempt in 1..=5 {
            attempts.begin(now);
            let at = attempts.after_failure(now, now);
            assert_eq!(at == now, attempt <= PROMPT_REOPENINGS, "{attempt}");
        }
        // One that was sound for a while begins anew.
        assert_eq!(attempts.after_failure(now, now + SOUND), now + SOUND);
        assert_eq!(attempts.count, 0);
    }
}
