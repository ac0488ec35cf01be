//! The cost of the data path without a kernel. One core, 64 octets per packet.
//!
//! `cargo bench --bench pipeline`. Measurements:
//!
//! - the data path alone: `forward_burst` over prepared bursts of 64; frames are returned outside the
//!   measured interval; also of carried connections, with a ruleset and NAT, and of an IPsec tunnel;
//! - whole iterations of a worker over a driver that works as DPDK's `net_null` with `copy=1`: each
//!   packet is copied into a frame and out of one. With one route, and with a full table (`full_table`)
//!   and random destinations;
//! - the same iterations of workers that time no frame, one in 64, every frame, and one in 64 with heartbeats,
//!   alternately, so that disturbances affect all alike;
//! - the same without a capture, with one whose filter matches nothing, and with one that copies every
//!   packet twice, on input and on output, while another thread reads (`capture`);
//! - the throughput of a second worker, compared with the ceiling that a second CPU allows (`workers`).
//!
//! This thread is not alone on its core. The cost is therefore the median over short intervals that were
//! not interrupted, and packets per second count the seconds for which this thread had the CPU, as
//! reported in `/proc/thread-self/schedstat`.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use clap::Parser;
use ferroute::control::config::LATENCY_SAMPLE_DEFAULT;
use ferroute::netfilter::Hooks;
use ferroute::pipeline::{Ctx, Effects, PipelineState, forward_burst};
use ferroute::skb::{Burst, HEADROOM, SkBuff, Umem};
use ferroute::stats::WorkerStats;
use ferroute::tables::Tables;
use serde::Serialize;

use null::NullIo;

mod capture;
mod carried;
mod full_table;
mod null;
mod tunnel;
mod workers;

/// Packets per burst, as in a worker.
const BURST: usize = 64;
/// Iterations timed together: long compared with a clock reading, short compared with a gap.
const TURNS: usize = 16;
/// An interval that takes longer was interrupted.
const PREEMPTED_MIN: Duration = Duration::from_millis(1);
/// Number of bursts for the data path alone.
const BURSTS: usize = 20_000;
/// Different frames of the IPsec tunnels: a multiple of a burst, and at least as many as there are tunnels.
const IPSEC_FRAMES: usize = 160 * BURST;

