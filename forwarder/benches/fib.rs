//! How fast the longest-prefix match is with a full Internet table.
//!
//! Tables and addresses are made up from a fixed seed: prefix lengths as the
//! Internet's tables have them, most prefixes close to others (`--uniform`:
//! spread evenly), addresses inside random routes. `--write DIR` puts both
//! into files that `dpdk-test-fib` reads, for a comparison on the same machine.
//!
//! CPU time is not continuous on a virtual machine. So lookups are timed in
//! short batches, batches that span a gap are dropped and the median is told.
//! Cycles are nanoseconds times the TSC's frequency.

use std::collections::HashSet;
use std::hint::black_box;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use ferroute::fib::lpm::{Lpm, LpmWriter};
use ferroute::fib::prefix::{Address, Prefix};
use ferroute::fib::quiescence::Quiescence;
use serde::Serialize;

/// Lookups timed together: long against a reading of the clock, short against
/// a gap.
const BATCH: usize = 1024;
/// Addresses a call of `lookup_bulk` is given: a burst of packets.
const BURST: usize = 64;
/// Updates timed together.
const UPDATES: usize = 32;
/// A batch that took longer was interrupted.
const GAP: Duration = Duration::from_millis(1);

#[derive(Debug, Parser)]
#[command(about = "Measures the longest-prefix match")]
struct Args {
    /// IPv4 routes
    #[arg(long, default_value_t = 1_000_000)]
    routes: usize,
    /// IPv6 routes
    #[arg(long, default_value_t = 200_000)]
    routes6: usize,
    /// Times that every address is looked up
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Addresses
    #[arg(long, default_value_t = 1 << 20)]
    addresses: usize,
    /// Different leaves
    #[arg(long, default_value_t = 1000)]
    leaves: u32,
    /// Spread prefixes evenly over the address space
    #[arg(long)]
    uniform: bool,
    /// Print JSON
    #[arg(short, long)]
    json: bool,
    /// Write routes4, addresses4, routes6, addresses6 into DIR and measure nothing
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let routes4 = make_table(args.routes, args.leaves, &mut random, |r| prefix4(r, args.uniform));
    let addrs4 = covered(&routes4, args.addresses, &mut random);
    let routes6 = make_table(args.routes6, args.leaves, &mut random, |r| prefix6(r, args.uniform));
    let addrs6 = covered(&routes6, args.addresses, &mut random);
    if let Some(dir) = &args.write {
        write_files(dir, "4", &routes4, &addrs4)?;
        return write_files(dir, "6", &routes6, &addrs6);
    }
    let results = [
        measure("IPv4", &routes4, &addrs4, args.rounds, &mut random),
        measure("IPv6", &routes6, &addrs6, args.rounds, &mut random),
    ];
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        results.iter().for_each(print_result);
    }
    Ok(())
}

/// What was measured of one family; times are medians.
#[derive(Debug, Serialize)]
struct Result {
    family: &'static str,
    routes: usize,
    tsc_mhz: f64,
    lookup_bulk_ns: f64,
    lookup_independent_ns: f64,
    lookup_dependent_ns: f64,
    /// The tenth of the batches that were fastest: a quiet machine.
    lookup_bulk_p10_ns: f64,
    lookup_independent_p10_ns: f64,
    lookup_dependent_p10_ns: f64,
    build_add_ns: f64,
    add_ns: f64,
    replace_ns: f64,
    delete_ns: f64,
    table_octets: usize,
    writer_octets: usize,
    table_octets_after_churn: usize,
}

fn print_result(result: &Result) {
    let cycles = |ns: f64| ns * result.tsc_mhz / 1000.0;
    println!(
        "{}: {} routes, table {:.1} MiB ({:.1} after churn), writer {:.1} MiB more",
        result.family,
        result.routes,
        result.table_octets as f64 / 1048576.0,
        result.table_octets_after_churn as f64 / 1048576.0,
        result.writer_octets as f64 / 1048576.0,
    );
    for (what, ns) in [
        ("lookup, bulk", result.lookup_bulk_ns),
        ("lookup, independent", result.lookup_independent_ns),
        ("lookup, dependent", result.lookup_dependent_ns),
        ("  bulk, best tenth", result.lookup_bulk_p10_ns),
        ("  independent", result.lookup_independent_p10_ns),
        ("  dependent", result.lookup_dependent_p10_ns),
        ("add, while building", result.build_add_ns),
        ("add", result.add_ns),
        ("replace", result.replace_ns),
        ("delete", result.delete_ns),
    ] {
        println!("  {what:20} {ns:8.1} ns {:8.1} cycles", cycles(ns));
    }
}

