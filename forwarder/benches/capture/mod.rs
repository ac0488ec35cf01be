//! The cost of captures: workers without captures and with several kinds of captures, measured
//! alternately.
//!
//! The captures see every packet twice, on input and on output, on all ports. A separate thread reads the
//! copies as fast as it can; copies lost nevertheless are reported.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferroute::capture::{Filter, RingReader, Session, Wanted, compile, ring};
use ferroute::tables::Tables;
use ferroute::worker::{Worker, WorkerHandle};

use super::null::{self, NullIo};
use super::{Result, TURNS, result};

/// Blocks of a ring: 4 MiB, the default of `ferroute capture`.
const BLOCKS: usize = 32;

/// Names of the results: without a capture, with filters that match nothing by address and by port, all
/// packets.
pub type Names = [&'static str; 4];
pub const ONE_ROUTE: Names = [
    "one route, no capture",
    "one route, capture of no host",
    "one route, capture of no port",
    "one route, capture of all",
];
pub const FULL_TABLE: Names = [
    "full table, no capture",
    "full table, capture of no host",
    "full table, capture of no port",
    "full table, capture of all",
];
const FILTERS: [Option<&str>; 4] =
    [None, Some("host 203.0.113.9"), Some("udp port 9999"), Some("")];

struct Run {
    name: &'static str,
    worker: Worker<NullIo<10>>,
    handle: WorkerHandle<NullIo<10>>,
    reader: Option<RingReader>,
    packets: u64,
    times_ns: Vec<f64>,
}

fn run(
    name: &'static str,
    filter: Option<&str>,
    tables: &Tables,
    io: NullIo<10>,
) -> io::Result<Run> {
    let (mut worker, handle) = null::worker(tables.clone(), io, 64)?;
    let reader = filter.map(|filter| {
        let filter = (!filter.is_empty()).then(|| {
            Filter::new(&compile(filter).expect("a filter")).expect("libpcap's programs are sound")
        });
        let wanted = Wanted {
            ports: None,
            received: true,
            sent: true,
            dropped: true,
            snaplen: usize::MAX,
            filter,
        };
        let (writer, reader) = ring(BLOCKS).expect("memory");
        let refused = worker.tap().attach(Session::new(1, wanted, writer));
        assert!(refused.is_none());
        reader
    });
    Ok(Run { name, worker, handle, reader, packets: 0, times_ns: Vec::new() })
}

/// Measures the cost of each; prints the numbers of copies and losses to standard error.
pub fn capturing(
    names: Names,
    tables: &Tables,
    destinations: &[u32],
    length: Duration,
) -> io::Result<Vec<Result>> {
    let mut runs = Vec::new();
    for (name, filter) in names.into_iter().zip(FILTERS) {
        runs.push(run(name, filter, tables, NullIo::ipv4(destinations.to_vec()))?);
    }
    let readers: Vec<RingReader> = runs.iter_mut().filter_map(|run| run.reader.take()).collect();
    let done = Arc::new(AtomicBool::new(false));
    let reading = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || read(readers, &done))
    };
    let start = Instant::now();
    while start.elapsed() < length * names.len() as u32 {
        for run in &mut runs {
            let stretch = Instant::now();
            let now_ns = stretch.duration_since(start).as_nanos() as u64;
            let taken: usize = (0..TURNS).map(|_| run.worker.turn(now_ns)).sum();
            run.times_ns.push(stretch.elapsed().as_nanos() as f64 / taken as f64);
            run.packets += taken as u64;
        }
    }
    done.store(true, Ordering::Relaxed);
    let readers = reading.join().expect("the reader does not panic");
    for run in &runs {
        // Whatever is captured, all packets are forwarded.
        assert_eq!(run.handle.stats.ports[1].tx_packets.get(), run.packets, "{}", run.name);
    }
    let all = readers.last().expect("there are captures");
    let (matched, lost) = (all.matched(), all.lost());
    assert_eq!(matched, 2 * runs[3].packets, "each packet is seen twice");
    eprintln!("{}: {} copies, {lost} more lost for lack of room", names[3], matched - lost);
    Ok(runs.into_iter().map(|run| result(run.name, run.times_ns, None)).collect())
}

/// Reads the copies octet by octet, as a reader that writes them to a file.
fn read(readers: Vec<RingReader>, done: &AtomicBool) -> Vec<RingReader> {
    let mut copy = Vec::with_capacity(ring::BLOCK);
    while !done.load(Ordering::Relaxed) {
        for reader in &readers {
            let block = reader.read(|block, _| {
                copy.clear();
                copy.extend_from_slice(block);
                std::hint::black_box(&mut copy);
            });
            if !matches!(block, Ok(Some(()))) {
                std::thread::yield_now();
            }
        }
    }
    readers
}
