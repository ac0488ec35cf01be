//! The flows whose packets are steered while connections are tracked.
//!
//! The map is shared by all ports. Whether it applies is set by
//! [`Steering::set_tracking`](super::Steering::set_tracking); `xdp-prog` has the rules.

use std::io;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use xdp_prog::FlowKey;

use super::XdpError;
use crate::io::af_xdp::map_batch::{self, Processed};

/// Entries per system call. The memory for their keys and values is 11 KiB, and the cost of the
/// system call is small against that of the entries.
const BATCH: usize = 256;
/// Length of a key in octets.
const KEY: usize = size_of::<FlowKey>();

/// Adds and removes flows, from any thread. The map lives as long as this, or a program that uses
/// it.
#[derive(Debug)]
pub struct FlowGate {
    flows: MapHandle,
}

impl FlowGate {
    /// `flows`: of which the descriptor is duplicated.
    pub(super) fn new(flows: &MapHandle) -> Result<FlowGate, XdpError> {
        let flows =
            MapHandle::try_from(flows).map_err(|source| XdpError::map("open", flows, source))?;
        Ok(FlowGate { flows })
    }

    /// Maximum number of flows, of which each has two keys.
    pub fn flows_max(&self) -> usize {
        self.flows.max_entries() as usize / 2
    }

    /// Adds flows with their numbers, in this order; a number replaces an earlier one. Packets are
    /// steered as soon as their flow is added, before this returns.
    ///
    /// Returns how many were added: fewer than given if there is no more room, which is
    /// two entries for each of [`FlowGate::flows_max`], or the memory that the kernel has for them.
    ///
    /// # Errors
    /// Other errors of bpf(2). Some of the flows may have been added.
    #[must_use = "a flow that was not added stays with the kernel"]
    pub fn insert(&self, keys: &[(FlowKey, u32)]) -> io::Result<usize> {
        let mut inserted = 0;
        for batch in keys.chunks(BATCH) {
            let octets: Vec<u8> = batch.iter().flat_map(|(key, _)| key.to_bytes()).collect();
            let values: Vec<u8> = batch.iter().flat_map(|(_, flow)| flow.to_ne_bytes()).collect();
            let (processed, result) = map_batch::update(&self.flows, &octets, &values);
            inserted += processed;
            match result {
                Err(error) if is_full(&error) => break,
                other => other?,
            }
        }
        Ok(inserted)
    }

    /// Removes flows; no effect on those that are not there. Frames that the program steered before
    /// may still be in the RX rings when this returns.
    ///
    /// Returns how many were there.
    ///
    /// # Errors
    /// Errors of bpf(2) other than ENOENT. Some of the flows may have been removed.
    pub fn remove(&self, keys: &[FlowKey]) -> io::Result<usize> {
        let mut removed = 0;
        for batch in keys.chunks(BATCH) {
            let octets: Vec<u8> = batch.iter().flat_map(|key| key.to_bytes()).collect();
            removed += remove_each(&octets, |rest| map_batch::delete(&self.flows, rest))?;
        }
        Ok(removed)
    }

    /// Removes all flows. One that another thread adds meanwhile may stay.
    ///
    /// # Errors
    /// Errors of bpf(2). Some of the flows may have been removed.
    pub fn clear(&self) -> io::Result<()> {
        let mut keys = map_batch::next_keys(&self.flows, None, BATCH)?;
        while !keys.is_empty() {
            // The kernel searches from the last key, so read on before it is removed: from the
            // first key the search would pass all empty buckets, for each batch.
            let last = keys.rchunks(KEY).next();
            let next = map_batch::next_keys(&self.flows, last, BATCH)?;
            remove_each(&keys, |rest| map_batch::delete(&self.flows, rest))?;
            keys = next;
        }
        Ok(())
    }

    /// The number of a flow; `None`: it is not there.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn get(&self, key: &FlowKey) -> Result<Option<u32>, XdpError> {
        let value = self
            .flows
            .lookup(&key.to_bytes(), MapFlags::ANY)
            .map_err(|source| XdpError::map("read", &self.flows, source))?;
        Ok(value.and_then(|octets| octets.try_into().ok()).map(u32::from_ne_bytes))
    }
}

/// Removes the keys in `octets` by `delete`, which stops at a key that is not there. Returns how
/// many were there.
fn remove_each(octets: &[u8], delete: impl Fn(&[u8]) -> Processed) -> io::Result<usize> {
    let (mut rest, mut removed) = (octets, 0);
    while !rest.is_empty() {
        let (processed, result) = delete(rest);
        removed += processed;
        rest = match result {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                rest.get((processed + 1) * KEY..).unwrap_or_default()
            }
            Err(error) => return Err(error),
            Ok(()) => &[],
        };
    }
    Ok(removed)
}

/// The kernel returns E2BIG from a full hash map, and ENOMEM if the entry cannot be allocated.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use libbpf_rs::{MapType, libbpf_sys};

    use super::*;

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_a_full_map_holds_the_first_flows() {
        const ROOM: u32 = 300;
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            map_flags: libbpf_sys::BPF_F_NO_PREALLOC,
            ..Default::default()
        };
        let flows = MapHandle::create(MapType::Hash, Some("flows"), KEY as u32, 4, ROOM, &opts);
        let gate = FlowGate { flows: flows.expect("a map") };
        let keys: Vec<(FlowKey, u32)> = (0..1000)
            .map(|n| {
                let (from, to) = (Ipv4Addr::from(n), Ipv4Addr::LOCALHOST);
                (FlowKey::new(IpAddr::V4(from), IpAddr::V4(to), 1, 2, 17).expect("IPv4"), n)
            })
            .collect();
        assert_eq!(gate.insert(&keys).expect("no error"), ROOM as usize);
        for (key, n) in &keys {
            assert_eq!(gate.get(key).expect("read"), (*n < ROOM).then_some(*n));
        }
        // What is there can still be replaced, and what is removed leaves room.
        assert_eq!(gate.insert(&[(keys[3].0, 33)]).expect("no error"), 1);
        assert_eq!(gate.remove(&[keys[5].0, keys[900].0, keys[6].0]).expect("no error"), 2);
        assert_eq!(gate.insert(&keys[ROOM as usize..]).expect("no error"), 2);
        gate.clear().expect("empty");
        assert!(keys.iter().all(|(key, _)| gate.get(key).expect("read").is_none()));
        assert_eq!(gate.insert(&keys[..200]).expect("no error"), 200);
    }

    #[test]
    fn keys_that_are_not_there_are_skipped() {
        let octets: Vec<u8> = (1u8..=5).flat_map(|n| [n; KEY]).collect();
        // 1, 4 and 5 are not there; a batch ends at them.
        let delete = |rest: &[u8]| {
            let keys = rest.chunks(KEY).map(|key| key[0]);
            let found = keys.take_while(|key| [2, 3].contains(key)).count();
            let missing = found < rest.len() / KEY;
            let error = || io::Error::from_raw_os_error(libc::ENOENT);
            (found, if missing { Err(error()) } else { Ok(()) })
        };
        assert_eq!(remove_each(&octets, delete).expect("no error"), 2);
        assert_eq!(remove_each(&[], delete).expect("no error"), 0);
        let failing = |_: &[u8]| (1, Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(remove_each(&octets, failing).is_err());
    }
}
