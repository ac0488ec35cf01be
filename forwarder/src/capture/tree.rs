//! A filter as a decision tree, which most programs can be converted to, and which takes a fraction of
//! the steps.
//!
//! libpcap's code for `host 192.0.2.1 and udp port 53` loads fields at fixed offsets, or after the IPv4
//! header's length, and compares each with constants. Every comparison, together with the load and the
//! mask before it, becomes one node: is the field between two values? A program that does anything else
//! has no tree, and a packet that ends within four octets of a field is left to the program itself.

use std::collections::HashMap;

use super::filter::{Insn, Verdict, code};
use super::probe::{Probe, WINDOW, Window};
use crate::wire::EtherType;

/// Longer programs have no tree: the length limits the recursion that builds it.
const INSNS_MAX: usize = 512;
/// Maximum number of nodes; a program whose paths do not join may need more nodes than it has
/// instructions.
const NODES_MAX: usize = 1024;
/// Instead of a node: the packet matches.
pub(super) const MATCH: u16 = u16::MAX;
/// Instead of a node: the packet does not match.
const NO_MATCH: u16 = u16::MAX - 1;
/// Reverse ARP (RFC 903), which `host` and `net` also match.
const RARP: EtherType = EtherType(0x8035);
/// Offset of the EtherType in the frame, octets.
pub(super) const ETHERTYPE: usize = 12;
/// Offset of the IPv6 addresses.
const IPV6_SADDR: usize = 22;
/// Offset of the ports after an IPv6 header, four octets.
const IPV6_PORTS: usize = 54;
/// Offset of the octet with the IPv4 header's length after an Ethernet header.
const IHL_OFFSET: u32 = 14;

/// Tests whether `word & mask` is in `low ..= low + span`, where word is the four octets at `offset` in
/// network byte order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) offset: u16,
    /// The offset counts from the end of the IPv4 header, less the Ethernet header's 14 octets.
    pub(super) behind_ihl: bool,
    pub(super) mask: u32,
    pub(super) low: u32,
    pub(super) span: u32,
    /// Forwarding does not change the field.
    pub(super) lasting: bool,
}

/// The tests, from the root on. The successors of a test are stored apart from it: two loads with
/// separate bounds checks compile to a branch, which the processor predicts; from one node they would
/// become a select, which it must wait for.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) yes: Vec<u16>,
    pub(super) no: Vec<u16>,
    pub(super) root: u16,
    /// The test applied to bursts first.
    probe: Option<Probe>,
}

impl Tree {
    /// The tree of a checked program; `None`: it has none.
    pub(super) fn of(insns: &[Insn]) -> Option<Tree> {
        if insns.len() > INSNS_MAX {
            return None;
        }
        let mut builder = Builder { insns, tree: Tree::default(), known: HashMap::new() };
        let root = builder.build(State { pc: 0, ..State::default() })?;
        let mut tree = Tree { root, ..builder.tree };
        tree.mark_lasting();
        Some(Tree { probe: Probe::of(&tree), ..tree })
    }

    /// Marks fields that forwarding does not change, because they are only read in packets of one
    /// protocol: ARP is not forwarded; in IPv6 nothing from the addresses to the ports is changed.
    fn mark_lasting(&mut self) {
        for n in 0..self.nodes.len() {
            let this = |node: u16| usize::from(node) == n;
            let only = |ethertypes: &[EtherType]| self.is_behind_ethertype(ethertypes, &this);
            let Node { offset, behind_ihl, mask, .. } = self.nodes[n];
            // A word whose last bits are masked out ends earlier.
            let (begin, end) =
                (usize::from(offset), usize::from(offset) + 4 - mask.trailing_zeros() as usize / 8);
            let in_ipv6 = !behind_ihl && IPV6_SADDR <= begin && end <= IPV6_PORTS + 4;
            let lasting = (in_ipv6 && only(&[EtherType::IPV6])) || only(&[EtherType::ARP, RARP]);
            self.nodes[n].lasting |= lasting;
        }
    }

