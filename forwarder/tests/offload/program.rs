//! The XDP program with its maps, as a test runs it.

use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput, libbpf_sys};
use xdp_prog::offload::{
    EPOCHS, FlowEntry, MAP_ENTRIES, MAP_EPOCHS, MAP_MARKS, MAP_NEXT_HOPS, MAP_REWRITES,
    MAP_TX_PORTS, Rewrite, Width,
};
use xdp_prog::{
    FLOW_SLOTS, FLOW_WORDS, FlowHash, FlowKey, MAP_FLOWS, PortSettings, REASONS, Reason,
    SharedSettings, VlanSettings, mac_words, vlan_key,
};

use super::packets::{Ends, with_tags};
use crate::frames::PORT_MAC;

/// The number of the port at which frames arrive.
pub const PORT: u16 = 0xabc;
/// The number of the port by which packets leave.
pub const HOP_PORT: u32 = 3;
/// The number of their next hop.
const HOP: u16 = 4095;
const HOP_MACS: [[u8; 6]; 2] = [[2, 1, 2, 3, 4, 5], [2, 6, 7, 8, 9, 10]];
/// Buckets of marks, and of the flows that are steered while connections are tracked.
const BUCKETS: u32 = 64;

/// Position of [`xdp_prog::offload::Epochs::widths`].
const WIDTHS: usize = 1;

/// An entry to be written.
#[derive(Clone, Copy)]
pub struct Flow {
    pub own: Ends,
    pub protocol: u8,
    /// What NAT makes of it.
    pub to: Option<Ends>,
    pub mtu: u16,
    pub is_wide: bool,
    /// The number of the interface that its packets come from.
    pub number: u16,
    /// Bucket (the first or the second) and slot.
    pub place: (usize, usize),
}

impl Flow {
    pub fn new(own: Ends, protocol: u8) -> Flow {
        Flow { own, protocol, to: None, mtu: 1500, is_wide: false, number: PORT, place: (0, 3) }
    }

    fn key(&self, ends: &Ends) -> FlowKey {
        let [from, to] = ends.addresses;
        let ports = if self.is_wide { [0, 0] } else { ends.ports };
        FlowKey::new(from, to, ports[0], ports[1], self.protocol).expect("one family")
    }
}

/// A map value.
fn rewrite_octets(rewrite: &Rewrite) -> Vec<u8> {
    let words = rewrite.source.iter().chain(&rewrite.destination).chain([
        &rewrite.source_port,
        &rewrite.destination_port,
        &rewrite.header_delta,
        &rewrite.transport_delta,
    ]);
    words.chain(&rewrite.reserved).flat_map(|word| word.to_ne_bytes()).collect()
}

/// What the program did with a frame.
pub struct Ran {
    pub action: u32,
    pub reason: Reason,
    pub frame: Vec<u8>,
}

pub struct Program {
    object: Object,
    hash: FlowHash,
    epochs: Vec<u32>,
    flags: (u32, u32),
    timeouts: [u64; 2],
    /// The bucket and the number of the entry that was written.
    installed: Option<(u32, u32)>,
}

impl Program {
    /// Loads it. `frags`: for multi-buffer frames.
    pub fn load(frags: bool) -> Program {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xdp-prog/ferroute.bpf.o");
        let path = std::env::var_os("FERROUTE_BPF_OBJECT").map_or(path, Into::into);
        let mut open = ObjectBuilder::default().open_file(path).expect("the object");
        for mut program in open.progs_mut() {
            let is_xdp = program.name() == xdp_prog::PROGRAM_XDP;
            program.set_autoload(is_xdp);
            if is_xdp && frags {
                program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
            }
        }
        for mut map in open.maps_mut() {
            let entries = match map.name().to_str() {
                Some(MAP_FLOWS | MAP_MARKS) => BUCKETS + 1,
                Some(MAP_ENTRIES | MAP_REWRITES) => BUCKETS * FLOW_SLOTS as u32,
                Some(MAP_TX_PORTS) => {
                    map.set_value_size(4).expect("an ifindex");
                    continue;
                }
                _ => continue,
            };
            map.set_max_entries(entries).expect("not loaded yet");
        }
        let object = open.load().expect("load");
        let secret = std::array::from_fn(|at| 0x1234_5677u32.wrapping_mul(2 * at as u32 + 3));
        let hash = FlowHash { secret, mask: BUCKETS - 1, reserved: [0; 5] };
        let mut epochs: Vec<u32> =
            (0..16 + 4 * EPOCHS as u32).map(|at| at.wrapping_mul(0x9e37_79b9)).collect();
        epochs[WIDTHS] = Width::Addresses.bit();
        let timeouts = [SharedSettings::NO_TIMEOUT_NS; 2];
        let mut program =
            Program { object, hash, epochs, flags: (0, 0), timeouts, installed: None };
        let words = secret.iter().chain([&hash.mask]).chain(&hash.reserved);
        let octets: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
        for name in [MAP_FLOWS, MAP_MARKS] {
            if program.has_map(name) {
                program.write(name, 0, &octets);
            }
        }
        if program.has_map(MAP_TX_PORTS) {
            // The loopback device: nothing is sent in test runs.
            program.write(MAP_TX_PORTS, HOP_PORT, &1u32.to_ne_bytes());
            program.set_hop(HOP_PORT, 0);
        }
        program.store_epochs();
        program.set_flags(0, 0);
        program
    }

