//! nftables: the kernel's ruleset, and the program that workers run instead of it.
//!
//! - [`ruleset`]: the model, as read from the kernel;
//! - `compile`, `reach`, `set` with `key_table`, `intervals` and `tuple_space`: make the program;
//! - `fuse`, `classify`: make it fast;
//! - `op`, `program`: the program;
//! - `packet`, `eval`, `fib`, [`xfrm`], `write`, [`xt`]: run it on a packet; `traced`: with what rules decide recorded;
//! - `learn`, `varies`: whether it does the same with every packet of a flow;
//! - `carried`, with `carried_facts`, [`carried_rules`]: what packets of carried connections evaluate, for people;
//! - `device`: chains at the ingress and egress of interfaces;
//! - `follow`: the program at the hooks, with the counters of all workers.
//!
//! Evaluation allocates nothing and cannot fail: what the program does not decide as the kernel would, it
//! leaves to the kernel.

mod carried;
mod carried_facts;
pub mod carried_rules;
mod classify;
mod compile;
mod device;
mod eval;
mod fib;
mod follow;
mod fuse;
mod intervals;
mod key_table;
mod learn;
mod op;
pub mod other;
mod packet;
mod program;
mod reach;
pub mod ruleset;
mod set;
mod traced;
mod tuple_space;
mod varies;
mod write;
pub mod xfrm;
pub mod xt;

pub use compile::{ORDER_UNKNOWN, compile, compile_with_slack};
pub use device::DeviceChains;
pub use follow::{Around, Nft};
pub use learn::{Learner, Observer, Routes};
pub use packet::{Packet, Transport};
pub use program::{
    BaseChainId, CounterKind, CounterPage, CounterPlace, JOURNAL_MAX, Journal, KernelRule,
    NftVerdict, Program, Tracking, WRITES_TUPLE_TEXT,
};
pub use ruleset::{Family, Ruleset};
pub use traced::TracedRule;
pub use write::WRITABLE_LEN;

#[cfg(test)]
mod tests;