    /// Whether nodes that are `wanted` are reached only by packets of these protocols.
    pub(super) fn is_behind_ethertype(
        &self,
        ethertypes: &[EtherType],
        wanted: &dyn Fn(u16) -> bool,
    ) -> bool {
        let asks = |n: usize| {
            let Node { offset, behind_ihl, mask, low, span, .. } = self.nodes[n];
            let asked = ethertypes.contains(&EtherType((low >> 16) as u16));
            asked
                && (mask, span) == (0xffff_0000, 0)
                && usize::from(offset) == ETHERTYPE
                && !behind_ihl
        };
        !self.reaches(&asks, wanted)
    }

    /// Whether the root, or a node or end reachable from it, is `wanted`, without following the `yes` of
    /// nodes that are `closed`.
    pub(super) fn reaches(
        &self,
        closed: &dyn Fn(usize) -> bool,
        wanted: &dyn Fn(u16) -> bool,
    ) -> bool {
        let mut seen = vec![false; self.nodes.len()];
        let mut todo = vec![self.root];
        while let Some(at) = todo.pop() {
            if wanted(at) {
                return true;
            }
            let n = usize::from(at);
            if seen.get_mut(n).is_none_or(|seen| std::mem::replace(seen, true)) {
                continue;
            }
            todo.push(self.no[n]);
            if !closed(n) {
                todo.push(self.yes[n]);
            }
        }
        false
    }

    /// Whether a packet matches; `None`: the program must be run.
    #[inline]
    pub(super) fn run(&self, packet: &[u8]) -> Option<Verdict> {
        let (mut at, mut lasting) = (self.root, true);
        while let Some(node) = self.nodes.get(usize::from(at)) {
            let mut offset = usize::from(node.offset);
            if node.behind_ihl {
                offset += usize::from(packet.get(IHL_OFFSET as usize)? & 0xf) << 2;
            }
            let word = u32::from_be_bytes(*packet.get(offset..)?.first_chunk()?);
            let within = (word & node.mask).wrapping_sub(node.low) <= node.span;
            lasting &= node.lasting;
            at = if within {
                *self.yes.get(usize::from(at))?
            } else {
                *self.no.get(usize::from(at))?
            };
        }
        Some(match at == MATCH {
            true => Verdict::Match,
            false if lasting => Verdict::NoMatchForGood,
            false => Verdict::NoMatch,
        })
    }
}

/// Octets of an IPv4 header without options.
const IHL_MIN: usize = 20;
/// Maximum number of nodes of a tree that is applied to a burst.
const BURST_NODES: usize = 64;
/// Fewer packets than this are tested one by one.
const FEW: u32 = 8;

/// Results for up to 64 packets, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BurstVerdicts {
    /// Those that match.
    pub matched: u64,
    /// Those that will never match.
    pub for_good: u64,
    /// Those that must be tested one by one.
    pub unknown: u64,
}

impl Tree {
    /// Runs the tree on up to 64 packets: the [`Probe`] decides most; for the others each test is loaded
    /// once for all, and they do not wait for each other. Left over as unknown: packets below 60 octets,
    /// packets with IPv4 options whose ports are tested, and all packets if the tree is large or reads
    /// far into the packet.
    pub(super) fn run_burst<'a>(&self, packets: impl Iterator<Item = &'a [u8]>) -> BurstVerdicts {
        let mut windows = [&[0; WINDOW]; 64];
        let (mut count, mut todo, mut verdicts) = (0, 0u64, BurstVerdicts::default());
        for (packet, window) in packets.zip(&mut windows) {
            match packet.first_chunk() {
                Some(octets) => {
                    *window = octets;
                    todo |= 1 << count;
                }
                None => verdicts.unknown |= 1 << count,
            }
            count += 1;
        }
        if let Some(probe) = &self.probe {
            let found = probe.may_match(&windows[..count]) & todo;
            if probe.is_lasting() {
                verdicts.for_good = todo & !found;
            }
            todo = found;
        }
        if todo.count_ones() < FEW || self.nodes.len() > BURST_NODES {
            verdicts.unknown |= todo;
            return verdicts;
        }
        // The root is the last node: every node is after its successors.
        let (mut at, mut passing) = ([0; BURST_NODES], Passing { verdicts, no_match: 0 });
        passing.to(self.root, todo, &mut at);
        let mut changing = 0;
        for n in (0..self.nodes.len()).rev() {
            let here = at[n];
            if here == 0 {
                continue;
            }
            let Some(within) = self.nodes[n].test_burst(&windows[..count], here) else {
                passing.verdicts.unknown |= here;
                continue;
            };
            let (untestable, within) = within;
            passing.verdicts.unknown |= untestable;
            let here = here & !untestable;
            if !self.nodes[n].lasting {
                changing |= here;
            }
            passing.to(self.yes[n], here & within, &mut at);
            passing.to(self.no[n], here & !within, &mut at);
        }
        let unknown = passing.verdicts.unknown;
        let for_good = passing.verdicts.for_good | (passing.no_match & !changing);
        BurstVerdicts { for_good, unknown, ..passing.verdicts }
    }
}

