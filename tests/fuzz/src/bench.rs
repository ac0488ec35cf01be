//! A router for fuzz targets: the whole pipeline between ports in memory, without threads or a clock. After
//! each step every frame must be accounted for; at the end every packet must have been counted once.

use ferroute::io::PacketIo;
use ferroute::io::mem::MemIo;
use ferroute::netfilter::Hooks;
use ferroute::pipeline::{Ctx, Effects, PipelineState, drop_held, forward_burst, poll_held};
use ferroute::skb::{Burst, FRAME_SIZE, FramePool, HEAD_MIN, HEADROOM, MAX_PACKET, SkBuff, Umem};
use ferroute::stats::{Counter, DropReason, Mib, WorkerStats};
use ferroute::tables::Tables;

/// Ports of the lab.
const PORTS: usize = 2;
/// Packets of a ring: more than one input has.
const RING: usize = 64;
/// Seed of the flow hash: the same for each run, so that the same input gives the same output.
const SEED: u64 = 0x5eed_5eed_5eed_5eed;

/// Layout of received packets in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As the memory driver stores them: each frame is filled before the next one.
    Driver,
    /// In a head of `head` octets and frags of `most` octets, as far as the format of packets allows.
    Scattered {
        /// Octets of the head.
        head: usize,
        /// Octets of a frag.
        most: usize,
    },
}

/// A frame and its port.
pub type PortFrame = (u16, Vec<u8>);

/// The router.
#[derive(Debug)]
pub struct Bench {
    layout: Layout,
    tables: Tables,
    io: MemIo,
    pool: FramePool,
    stats: WorkerStats,
    state: PipelineState,
    out: Effects,
    now_ns: u64,
    waiting: [Vec<SkBuff>; PORTS],
    /// Frames received.
    pub received: Vec<PortFrame>,
    /// Frames sent.
    pub sent: Vec<PortFrame>,
    /// Frames handed back to the kernel.
    pub punted: Vec<Vec<u8>>,
}

impl Bench {
    /// A router with these tables and `frames` frames of memory.
    pub fn new(tables: Tables, frames: u32, layout: Layout) -> Bench {
        let mut io = MemIo::new(PORTS, RING);
        for port in 0..PORTS as u16 {
            let ifindex = tables.links.port(port).map_or(0, |link| link.ifindex);
            io.set_ifindex(port, ifindex).expect("there is such a port");
        }
        let mut state = PipelineState::new(SEED, 1);
        state.utc_offset_ns = 0;
        Bench {
            layout,
            tables,
            io,
            pool: Umem::anonymous(frames).into_pool(),
            stats: WorkerStats::new(PORTS),
            state,
            out: Effects::new(PORTS),
            now_ns: 1_000_000_000_000,
            waiting: Default::default(),
            received: Vec::new(),
            sent: Vec::new(),
            punted: Vec::new(),
        }
    }

    /// Receives a frame on a port, if there is memory for it.
    pub fn receive(&mut self, port: u16, frame: Vec<u8>) {
        let came = match self.layout {
            Layout::Driver => self.io.inject(port, &mut self.pool, &frame).is_ok(),
            Layout::Scattered { head, most } => {
                let skb = self.scattered(&frame, head, most);
                skb.map(|skb| self.waiting[usize::from(port)].push(skb)).is_some()
            }
        };
        if came {
            self.received.push((port, frame));
        }
    }

    /// A packet as from a driver: its head has [`HEAD_MIN`] octets unless the packet is shorter.
    fn scattered(&mut self, frame: &[u8], head: usize, most: usize) -> Option<SkBuff> {
        let mut skb = SkBuff::alloc_skb(&mut self.pool, HEADROOM)?;
        let (first, rest) = frame.split_at(head.clamp(HEAD_MIN, MAX_PACKET).min(frame.len()));
        skb.put(first.len()).expect("a frame has room").copy_from_slice(first);
        for part in rest.chunks(most.clamp(rest.len() / 16 + 1, FRAME_SIZE)) {
            let Some(mut memory) = self.pool.alloc() else {
                self.pool.kfree_skb(skb);
                return None;
            };
            memory.bytes_mut()[..part.len()].copy_from_slice(part);
            skb.add_frag(memory, 0, part.len(), &mut self.pool).expect("at most 16 frags");
        }
        Some(skb)
    }

