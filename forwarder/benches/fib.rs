//! Performance of the longest-prefix match with a full Internet table.
//!
//! Tables and addresses come from `full_table` (`--uniform`: prefixes evenly distributed). `--write DIR`
//! writes both to files that `dpdk-test-fib` reads, for a comparison on the same machine.
//!
//! CPU time is not continuous on a virtual machine. Lookups are therefore timed in short batches, batches
//! that span a gap are dropped, and the median is reported. The `pass` figures are means over one whole
//! pass, including gaps, as `dpdk-test-fib` prints them: these two can be compared. Cycles are
//! nanoseconds times the TSC's frequency.

use std::hint::black_box;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use ferroute::fib::lpm::{Lpm, LpmWriter};
use ferroute::fib::prefix::{Address, Prefix};
use ferroute::fib::qsbr::Qsbr;
use serde::Serialize;

use full_table::{Random, SEED, covered, make_table, prefix4, prefix6, tsc_mhz};

mod full_table;

/// Lookups timed together: long compared with a clock reading, short compared with a gap.
const BATCH: usize = 1024;
/// Addresses per call of `lookup_bulk`: a burst of packets.
const BURST: usize = 64;
/// Updates timed together.
const UPDATES: usize = 32;
/// A batch that takes longer was interrupted.
const PREEMPTED_MIN: Duration = Duration::from_millis(1);

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
    /// Measure one family only: 4 or 6
    #[arg(long, value_parser = clap::value_parser!(u8).range(4..=6))]
    only: Option<u8>,
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
    let mut random = Random(SEED);
    let routes4 = make_table(args.routes, args.leaves, &mut random, |r| prefix4(r, args.uniform));
    let addrs4 = covered(&routes4, args.addresses, &mut random);
    let routes6 = make_table(args.routes6, args.leaves, &mut random, |r| prefix6(r, args.uniform));
    let addrs6 = covered(&routes6, args.addresses, &mut random);
    if let Some(dir) = &args.write {
        write_files(dir, "4", &routes4, &addrs4)?;
        return write_files(dir, "6", &routes6, &addrs6);
    }
    let mut results = Vec::new();
    if args.only != Some(6) {
        results.push(measure("IPv4", &routes4, &addrs4, args.rounds, &mut random));
    }
    if args.only != Some(4) {
        results.push(measure("IPv6", &routes6, &addrs6, args.rounds, &mut random));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        results.iter().for_each(print_result);
    }
    Ok(())
}

/// Results for one family; times are medians.
#[derive(Debug, Serialize)]
struct Result {
    family: &'static str,
    routes: usize,
    tsc_mhz: f64,
    lookup_bulk_ns: f64,
    lookup_independent_ns: f64,
    lookup_dependent_ns: f64,
    /// The 10th percentile of the batches: a quiet machine.
    lookup_bulk_p10_ns: f64,
    lookup_independent_p10_ns: f64,
    lookup_dependent_p10_ns: f64,
    build_add_ns: f64,
    add_ns: f64,
    replace_ns: f64,
    delete_ns: f64,
    lookup_bulk_pass_ns: f64,
    add_pass_ns: f64,
    delete_pass_ns: f64,
    /// Time to build the table.
    build_ms: f64,
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
        ("a pass: bulk", result.lookup_bulk_pass_ns),
        ("  add every route", result.add_pass_ns),
        ("  delete every route", result.delete_pass_ns),
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
    let mut writer = LpmWriter::new(Qsbr::new(1)).expect(fail);
    let start = Instant::now();
    let build_add_ns = time_updates(routes, |(prefix, leaf)| {
        writer.insert(prefix, leaf).expect(fail);
    });
    let build = start.elapsed();
    let table = Arc::clone(writer.table());
    let table_octets = table.memory_octets();
    let mut some: Vec<(Prefix<A>, u32)> = routes.to_vec();
    shuffle(&mut some, random);
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
    let lookup_bulk_pass_ns = pass_ns(addrs.len(), || {
        let mut leaves = vec![0; BURST];
        for burst in addrs.chunks_exact(BURST) {
            writer.table().lookup_bulk(burst, &mut leaves);
            black_box(&mut leaves);
        }
    });
    let (writer_octets, table_octets_after_churn) =
        (writer.memory_octets(), writer.table().memory_octets());
    let delete_pass_ns = pass_ns(routes.len(), || {
        for (prefix, _) in routes {
            writer.remove(*prefix).expect(fail);
        }
    });
    Result {
        family,
        routes: routes.len(),
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
        lookup_bulk_pass_ns,
        add_pass_ns: build.as_nanos() as f64 / routes.len().max(1) as f64,
        delete_pass_ns,
        build_ms: build.as_secs_f64() * 1e3,
        table_octets,
        writer_octets,
        table_octets_after_churn,
    }
}

/// Nanoseconds per lookup, of each batch in ascending order: in bulk, one by one, and each dependent on
/// the previous one.
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
                // No leaf is that large, but this makes the next lookup depend on the result.
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
    // The mean, because rare updates cost much more than most.
    times.iter().sum::<f64>() / times.len().max(1) as f64
}

/// Adds the nanoseconds per unit of `n`, unless there was a gap.
fn time(times: &mut Vec<f64>, n: usize, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    let took = start.elapsed();
    if took < PREEMPTED_MIN {
        times.push(took.as_nanos() as f64 / n as f64);
    }
}

/// Nanoseconds per unit of `n`, including gaps.
fn pass_ns(n: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / n.max(1) as f64
}

fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}

/// The quantile `of` (0 to 1) of sorted times.
fn quantile(times: &[f64], of: f64) -> f64 {
    times.get((times.len() as f64 * of) as usize).copied().unwrap_or(f64::NAN)
}

fn median(times: Vec<f64>) -> f64 {
    quantile(&sorted(times), 0.5)
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

fn shuffle<T>(all: &mut [T], random: &mut Random) {
    for i in (1..all.len()).rev() {
        let j = random.below(i as u64 + 1) as usize;
        all.swap(i, j);
    }
}