/// The current nodes of the packets.
struct Passing {
    verdicts: BurstVerdicts,
    no_match: u64,
}

impl Passing {
    fn to(&mut self, node: u16, packets: u64, at: &mut [u64; BURST_NODES]) {
        match node {
            MATCH => self.verdicts.matched |= packets,
            NO_MATCH => self.no_match |= packets,
            node => at[usize::from(node)] |= packets,
        }
    }
}

impl Node {
    /// Offset of the field in a packet without IPv4 options, octets.
    pub(super) fn place_without_options(&self) -> usize {
        usize::from(self.offset) + if self.behind_ihl { IHL_MIN } else { 0 }
    }

    /// Of the packets `here`: those that cannot be tested, and those whose field is in the range. `None`:
    /// the field is beyond the windows.
    fn test_burst(&self, windows: &[&Window], here: u64) -> Option<(u64, u64)> {
        let mut untestable = 0;
        let mut offset = usize::from(self.offset);
        if self.behind_ihl {
            offset += IHL_MIN;
            for (n, window) in windows.iter().enumerate() {
                untestable |= u64::from(window[IHL_OFFSET as usize] & 0xf != 5) << n;
            }
        }
        if offset > WINDOW - 4 {
            return None;
        }
        let test = |window: &Window| {
            let octets = [0, 1, 2, 3].map(|n| window[offset + n]);
            let word = u32::from_be_bytes(octets);
            u64::from((word & self.mask).wrapping_sub(self.low) <= self.span)
        };
        let mut within = 0;
        if here.count_ones() < FEW {
            let mut left = here;
            while left != 0 {
                let n = left.trailing_zeros();
                within |= test(windows.get(n as usize)?) << n;
                left &= left - 1;
            }
        } else {
            for (n, window) in windows.iter().enumerate() {
                within |= test(window) << n;
            }
        }
        Some((untestable & here, within))
    }
}

/// The contents of A: `size` octets at an offset, with some bits masked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Field {
    offset: u16,
    behind_ihl: bool,
    /// Bits of the field.
    bits: u32,
    mask: u32,
}

/// A position in the program and what is known there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct State {
    pc: usize,
    a: Option<Field>,
    /// A has been compared: otherwise its load, which may end the program, must not be omitted.
    a_tested: bool,
    /// X is the IPv4 header's length.
    x_is_ihl: bool,
    x_used: bool,
}

struct Builder<'a> {
    insns: &'a [Insn],
    tree: Tree,
    known: HashMap<State, u16>,
}

