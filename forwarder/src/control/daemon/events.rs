//! Subscriptions: events go to a bounded queue for each client that wants them, and the client's thread writes them.
//!
//! Publishing an event does not wait: an event for which a queue has no room is counted, and the client gets the count.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, info, warn};

use super::relay::Relay;
use super::snapshot::View;
use crate::control::api::event::Event;
use crate::control::api::server::{Answer, Follow};
use crate::control::api::subscribe::{
    Body, DropsChange, Line, SubscribeGrant, SubscribeRequest, SubscriptionSnapshot, Topic,
};
use crate::control::api::{DropsReport, Response};
use crate::worker::slow_path::Wakeup;

/// Subscriptions at a time: so few that other clients find a place.
const SUBSCRIPTIONS_MAX: usize = 16;
/// Events that wait for one client: far more than happen while a client that reads is busy.
const QUEUE: usize = 1024;
/// A client that reads nothing for this long, while there is something to read, is disconnected.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the client's thread looks whether the control thread is late.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a stopping daemon waits for clients to read the last lines.
const LAST_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval between checks whether they have.
const LAST_INTERVAL: Duration = Duration::from_millis(5);

/// An event, and when it happened.
#[derive(Debug)]
struct Stamped {
    /// From 1, of all events.
    number: u64,
    time: Timestamp,
    event: Event,
}

/// The queue of one subscription.
#[derive(Debug)]
struct Queue {
    id: u64,
    request: SubscribeRequest,
    sender: Sender<Arc<Stamped>>,
    lost: AtomicU64,
    wakeup: Arc<Wakeup>,
}

impl Queue {
    /// Does not block.
    fn push(&self, stamped: &Arc<Stamped>) {
        if self.request.has(stamped.event.topic()) {
            if self.sender.try_send(Arc::clone(stamped)).is_err() {
                self.lost.fetch_add(1, Relaxed);
            }
            self.wakeup.wake();
        }
    }
}

fn log(event: &Event) {
    let (kind, interface) = (event.kind(), event.interface());
    match event.is_trouble() {
        true => warn!(event = kind, interface, "{event}"),
        false => info!(event = kind, interface, "{event}"),
    }
}

/// Takes events, and passes them to those who have subscribed.
#[derive(Debug, Default)]
pub(super) struct Events {
    queues: ArcSwap<Vec<Arc<Queue>>>,
    /// Number of events until now.
    count: AtomicU64,
    subscriptions: AtomicUsize,
    next_id: AtomicU64,
    stopping: AtomicBool,
}

impl Events {
    /// Writes an event to the log, and passes it to subscribers. Does not block.
    pub(super) fn say(&self, event: Event) {
        log(&event);
        self.pass(event);
    }

    /// Passes an event to subscribers, and to the log if it is about a port or a stall, or the log is detailed. Does not
    /// block.
    pub(super) fn publish(&self, event: Event) {
        match event {
            Event::Port(_) | Event::Worker { .. } | Event::ControlThread { .. } => log(&event),
            _ => debug!(event = event.kind(), interface = event.interface(), "{event}"),
        }
        self.pass(event);
    }

    fn pass(&self, event: Event) {
        let number = self.count.fetch_add(1, Relaxed) + 1;
        let queues = self.queues.load();
        if queues.is_empty() {
            return;
        }
        let stamped = Arc::new(Stamped { number, time: Timestamp::now(), event });
        queues.iter().for_each(|queue| queue.push(&stamped));
    }

