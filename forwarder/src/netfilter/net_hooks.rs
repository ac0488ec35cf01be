//! Registration of hook functions (`nf_register_net_hook`, net/netfilter/core.c).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::conntrack::FlowTable;
use super::hook::{HookId, Hooks, NfHookOps, Registered};
use super::nft::{Nft, Program, Ruleset};
use crate::tables::Published;

/// The hook functions of the router, and their publication to the workers. Belongs to the control thread.
#[derive(Debug)]
pub struct NetHooks {
    workers: usize,
    next: u64,
    /// Oldest first.
    registered: Vec<Registered>,
    nft: Option<Arc<Nft>>,
    /// The ruleset before that, whose counters continue.
    last_nft: Option<Arc<Nft>>,
    /// The flows that are carried where connections are tracked.
    flows: Option<Arc<FlowTable>>,
    published: Arc<Published<Hooks>>,
    /// Published earlier; a worker may still have them.
    previous: Vec<Arc<Hooks>>,
}

impl NetHooks {
    /// No function, for `workers` workers.
    pub fn new(workers: usize) -> NetHooks {
        NetHooks {
            workers,
            next: 0,
            registered: Vec::new(),
            nft: None,
            last_nft: None,
            flows: None,
            published: Arc::new(Published::new(Arc::default())),
            previous: Vec::new(),
        }
    }

    /// What workers read.
    pub fn published(&self) -> &Arc<Published<Hooks>> {
        &self.published
    }

    /// Registers a function: it runs by ascending priority, before the registered functions of equal
    /// priority, as in the kernel. Effective with the workers' next burst.
    pub fn nf_register_net_hook(&mut self, ops: NfHookOps) -> HookId {
        let id = self.register(ops);
        self.publish();
        id
    }

    /// Registers several functions at once.
    pub fn nf_register_net_hooks(
        &mut self,
        ops: impl IntoIterator<Item = NfHookOps>,
    ) -> Vec<HookId> {
        let ids = ops.into_iter().map(|ops| self.register(ops)).collect();
        self.publish();
        ids
    }

    /// Removes a function. A worker may run it until its next burst. Returns whether it was registered.
    pub fn nf_unregister_net_hook(&mut self, id: HookId) -> bool {
        self.nf_unregister_net_hooks(&[id]) == 1
    }

    /// Removes several functions at once. Returns the number of those that were registered.
    pub fn nf_unregister_net_hooks(&mut self, ids: &[HookId]) -> usize {
        let before = self.registered.len();
        self.registered.retain(|it| !ids.contains(&it.id));
        self.publish();
        before - self.registered.len()
    }

    /// Replaces the nftables ruleset; `None`: packets meet no rules here.
    pub fn set_nft(&mut self, ruleset: Option<(Ruleset, Program)>) {
        if self.nft.is_some() {
            self.last_nft = self.nft.take();
        }
        let previous = self.last_nft.as_deref();
        let nft = |(ruleset, program)| Nft::new(ruleset, program, self.workers, previous);
        self.nft = ruleset.map(|ruleset| Arc::new(nft(ruleset)));
        self.publish();
    }

    /// Sets the flows that are carried while a ruleset tracks connections; without them, such a ruleset
    /// leaves all packets to the kernel.
    pub fn set_flows(&mut self, flows: Arc<FlowTable>) {
        self.flows = Some(flows);
        self.publish();
    }

    /// The nftables ruleset that workers run.
    pub fn nft(&self) -> Option<&Arc<Nft>> {
        self.nft.as_ref()
    }

    fn register(&mut self, ops: NfHookOps) -> HookId {
        let id = HookId(self.next);
        self.next += 1;
        let has_state = (0..self.workers).map(|_| AtomicBool::new(false)).collect();
        self.registered.push(Registered { id, ops, has_state });
        id
    }

    fn publish(&mut self) {
        let hooks =
            Hooks::new(&self.registered, self.nft.clone(), self.flows.as_ref(), self.workers);
        self.previous.push(self.published.publish(Arc::new(hooks)));
        self.previous.retain(|hooks| Arc::strong_count(hooks) > 1);
    }
}
