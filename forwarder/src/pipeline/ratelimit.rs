//! Rate limits of ICMP errors, as in the kernel.
//!
//! Three limits, all token buckets:
//! - for all errors together, icmp_msgs_per_sec and icmp_msgs_burst (`icmp_global_allow`);
//! - per destination, icmp_ratelimit (`inet_peer_xrlim_allow`);
//! - per source: Destination Unreachable for lack of a route (`ip_error`), and redirects
//!   (`ip_rt_send_redirect`).
//!
//! The kernel's `inet_peer` has one bucket for the last three; so does [`Peer`] here. Peers are kept in a
//! table of fixed size: when four of them share a set, the one idle longest is replaced; when seen again
//! it starts with a full bucket, as a new peer does in the kernel.

use crate::hash_table::mix;

const SECOND_NS: u64 = 1_000_000_000;

/// Number of peers. The kernel starts removing peers at 65,664; this many take 128 KiB.
const PEERS: usize = 4096;
/// Set associativity of the peer table.
const WAYS: usize = 4;

/// XRLIM_BURST_FACTOR: errors that may be sent at once to a destination that was idle.
const XRLIM_BURST_FACTOR: u64 = 6;
/// net.ipv4.route.error_burst and error_cost at their defaults.
const ERROR_BURST_NS: u64 = 5 * SECOND_NS;
const ERROR_COST_NS: u64 = SECOND_NS;
/// net.ipv4.route.redirect_number, redirect_load and redirect_silence at their defaults.
const REDIRECT_NUMBER: u32 = 9;
const REDIRECT_LOAD_NS: u64 = SECOND_NS / 50;
const REDIRECT_SILENCE_NS: u64 = REDIRECT_LOAD_NS << (REDIRECT_NUMBER + 1);
/// Refill interval of the global bucket (HZ / 50).
const REFILL_NS: u64 = SECOND_NS / 50;
/// Initial age of a new peer (`inet_getpeer`).
const NEW_PEER_AGE_NS: u64 = 60 * SECOND_NS;

/// `inet_peer`, the fields for rate limits. Tokens are nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Peer {
    /// The address; IPv4 addresses are v4-mapped. 0: unused.
    addr: u128,
    tokens_ns: u64,
    last_ns: u64,
    redirects: u32,
}

/// The limits of one worker.
#[derive(Debug)]
pub(super) struct IcmpLimiter {
    credit: i64,
    stamp_ns: Option<u64>,
    random: u64,
    workers: u64,
    peers: Box<[[Peer; WAYS]]>,
    /// What the error in progress has taken.
    taken: Taken,
}

/// What one error has taken.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    /// Its peer before the first token was taken; unused if none was.
    peer: Peer,
    /// Tokens of the limit for all errors.
    credit: i64,
}

impl IcmpLimiter {
    pub(super) fn new(seed: u64, workers: usize) -> IcmpLimiter {
        IcmpLimiter {
            credit: 0,
            stamp_ns: None,
            random: seed | 1,
            workers: workers.max(1) as u64,
            peers: vec![[Peer::default(); WAYS]; PEERS / WAYS].into(),
            taken: Taken::default(),
        }
    }

    /// `icmp_global_allow`: whether one more may be sent. Takes no token; see [`Self::global_consume`].
    pub(super) fn global_allow(&mut self, per_sec: u32, burst: u32, now_ns: u64) -> bool {
        if self.credit > 0 {
            return true;
        }
        let passed = match self.stamp_ns {
            Some(stamp_ns) => now_ns.saturating_sub(stamp_ns).min(SECOND_NS),
            None => SECOND_NS,
        };
        let add = u64::from(per_sec) * passed / SECOND_NS / self.workers;
        if passed < REFILL_NS || add == 0 {
            return false;
        }
        self.stamp_ns = Some(now_ns);
        let burst = i64::from(burst) / self.workers as i64;
        self.credit = self.credit.saturating_add(add as i64).min(burst.max(1));
        true
    }

    /// `icmp_global_consume`: takes a random 0 to 2 tokens, so that the limit does not reveal how many
    /// errors were sent to others.
    pub(super) fn global_consume(&mut self) {
        // xorshift64 (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let tokens = (self.random >> 32) as i64 % 3;
        self.credit -= tokens;
        self.taken.credit += tokens;
    }

    /// `inet_peer_xrlim_allow`: one in `timeout_ns` on average; 0 is no limit.
    pub(super) fn xrlim_allow(&mut self, addr: u128, timeout_ns: u64, now_ns: u64) -> bool {
        self.take(addr, timeout_ns, XRLIM_BURST_FACTOR * timeout_ns, now_ns)
    }

    /// The limit in `ip_error`.
    pub(super) fn error_allow(&mut self, saddr: u128, now_ns: u64) -> bool {
        self.take(saddr, ERROR_COST_NS, ERROR_BURST_NS, now_ns)
    }

    fn take(&mut self, addr: u128, cost_ns: u64, burst_ns: u64, now_ns: u64) -> bool {
        let peer = self.peer(addr, now_ns);
        let before = *peer;
        let allowed = peer.take(cost_ns, burst_ns, now_ns);
        // Both limits of an error are those of one peer.
        if allowed && self.taken.peer.addr != addr {
            self.taken.peer = before;
        }
        allowed
    }

    /// The error in progress has been sent, or is not to be sent.
    pub(super) fn settle(&mut self) {
        self.taken = Taken::default();
    }

    /// Gives back what the error in progress has taken: the kernel sends it, and has limits of its own.
    pub(super) fn give_back(&mut self) {
        let Taken { peer, credit } = std::mem::take(&mut self.taken);
        self.credit = self.credit.saturating_add(credit);
        if peer.addr != 0 {
            *self.peer(peer.addr, peer.last_ns) = peer;
        }
    }

