//! The five netfilter hook points.

pub mod hook;

pub use hook::{Hook, HookState, Hooks, Verdict};
