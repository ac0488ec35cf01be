//! A program at the hooks, and the counters of the workers that run it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::device::DeviceChains;
use super::learn::Observer;
use super::packet::Packet;
use super::program::{BaseChainId, CounterPage, Journal, NftVerdict, Program};
use super::ruleset::{Family, Ruleset};
use super::xfrm::SaInfo;
use crate::netfilter::conntrack::Ct;
use crate::netfilter::hook::{Hook, HookState};
use crate::netfilter::ingress::AtIngress;
use crate::skb::SkBuff;
use crate::tables::Tables;
use crate::trace::Step;

/// What a ruleset needs to know of a packet besides its place.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The packet's connection.
    pub ct: Ct,
    /// Routes and interfaces.
    pub tables: Option<&'a Tables>,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// See [`Packet::received_by`] and [`Packet::sent_by`].
    pub received_by: Option<SaInfo>,
    /// See [`Packet::sent_by`].
    pub sent_by: Option<SaInfo>,
}

/// A ruleset that workers apply.
#[derive(Debug)]
pub struct Nft {
    id: u64,
    ruleset: Ruleset,
    program: Program,
    /// By worker.
    pages: Box<[CounterPage]>,
}

impl Nft {
    /// A ruleset and its program for `workers` workers. Counters of rules that `previous` has, too,
    /// continue; others begin at zero.
    pub fn new(ruleset: Ruleset, program: Program, workers: usize, previous: Option<&Nft>) -> Nft {
        let page = |worker: usize| {
            let before = previous.and_then(|nft| nft.pages.get(worker).map(|page| (nft, page)));
            match before {
                Some((nft, page)) => page.continuing(&nft.program, &program),
                None => CounterPage::new(&program),
            }
        };
        let pages = (0..workers).map(page).collect();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Nft { id: NEXT.fetch_add(1, Ordering::Relaxed), ruleset, program, pages }
    }

    /// Identifies it in the process; not 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The ruleset that the program was made of.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Packets and octets that workers have counted since the rule exists, by position in
    /// [`Program::counters`].
    pub fn counted(&self, counter: usize) -> (u64, u64) {
        self.pages
            .iter()
            .map(|page| page.get(counter))
            .fold((0, 0), |sum, page| (sum.0.wrapping_add(page.0), sum.1.wrapping_add(page.1)))
    }

    /// The base chains at the hooks of each family, in the order in which they run, with their priorities.
    pub fn base_chains(&self) -> impl Iterator<Item = (Family, Hook, i32, BaseChainId)> {
        let families = [Family::Ip, Family::Ip6];
        let hooks = families.into_iter().flat_map(|pf| Hook::ALL.map(|hook| (pf, hook)));
        hooks.flat_map(move |(pf, hook)| {
            let chains = self.program.chains(pf, hook).iter();
            chains.map(move |chain| (pf, hook, self.program.priority(*chain), *chain))
        })
    }

    /// Runs a base chain on a packet.
    #[inline]
    pub fn run<T: Observer>(
        &self,
        chain: BaseChainId,
        skb: &mut SkBuff,
        at: &HookState<'_>,
        around: Around<'_>,
        journal: &mut Journal,
        tracer: &mut T,
    ) -> NftVerdict {
        let HookState { hook, pf, iif, oif, transport } = *at;
        let Around { ct, tables, now_ns, received_by, sent_by } = around;
        let mut packet = Packet {
            skb,
            family: pf,
            hook,
            iif,
            oif,
            transport,
            ct,
            tables,
            is_tagged: false,
            is_at_ingress: false,
            received_by,
            sent_by,
            now_ns,
        };
        if tracer.is_traced() {
            tracer.step(Step::BaseChain(chain.0));
        }
        let verdict = self.program.run_traced(chain, &mut packet, journal, tracer);
        if let NftVerdict::Kernel(reason) = verdict
            && tracer.is_traced()
        {
            tracer.step(Step::Left(reason));
        }
        verdict
    }

    /// Adds a packet to counters of a worker.
    #[inline]
    pub fn count(&self, counters: &[u32], octets: u64, worker: usize) {
        self.count_many(counters, 1, octets, worker);
    }

    /// Adds several packets to counters of a worker.
    #[inline]
    pub fn count_many(&self, counters: &[u32], packets: u64, octets: u64, worker: usize) {
        if let Some(page) = self.pages.get(worker) {
            counters.iter().for_each(|counter| page.count_many(*counter, packets, octets));
        }
    }

    /// Runs the chains of an interface on a packet that it has received.
    pub(in crate::netfilter) fn run_ingress<T: Observer>(
        &self,
        chains: DeviceChains,
        skb: &mut SkBuff,
        at: AtIngress<'_>,
        now_ns: u64,
        journal: &mut Journal,
        tracer: &mut T,
    ) -> NftVerdict {
        let AtIngress { dev, pf, is_tagged } = at;
        let packet = Packet::new(skb, pf, Hook::PreRouting, Some(dev), None, now_ns);
        // There is no connection yet.
        let mut packet = Packet { is_tagged, is_at_ingress: true, ct: Ct::Null, ..packet };
        self.program.run_ingress(chains, dev, &mut packet, journal, tracer)
    }

    /// Adds what a packet has passed to the counters of a worker, and empties the journal.
    #[inline]
    pub fn commit(&self, journal: &mut Journal, worker: usize) {
        if journal.is_empty() {
            return;
        }
        if let Some(page) = self.pages.get(worker) {
            page.commit(journal);
        }
        journal.clear();
    }
}
