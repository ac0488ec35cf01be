//! SAs on two cores: each thread with SAs of its own, and both with the same. Beside them one thread alone.
//!
//! The three take turns, several times. The time of a packet is the median over the bursts of all threads.

use std::sync::Barrier;

use ferroute::worker::affinity::{allowed_cpus, pin_to};

use crate::{BURST, MANY, Random, Sas, median, packet};

/// Measurements of each kind, and bursts of a thread in each.
const ROUNDS: usize = 5;
const BURSTS: usize = 2_000;
/// Bursts that are protected before they are opened together. All their numbers are within [`WINDOW`].
const SEALED: usize = 16;
/// Long enough that no packet of one thread is refused because the other was faster.
const WINDOW: u32 = 4096;

/// Prints the time of packets of `len` octets.
pub fn measure(len: usize) {
    let cpus = allowed_cpus();
    let [one, two, ..] = cpus[..] else {
        println!("two threads: one CPU only");
        return;
    };
    for count in [1, MANY] {
        let [a, b] = [0, 1].map(|_| Sas::new(count, WINDOW));
        let mut times_ns: [[Vec<f64>; 2]; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (times_ns, sas) in times_ns.iter_mut().zip([&[&a][..], &[&a, &b], &[&a, &a]]) {
                let [seal, open] = threads(sas, &[one, two], len);
                times_ns[0].extend(seal);
                times_ns[1].extend(open);
            }
        }
        let [alone, own, shared] =
            times_ns.each_mut().map(|pair| pair.each_mut().map(|it| median(it)));
        for (n, operation) in ["seal", "lookup and open"].into_iter().enumerate() {
            let print = |name: &str, ns: f64| {
                let name = format!("ESP tunnel, {operation}, {count} SA: {name}");
                println!("{name:56} {len:6} {ns:9.1} {:7.3}", alone[n] / ns);
            };
            print("one thread", alone[n]);
            print("two, of its own", own[n]);
            print("two, the same", shared[n]);
        }
    }
}

/// Runs a thread for each of the SAs, on a CPU of its own: the times of all bursts, of sealing and opening.
fn threads(sas: &[&Sas], cpus: &[usize], len: usize) -> [Vec<f64>; 2] {
    let barrier = Barrier::new(sas.len());
    let results: Vec<_> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for ((&sas, &cpu), n) in sas.iter().zip(cpus).zip(0..) {
            let barrier = &barrier;
            threads.push(scope.spawn(move || {
                pin_to(cpu).expect("the CPU is allowed");
                Thread { sas, barrier, len, random: Random(0x5eed + n) }.run()
            }));
        }
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    let mut all: [Vec<f64>; 2] = Default::default();
    for times in results {
        all.iter_mut().zip(times).for_each(|(all, times)| all.extend(times));
    }
    all
}

struct Thread<'a> {
    sas: &'a Sas,
    barrier: &'a Barrier,
    len: usize,
    random: Random,
}

impl Thread<'_> {
    fn run(&mut self) -> [Vec<f64>; 2] {
        let original = packet(self.len);
        let mut bursts = vec![vec![original.clone(); BURST]; SEALED];
        let (mut seal, mut open) = (Vec::new(), Vec::new());
        for _ in 0..BURSTS / SEALED {
            for packet in bursts.iter_mut().flatten() {
                packet.copy_from_slice(&original);
            }
            self.barrier.wait();
            let sealed: Vec<_> = bursts
                .iter_mut()
                .map(|packets| {
                    let (ns, ranges) = self.sas.seal(packets, self.len, &mut self.random);
                    seal.push(ns);
                    ranges
                })
                .collect();
            self.barrier.wait();
            for (packets, ranges) in bursts.iter_mut().zip(&sealed) {
                open.push(self.sas.open(packets, ranges));
            }
        }
        [seal, open]
    }
}
