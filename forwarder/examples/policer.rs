//! A hook function of one's own: a token-bucket policer by source prefix.
//!
//!     policer RATE BURST IFACE IFACE…
//!
//! Forwards between the interfaces like `ferroute run`, but from each IPv4 /24 and each IPv6 /48 at most RATE
//! packets per second, and BURST packets at once; the others are dropped as NETFILTER_DROP. Each worker
//! polices what it receives. docs/HOOKS.md explains the code.

use std::error::Error;

use ferroute::control::config::{RunFlags, RunOptions};
use ferroute::control::daemon;
use ferroute::netfilter::{Family, Hook, HookCtx, HookState, NfHook, NfHookOps, Verdict, priority};
use ferroute::skb::SkBuff;
use ferroute::wire::{Ipv4Packet, Ipv6Packet};

/// Number of buckets of a worker, a power of two. Prefixes with the same hash share one.
const BUCKETS: usize = 4096;

/// The limits.
struct Policer {
    /// Nanoseconds in which a bucket gets one token.
    token_ns: u64,
    /// Nanoseconds in which an empty bucket is full again.
    full_ns: u64,
}

/// When each bucket was empty, in nanoseconds of the worker's clock. A bucket has as many tokens as have come
/// since then.
struct Buckets(Box<[u64; BUCKETS]>);

impl NfHook for Policer {
    type State = Buckets;

    fn state(&self, _worker: usize) -> Buckets {
        Buckets(Box::new([0; BUCKETS]))
    }

    fn hook(
        &self,
        skb: &mut SkBuff,
        at: &HookState<'_>,
        ctx: &mut HookCtx<'_>,
        Buckets(empty_since): &mut Buckets,
    ) -> Verdict {
        let packet = skb.network_header();
        let prefix = match at.pf {
            Family::Ip => u64::from(Ipv4Packet::new_unchecked(packet).src_addr().to_bits() >> 8),
            _ => (Ipv6Packet::new_unchecked(packet).src_addr().to_bits() >> 80) as u64,
        };
        let hash = prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        let empty_since = &mut empty_since[hash as usize % BUCKETS];
        // A bucket that has been full for a while has no more than the burst.
        *empty_since = (*empty_since).max(ctx.now_ns.saturating_sub(self.full_ns));
        if ctx.now_ns - *empty_since < self.token_ns {
            return Verdict::Drop;
        }
        *empty_since += self.token_ns;
        Verdict::Accept
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rate, burst, interfaces @ ..] = &args[..] else {
        return Err("usage: policer RATE BURST IFACE IFACE…".into());
    };
    let token_ns = 1_000_000_000 / rate.parse::<u64>()?.max(1);
    let full_ns = token_ns.saturating_mul(burst.parse::<u64>()?.max(1));
    let flags = RunFlags { interfaces: interfaces.to_vec(), ..RunFlags::default() };
    let options = RunOptions::resolve(flags, None)?;
    // Before the rules of the firewall, as early as possible.
    let policer = NfHookOps::new(Hook::PreRouting, priority::FIRST, Policer { token_ns, full_ns });
    Ok(daemon::run_with_hooks(options, vec![policer])?)
}
