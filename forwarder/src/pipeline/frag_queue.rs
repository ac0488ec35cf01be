//! The fragments of IPsec packets to this host that wait for each other (`struct inet_frag_queue` of the kernel).
//! [`super::ip_defrag`] fills and empties the queues.

use crate::ipsec::{FRAGMENTS_MAX, FragmentKey, Parts};
use crate::skb::{Burst, SkBuff};

/// Packets whose fragments can wait at once.
const QUEUES: usize = 64;
/// Maximum number of frames held.
pub(super) const HELD_MAX: usize = 256;
/// How long fragments wait for the others. The kernel gets them then, with its own timer not yet begun
/// (`ipfrag_time`, 30 s). Those of one packet are sent together, and differ by what a path reorders. The kernel must not
/// get them after its replay window has later packets, which workers write into it 0.1 s after they were received.
const TIMEOUT_NS: u64 = 50_000_000;
/// Interval of the check for fragments that have waited too long.
const POLL_NS: u64 = 5_000_000;

/// What is done with fragments of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// They wait.
    Wait,
    /// The kernel has those before, and gets the others.
    Kernel,
    /// They overlap: all are dropped, also those not yet received (RFC 5722 §3).
    Overlap,
}

/// The fragments of one packet.
#[derive(Debug)]
pub(super) struct FragQueue {
    /// `None`: the queue is free.
    key: Option<FragmentKey>,
    pub fate: Fate,
    since_ns: u64,
    pub parts: Parts,
    /// As received, in order of arrival.
    pub packets: Burst,
}

impl FragQueue {
    /// Whether nothing remains to be known of its packet.
    fn is_over(&self, now_ns: u64) -> bool {
        self.fate != Fate::Wait && self.is_due(now_ns)
    }

    fn is_due(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.since_ns) >= TIMEOUT_NS
    }
}

/// All of a worker.
#[derive(Debug)]
pub(super) struct FragQueues {
    queues: Box<[FragQueue]>,
    /// Frames of all fragments that are held.
    held: usize,
    /// When to check next for fragments that have waited too long.
    poll_ns: u64,
    /// The queue of the packet that is being processed, which was made of its fragments.
    pub whole: Option<usize>,
}

impl FragQueues {
    pub fn new() -> FragQueues {
        let queue = |_| FragQueue {
            key: None,
            fate: Fate::Wait,
            since_ns: 0,
            parts: Parts::default(),
            packets: Burst::with_capacity(FRAGMENTS_MAX),
        };
        FragQueues { queues: (0..QUEUES).map(queue).collect(), held: 0, poll_ns: 0, whole: None }
    }

    /// Frames of all fragments that are held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Number of fragments that are held.
    pub fn packets(&self) -> usize {
        self.queues.iter().map(|queue| queue.packets.len()).sum()
    }

    /// Number of queues.
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// The queue for fragments with this key. `None`: as many packets wait as can.
    pub fn find(&mut self, key: &FragmentKey, now_ns: u64) -> Option<usize> {
        let is_of = |queue: &FragQueue| queue.key.as_ref() == Some(key);
        if let Some(at) = self.queues.iter().position(is_of)
            && !self.queues.get(at)?.is_over(now_ns)
        {
            return Some(at);
        }
        // The oldest of those whose packets are no longer here, if no queue is free.
        let free = self
            .queues
            .iter()
            .enumerate()
            .filter(|(_, queue)| queue.key.is_none() || queue.fate != Fate::Wait);
        let since_ns = |queue: &FragQueue| queue.key.map_or(0, |_| queue.since_ns);
        let (at, _) = free.min_by_key(|(_, queue)| (!is_of(queue), since_ns(queue)))?;
        let queue = self.queues.get_mut(at)?;
        (queue.key, queue.fate, queue.since_ns) = (Some(*key), Fate::Wait, now_ns);
        queue.parts = Parts::default();
        Some(at)
    }

    pub fn get_mut(&mut self, at: usize) -> Option<&mut FragQueue> {
        self.queues.get_mut(at)
    }

    /// Holds a fragment.
    ///
    /// # Errors
    /// Returns it if there is no room.
    pub fn hold(&mut self, at: usize, skb: SkBuff, now_ns: u64) -> Result<(), SkBuff> {
        let frames = skb.frames();
        let Some(queue) = self.queues.get_mut(at) else { return Err(skb) };
        queue.packets.push(skb)?;
        if self.held == 0 {
            self.poll_ns = now_ns + POLL_NS;
        }
        self.held += frames;
        Ok(())
    }

    /// Takes the fragments of a packet, of which the others will have this fate; `None`: the queue becomes free. The burst
    /// returns by [`FragQueues::put_back`].
    pub fn take(&mut self, at: usize, fate: Option<Fate>, now_ns: u64) -> Burst {
        let none = Burst::with_capacity(0);
        let Some(queue) = self.queues.get_mut(at) else { return none };
        let packets = std::mem::replace(&mut queue.packets, none);
        self.held -= packets.frames();
        match fate {
            Some(fate) => (queue.fate, queue.since_ns) = (fate, now_ns),
            None => queue.key = None,
        }
        packets
    }

    /// Returns the emptied burst to its queue.
    pub fn put_back(&mut self, at: usize, empty: Burst) {
        if let Some(queue) = self.queues.get_mut(at) {
            queue.packets = empty;
        }
    }

    /// Whether fragments may have waited too long: a comparison, and then at an interval.
    #[inline]
    pub fn may_be_due(&mut self, now_ns: u64) -> bool {
        let is_time = self.held > 0 && now_ns >= self.poll_ns;
        if is_time {
            self.poll_ns = now_ns + POLL_NS;
        }
        is_time
    }

    /// Whether the fragments of a queue have waited too long.
    pub fn is_due(&self, at: usize, now_ns: u64) -> bool {
        self.queues.get(at).is_some_and(|queue| !queue.packets.is_empty() && queue.is_due(now_ns))
    }
}