    /// Number of events until now: what is read after it includes them.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Lets subscribers read the events that wait, and tells them that no more follow.
    pub(super) fn finish(&self) {
        self.stopping.store(true, Relaxed);
        self.queues.load().iter().for_each(|queue| queue.wakeup.wake());
        let end = Instant::now() + LAST_TIMEOUT;
        while self.subscriptions.load(Relaxed) > 0 && Instant::now() < end {
            std::thread::sleep(LAST_INTERVAL);
        }
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Result<(Arc<Queue>, Receiver<Arc<Stamped>>), String> {
        let wakeup = Wakeup::new().map_err(|error| format!("subscribe: {error}; try again"))?;
        let more = |count| (count < SUBSCRIPTIONS_MAX).then_some(count + 1);
        self.subscriptions.fetch_update(Relaxed, Relaxed, more).map_err(|count| {
            format!(
                "{count} subscriptions are running, which is the maximum; end one, and try again"
            )
        })?;
        let (sender, receiver) = bounded(QUEUE);
        let id = self.next_id.fetch_add(1, Relaxed);
        let queue = Arc::new(Queue { id, request, sender, lost: AtomicU64::new(0), wakeup });
        self.queues
            .rcu(|queues| queues.iter().cloned().chain([Arc::clone(&queue)]).collect::<Vec<_>>());
        Ok((queue, receiver))
    }

    fn unsubscribe(&self, id: u64) {
        self.queues.rcu(|queues| {
            queues.iter().filter(|queue| queue.id != id).cloned().collect::<Vec<_>>()
        });
        self.subscriptions.fetch_sub(1, Relaxed);
    }
}

impl Relay {
    /// Subscribes a client.
    pub(super) fn subscribe(&self, request: SubscribeRequest) -> Answer {
        if let Err(why) = request.check() {
            return Response::error(why).into();
        }
        let (queue, receiver) = match self.view.events.subscribe(request.clone()) {
            Ok(subscribed) => subscribed,
            Err(why) => return Response::error(why).into(),
        };
        let SubscribeRequest { topics, interval_ms } = request;
        let grant = SubscribeGrant { topics, interval_ms, queue: QUEUE as u64 };
        let subscription = Subscription {
            relay: self.clone(),
            queue,
            receiver,
            seq: 0,
            known: 0,
            drops: DropsReport::default(),
            is_stalled: false,
        };
        Answer::Follow(Response::Subscribe(grant), Box::new(subscription))
    }
}

/// One subscription, on the thread of its client. Dropping it ends it.
struct Subscription {
    relay: Relay,
    queue: Arc<Queue>,
    receiver: Receiver<Arc<Stamped>>,
    /// Number of lines.
    seq: u64,
    /// The client's state includes the events up to this number.
    known: u64,
    /// When the last line of drops was made.
    drops: DropsReport,
    /// The control thread is late, and the client knows.
    is_stalled: bool,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.relay.view.events.unsubscribe(self.queue.id);
    }
}

impl Follow for Subscription {
    /// Writes lines until the client is gone or reads no more, or the daemon stops.
    fn follow(mut self: Box<Self>, stream: &UnixStream) -> io::Result<()> {
        stream.set_write_timeout(Some(READ_TIMEOUT))?;
        self.write_snapshot(stream)?;
        let interval = Duration::from_millis(self.queue.request.interval_ms);
        let mut due = Instant::now() + interval;
        loop {
            self.queue.wakeup.clear();
            // Before the queue is read: events from before the stop are read, too.
            let stopping = self.view().events.stopping.load(Relaxed);
            self.write_events(stream)?;
            if stopping {
                return self.write(stream, Timestamp::now(), Body::End {});
            }
            self.look_at_control_thread(stream)?;
            if Instant::now() >= due {
                self.write_counts(stream)?;
                // A client that was late gets one line, not all that it has missed.
                due = (due + interval).max(Instant::now());
            }
            if self.wait(stream, due)? {
                return Ok(());
            }
        }
    }
}

impl Subscription {
    fn view(&self) -> &Arc<View> {
        &self.relay.view
    }

    fn has(&self, topic: Topic) -> bool {
        self.queue.request.has(topic)
    }

    fn write_snapshot(&mut self, stream: &UnixStream) -> io::Result<()> {
        let (snapshot, status) = self.relay.status();
        self.known = snapshot.events;
        let counters = self.has(Topic::Counters).then(|| snapshot.counters());
        let drops = self.has(Topic::Drops).then(|| snapshot.drops());
        self.drops = drops.clone().unwrap_or_default();
        let body = SubscriptionSnapshot { status, counters, drops };
        self.write(stream, Timestamp::now(), Body::Snapshot(Box::new(body)))
    }

    /// Writes the events that wait, and how many did not find room since.
    fn write_events(&mut self, stream: &UnixStream) -> io::Result<()> {
        // As many as the queue holds: with a client that reads slowly more may come meanwhile.
        for _ in 0..QUEUE {
            let Ok(stamped) = self.receiver.try_recv() else { break };
            if stamped.number > self.known {
                self.write(stream, stamped.time, Body::Event(stamped.event.clone()))?;
            }
        }
        match self.queue.lost.swap(0, Relaxed) {
            0 => Ok(()),
            lost => self.write(stream, Timestamp::now(), Body::Lost(lost)),
        }
    }