#[derive(Debug, Parser)]
#[command(about = "Measures the pipeline in memory")]
struct Args {
    /// Seconds for each measurement of whole iterations
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// IPv4 routes of the full table
    #[arg(long, default_value_t = 1_000_000)]
    routes: usize,
    /// IPv6 routes of the full table
    #[arg(long, default_value_t = 200_000)]
    routes6: usize,
    /// Skip the data path alone
    #[arg(long)]
    turns_only: bool,
    /// Measure only the data path alone, and of it what has this in its name
    #[arg(long)]
    only: Option<String>,
    /// Measure only the throughput of a second worker
    #[arg(long)]
    workers_only: bool,
    /// Run one worker on this CPU, and print its packets per second
    #[arg(long, hide = true)]
    solo: Option<usize>,
    /// Print JSON
    #[arg(short, long)]
    json: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// The result of one measurement; the cost per packet is a median.
#[derive(Debug, Serialize)]
struct Result {
    name: &'static str,
    ns_per_packet: f64,
    /// The 10th percentile of the intervals: a quiet machine.
    ns_per_packet_p10: f64,
    /// Per second of CPU time; whole iterations only.
    packets_per_second: Option<f64>,
    tsc_mhz: f64,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    if let Some(cpu) = args.solo {
        return workers::solo(cpu, Duration::from_secs_f64(args.seconds));
    }
    let mut results = Vec::new();
    let one = null::one_route();
    if args.workers_only {
        return workers(&one, &args);
    }
    let is_wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only));
    if !args.turns_only {
        for (name, flows) in
            [("data path, IPv4, one flow", 1), ("data path, IPv4, 64 destinations", 64)]
        {
            if !is_wanted(name) {
                continue;
            }
            let frame = |n| null::frame4([10, 0, (n % flows) as u8, 1].into());
            results.push(data_path(name, &one, Hooks::none(), frame));
        }
        let frame6 = |_| null::frame6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into());
        let name = "data path, IPv6, one flow";
        if is_wanted(name) {
            results.push(data_path(name, &one, Hooks::none(), frame6));
        }
        for (name, flows, rules, is_translated) in [
            ("carried, one flow, 1 rule", 1, 0, false),
            ("carried, 64 flows, 1 rule", 64, 0, false),
            ("carried, 64 flows, 1 rule, NAT", 64, 0, true),
            ("carried, 64 flows, 1001 rules, NAT", 64, 1000, true),
        ] {
            if !is_wanted(name) {
                continue;
            }
            let frame = |n| null::frame4([10, 0, (n % flows) as u8, 1].into());
            let frames: Vec<_> = (0..BURST).map(frame).collect();
            let hooks = carried::hooks(&frames, rules, is_translated);
            results.push(data_path(name, &one, &hooks, frame));
        }
    }
    if !args.turns_only {
        for (name, len, is_opened, tunnels) in [
            ("IPsec, protected, 64 octets", 64, false, 1),
            ("IPsec, protected, 64 octets, 10000 SAs", 64, false, 10_000),
            ("IPsec, protected, 1400 octets", 1400, false, 1),
            ("IPsec, protected, 1400 octets, 10000 SAs", 1400, false, 10_000),
            ("IPsec, opened, 64 octets", 64, true, 1),
            ("IPsec, opened, 64 octets, 10000 SAs", 64, true, 10_000),
            ("IPsec, opened, 1400 octets", 1400, true, 1),
            ("IPsec, opened, 1400 octets, 10000 SAs", 1400, true, 10_000),
        ] {
            if !is_wanted(name) {
                continue;
            }
            let tables = match is_opened {
                true => tunnel::opening(tunnels),
                false => tunnel::protecting(tunnels),
            };
            // Tunnels in an order that no prefetcher foresees: multiples of a prime.
            let frame = |n: usize| match is_opened {
                true => tunnel::protected(len, n * 7_919 % tunnels),
                false => tunnel::frame(len, n * 7_919 % tunnels),
            };
            results.push(data_path_of(name, &tables, Hooks::none(), IPSEC_FRAMES, frame));
        }
    }
    if args.only.is_some() {
        return print(&results, args.json);
    }
    let seconds = Duration::from_secs_f64(args.seconds);
    let destinations: Vec<u32> = (0..1 << 16).map(|n| 0x0a00_0000 | n).collect();
    if !args.turns_only {
        results.extend(timing(&one, &destinations, seconds)?);
        results.extend(capture::capturing(capture::ONE_ROUTE, &one, &destinations, seconds)?);
    }
    results.push(turns("turns, IPv4, one route", one, NullIo::ipv4(destinations), seconds)?);
    let (tables, four, six) = null::full_table(args.routes, args.routes6);
    if !args.turns_only {
        results.extend(capture::capturing(capture::FULL_TABLE, &tables, &four, seconds)?);
    }
    results.push(turns("turns, IPv4, full table", tables.clone(), NullIo::ipv4(four), seconds)?);
    results.push(turns("turns, IPv6, full table", tables, NullIo::ipv6(six), seconds)?);
    print(&results, args.json)?;
    if args.turns_only || args.json { Ok(()) } else { workers(&null::one_route(), &args) }
}

/// Measures the throughput of a second worker, and prints it.
fn workers(tables: &Tables, args: &Args) -> io::Result<()> {
    let Some(report) = workers::measure(tables, Duration::from_secs_f64(args.seconds))? else {
        println!("workers: one CPU only, so there is nothing to compare");
        return Ok(());
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let (ratio, ceiling) = (report.ratio(), report.ceiling());
    println!("one worker                   {:.0} pps", report.one);
    println!("two workers                  {:.0} pps, {ratio:.2} times one", report.two);
    println!("two processes, the ceiling   {:.0} pps, {ceiling:.2} times one", report.processes);
    Ok(())
}

fn print(results: &[Result], json: bool) -> io::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(results)?);
        return Ok(());
    }
    for Result { name, ns_per_packet, ns_per_packet_p10, packets_per_second, tsc_mhz } in results {
        let cycles = ns_per_packet * tsc_mhz / 1000.0;
        print!("{name:40} {ns_per_packet:6.1} ns, {cycles:6.1} cycles per packet");
        print!(" (best tenth {ns_per_packet_p10:.1} ns)");
        println!("{}", packets_per_second.map_or(String::new(), |pps| format!(", {pps:.0} pps")));
    }
    Ok(())
}

fn data_path(
    name: &'static str,
    tables: &Tables,
    hooks: &Hooks,
    frame: impl Fn(usize) -> Vec<u8>,
) -> Result {
    data_path_of(name, tables, hooks, BURST, frame)
}

