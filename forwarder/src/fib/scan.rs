//! A simple longest-prefix match: a linear scan of a list. The reference for tests of the real one, and
//! sufficient for tests of the layers above.

use super::rules::PrefixMatch;

/// Prefixes and leaves, unordered.
#[derive(Debug, Clone)]
pub struct Scan<A> {
    routes: Vec<(A, u8, u32)>,
}

impl<A> Default for Scan<A> {
    fn default() -> Scan<A> {
        Scan { routes: Vec::new() }
    }
}

impl<A: Copy + PartialEq> Scan<A> {
    /// Adds or replaces a prefix; host bits of `addr` must be zero.
    pub fn insert(&mut self, addr: A, len: u8, leaf: u32) {
        self.remove(addr, len);
        self.routes.push((addr, len, leaf));
    }

    /// Removes a prefix.
    pub fn remove(&mut self, addr: A, len: u8) {
        self.routes.retain(|&(net, l, _)| (net, l) != (addr, len));
    }
}

macro_rules! prefix_match {
    ($addr:ty) => {
        impl PrefixMatch for Scan<$addr> {
            type Addr = $addr;

            fn lookup(&self, addr: $addr) -> u32 {
                self.routes
                    .iter()
                    .filter(|&&(net, len, _)| Self::network(addr, len) == net)
                    .max_by_key(|&&(_, len, _)| len)
                    .map_or(0, |&(_, _, leaf)| leaf)
            }

            fn network(addr: $addr, len: u8) -> $addr {
                let host_bits = <$addr>::BITS.saturating_sub(u32::from(len));
                <$addr>::MAX.checked_shl(host_bits).unwrap_or(0) & addr
            }
        }
    };
}
prefix_match!(u32);
prefix_match!(u128);
