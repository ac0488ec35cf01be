//! The embedded BPF object: opening it, loading its programs and maps, libbpf's log.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Once;

use libbpf_rs::{MapHandle, MapType, Object, ObjectBuilder, OpenObject, PrintLevel, libbpf_sys};

use xdp_prog::{FLOW_SLOTS, offload};

use super::flow_gate::copy_hash;
use super::offload::OffloadTable;
use super::{FlowGate, XdpError};
use crate::control::conntrack::Sysctls;

/// libbpf reads the ELF headers in place, so they have to be aligned.
#[repr(C, align(8))]
pub(super) struct Aligned<T: ?Sized>(pub(super) T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../xdp-prog/ferroute.bpf.o"));

/// Flows for which there is room if the kernel does not say how many it tracks: it has not loaded nf_conntrack
/// yet. The kernel's own default is this or less.
const FLOWS_DEFAULT: u32 = 262_144;

/// The maps that every port's program uses, and the punt program. Descriptors keep maps and
/// programs alive, so libbpf's object is not kept.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) punt_program: OwnedFd,
    pub(super) punt_ports: MapHandle,
    pub(super) settings: MapHandle,
    pub(super) heartbeats: MapHandle,
    pub(super) local4: MapHandle,
    pub(super) local6: MapHandle,
    pub(super) local_prefix4: MapHandle,
    pub(super) local_prefix6: MapHandle,
    pub(super) flows: MapHandle,
    pub(super) ipsec_sas: MapHandle,
    pub(super) offload: OffloadMaps,
}

/// The maps of flow offload.
#[derive(Debug)]
pub(super) struct OffloadMaps {
    pub(super) marks: MapHandle,
    pub(super) entries: MapHandle,
    pub(super) rewrites: MapHandle,
    pub(super) next_hops: MapHandle,
    pub(super) epochs: MapHandle,
    /// For programs without support for multi-buffer packets, and for those with it: the kernel wants all programs of
    /// a DEVMAP to be of one kind.
    pub(super) tx_ports: [MapHandle; 2],
}

impl Shared {
    /// Loads the punt program and creates the shared maps.
    /// `offloaded`: room for offloaded flows; 0: hardly any memory is used for them.
    pub(super) fn load(offloaded: usize) -> Result<Shared, XdpError> {
        let object = load(|open| {
            only_program(open, xdp_prog::PROGRAM_PUNT);
            for mut map in open.maps_mut() {
                let name = map.name().to_string_lossy().into_owned();
                map.set_autocreate(is_shared(&name) || name == xdp_prog::MAP_PUNT_PORTS)?;
                let buckets = OffloadTable::buckets(offloaded);
                let places = (buckets - 1) * FLOW_SLOTS as u32;
                match name.as_str() {
                    xdp_prog::MAP_FLOWS => {
                        map.set_max_entries(FlowGate::entries(flow_keys_max()))?
                    }
                    offload::MAP_MARKS => map.set_max_entries(buckets)?,
                    offload::MAP_ENTRIES | offload::MAP_REWRITES => map.set_max_entries(places)?,
                    _ => {}
                }
            }
            Ok(())
        })?;
        let flows = map(&object, xdp_prog::MAP_FLOWS)?;
        FlowGate::begin(&flows).map_err(XdpError::FlowGate)?;
        let marks = map(&object, offload::MAP_MARKS)?;
        copy_hash(&flows, &marks).map_err(XdpError::FlowGate)?;
        Ok(Shared {
            punt_program: program(&object, xdp_prog::PROGRAM_PUNT)?,
            punt_ports: map(&object, xdp_prog::MAP_PUNT_PORTS)?,
            settings: map(&object, xdp_prog::MAP_SHARED)?,
            heartbeats: map(&object, xdp_prog::MAP_HEARTBEATS)?,
            local4: map(&object, xdp_prog::MAP_LOCAL4)?,
            local6: map(&object, xdp_prog::MAP_LOCAL6)?,
            local_prefix4: map(&object, xdp_prog::MAP_LOCAL_PREFIX4)?,
            local_prefix6: map(&object, xdp_prog::MAP_LOCAL_PREFIX6)?,
            flows,
            ipsec_sas: map(&object, xdp_prog::MAP_IPSEC_SAS)?,
            offload: OffloadMaps {
                marks,
                entries: map(&object, offload::MAP_ENTRIES)?,
                rewrites: map(&object, offload::MAP_REWRITES)?,
                next_hops: map(&object, offload::MAP_NEXT_HOPS)?,
                epochs: map(&object, offload::MAP_EPOCHS)?,
                tx_ports: [map(&object, offload::MAP_TX_PORTS)?, new_tx_ports()?],
            },
        })
    }

    /// Loads an instance of the XDP program that uses the shared maps. `frags`: with support for
    /// multi-buffer packets, as for programs in section `xdp.frags` (Linux 5.18); the program reads
    /// the first buffer only. Drivers then support larger MTUs.
    pub(super) fn load_port(&self, frags: bool) -> Result<Object, XdpError> {
        load(|open| {
            only_program(open, xdp_prog::PROGRAM_XDP);
            for mut program in open.progs_mut().filter(|_| frags) {
                if program.name() == xdp_prog::PROGRAM_XDP {
                    program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
                }
            }
            for mut map in open.maps_mut() {
                let name = map.name().to_string_lossy().into_owned();
                match self.shared_map(&name, frags) {
                    Some(shared) => map.reuse_fd(shared.as_fd())?,
                    None => map.set_autocreate(name != xdp_prog::MAP_PUNT_PORTS)?,
                }
            }
            Ok(())
        })
    }