/// The same with a number of different frames, a multiple of a burst.
fn data_path_of(
    name: &'static str,
    tables: &Tables,
    hooks: &Hooks,
    count: usize,
    frame: impl Fn(usize) -> Vec<u8>,
) -> Result {
    let mut pool = Umem::anonymous(4 * BURST as u32).into_pool();
    let (stats, mut out) = (WorkerStats::new(2), Effects::new(2));
    let mut state = PipelineState::new(7, 1);
    let frames: Vec<_> = (0..count).map(frame).collect();
    let mut bursts = frames.chunks(BURST).cycle();
    let mut burst = Burst::with_capacity(BURST);
    let mut times_ns = Vec::with_capacity(BURSTS);
    for round in 0..BURSTS as u64 {
        for frame in bursts.next().expect("frames") {
            let mut skb = SkBuff::alloc_skb(&mut pool, HEADROOM).expect("a frame");
            skb.put(frame.len()).expect("room").copy_from_slice(frame);
            burst.push(skb).expect("room");
        }
        let mut ctx = Ctx {
            tables,
            hooks,
            pool: &mut pool,
            stats: &stats,
            state: &mut state,
            out: &mut out,
            now_ns: round * 1000,
        };
        let start = Instant::now();
        forward_burst(&mut burst, &mut ctx);
        times_ns.push(start.elapsed().as_nanos() as f64 / BURST as f64);
        assert_eq!(out.egress[1].len(), BURST, "{stats:?}");
        out.egress[1].drain(BURST).for_each(|skb| pool.kfree_skb(skb));
    }
    result(name, times_ns, None)
}

/// Runs iterations of a whole worker for `length`, on this thread.
fn turns<const N: usize>(
    name: &'static str,
    tables: Tables,
    io: NullIo<N>,
    length: Duration,
) -> io::Result<Result> {
    let (mut worker, handle) = null::worker(tables, io, LATENCY_SAMPLE_DEFAULT)?;
    let mut times_ns = Vec::with_capacity(1 << 20);
    let (start, start_ns) = (Instant::now(), cpu_time_ns()?);
    let mut packets = 0;
    while start.elapsed() < length {
        let stretch = Instant::now();
        let now_ns = stretch.duration_since(start).as_nanos() as u64;
        let taken: usize = (0..TURNS).map(|_| worker.turn(now_ns)).sum();
        let took = stretch.elapsed();
        packets += taken;
        if took < PREEMPTED_MIN {
            times_ns.push(took.as_nanos() as f64 / taken.max(1) as f64);
        }
    }
    let seconds = (cpu_time_ns()? - start_ns) as f64 / 1e9;
    let sent = handle.stats.ports[1].tx_packets.get();
    // Dropped packets would make the result too good.
    assert_eq!(black_box(sent), packets as u64, "{:?}", handle.stats);
    Ok(result(name, times_ns, Some(packets as f64 / seconds)))
}

/// The cost of timing frames, and of heartbeats.
fn timing(tables: &Tables, destinations: &[u32], length: Duration) -> io::Result<Vec<Result>> {
    let names = ["turns, no frame timed", "turns, one in 64 timed", "turns, every frame timed"];
    let mut runs = Vec::new();
    for (name, every) in names.into_iter().zip([0, 64, 1]) {
        let io = NullIo::ipv4(destinations.to_vec());
        runs.push((name, null::worker(tables.clone(), io, every)?, Vec::new()));
    }
    let io = NullIo::ipv4(destinations.to_vec());
    let with_heartbeats = null::worker_with_heartbeats(tables.clone(), io, 64)?;
    runs.push(("turns, one in 64, heartbeats", with_heartbeats, Vec::new()));
    let start = Instant::now();
    while start.elapsed() < length * 4 {
        for (_, (worker, _), times_ns) in &mut runs {
            let stretch = Instant::now();
            let now_ns = stretch.duration_since(start).as_nanos() as u64;
            let taken: usize = (0..TURNS).map(|_| worker.turn(now_ns)).sum();
            times_ns.push(stretch.elapsed().as_nanos() as f64 / taken as f64);
        }
    }
    Ok(runs.into_iter().map(|(name, _, times_ns)| result(name, times_ns, None)).collect())
}

fn result(name: &'static str, mut times_ns: Vec<f64>, packets_per_second: Option<f64>) -> Result {
    times_ns.sort_by(f64::total_cmp);
    let at = |part: f64| times_ns.get((times_ns.len() as f64 * part) as usize).copied();
    Result {
        name,
        ns_per_packet: at(0.5).unwrap_or(f64::NAN),
        ns_per_packet_p10: at(0.1).unwrap_or(f64::NAN),
        packets_per_second,
        tsc_mhz: full_table::tsc_mhz(),
    }
}

/// CPU time of this thread, nanoseconds.
fn cpu_time_ns() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| io::Error::other("no schedstat"))
}
