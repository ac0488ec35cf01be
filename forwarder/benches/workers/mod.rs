//! The throughput of a second worker: one worker alone, two side by side on CPUs of their own, over the
//! same tables, and, as the ceiling for two CPUs of this machine, two independent processes of one worker
//! each. Measured alternately, several times; medians are reported.

use std::io;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ferroute::control::config::LATENCY_SAMPLE_DEFAULT;
use ferroute::fib::qsbr::Qsbr;
use ferroute::tables::{Published, Tables};
use ferroute::worker::Worker;
use ferroute::worker::affinity::{allowed_cpus, pin_to};
use serde::Serialize;

use crate::null::{self, NullIo};
use crate::{TURNS, cpu_time_ns};

/// Number of measurements of each.
const ROUNDS: usize = 5;

/// Packets per second of CPU time.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One worker alone.
    pub one: f64,
    /// Two workers together.
    pub two: f64,
    /// One process alone.
    pub process: f64,
    /// Two processes together.
    pub processes: f64,
}

impl Report {
    /// Throughput of two workers relative to one.
    pub fn ratio(&self) -> f64 {
        self.two / self.one
    }

    /// Ceiling of the ratio: two processes relative to one.
    pub fn ceiling(&self) -> f64 {
        self.processes / self.process
    }
}

/// Measures for about `length` each. `None`: there is only one CPU.
pub fn measure(tables: &Tables, length: Duration) -> io::Result<Option<Report>> {
    let cpus = allowed_cpus();
    let [one, two, ..] = cpus[..] else { return Ok(None) };
    let length = length / ROUNDS as u32;
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    let (mut process, mut processes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(threads(tables, &[one], length)?);
        together.push(threads(tables, &[one, two], length)?);
        process.push(children(&[one], length)?);
        processes.push(children(&[one, two], length)?);
    }
    Ok(Some(Report {
        one: median(alone),
        two: median(together),
        process: median(process),
        processes: median(processes),
    }))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A worker on each CPU, over one router's tables; returns their total throughput.
fn threads(tables: &Tables, cpus: &[usize], length: Duration) -> io::Result<f64> {
    let published = Arc::new(Published::new(Arc::new(tables.clone())));
    let qsbr = Qsbr::new(cpus.len());
    let barrier = Barrier::new(cpus.len());
    std::thread::scope(|scope| {
        let worker = |&cpu: &usize| {
            let (published, qsbr, barrier) = (&published, &qsbr, &barrier);
            scope.spawn(move || {
                pin_to(cpu).map_err(io::Error::other)?;
                let io = NullIo::ipv4(destinations());
                let (worker, handle) =
                    null::worker_of(published, qsbr, io, LATENCY_SAMPLE_DEFAULT)?;
                barrier.wait();
                let rate = forward(worker, length)?;
                assert_eq!(handle.stats.drops_total(), 0, "packets were dropped");
                Ok(rate)
            })
        };
        let threads: Vec<_> = cpus.iter().map(worker).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
    })
}

fn destinations() -> Vec<u32> {
    (0..1 << 16).map(|n| 0x0a00_0000 | n).collect()
}

fn forward(mut worker: Worker<NullIo<10>>, length: Duration) -> io::Result<f64> {
    let (start, start_ns) = (Instant::now(), cpu_time_ns()?);
    let mut packets = 0;
    while start.elapsed() < length {
        let now_ns = start.elapsed().as_nanos() as u64;
        packets += (0..TURNS).map(|_| worker.turn(now_ns)).sum::<usize>();
    }
    Ok(packets as f64 * 1e9 / (cpu_time_ns()? - start_ns) as f64)
}

/// A process of one worker on each CPU; returns their total throughput.
fn children(cpus: &[usize], length: Duration) -> io::Result<f64> {
    let child = |cpu: &usize| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--solo", &cpu.to_string(), "--seconds", &length.as_secs_f64().to_string()]);
        command.stdout(Stdio::piped()).spawn()
    };
    let children: Vec<_> = cpus.iter().map(child).collect::<io::Result<_>>()?;
    let rate = |child: std::process::Child| {
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse::<f64>().map_err(|_| io::Error::other(format!("a child said {text:?}")))
    };
    children.into_iter().map(rate).sum()
}

/// The body of such a process: prints its throughput.
pub fn solo(cpu: usize, length: Duration) -> io::Result<()> {
    println!("{}", threads(&null::one_route(), &[cpu], length)?);
    Ok(())
}
