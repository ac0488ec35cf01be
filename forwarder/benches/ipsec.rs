//! Cost of ESP in tunnel mode with AES-128-GCM, beside the crypto library's own operation on the same octets,
//! and of 10,000 SAs beside one.
//!
//! `cargo bench --bench ipsec`. Packets come in bursts of 64; the clock is read once per burst, kinds of
//! bursts take turns, and the median is reported, which few interruptions do not change. SAs are prefetched a
//! few packets ahead, as a burst permits. `ratio`: of the library's time, or of that with one SA, to this
//! one; 1 is equally fast, and less is slower.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ferroute::ipsec::{
    Action, Aead, Direction, EspKeys, Family, Flow, InboundState, IvSeed, Keys, LookedAhead, Mode,
    Order, OutboundState, OutputParams, Policy, Prefix, Sad, Secret, Selector, Spd, StateConfig,
    locate,
};
use ferroute::wire::{Ipv4Packet, Protocol};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

mod cores;
mod openssl;

/// Packets per burst, as in a worker.
const BURST: usize = 64;
/// Bursts of each kind.
const BURSTS: usize = 5_000;
/// SAs beside one.
const MANY: usize = 10_000;
/// Packets whose SAs are prefetched ahead.
const AHEAD: usize = 4;
/// Window against replay, in packets.
const WINDOW: u32 = 128;
/// Room before and after a packet, in octets.
const ROOM: usize = 64;
/// Lengths of packets, in octets.
const LENGTHS: [usize; 2] = [64, 1400];
/// What trailer and alignment add to them before encryption, in octets.
const ADDED: usize = 4;
const PARAMS: OutputParams = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };

fn main() {
    println!("{:48} {:>6} {:>9} {:>7}", "operation", "octets", "ns", "ratio");
    LENGTHS.into_iter().for_each(measure);
    LENGTHS.into_iter().for_each(cores::measure);
    if !std::env::args().any(|arg| arg == "--no-policies") {
        for count in [1, 100, MANY] {
            measure_policies(count);
        }
    }
}

/// Measures packets of `len` octets.
fn measure(len: usize) {
    openssl::measure(len);
    let mut library = Library::new(len);
    let (one, many) = (Sas::new(1, WINDOW), Sas::new(MANY, WINDOW));
    let mut packets = vec![packet(len); BURST];
    let mut random = Random(0x5eed);
    let mut times_ns: [Vec<f64>; 6] = Default::default();
    for _ in 0..BURSTS {
        let bursts = [
            library.burst(),
            one.burst(&mut packets, len, &mut random),
            many.burst(&mut packets, len, &mut random),
        ];
        let bursts = bursts.into_iter().flatten();
        times_ns.iter_mut().zip(bursts).for_each(|(times, time)| times.push(time));
    }
    let [seal, open, one_seal, one_open, many_seal, many_open] =
        times_ns.each_mut().map(|times| median(times));
    let print = |name: &str, ns: f64, base: f64| {
        println!("{name:48} {len:6} {ns:9.1} {:7.3}", base / ns);
    };
    print("library, seal", seal, seal);
    print("library, open", open, open);
    print("ESP tunnel, seal, 1 SA", one_seal, seal);
    print("ESP tunnel, lookup and open, 1 SA", one_open, open);
    print("ESP tunnel, seal, 10,000 SAs (to 1)", many_seal, one_seal);
    print("ESP tunnel, lookup and open, 10,000 SAs (to 1)", many_open, one_open);
}

/// Measures the lookup of flows to random networks among `count` policies, each for one network of /24 to /27.
fn measure_policies(count: usize) {
    let network = |n: usize| Ipv4Addr::from_bits(0x0a00_0000 | (n as u32) << 8);
    let policy = |n: usize| {
        let dst = Prefix { addr: network(n).into(), len: 24 + (n % 4) as u8 };
        let selector = Selector { dst, ..Selector::default() };
        let policy = Policy {
            index: n as u32,
            priority: 1000 - (n % 4) as u32,
            ..Policy::new(Family::Ipv4, selector, Action::Allow)
        };
        (Direction::Out, policy)
    };
    let spd = Spd::new((0..count).map(policy), Order::OldestFirst, [Action::Allow; 3]);
    let mut random = Random(0x5eed);
    let mut times_ns: Vec<f64> = Vec::with_capacity(BURSTS);
    for _ in 0..BURSTS {
        let flow = |dst: Ipv4Addr| Flow {
            src: [198, 18, 1, 1].into(),
            dst: dst.into(),
            proto: Protocol::UDP,
            sport: 1,
            dport: 2,
            oif: 1,
            mark: 0,
        };
        let flows: Vec<Flow> = (0..BURST).map(|_| flow(network(random.below(count)))).collect();
        times_ns.push(time(|| {
            for flow in &flows {
                black_box(spd.lookup(Direction::Out, flow, 0).expect("a policy"));
            }
        }));
    }
    let name = format!("lookup among {count} policies");
    println!("{name:48} {:>6} {:9.1}", "", median(&mut times_ns));
}

fn median(times_ns: &mut [f64]) -> f64 {
    times_ns.sort_by(f64::total_cmp);
    times_ns[times_ns.len() / 2]
}

/// The crypto library alone, on as many octets as ESP has.
struct Library {
    key: LessSafeKey,
    packets: Vec<Vec<u8>>,
}