impl Builder<'_> {
    /// The node, or the end, that a state leads to.
    fn build(&mut self, mut state: State) -> Option<u16> {
        use code::*;
        if let Some(&known) = self.known.get(&state) {
            return Some(known);
        }
        let begin = state;
        let end = loop {
            let insn = *self.insns.get(state.pc)?;
            state.pc += 1;
            match insn.code & CLASS {
                LD if state.settled_a() => {
                    (state.a, state.a_tested) = (Some(state.field(&insn)?), false);
                    state.x_used |= insn.code & MODE == IND;
                }
                LDX if insn.code & MODE == MSH && insn.k == IHL_OFFSET && state.settled_x() => {
                    (state.x_is_ihl, state.x_used) = (true, false);
                }
                ALU if insn.code & (OP | X) == AND => {
                    let mut field = state.a?;
                    field.mask &= insn.k;
                    state.a = Some(field);
                }
                JMP if insn.code & OP == JA => state.pc += insn.k as usize,
                JMP if insn.code & X == 0 => {
                    let field = state.a?;
                    state.a_tested = true;
                    break self.branch(&insn, field, state)?;
                }
                RET if insn.code & A == 0 && state.settled_a() && state.settled_x() => {
                    break if insn.k == 0 { NO_MATCH } else { MATCH };
                }
                _ => return None,
            }
        };
        self.known.insert(begin, end);
        Some(end)
    }

    fn branch(&mut self, insn: &Insn, field: Field, state: State) -> Option<u16> {
        let to = |skip: u8| State { pc: state.pc + usize::from(skip), ..state };
        let (mut yes, mut no) = (self.build(to(insn.jt))?, self.build(to(insn.jf))?);
        let top = 32 - field.bits;
        let mut mask = field.mask << top;
        let all = u32::MAX << top;
        let (low, span) = match insn.code & code::OP {
            // More than the field can hold.
            code::JEQ | code::JGE if insn.k > all >> top => return self.never(field, no),
            code::JGT if insn.k >= all >> top => return self.never(field, no),
            code::JEQ => (insn.k << top, 0),
            code::JGE => (insn.k << top, u32::MAX - (insn.k << top)),
            code::JGT => ((insn.k + 1) << top, u32::MAX - ((insn.k + 1) << top)),
            _ => {
                mask &= insn.k << top;
                (yes, no) = (no, yes);
                (0, 0)
            }
        };
        self.node(field, mask, (low, span), (yes, no))
    }

    /// A test that is always false: it is kept, because its load may end the program.
    fn never(&mut self, field: Field, no: u16) -> Option<u16> {
        self.node(field, 0, (0, 0), (no, no))
    }

    fn node(
        &mut self,
        field: Field,
        mask: u32,
        (low, span): (u32, u32),
        (yes, no): (u16, u16),
    ) -> Option<u16> {
        let Field { offset, behind_ihl, .. } = field;
        let lasting = field.is_lasting();
        self.tree.nodes.push(Node { offset, behind_ihl, mask, low, span, lasting });
        self.tree.yes.push(yes);
        self.tree.no.push(no);
        let count = self.tree.nodes.len();
        (count <= NODES_MAX).then_some(count as u16 - 1)
    }
}

impl Field {
    /// Whether forwarding does not change the field, neither in IPv4 nor in IPv6: it writes the Ethernet
    /// addresses, TTL and header checksum or hop limit, options, and partial checksums.
    fn is_lasting(&self) -> bool {
        let (begin, end) = (self.offset, self.offset.saturating_add(self.bits as u16 / 8));
        let lies_in = |from: u16, to: u16| from <= begin && end <= to;
        match self.behind_ihl {
            // Ports, ICMP type and code.
            true => lies_in(14, 18),
            // EtherType to IPv6's next header; IPv4's protocol; IPv4's addresses.
            false => lies_in(12, 21) || lies_in(23, 24) || lies_in(26, 34),
        }
    }
}

impl State {
    fn settled_a(&self) -> bool {
        self.a.is_none() || self.a_tested
    }

    fn settled_x(&self) -> bool {
        !self.x_is_ihl || self.x_used
    }

    /// The field that a load puts into A.
    fn field(&self, insn: &Insn) -> Option<Field> {
        let behind_ihl = match insn.code & code::MODE {
            code::ABS => false,
            code::IND if self.x_is_ihl => true,
            _ => return None,
        };
        let bits = match insn.code & code::SIZE {
            code::W => 32,
            code::H => 16,
            _ => 8,
        };
        let offset = insn.k.try_into().ok()?;
        Some(Field { offset, behind_ihl, bits, mask: u32::MAX >> (32 - bits) })
    }
}
