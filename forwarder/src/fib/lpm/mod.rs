//! Longest-prefix match for IPv4 and IPv6, built for a full Internet table.
//!
//! One thread writes ([`LpmWriter`]) while any number of threads look up ([`Lpm`]), without locks and
//! without waiting. The result of a lookup is a number, the leaf, whose meaning is up to the caller.
//!
//! - `table`: the published trie and its lookups.
//! - `writer`, `routes`: updates, and the underlying record of routes.
//! - `block`, `pool`: encoding of blocks, and allocation of their space.

use std::sync::Arc;

use thiserror::Error;

mod block;
mod pool;
mod routes;
mod table;
#[cfg(test)]
mod tests;
mod writer;

pub use routes::Iter;
pub use table::Lpm;
pub use writer::{LEAF_MAX, LpmWriter};

use super::prefix::{Address, Prefix};
use super::qsbr::Qsbr;
use super::rules::PrefixMatch;

impl<A: Address> Lpm<A> {
    /// A table of these routes that will not be changed; for tests and for routes read from a file.
    pub fn from_routes(
        routes: impl IntoIterator<Item = (Prefix<A>, u32)>,
    ) -> Result<Arc<Self>, FibError> {
        let mut writer = LpmWriter::new(Qsbr::new(0))?;
        for (prefix, leaf) in routes {
            writer.insert(prefix, leaf)?;
        }
        Ok(Arc::clone(writer.table()))
    }
}

impl<A: Address> PrefixMatch for Lpm<A> {
    type Addr = A;

    #[inline]
    fn lookup(&self, addr: A) -> u32 {
        Lpm::lookup(self, addr)
    }

    #[inline]
    fn network(addr: A, len: u8) -> A {
        Prefix::masked(addr, len).bits()
    }
}

/// Why a table could not be created or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FibError {
    /// 0 means "no route", and the top bit is reserved.
    #[error("leaf {leaf} is not from 1 to {LEAF_MAX}")]
    Leaf {
        /// The leaf.
        leaf: u32,
    },
    /// More routes than the table can hold; nothing was changed.
    #[error("the table is full: {nodes} nodes")]
    Full {
        /// Nodes in use.
        nodes: usize,
    },
    /// Memory allocation failed. If this happens during an update, the readers' table lacks it, and the
    /// next update tries again.
    #[error("no memory for a table of {octets} octets")]
    Memory {
        /// Octets that were requested.
        octets: usize,
    },
}
