//! Runs random commands, and compares after every few of them what the mirror shows and what its
//! tables return with the kernel.

use std::process::Command;
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::answers::random_answers;
use super::commands::command;
use super::oracle::{equals_fresh, equals_kernel};
use super::ra::{Wire, advertisement};
use super::{eventually, in_netns, ports, try_run};
use crate::control::mirror::{Mirror, MirrorOptions};
use crate::control::process::log;

/// xorshift64*, deterministic for each seed.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The output of `ip …`.
fn ip_text(args: &str) -> String {
    let output = Command::new("ip").args(args.split_whitespace()).output().expect("ip starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Accepts router advertisements, also as a router, and the routes in them.
pub const ACCEPT: [&str; 3] = [
    "sysctl -w net.ipv6.conf.va.accept_ra=2",
    "sysctl -w net.ipv6.conf.va.accept_ra_rt_info_max_plen=64",
    "sysctl -w net.ipv6.conf.va.accept_ra_min_hop_limit=0",
];

/// Runs rounds of up to sixteen commands each until `ends`. Every other seed has changes of which the kernel sends no event
/// (router advertisements, routes that expire); with the others, the self-check must find nothing.
fn random_commands(seed: u64, ends: impl Fn(usize) -> bool) {
    let mut rng = Rng::new(seed);
    ports();
    ACCEPT.iter().for_each(|line| super::run(line));
    let wire = Wire::open("vb");
    let ports = ["va", "vc"].map(|name| nix::net::if_::if_nametoindex(name).expect("a link"));
    let ports = [(ports[0], 0), (ports[1], 1)];
    let start = || {
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        mirror.set_ports(&ports);
        mirror
    };
    let mut mirror = start();
    let is_silent = seed.is_multiple_of(2);
    let (mut done, mut unparsable, mut corrections) = (0, 0, 0);
    let mut failures = Vec::new();
    let mut round = 0;
    while !ends(round) {
        round += 1;
        let mut took = Vec::new();
        for _ in 0..=rng.below(16) {
            if is_silent && rng.below(8) == 0 {
                let frame = advertisement(&mut rng);
                if wire.send(&frame) {
                    took.push(format!("router advertisement {:02x?}", &frame[54..]));
                }
                continue;
            }
            let line = command(&mut rng, is_silent);
            if try_run(&line) {
                took.push(line);
            }
        }
        done += took.len();
        let corrected = mirror.counters().corrections;
        let compared = eventually(&mut mirror, |mirror| {
            equals_kernel(mirror)?;
            equals_fresh(mirror, &ports)?;
            random_answers(mirror, &mut rng.clone())
        });
        let is_expected = is_silent || mirror.counters().corrections == corrected;
        let compared = compared.and_then(|()| match is_expected {
            true => Ok(()),
            false => {
                Err(format!("the self-check has corrected something: {:?}", mirror.counters()))
            }
        });
        if let Err(difference) = compared {
            let state =
                ["-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule"]
                    .map(ip_text);
            let failure =
                format!("seed {seed}, round {round}: {took:#?}: {difference}\n{}", state.concat());
            error!("{failure}");
            failures.push(failure);
            unparsable += mirror.counters().unparsable;
            corrections += mirror.counters().corrections;
            mirror = start();
        }
    }
    corrections += mirror.counters().corrections;
    info!("seed {seed}: {round} rounds, {done} commands took effect, {corrections} corrections");
    assert!(failures.is_empty(), "{} failures: {}", failures.len(), failures.join("\n"));
    assert!(done > round, "most commands must take effect: {done}");
    assert_eq!(unparsable + mirror.counters().unparsable, 0);
}

/// `FERROUTE_SEED` repeats a run; `FERROUTE_RANDOM_SECONDS` has it last longer.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_random_commands_leave_mirror_and_kernel_equal() {
    let _log = log::Log::start(log::LogLevel::Info, log::LogFormat::Text).expect("a log");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FERROUTE_SEED");
    if let Some(seconds) = number("FERROUTE_RANDOM_SECONDS") {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut seed = seed.unwrap_or(1);
        while Instant::now() < end {
            in_netns(move || random_commands(seed, |round| round >= 100 || Instant::now() >= end));
            seed += 1;
        }
        return;
    }
    for seed in seed.map_or(1..=4, |seed| seed..=seed) {
        in_netns(move || random_commands(seed, |round| round >= 50));
    }
}