fn measure<A: Address>(
    family: &'static str,
    routes: &[(Prefix<A>, u32)],
    addrs: &[A],
    rounds: usize,
    random: &mut Random,
) -> Result {
    let fail = "a table of this size fits";
    let mut writer = LpmWriter::new(Quiescence::new(1)).expect(fail);
    let build_add_ns = time_updates(routes, |(prefix, leaf)| {
        writer.insert(prefix, leaf).expect(fail);
    });
    let table = Arc::clone(writer.table());
    let table_octets = table.memory_octets();
    let mut some: Vec<(Prefix<A>, u32)> = routes.to_vec();
    random.shuffle(&mut some);
    some.truncate((routes.len() / 5).max(1));
    let (mut delete, mut add, mut replace) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        delete.push(time_updates(&some, |(prefix, _)| {
            writer.remove(prefix).expect(fail);
        }));
        add.push(time_updates(&some, |(prefix, leaf)| {
            writer.insert(prefix, leaf + 1).expect(fail);
        }));
        replace.push(time_updates(&some, |(prefix, leaf)| {
            writer.insert(prefix, leaf).expect(fail);
        }));
    }
    let lookups = time_lookups(writer.table(), addrs, rounds);
    Result {
        family,
        routes: writer.len(),
        tsc_mhz: tsc_mhz(),
        lookup_bulk_ns: quantile(&lookups[0], 0.5),
        lookup_independent_ns: quantile(&lookups[1], 0.5),
        lookup_dependent_ns: quantile(&lookups[2], 0.5),
        lookup_bulk_p10_ns: quantile(&lookups[0], 0.1),
        lookup_independent_p10_ns: quantile(&lookups[1], 0.1),
        lookup_dependent_p10_ns: quantile(&lookups[2], 0.1),
        build_add_ns,
        add_ns: median(add),
        replace_ns: median(replace),
        delete_ns: median(delete),
        table_octets,
        writer_octets: writer.memory_octets(),
        table_octets_after_churn: writer.table().memory_octets(),
    }
}

/// Nanoseconds a lookup, of each batch in order of size: in bulk, one by one,
/// and each waiting for the one before.
fn time_lookups<A: Address>(table: &Lpm<A>, addrs: &[A], rounds: usize) -> [Vec<f64>; 3] {
    let mut leaves = vec![0; BURST];
    let [mut bulk, mut independent, mut dependent] = [const { Vec::new() }; 3];
    for batch in (0..rounds).flat_map(|_| addrs.chunks_exact(BATCH)) {
        time(&mut bulk, batch.len(), || {
            for burst in batch.chunks_exact(BURST) {
                table.lookup_bulk(burst, &mut leaves);
                black_box(&mut leaves);
            }
        });
    }
    for batch in (0..rounds).flat_map(|_| addrs.chunks_exact(BATCH)) {
        time(&mut independent, batch.len(), || {
            let sum = batch.iter().fold(0u32, |sum, addr| sum.wrapping_add(table.lookup(*addr)));
            black_box(sum);
        });
    }
    for batch in (0..rounds).flat_map(|_| addrs.chunks_exact(BATCH)) {
        time(&mut dependent, batch.len(), || {
            let mut leaf = 0;
            for i in 0..batch.len() {
                // No leaf is that large, but that takes the answer to know.
                let at = i + usize::from(leaf > 1 << 30);
                leaf = table.lookup(batch[at % batch.len()]);
            }
            black_box(leaf);
        });
    }
    [sorted(bulk), sorted(independent), sorted(dependent)]
}

fn time_updates<T: Copy>(all: &[T], mut update: impl FnMut(T)) -> f64 {
    let mut times = Vec::new();
    for batch in all.chunks(UPDATES) {
        time(&mut times, batch.len(), || batch.iter().for_each(|one| update(*one)));
    }
    // The mean, as rare updates cost much more than most and count too.
    times.iter().sum::<f64>() / times.len().max(1) as f64
}

/// Adds the nanoseconds that each of `n` took, unless there was a gap.
fn time(times: &mut Vec<f64>, n: usize, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    let took = start.elapsed();
    if took < GAP {
        times.push(took.as_nanos() as f64 / n as f64);
    }
}

fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}

/// The part `of` (0 to 1) of sorted times took less.
fn quantile(times: &[f64], of: f64) -> f64 {
    times.get((times.len() as f64 * of) as usize).copied().unwrap_or(f64::NAN)
}

fn median(times: Vec<f64>) -> f64 {
    quantile(&sorted(times), 0.5)
}

/// The TSC's frequency: Linux on x86 tells it as half the "bogomips". NaN
/// where it does not.
fn tsc_mhz() -> f64 {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find(|line| line.starts_with("bogomips"));
    let bogomips = line.and_then(|line| line.split(':').nth(1)?.trim().parse::<f64>().ok());
    bogomips.map_or(f64::NAN, |bogomips| bogomips / 2.0)
}

/// `count` different prefixes, each with a leaf, in random order.
fn make_table<A: Address>(
    count: usize,
    leaves: u32,
    random: &mut Random,
    mut prefix: impl FnMut(&mut Random) -> Prefix<A>,
) -> Vec<(Prefix<A>, u32)> {
    let mut seen = HashSet::with_capacity(count);
    let mut routes = Vec::with_capacity(count);
    while routes.len() < count {
        let prefix = prefix(random);
        if seen.insert(prefix) {
            routes.push((prefix, 1 + random.below(leaves.into()) as u32));
        }
    }
    routes
}