    fn shared_map(&self, name: &str, frags: bool) -> Option<&MapHandle> {
        let [tx_ports, tx_ports_frags] = &self.offload.tx_ports;
        match name {
            xdp_prog::MAP_SHARED => Some(&self.settings),
            xdp_prog::MAP_HEARTBEATS => Some(&self.heartbeats),
            xdp_prog::MAP_LOCAL4 => Some(&self.local4),
            xdp_prog::MAP_LOCAL6 => Some(&self.local6),
            xdp_prog::MAP_LOCAL_PREFIX4 => Some(&self.local_prefix4),
            xdp_prog::MAP_LOCAL_PREFIX6 => Some(&self.local_prefix6),
            xdp_prog::MAP_FLOWS => Some(&self.flows),
            xdp_prog::MAP_IPSEC_SAS => Some(&self.ipsec_sas),
            offload::MAP_MARKS => Some(&self.offload.marks),
            offload::MAP_ENTRIES => Some(&self.offload.entries),
            offload::MAP_REWRITES => Some(&self.offload.rewrites),
            offload::MAP_NEXT_HOPS => Some(&self.offload.next_hops),
            offload::MAP_EPOCHS => Some(&self.offload.epochs),
            offload::MAP_TX_PORTS => Some(if frags { tx_ports_frags } else { tx_ports }),
            _ => None,
        }
    }
}

/// Another map like [`offload::MAP_TX_PORTS`].
fn new_tx_ports() -> Result<MapHandle, XdpError> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // The key is a port's number, the value a struct bpf_devmap_val.
    MapHandle::create(
        MapType::Devmap,
        Some(offload::MAP_TX_PORTS),
        4,
        8,
        offload::TX_PORTS_MAX as u32,
        &options,
    )
    .map_err(XdpError::TxPorts)
}

/// Room for both keys of every connection that the kernel tracks.
fn flow_keys_max() -> usize {
    let tracked = match Sysctls::read() {
        // 0: no limit.
        Ok(Sysctls { max: 0, .. }) => u32::MAX,
        Ok(Sysctls { max, .. }) => max,
        Err(_) => FLOWS_DEFAULT,
    };
    (tracked as usize).clamp(1024, xdp_prog::FLOW_KEYS_MAX / 2) * 2
}

fn is_shared(name: &str) -> bool {
    [
        xdp_prog::MAP_SHARED,
        xdp_prog::MAP_HEARTBEATS,
        xdp_prog::MAP_LOCAL4,
        xdp_prog::MAP_LOCAL6,
        xdp_prog::MAP_LOCAL_PREFIX4,
        xdp_prog::MAP_LOCAL_PREFIX6,
        xdp_prog::MAP_FLOWS,
        xdp_prog::MAP_IPSEC_SAS,
        offload::MAP_MARKS,
        offload::MAP_ENTRIES,
        offload::MAP_REWRITES,
        offload::MAP_NEXT_HOPS,
        offload::MAP_EPOCHS,
        offload::MAP_TX_PORTS,
    ]
    .contains(&name)
}

fn only_program(open: &mut OpenObject, wanted: &str) {
    for mut program in open.progs_mut() {
        let load = program.name() == wanted;
        program.set_autoload(load);
    }
}

/// A handle to a map of a loaded object.
pub(super) fn map(object: &Object, name: &'static str) -> Result<MapHandle, XdpError> {
    let map = object
        .maps()
        .find(|m| libbpf_rs::MapCore::name(m) == name)
        .ok_or(XdpError::Incomplete(name))?;
    MapHandle::try_from(&map).map_err(|source| XdpError::map("open", &map, source))
}

/// A descriptor of a program of a loaded object.
pub(super) fn program(object: &Object, name: &'static str) -> Result<OwnedFd, XdpError> {
    let program = object.progs().find(|p| p.name() == name).ok_or(XdpError::Incomplete(name))?;
    program.as_fd().try_clone_to_owned().map_err(XdpError::Descriptors)
}

fn load(
    prepare: impl FnOnce(&mut OpenObject) -> libbpf_rs::Result<()>,
) -> Result<Object, XdpError> {
    let (result, log) = with_log(|| {
        let mut open = ObjectBuilder::default().name("ferroute")?.open_memory(&OBJECT.0)?;
        prepare(&mut open)?;
        open.load()
    });
    result.map_err(|source| XdpError::load(source, log))
}

thread_local! {
    /// libbpf's log on this thread while it is captured.
    static LOG: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `f` and returns libbpf's log, which goes to the error message instead of stderr.
pub(crate) fn with_log<T>(f: impl FnOnce() -> T) -> (T, String) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Info, |_level, text| {
            LOG.with_borrow_mut(|log| {
                if let Some(log) = log {
                    log.push_str(&text);
                }
            });
        })));
    });
    LOG.set(Some(String::new()));
    let result = f();
    (result, LOG.take().unwrap_or_default())
}