impl Library {
    fn new(len: usize) -> Library {
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).expect("16 octets"));
        Library { key, packets: vec![vec![7; len + ADDED + AES_128_GCM.tag_len()]; BURST] }
    }

    /// The times of one packet: seal, open.
    fn burst(&mut self) -> [f64; 2] {
        let aad = || Aad::from([1; 8]);
        let seal = time(|| {
            for (octets, number) in self.packets.iter_mut().zip(0..) {
                let data_len = octets.len() - AES_128_GCM.tag_len();
                let (data, icv) = octets.split_at_mut(data_len);
                let tag = self.key.seal_in_place_separate_tag(nonce(number), aad(), data);
                icv.copy_from_slice(tag.expect("sealed").as_ref());
            }
        });
        let open = time(|| {
            for (octets, number) in self.packets.iter_mut().zip(0..) {
                let data = self.key.open_in_place(nonce(number), aad(), octets);
                black_box(data.expect("opened"));
            }
        });
        [seal, open]
    }
}

/// The time of one packet of a burst, in nanoseconds.
fn time(process: impl FnOnce()) -> f64 {
    let start = Instant::now();
    process();
    start.elapsed().as_nanos() as f64 / BURST as f64
}

fn nonce(number: u64) -> Nonce {
    let mut octets = [0; 12];
    octets[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(octets)
}

/// SAs for sending, and the same for receiving.
struct Sas {
    outbound: Vec<OutboundState>,
    sad: Sad,
}

impl Sas {
    fn new(count: usize, replay_window: u32) -> Sas {
        let ends = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let config = |n: usize| StateConfig {
            reqid: 1,
            replay_window,
            ..StateConfig::new(Mode::Tunnel, ends, 0x1000 + n as u32)
        };
        let keys = |n: usize| {
            let key = [n.to_be_bytes(), [7; 8]].concat();
            let key = [&key[..], &[1, 2, 3, 4]].concat();
            Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(key)))
        };
        let outbound = |n| {
            let seed = IvSeed::random([n as u8; 16]);
            let state = OutboundState::new(config(n), &keys(n), seed, 1).expect("a state");
            state.sequence().extend(1..1 << 30).expect("a range");
            state
        };
        let inbound = |n| Arc::new(InboundState::new(config(n), &keys(n)).expect("a state"));
        Sas {
            outbound: (0..count).map(outbound).collect(),
            sad: Sad::new((0..count).map(inbound), Order::OldestFirst),
        }
    }

    /// The times of one packet: seal, open.
    fn burst(&self, packets: &mut [Vec<u8>], len: usize, random: &mut Random) -> [f64; 2] {
        let (seal, ranges) = self.seal(packets, len, random);
        [seal, self.open(packets, &ranges)]
    }

    /// Protects packets by SAs at random: the time of one packet, and where they are.
    fn seal(
        &self,
        packets: &mut [Vec<u8>],
        len: usize,
        random: &mut Random,
    ) -> (f64, Vec<Range<usize>>) {
        let chosen: Vec<_> =
            (0..BURST).map(|_| &self.outbound[random.below(self.outbound.len())]).collect();
        let mut ranges = Vec::with_capacity(BURST);
        let ns = time(|| {
            chosen.iter().take(AHEAD).for_each(|state| state.prefetch());
            for (n, (packet, state)) in packets.iter_mut().zip(&chosen).enumerate() {
                if let Some(ahead) = chosen.get(n + AHEAD) {
                    ahead.prefetch();
                }
                let sealed = state.seal(packet, ROOM..ROOM + len, &PARAMS);
                ranges.push(sealed.expect("sealed"));
            }
        });
        (ns, ranges)
    }

    /// Opens them: the time of one packet.
    fn open(&self, packets: &mut [Vec<u8>], ranges: &[Range<usize>]) -> f64 {
        let mut ahead = [LookedAhead::default(); BURST];
        time(|| {
            for ((packet, range), ahead) in packets.iter().zip(ranges).zip(&mut ahead) {
                *ahead = LookedAhead::of_packet(&packet[range.clone()]).expect("of IPsec");
            }
            self.sad.look_ahead(&mut ahead);
            ahead.iter().take(AHEAD).for_each(|ahead| self.sad.prefetch(*ahead));
            for (n, (packet, range)) in packets.iter_mut().zip(ranges).enumerate() {
                if let Some(ahead) = ahead.get(n + AHEAD) {
                    self.sad.prefetch(*ahead);
                }
                let packet = &mut packet[range.clone()];
                let located = locate(packet, &[]).expect("a header").expect("of IPsec");
                let key = (located.dst, located.spi, located.protocol);
                let state = self.sad.lookup_again(ahead[n], key, 0).expect("an SA");
                let opened = state.open(packet, &located, PARAMS.now_s);
                black_box(opened.expect("opened"));
            }
        })
    }
}

/// A packet of `len` octets in a buffer with room.
fn packet(len: usize) -> Vec<u8> {
    let mut buffer = vec![7; ROOM + len + ROOM];
    let mut ip = Ipv4Packet::new_unchecked(&mut buffer[ROOM..ROOM + len]);
    ip.set_version_and_header_len(20);
    ip.set_tos(0);
    ip.set_total_len(len as u16);
    ip.set_frag(false, false, 0);
    ip.set_ttl(64);
    ip.set_protocol(Protocol::UDP);
    ip.set_src_addr([198, 18, 1, 1].into());
    ip.set_dst_addr([198, 18, 2, 1].into());
    ip.fill_checksum();
    buffer
}

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (number as usize * limit) >> 32
    }
}
