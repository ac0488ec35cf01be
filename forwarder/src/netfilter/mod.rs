//! Netfilter: hook points, functions at them, and the nftables ruleset.
//!
//! - `hook`: hook points, hook functions, verdicts;
//! - `net_hooks`: registration;
//! - `conntrack`: the flows that workers carry where connections are tracked;
//! - `nft`: the ruleset of the kernel and the program that workers run;
//! - `traced`: steps of traced packets.

pub mod conntrack;
pub mod hook;
pub mod net_hooks;
pub mod nft;
mod traced;

pub use hook::{
    Answer, Hook, HookCtx, HookId, HookState, HookStates, Hooks, NfHook, NfHookOps, Verdict,
    priority,
};
pub use net_hooks::NetHooks;
pub use nft::Family;
