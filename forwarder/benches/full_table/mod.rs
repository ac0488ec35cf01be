//! A full Internet table, generated from a fixed seed: prefix lengths as seen by route collectors, most
//! prefixes close to others, addresses inside random routes. The same on every machine.

use std::collections::HashSet;

use ferroute::fib::prefix::{Address, Prefix};

/// The seed of every benchmark's table.
pub const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// `count` different prefixes, each with a leaf, in random order.
pub fn make_table<A: Address>(
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

/// As in the IPv4 tables of route collectors, and a few longer ones as inside a provider's network.
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

/// An IPv4 prefix as seen by route collectors; `uniform`: anywhere in the address space.
pub fn prefix4(random: &mut Random, uniform: bool) -> Prefix<u32> {
    loop {
        // Most routes are in few /16s: squaring concentrates them.
        let high = if uniform { random.below(1 << 16) } else { scatter(random.crowded(50_000)) };
        let addr = (high as u32) << 16 | random.below(1 << 16) as u32;
        let prefix = Prefix::truncated(addr, length(LENGTHS4, random)).expect("at most 32");
        if (1..224).contains(&(prefix.bits() >> 24)) {
            return prefix;
        }
    }
}

/// An IPv6 prefix as seen by route collectors; `uniform`: anywhere in the address space.
pub fn prefix6(random: &mut Random, uniform: bool) -> Prefix<u128> {
    // The registries' blocks, 2001::/16 and six /12s; allocations within them.
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

/// Distributes small numbers over 16 bits, one to one.
fn scatter(n: u64) -> u64 {
    n.wrapping_mul(40_503) & 0xffff
}

/// Random addresses covered by random routes.
pub fn covered<A: Address>(
    routes: &[(Prefix<A>, u32)],
    count: usize,
    random: &mut Random,
) -> Vec<A> {
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

/// The TSC's frequency: Linux on x86 reports it as half the "bogomips". NaN if it is not available.
pub fn tsc_mhz() -> f64 {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find(|line| line.starts_with("bogomips"));
    let bogomips = line.and_then(|line| line.split(':').nth(1)?.trim().parse::<f64>().ok());
    bogomips.map_or(f64::NAN, |bogomips| bogomips / 2.0)
}

/// xorshift64*: the same numbers on every machine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, evenly distributed.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A number below `n`, small ones far more often.
    fn crowded(&mut self, n: u64) -> u64 {
        let u = self.below(1 << 32) as f64 / (1u64 << 32) as f64;
        (u * u * n as f64) as u64
    }
}