    fn write_counts(&mut self, stream: &UnixStream) -> io::Result<()> {
        if self.has(Topic::Counters) {
            let report = self.relay.snapshot().counters();
            self.write(stream, Timestamp::now(), Body::Counters(Box::new(report)))?;
        }
        if self.has(Topic::Drops) {
            let now = self.view().snapshot().drops();
            let change = DropsChange::between(&self.drops, &now);
            self.drops = now;
            if !change.is_empty() {
                self.write(stream, Timestamp::now(), Body::Drops(change))?;
            }
        }
        Ok(())
    }

    /// The control thread cannot report that it does not run.
    fn look_at_control_thread(&mut self, stream: &UnixStream) -> io::Result<()> {
        if !self.has(Topic::Workers) {
            return Ok(());
        }
        let snapshot = self.view().snapshot();
        let stalled = snapshot.is_steering && snapshot.is_control_silent();
        if std::mem::replace(&mut self.is_stalled, stalled) == stalled {
            return Ok(());
        }
        self.write(stream, Timestamp::now(), Body::Event(Event::ControlThread { stalled }))
    }

    /// Waits for the next event, or until `due`. Returns whether the client is gone; one that has only closed its writing side
    /// still reads.
    fn wait(&self, stream: &UnixStream, due: Instant) -> io::Result<bool> {
        let has_counts = self.has(Topic::Counters) || self.has(Topic::Drops);
        let left = due.saturating_duration_since(Instant::now());
        let timeout = if has_counts { LOOK_INTERVAL.min(left) } else { LOOK_INTERVAL };
        let ms = timeout.as_micros().div_ceil(1000) as u16;
        let mut fds = [
            PollFd::new(stream.as_fd(), PollFlags::empty()),
            PollFd::new(self.queue.wakeup.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(ms)) {
            Ok(_) => Ok(fds[0].any().unwrap_or(true)),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write(&mut self, mut stream: &UnixStream, time: Timestamp, body: Body) -> io::Result<()> {
        self.seq += 1;
        let mut line =
            serde_json::to_vec(&Line { seq: self.seq, time: format!("{time:.6}"), body })?;
        line.push(b'\n');
        stream.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::event::PortChange;

    fn request(topic: Topic) -> SubscribeRequest {
        SubscribeRequest { topics: vec![topic], interval_ms: 1000 }
    }

    #[test]
    fn a_full_queue_loses_events_which_are_counted_and_blocks_nobody() {
        let events = Events::default();
        let (slow, receiver) = events.subscribe(request(Topic::Events)).expect("the first");
        let (ports, of_ports) = events.subscribe(request(Topic::Ports)).expect("the second");
        let begun = Instant::now();
        for n in 0..QUEUE as u64 + 5 {
            events.publish(Event::Resync { resyncs: n, lost: false });
        }
        events.publish(Event::port("eth0", PortChange::Up, None));
        assert!(begun.elapsed() < Duration::from_secs(60), "an event waited");
        assert_eq!(slow.lost.load(Relaxed), 6);
        let received: Vec<_> = receiver.try_iter().collect();
        assert_eq!(received.len(), QUEUE);
        assert_eq!(
            received[0].event,
            Event::Resync { resyncs: 0, lost: false },
            "the oldest are kept"
        );
        assert_eq!((of_ports.try_iter().count(), ports.lost.load(Relaxed)), (1, 0));
        assert_eq!(events.count(), QUEUE as u64 + 6);
    }

    #[test]
    fn subscriptions_are_limited_and_give_their_places_up() {
        let events = Events::default();
        let all: Vec<_> = (0..SUBSCRIPTIONS_MAX)
            .map(|_| events.subscribe(request(Topic::Drops)).expect("there is room"))
            .collect();
        let refused = events.subscribe(request(Topic::Drops)).expect_err("no room");
        assert!(refused.contains("16 subscriptions"), "{refused}");
        events.unsubscribe(all[3].0.id);
        assert!(events.subscribe(request(Topic::Drops)).is_ok());
        assert_eq!(events.queues.load().len(), SUBSCRIPTIONS_MAX);
    }

    #[test]
    fn times_are_rfc_3339_in_microseconds() {
        let time = Timestamp::from_nanosecond(1_500_000_000_123_456_789).expect("in range");
        assert_eq!(format!("{time:.6}"), "2017-07-14T02:40:00.123456Z");
    }
}
