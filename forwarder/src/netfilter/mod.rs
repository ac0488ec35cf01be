//! Netfilter: hook points, functions at them, and the nftables ruleset.
//!
//! - `hook`: hook points, hook functions, verdicts; `hook_states`: what a worker keeps for them;
//! - `net_hooks`: registration; `ingress`: the hooks of interfaces;
//! - `conntrack`: the flows that workers carry where connections are tracked;
//! - `decision`: what the functions do with every packet of a flow; `passage`: packets that pass as was decided;
//! - `nft`: the ruleset of the kernel and the program that workers run;
//! - `traced`: steps of traced packets.

pub mod conntrack;
mod decision;
pub mod hook;
mod hook_states;
mod ingress;
pub mod net_hooks;
pub mod nft;
mod passage;
mod traced;
mod tracking;

pub use decision::COUNTERS_MAX;
pub use hook::{
    Answer, Hook, HookCtx, HookId, HookState, Hooks, NfHook, NfHookOps, Verdict, priority,
};
pub use hook_states::HookStates;
pub use ingress::AtIngress;
pub use net_hooks::NetHooks;
pub use nft::{Family, Learner};
pub use passage::{Allowed, Passage, Passed};