    fn has_map(&self, name: &str) -> bool {
        self.object.maps().any(|map| map.name() == name)
    }

    fn map(&self, name: &str) -> MapHandle {
        let map = self.object.maps().find(|map| map.name() == name).expect("a map");
        MapHandle::try_from(&map).expect("a descriptor")
    }

    fn write(&self, name: &str, key: u32, value: &[u8]) {
        self.insert(name, &key.to_ne_bytes(), value);
    }

    fn read(&self, name: &str, key: u32) -> Vec<u8> {
        let value = self.map(name).lookup(&key.to_ne_bytes(), MapFlags::ANY);
        value.expect("read").expect("an entry")
    }

    /// Sets the flags of the port and those that all ports share.
    pub fn set_flags(&mut self, port: u32, shared: u32) {
        self.flags = (port, shared);
        let port = PortSettings { mac: mac_words(PORT_MAC), punt_source: [9; 3], flags: port };
        self.write(xdp_prog::MAP_PORT, 0, &port.to_bytes());
        let [worker_timeout_ns, control_timeout_ns] = self.timeouts;
        let settings =
            SharedSettings { flags: shared, reserved: 0, worker_timeout_ns, control_timeout_ns };
        self.write(xdp_prog::MAP_SHARED, 0, &settings.to_bytes());
    }

    pub fn flags(&self) -> (u32, u32) {
        self.flags
    }

    pub fn set_timeouts(&mut self, timeouts: [u64; 2]) {
        self.timeouts = timeouts;
        self.set_flags(self.flags.0, self.flags.1);
    }

    /// Sets the port of the next hop, and what is added to its epoch.
    pub fn set_hop(&self, port: u32, epoch: u32) {
        self.write_hop(port, epoch, &[]);
    }

    /// Sets the tags of the next hop: TPID and VID.
    pub fn set_hop_tags(&self, tags: &[(u16, u16)]) {
        self.write_hop(HOP_PORT, 0, tags);
    }

    fn write_hop(&self, port: u32, epoch: u32, tags: &[(u16, u16)]) {
        let numbers = [port, 77 + epoch].map(u32::to_ne_bytes).concat();
        let tags = vlan_key(tags.iter().copied()).map(u16::to_ne_bytes).concat();
        let hop = [HOP_MACS.concat(), numbers, tags, vec![0; 4]].concat();
        self.write(MAP_NEXT_HOPS, HOP.into(), &hop);
    }

    /// Lets frames with these tags (TPID and VID) be steered; `number`: of the VLAN.
    pub fn set_vlan(&self, tags: &[(u16, u16)], number: u16) {
        let mac = mac_words(PORT_MAC);
        let settings = VlanSettings { mac, between: mac, number };
        let key = vlan_key(tags.iter().copied()).map(u16::to_ne_bytes).concat();
        self.insert(xdp_prog::MAP_VLANS, &key, &settings.to_bytes());
    }

    /// Writes an entry of a map.
    pub fn insert(&self, name: &str, key: &[u8], value: &[u8]) {
        self.map(name).update(key, value, MapFlags::ANY).expect("written");
    }

    /// Adds to an epoch, given as the position of its word.
    pub fn add_epoch(&mut self, word: usize, add: u32) {
        self.epochs[word] = self.epochs[word].wrapping_add(add);
        self.store_epochs();
    }

    /// Entries of these widths are looked up.
    pub fn set_widths(&mut self, widths: &[Width]) {
        self.epochs[WIDTHS] = widths.iter().fold(0, |bits, width| bits | width.bit());
        self.store_epochs();
    }

    fn store_epochs(&self) {
        if self.has_map(MAP_EPOCHS) {
            let octets: Vec<u8> = self.epochs.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.write(MAP_EPOCHS, 0, &octets);
        }
    }

