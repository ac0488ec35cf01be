//! Connection tracking: the flows that workers carry.
//!
//! The kernel tracks connections; there is no second tracker. A thread of the control layer follows the
//! kernel's table and enters the flows that workers may carry ([`FlowTable`]). A packet of another flow is
//! left to the kernel, which judges it, tracks it and translates it. A carried packet meets the same ruleset
//! as in the kernel, with what is known of its connection ([`Ct`]).
//!
//! - `tuple`: the key of a packet;
//! - `flow`: the record of a flow; `table`: the carried flows, written by one thread and read by all workers;
//! - `nf_conntrack_in`: finds the flow of a packet at PRE_ROUTING;
//! - `ahead`: finds the flows of a whole burst;
//! - `nf_nat`: translates packets of flows with NAT at PRE_ROUTING and POST_ROUTING.

mod ahead;
mod flow;
mod nf_conntrack_in;
mod nf_nat;
mod table;
#[cfg(test)]
mod tests;
mod tuple;

pub use ahead::FlowsAhead;
pub use flow::{Carried, FoundFlow, Undecided};
pub(super) use nf_conntrack_in::{Plain, Segment};
pub use nf_conntrack_in::{Tracked, flow_key_of, flow_key4, flow_key6, nf_conntrack_in};
pub use nf_nat::{NatTarget, Rewrite4, Translated, nf_nat_packet};
pub(super) use nf_nat::{may_be_masqueraded, nf_nat_both};
pub use table::{FlowDesc, FlowTable, FlowView, FlowWriter, SeqsElsewhere};
pub use tuple::FlowKey;
pub use xdp_prog::TupleKind;

/// The direction of a packet in its connection (`enum ip_conntrack_dir`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As the connection's first packet.
    Original = 0,
    /// The answers.
    Reply = 1,
}

/// What is known of a packet's connection (`nf_ct_get`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ct {
    /// Connections are not tracked.
    #[default]
    Off,
    /// Connections are tracked, but not of this packet, or not yet: the hook function has not run
    /// (`ct == NULL`, with which `ct state` is `invalid`).
    Null,
    /// Invalid: the packet pretends to be of a connection, which it must not change. The kernel must not get it,
    /// because its entry of a carried connection is liberal.
    Invalid,
    /// Of an established connection.
    Established(CtInfo),
}

/// A packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CtInfo {
    /// The number of the flow in the table of carried flows.
    pub flow: u32,
    /// The packet's direction.
    pub direction: Direction,
    /// `ct->status`, bits IPS_*.
    pub status: u32,
    /// `ct->mark`.
    pub mark: u32,
}

/// IPS_SRC_NAT: the source of packets of the original direction is translated.
pub const IPS_SRC_NAT: u32 = 1 << 4;
/// IPS_DST_NAT: the destination of packets of the original direction is translated.
pub const IPS_DST_NAT: u32 = 1 << 5;
/// Either of them.
pub const IPS_NAT_MASK: u32 = IPS_SRC_NAT | IPS_DST_NAT;

/// NF_CT_STATE_INVALID_BIT.
pub const CT_STATE_INVALID: u32 = 1;
/// NF_CT_STATE_BIT(IP_CT_ESTABLISHED).
pub const CT_STATE_ESTABLISHED: u32 = 1 << 1;