    fn with_ctx(&mut self, stage: impl FnOnce(&mut Ctx<'_>)) {
        stage(&mut Ctx {
            tables: &self.tables,
            hooks: Hooks::none(),
            pool: &mut self.pool,
            stats: &self.stats,
            state: &mut self.state,
            out: &mut self.out,
            now_ns: self.now_ns,
        });
    }

    /// Forwards the received packets, one burst per port.
    pub fn forward(&mut self) {
        for port in 0..PORTS as u16 {
            let mut burst = Burst::with_capacity(RING);
            self.io.rx_burst(port, &mut self.pool, &mut burst, &self.stats);
            for mut skb in std::mem::take(&mut self.waiting[usize::from(port)]) {
                skb.port = port;
                burst.push(skb).expect("an input has fewer packets");
            }
            self.with_ctx(|ctx| forward_burst(&mut burst, ctx));
            assert!(burst.is_empty(), "a burst is used up");
            self.carry_out();
        }
    }

    /// Advances the time, and handles packets that wait for a neighbour.
    pub fn wait(&mut self, ms: u64) {
        self.now_ns += ms * 1_000_000;
        self.with_ctx(poll_held);
        self.carry_out();
    }

    /// Publishes new tables.
    pub fn publish(&mut self, tables: &Tables) {
        let generation = self.tables.generation + 1;
        self.tables = Tables { generation, ..tables.clone() };
        self.wait(0);
    }

    /// Sends what is to be sent, and accounts for every frame.
    fn carry_out(&mut self) {
        self.assert_conserved();
        for (port, egress) in self.out.egress.iter_mut().enumerate() {
            let port = port as u16;
            self.io.tx_burst(port, &mut self.pool, egress.to_send(), &self.stats);
            let sent = self.io.take_all_sent(port, &mut self.pool);
            self.sent.extend(sent.into_iter().map(|frame| (port, frame)));
        }
        let reasons = self.out.punt_reasons.drain(..);
        for (skb, reason) in self.out.punts.drain(usize::MAX).zip(reasons) {
            self.stats.punt(reason, skb.port);
            self.punted.push(skb.whole(&mut Vec::new()).to_vec());
            self.pool.kfree_skb(skb);
        }
        self.out.neigh_requests.clear();
        self.assert_conserved();
    }

    fn assert_conserved(&self) {
        let accounting = self.io.accounting();
        let waiting: usize = self.waiting.iter().flatten().map(SkBuff::frames).sum();
        let places = self.pool.available()
            + accounting.fill_and_rx
            + self.state.held()
            + self.out.len()
            + accounting.tx_and_completion
            + waiting;
        assert_eq!(places, self.pool.total() as usize, "every frame is in one place");
    }

    fn mib(&self, name: Mib) -> u64 {
        self.stats.mib[name as usize].get()
    }

    /// Drops by reason.
    pub fn drops(&self) -> Vec<u64> {
        self.stats.drops.iter().map(Counter::get).collect()
    }

    /// Drops held packets. Then every packet must have been counted once as sent, dropped, or handed back;
    /// a fragmented packet as each of its fragments, and fragments that made a packet as that one.
    pub fn finish(&mut self) {
        self.with_ctx(|ctx| drop_held(ctx, DropReason::Shutdown));
        self.carry_out();
        assert_eq!(self.pool.available(), self.pool.total() as usize, "every frame came home");
        let punts: u64 = self.stats.punts.iter().map(Counter::get).sum();
        assert_eq!(punts, self.punted.len() as u64, "what is counted as handed back was");
        let own = self.mib(Mib::IcmpOutMsgs) + self.mib(Mib::Icmp6OutMsgs);
        let whole = self.mib(Mib::IpReasmOKs) + self.mib(Mib::Ip6ReasmOKs);
        let came = self.received.len() as u64 + own + self.mib(Mib::IpFragCreates) + whole;
        let went = self.sent.len() as u64 + punts + self.stats.drops_total();
        assert_eq!(
            came,
            went + self.mib(Mib::IpFragOKs) + self.stats.reassembled.get(),
            "received + own + fragments + reassembled = sent + punted + dropped + fragmented + their fragments"
        );
        // The account as the worker reports it; the driver counts received packets.
        let mut account = self.stats.account(self.state.held_packets() as u64, 0);
        account.received = self.received.len() as u64;
        assert!(account.is_balanced(), "{account:?}");
        assert_eq!(account.sent, self.sent.len() as u64);
    }
}