    /// Writes the only entry, and lets its flow be steered.
    pub fn install(&mut self, flow: &Flow) {
        if !self.has_map(MAP_MARKS) {
            return;
        }
        self.remove();
        let own = flow.key(&flow.own);
        let mut words = own.words();
        if flow.is_wide {
            words[FLOW_WORDS - 1] |= u64::from(flow.number) << 48;
        }
        let place = self.hash.place(&words);
        let mut gate = [0u32; FLOW_SLOTS];
        gate[5] = place.mark;
        self.write(MAP_FLOWS, place.buckets[0], &gate.map(u32::to_ne_bytes).concat());

        let (bucket, slot) = (place.buckets[flow.place.0], flow.place.1);
        let number = (bucket - 1) * FLOW_SLOTS as u32 + slot as u32;
        let routed = flow.to.unwrap_or(flow.own).addresses[1];
        let mut basis = self.epochs[0].wrapping_add(77);
        for address in [flow.own.addresses[0], routed] {
            for word in super::epochs_of(address) {
                basis = basis.wrapping_add(self.epochs[word]);
            }
        }
        let mut mtu = flow.mtu;
        if flow.to.is_some() {
            mtu |= FlowEntry::HAS_REWRITE;
        }
        let mut entry = FlowKey { reserved: flow.number, ..own }.to_bytes().to_vec();
        let rewrite = flow.to.map(|to| Rewrite::new(&own, &flow.key(&to)));
        match &rewrite {
            Some(rewrite) if flow.own.is_ipv4() => {
                let [first, second] = rewrite.inline4().map(u64::to_ne_bytes);
                entry.splice(8..16, first);
                entry.splice(24..32, second);
            }
            Some(rewrite) => self.write(MAP_REWRITES, number, &rewrite_octets(rewrite)),
            None => {}
        }
        assert_eq!(entry.len(), 8 * FLOW_WORDS);
        entry.extend(basis.to_ne_bytes());
        entry.extend([HOP, mtu].map(u16::to_ne_bytes).concat());
        // Close to a carry out of the octets.
        entry.extend((FlowEntry::ONE_PACKET - 100).to_ne_bytes());
        entry.extend(0u64.to_ne_bytes());
        self.write(MAP_ENTRIES, number, &entry);
        let mut marks = [0u32; FLOW_SLOTS];
        marks[slot] = place.mark;
        self.write(MAP_MARKS, bucket, &marks.map(u32::to_ne_bytes).concat());
        self.installed = Some((bucket, number));
    }

    /// Removes the mark of the entry.
    pub fn remove(&mut self) {
        if let Some((bucket, _)) = self.installed {
            self.write(MAP_MARKS, bucket, &[0; 64]);
        }
    }

    /// `count` and `seqs` of the entry.
    pub fn counted(&self) -> (u64, u64) {
        let (_, number) = self.installed.expect("installed");
        let entry = self.read(MAP_ENTRIES, number);
        let word = |at: usize| u64::from_ne_bytes(entry[at..at + 8].try_into().expect("eight"));
        (word(48), word(56))
    }

    /// The frame in which a packet leaves.
    pub fn sent(&self, packet: &[u8]) -> Vec<u8> {
        with_tags(HOP_MACS.concat(), &[], packet)
    }

    /// The same with tags: TPID and TCI.
    pub fn sent_tagged(&self, tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
        with_tags(HOP_MACS.concat(), tags, packet)
    }

    /// Runs it once.
    pub fn run(&mut self, frame: &[u8]) -> Ran {
        let before = self.reasons();
        let (action, frame, _) = self.test_run(frame, 1);
        let after = self.reasons();
        let moved: Vec<Reason> = Reason::ALL
            .into_iter()
            .filter(|reason| after[*reason as usize] != before[*reason as usize])
            .collect();
        let [reason] = moved[..] else { panic!("counted as {moved:?}") };
        Ran { action, reason, frame }
    }

    fn test_run(&mut self, frame: &[u8], repeat: u32) -> (u32, Vec<u8>, std::time::Duration) {
        let mut out = vec![0; 65_536];
        let mut programs = self.object.progs_mut();
        let program = programs.find(|program| program.name() == xdp_prog::PROGRAM_XDP);
        let input = ProgramInput {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat,
            ..ProgramInput::default()
        };
        let result = program.expect("the program").test_run(input).expect("a test run");
        let frame = result.data.expect("the frame").to_vec();
        (result.return_value, frame, result.duration)
    }

    /// Frames by reason.
    fn reasons(&self) -> [u64; REASONS] {
        let map = self.map(xdp_prog::MAP_QUEUES);
        let cpus = map.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY);
        let mut sum = [0; REASONS];
        for cpu in cpus.expect("read").expect("an entry") {
            for (total, value) in sum.iter_mut().zip(cpu.as_chunks::<8>().0) {
                *total += u64::from_ne_bytes(*value);
            }
        }
        sum
    }
}
