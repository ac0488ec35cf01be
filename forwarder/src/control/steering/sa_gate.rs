//! The security associations (SAs) whose packets to the router itself are steered.
//!
//! The map is shared by all ports. `xdp-prog` has the rules: packets of other SAs stay with the kernel, and fragments
//! without a key for them. Which SAs userspace opens is decided elsewhere.

use std::collections::BTreeSet;

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use xdp_prog::SaGateKey;

use super::XdpError;

/// The keys that [`xdp_prog::MAP_IPSEC_SAS`] has.
#[derive(Debug, Default)]
pub(super) struct SaGate {
    keys: BTreeSet<SaGateKey>,
}

impl SaGate {
    /// Changes the map to these keys: first removes those that are gone, then adds new ones. If it is full, or
    /// there is no memory for more, the rest stays with the kernel: returns how many keys found no place. The next call
    /// tries them again.
    ///
    /// # Errors
    /// [`XdpError::Map`]; earlier changes remain written, and the next call continues from there.
    pub(super) fn set(
        &mut self,
        map: &MapHandle,
        wanted: &BTreeSet<SaGateKey>,
    ) -> Result<usize, XdpError> {
        let old: Vec<SaGateKey> = self.keys.difference(wanted).copied().collect();
        for key in old {
            match map.delete(&key.to_bytes()) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(XdpError::map("remove an SA from", map, e));
                }
                _ => self.keys.remove(&key),
            };
        }
        let room = (map.max_entries() as usize).saturating_sub(self.keys.len());
        let new: Vec<SaGateKey> = wanted.difference(&self.keys).copied().take(room).collect();
        for key in new {
            match map.update(&key.to_bytes(), &1u32.to_ne_bytes(), MapFlags::ANY) {
                Err(e) if e.kind() == ErrorKind::OutOfMemory => break,
                Err(e) => return Err(XdpError::map("add an SA to", map, e)),
                Ok(()) => self.keys.insert(key),
            };
        }
        Ok(wanted.len() - self.keys.len())
    }

    /// Whether the map has no keys.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