    /// The limit in `ip_rt_send_redirect`: exponential back-off, and none after nine redirects were
    /// ignored.
    pub(super) fn redirect_allow(&mut self, saddr: u128, now_ns: u64) -> bool {
        let peer = self.peer(saddr, now_ns);
        if now_ns.saturating_sub(peer.last_ns) > REDIRECT_SILENCE_NS {
            peer.tokens_ns = 0;
            peer.redirects = 0;
        }
        if peer.redirects >= REDIRECT_NUMBER {
            peer.last_ns = now_ns;
            return false;
        }
        let wait_ns = REDIRECT_LOAD_NS << peer.redirects;
        let allowed = peer.redirects == 0 || now_ns.saturating_sub(peer.last_ns) > wait_ns;
        if allowed {
            peer.last_ns = now_ns;
            peer.redirects += 1;
        }
        allowed
    }

    fn peer(&mut self, addr: u128, now_ns: u64) -> &mut Peer {
        let folded = (addr >> 64) as u64 ^ addr as u64;
        let hash = mix(folded) >> 40;
        let sets = self.peers.len();
        let set = &mut self.peers[hash as usize % sets];
        let found = set.iter().position(|peer| peer.addr == addr);
        let at = found.unwrap_or_else(|| {
            let oldest = (0..WAYS).min_by_key(|&n| set[n].last_ns).unwrap_or(0);
            // Tokens for the full age; `take` caps them. The clock may be lower than the age.
            let age_ns = NEW_PEER_AGE_NS;
            let last_ns = now_ns.saturating_sub(age_ns);
            let tokens_ns = age_ns - (now_ns - last_ns);
            set[oldest] = Peer { addr, tokens_ns, last_ns, redirects: 0 };
            oldest
        });
        &mut set[at]
    }
}

impl Peer {
    fn take(&mut self, cost_ns: u64, burst_ns: u64, now_ns: u64) -> bool {
        let passed = now_ns.saturating_sub(self.last_ns);
        self.tokens_ns = self.tokens_ns.saturating_add(passed).min(burst_ns);
        self.last_ns = now_ns;
        let allowed = self.tokens_ns >= cost_ns;
        if allowed {
            self.tokens_ns -= cost_ns;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_at_once_to_one_destination_then_one_a_timeout() {
        let mut limiter = IcmpLimiter::new(1, 1);
        let at = |limiter: &mut IcmpLimiter, ms: u64| {
            limiter.xrlim_allow(0xffff_0a00_0001, SECOND_NS, ms * 1_000_000)
        };
        for start_ms in [0, 100_000] {
            let sent = (0..20).filter(|_| at(&mut limiter, start_ms)).count();
            assert_eq!(sent, 6);
            assert!(!at(&mut limiter, start_ms + 999));
            assert!(at(&mut limiter, start_ms + 1000));
            assert!(!at(&mut limiter, start_ms + 1001));
        }
        assert!(limiter.xrlim_allow(0xffff_0a00_0002, SECOND_NS, 0));
    }

    #[test]
    fn no_ratelimit_is_no_limit() {
        let mut limiter = IcmpLimiter::new(1, 1);
        assert!((0..1000).all(|_| limiter.xrlim_allow(1, 0, 0)));
    }

    #[test]
    fn unreachables_draw_twice_on_one_bucket() {
        // ip_error caps the bucket at five and takes one, icmpv4_xrlim_allow takes another.
        let mut limiter = IcmpLimiter::new(1, 1);
        let now_ns = 1000 * SECOND_NS;
        let sent = (0..10)
            .filter(|_| limiter.error_allow(7, now_ns) && limiter.xrlim_allow(7, SECOND_NS, now_ns))
            .count();
        assert_eq!(sent, 2);
    }

    #[test]
    fn all_together_burst_then_per_second() {
        let mut limiter = IcmpLimiter::new(42, 1);
        let count = |limiter: &mut IcmpLimiter, now_ns| {
            let send = |_: &u32| {
                let allowed = limiter.global_allow(1000, 50, now_ns);
                if allowed {
                    limiter.global_consume();
                }
                allowed
            };
            (0..10_000u32).filter(send).count()
        };
        // A message costs one token on average.
        let first = count(&mut limiter, 0);
        assert!((25..=100).contains(&first), "{first}");
        assert_eq!(count(&mut limiter, REFILL_NS - 1), 0);
        let later = count(&mut limiter, 2 * REFILL_NS);
        assert!((10..=100).contains(&later), "{later}");
        assert!(!IcmpLimiter::new(1, 1).global_allow(0, 50, 0));
    }

    #[test]
    fn redirects_grow_rare_and_stop_after_nine() {
        let mut limiter = IcmpLimiter::new(1, 1);
        let start_ms = 100_000;
        let sent = (start_ms..start_ms + 12_000)
            .filter(|ms| limiter.redirect_allow(9, ms * 1_000_000))
            .count();
        assert_eq!(sent, 9);
        let silence_ms = REDIRECT_SILENCE_NS / 1_000_000;
        let quiet_until_ms = start_ms + 12_000 + silence_ms + 1;
        assert!(limiter.redirect_allow(9, quiet_until_ms * 1_000_000));
    }

    #[test]
    fn the_peer_idle_longest_is_forgotten() {
        let mut limiter = IcmpLimiter::new(1, 1);
        for n in 0..100_000u128 {
            assert!(limiter.xrlim_allow(n + 1, SECOND_NS, 200 * SECOND_NS + n as u64));
        }
    }
}
