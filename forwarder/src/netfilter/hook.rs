//! Hook points, verdicts and registration (kernel: include/linux/netfilter.h,
//! net/netfilter/core.c).

use std::sync::Arc;

use crate::skb::SkBuff;

/// NF_INET_*: the position of a hook in the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Every packet received, before it is routed.
    PreRouting,
    /// Packets for this host.
    LocalIn,
    /// Packets that are forwarded.
    Forward,
    /// Packets of our own.
    LocalOut,
    /// Every packet about to be sent.
    PostRouting,
}

impl Hook {
    /// All five, in numerical order.
    pub const ALL: [Hook; 5] =
        [Hook::PreRouting, Hook::LocalIn, Hook::Forward, Hook::LocalOut, Hook::PostRouting];
}

/// The verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// NF_ACCEPT: continue with the next hook function, then with the data path.
    Accept,
    /// NF_DROP.
    Drop,
}

/// The arguments of a hook function besides the packet (`nf_hook_state`).
#[derive(Debug, Clone, Copy)]
pub struct HookState {
    /// The hook point.
    pub hook: Hook,
    /// ifindex of the input interface; 0: our own packet.
    pub iif: u32,
    /// ifindex of the output interface; 0: not yet known.
    pub oif: u32,
    /// EtherType of the network header: 0x0800 or 0x86dd.
    pub protocol: u16,
}

/// A hook function. It may change the packet; it must not block, allocate or panic.
pub type HookFn = dyn Fn(&mut SkBuff, &HookState) -> Verdict + Send + Sync;

#[derive(Clone)]
struct Entry {
    priority: i32,
    function: Arc<HookFn>,
}

/// The registered functions of every hook point.
#[derive(Clone, Default)]
pub struct Hooks {
    chains: [Vec<Entry>; 5],
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let registered = |hook: &Hook| (*hook, self.chains[*hook as usize].len());
        f.debug_map().entries(Hook::ALL.iter().map(registered)).finish()
    }
}

impl Hooks {
    /// `nf_register_net_hook`: functions run by ascending priority, those of equal priority in the order
    /// of registration.
    pub fn register_hook(&mut self, hook: Hook, priority: i32, function: Arc<HookFn>) {
        let chain = &mut self.chains[hook as usize];
        let at = chain.partition_point(|entry| entry.priority <= priority);
        chain.insert(at, Entry { priority, function });
    }

    /// Whether no function is registered at a hook point.
    #[inline]
    pub fn is_empty(&self, hook: Hook) -> bool {
        self.chains[hook as usize].is_empty()
    }

    /// `NF_HOOK`: runs the functions until one does not accept.
    #[inline]
    pub fn run(&self, skb: &mut SkBuff, state: &HookState) -> Verdict {
        for entry in &self.chains[state.hook as usize] {
            if (entry.function)(skb, state) == Verdict::Drop {
                return Verdict::Drop;
            }
        }
        Verdict::Accept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skb::Umem;

    #[test]
    fn functions_run_by_priority_and_a_drop_ends_the_walk() {
        let mut hooks = Hooks::default();
        let append = |octet: u8, verdict| -> Arc<HookFn> {
            Arc::new(move |skb: &mut SkBuff, _: &HookState| {
                skb.put(1).expect("room")[0] = octet;
                verdict
            })
        };
        hooks.register_hook(Hook::Forward, 10, append(b'c', Verdict::Drop));
        hooks.register_hook(Hook::Forward, -5, append(b'a', Verdict::Accept));
        hooks.register_hook(Hook::Forward, 11, append(b'd', Verdict::Accept));
        hooks.register_hook(Hook::Forward, -5, append(b'b', Verdict::Accept));
        let mut pool = Umem::anonymous(1).into_pool();
        let mut skb = SkBuff::alloc_skb(&mut pool, 0).expect("one frame");
        let state = HookState { hook: Hook::Forward, iif: 1, oif: 2, protocol: 0x0800 };
        assert_eq!(hooks.run(&mut skb, &state), Verdict::Drop);
        assert_eq!(skb.data(), b"abc");
        let elsewhere = HookState { hook: Hook::LocalOut, ..state };
        assert_eq!(hooks.run(&mut skb, &elsewhere), Verdict::Accept);
    }
}