/// Length and share, in parts of 100,000.
type Shares = &'static [(u8, u64)];

/// As in the IPv4 tables of route collectors, and a few longer ones such as a
/// provider has inside.
const LENGTHS4: Shares = &[
    (8, 2),
    (9, 2),
    (10, 4),
    (11, 10),
    (12, 30),
    (13, 60),
    (14, 120),
    (15, 200),
    (16, 1_340),
    (17, 830),
    (18, 1_400),
    (19, 2_500),
    (20, 4_400),
    (21, 5_100),
    (22, 11_000),
    (23, 10_200),
    (24, 62_302),
    (25, 60),
    (26, 60),
    (27, 60),
    (28, 60),
    (29, 80),
    (30, 80),
    (32, 100),
];

/// As in the IPv6 tables of route collectors.
const LENGTHS6: Shares = &[
    (20, 10),
    (24, 30),
    (28, 150),
    (29, 3_200),
    (30, 500),
    (31, 300),
    (32, 11_500),
    (33, 1_800),
    (34, 1_500),
    (35, 800),
    (36, 6_500),
    (38, 1_500),
    (39, 500),
    (40, 9_800),
    (42, 1_900),
    (44, 9_600),
    (45, 900),
    (46, 2_400),
    (47, 1_800),
    (48, 45_000),
    (56, 150),
    (64, 160),
];

fn length(shares: Shares, random: &mut Random) -> u8 {
    let all = shares.iter().map(|(_, share)| share).sum();
    let mut at = random.below(all);
    for (len, share) in shares {
        match at.checked_sub(*share) {
            Some(rest) => at = rest,
            None => return *len,
        }
    }
    unreachable!("the shares add up")
}

fn prefix4(random: &mut Random, uniform: bool) -> Prefix<u32> {
    loop {
        // Most routes lie in few /16s: squaring crowds them.
        let high = if uniform { random.below(1 << 16) } else { scatter(random.crowded(50_000)) };
        let addr = (high as u32) << 16 | random.below(1 << 16) as u32;
        let prefix = Prefix::truncated(addr, length(LENGTHS4, random)).expect("at most 32");
        if (1..224).contains(&(prefix.bits() >> 24)) {
            return prefix;
        }
    }
}

fn prefix6(random: &mut Random, uniform: bool) -> Prefix<u128> {
    // The registries' blocks, 2001::/16 and six /12s; allocations in them.
    const POOLS: [u128; 7] = [0x2001, 0x2400, 0x2600, 0x2800, 0x2a00, 0x2a10, 0x2c00];
    let low = u128::from(random.below(1 << 32)) << 64;
    let (pool, allocation) = if uniform {
        (random.below(7), random.below(1 << 16))
    } else {
        let n = random.crowded(30_000);
        (n % 7, scatter(n / 7))
    };
    let addr = POOLS[pool as usize] << 112 | u128::from(allocation) << 96 | low;
    Prefix::truncated(addr, length(LENGTHS6, random)).expect("at most 128")
}

/// Spreads small numbers over 16 bits, one to one.
fn scatter(n: u64) -> u64 {
    n.wrapping_mul(40_503) & 0xffff
}

/// Addresses inside random routes.
fn covered<A: Address>(routes: &[(Prefix<A>, u32)], count: usize, random: &mut Random) -> Vec<A> {
    let host = |random: &mut Random, prefix: Prefix<A>| {
        let mut bits = A::ZERO;
        for depth in (0..A::LEN).step_by(32) {
            bits = bits.or(A::from_bits_at(random.below(1 << 32) as u32, depth, 32));
        }
        prefix.bits().or(bits.and(A::netmask(prefix.len()).not()))
    };
    (0..count)
        .map(|_| {
            let (prefix, _) = routes[random.below(routes.len() as u64) as usize];
            host(random, prefix)
        })
        .collect()
}

/// The files that `dpdk-test-fib -f … -t …` reads.
fn write_files<A: Address>(
    dir: &Path,
    suffix: &str,
    routes: &[(Prefix<A>, u32)],
    addrs: &[A],
) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let file =
        |name: &str| std::fs::File::create(dir.join(format!("{name}{suffix}"))).map(BufWriter::new);
    let mut out = file("routes")?;
    for (prefix, leaf) in routes {
        writeln!(out, "{}/{} {leaf}", prefix.addr(), prefix.len())?;
    }
    out.flush()?;
    let mut out = file("addresses")?;
    for addr in addrs {
        writeln!(out, "{}", addr.into_std())?;
    }
    out.flush()
}

/// xorshift64*: the same numbers on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`, evenly.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Below `n`, the small ones far more often.
    fn crowded(&mut self, n: u64) -> u64 {
        let u = self.below(1 << 32) as f64 / (1u64 << 32) as f64;
        (u * u * n as f64) as u64
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            all.swap(i, j);
        }
    }
}
