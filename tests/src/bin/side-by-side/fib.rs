//! Longest-prefix match: Ferroute's and DPDK's, with the same prefixes and addresses.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Plan;
use crate::dpdk::{self, FibRun};
use crate::host::tsc_mhz;
use crate::rounds::{Entrant, Metric, Sample, Section};

const METRICS: [Metric; 10] = [
    Metric { key: "bulk", title: "bulk lookup, cycles", digits: 1 },
    Metric { key: "bulk_ns", title: "bulk lookup, ns", digits: 1 },
    Metric { key: "independent", title: "single lookup, cycles", digits: 1 },
    Metric { key: "independent_ns", title: "single lookup, ns", digits: 1 },
    Metric { key: "dependent", title: "dependent lookup, cycles", digits: 1 },
    Metric { key: "dependent_ns", title: "dependent lookup, ns", digits: 1 },
    Metric { key: "memory", title: "memory of the table, MiB", digits: 1 },
    Metric { key: "build", title: "build, s", digits: 2 },
    Metric { key: "add", title: "add, cycles", digits: 0 },
    Metric { key: "delete", title: "delete, cycles", digits: 0 },
];
const OWN: [&str; 10] = [
    "bulk",
    "bulk_ns",
    "independent",
    "independent_ns",
    "dependent",
    "dependent_ns",
    "memory",
    "build",
    "add",
    "delete",
];
const DPDK: [&str; 6] = ["bulk", "bulk_ns", "memory", "build", "add", "delete"];
const NOTE: &str = "\
Random addresses that a route covers. The figures are means over a whole pass, except for single and \
dependent lookups: these are medians of batches that were not interrupted. DPDK's memory is computed \
from the prefixes (the first level and the second-level groups that they need). Neither figure \
includes the record of routes that updates need. dpdk-test-fib looks up in bulk only.";

/// IPv4, then IPv6.
pub fn sections(plan: &Plan) -> Result<Vec<Section<'_>>> {
    let dir = plan.dir.join("fib");
    let program = plan.built.path("fib")?;
    let status = Command::new(program).arg("--write").arg(&dir).status();
    let status = status.with_context(|| format!("starting {}", program.display()))?;
    ensure!(status.success(), "{} --write: {status}", program.display());
    let four = section(
        plan,
        "4",
        &dir,
        "dir",
        &[("DPDK dir24_8", "4"), ("DPDK dir24_8, 2-octet entries", "2")],
    )?;
    let six = section(plan, "6", &dir, "trie", &[("DPDK trie", "4")])?;
    Ok(vec![four, six])
}

fn section<'a>(
    plan: &'a Plan,
    family: &'static str,
    dir: &Path,
    algorithm: &'static str,
    peers: &[(&str, &'static str)],
) -> Result<Section<'a>> {
    let files = Files { family, dir: dir.to_owned() };
    let prefixes = files.prefixes()?;
    let (count, groups) = (prefixes.len(), second_level_groups(&prefixes));
    let reserved = reserved_groups(&prefixes);
    let program = plan.built.path("fib")?;
    let rounds = if plan.quick { "1" } else { "3" };
    let mut entrants = vec![Entrant {
        name: "Ferroute".into(),
        gives: OWN.to_vec(),
        run: Box::new(move || own(program, family, rounds)),
    }];
    // A quick run has no time for more than one peer.
    for (name, entry) in peers.iter().take(if plan.quick { 1 } else { usize::MAX }) {
        let (routes, addresses) = (files.path("routes"), files.path("addresses"));
        let (entry, run) = (*entry, move |entry| {
            let run = FibRun {
                family,
                algorithm,
                entry,
                groups: reserved,
                routes: &routes,
                addresses: &addresses,
            };
            run.measure()
        });
        entrants.push(Entrant {
            name: (*name).into(),
            gives: DPDK.to_vec(),
            run: Box::new(move || Ok(theirs(&run(entry)?, count, groups, entry))),
        });
    }
    Ok(Section {
        title: format!("FIB, {} IPv{family} routes", thousands(count)),
        note: NOTE.into(),
        metrics: METRICS.to_vec(),
        entrants,
    })
}

/// Files that `fib --write` wrote for a family.
struct Files {
    family: &'static str,
    dir: PathBuf,
}

impl Files {
    fn path(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{what}{}", self.family))
    }

    fn prefixes(&self) -> Result<Vec<(IpAddr, u8)>> {
        let path = self.path("routes");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let prefixes = text.lines().map(prefix).collect::<Option<Vec<_>>>();
        prefixes.with_context(|| format!("{} is not a list of routes", path.display()))
    }
}

fn prefix(line: &str) -> Option<(IpAddr, u8)> {
    let (addr, len) = line.split_whitespace().next()?.split_once('/')?;
    Some((addr.parse().ok()?, len.parse().ok()?))
}

/// Groups of 256 entries that DPDK's dir24_8 and trie need beyond the first level of 2^24: one for each
/// /24, /32, /40 … that contains a longer prefix.
fn second_level_groups(prefixes: &[(IpAddr, u8)]) -> usize {
    let mut groups = HashSet::new();
    for (addr, len) in prefixes {
        let bits = match addr {
            IpAddr::V4(addr) => u128::from(addr.to_bits()) << 96,
            IpAddr::V6(addr) => addr.to_bits(),
        };
        let parents = (24..*len).step_by(8);
        groups.extend(parents.map(|parent| (parent, bits >> (128 - parent))));
    }
    groups.len()
}

/// Groups that they reserve during updates: their count does not consider shared groups.
fn reserved_groups(prefixes: &[(IpAddr, u8)]) -> usize {
    prefixes.iter().map(|(_, len)| usize::from(len.saturating_sub(24)).div_ceil(8)).sum()
}

fn own(program: &Path, family: &str, rounds: &str) -> Result<Sample> {
    let args = ["--json", "--only", family, "--rounds", rounds];
    let text = dpdk::run(dpdk::pinned(program).args(args))?;
    let answer: Value = serde_json::from_str(&text).context("reading its JSON")?;
    let figure = |key: &str| answer[0][key].as_f64().with_context(|| format!("no {key} in {text}"));
    let cycles = |ns: f64| ns * tsc_mhz() / 1e3;
    let lookup = ["lookup_bulk_pass_ns", "lookup_independent_ns", "lookup_dependent_ns"];
    let [bulk, independent, dependent] = lookup.map(figure);
    let (bulk, independent, dependent) = (bulk?, independent?, dependent?);
    Ok(Sample::from([
        ("bulk", cycles(bulk)),
        ("bulk_ns", bulk),
        ("independent", cycles(independent)),
        ("independent_ns", independent),
        ("dependent", cycles(dependent)),
        ("dependent_ns", dependent),
        ("memory", figure("table_octets")? / 1048576.0),
        ("build", figure("build_ms")? / 1e3),
        ("add", cycles(figure("add_pass_ns")?)),
        ("delete", cycles(figure("delete_pass_ns")?)),
    ]))
}

fn theirs(found: &dpdk::FibFound, routes: usize, groups: usize, entry: &str) -> Sample {
    let entry: f64 = entry.parse().unwrap_or(f64::NAN);
    let octets = ((1 << 24) + groups * 256) as f64 * entry;
    Sample::from([
        ("bulk", found.lookup),
        ("bulk_ns", found.lookup * 1e3 / tsc_mhz()),
        ("memory", octets / 1048576.0),
        ("build", found.add * routes as f64 / tsc_mhz() / 1e6),
        ("add", found.add),
        ("delete", found.delete),
    ])
}

/// Formatted as 1,000,000.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prefix_needs_a_group_at_each_level_above_it() {
        let prefixes = |text: &str| text.lines().filter_map(prefix).collect::<Vec<_>>();
        assert_eq!(second_level_groups(&prefixes("10.0.0.0/8 1\n10.1.1.0/24 1\n")), 0);
        // Two in one /24, one in another.
        let four = "10.0.0.0/25 1\n10.0.0.128/26 1\n10.0.1.1/32 1\n";
        assert_eq!(second_level_groups(&prefixes(four)), 2);
        // /48 needs its /24, /32 and /40; the second shares the first two of them.
        let six = "2001:db8:100::/48 1\n2001:db8:8200::/48 1\n2a00::/20 1\n";
        assert_eq!(second_level_groups(&prefixes(six)), 4);
        assert_eq!(reserved_groups(&prefixes(six)), 6);
    }

    #[test]
    fn thousands_have_separators() {
        assert_eq!([7, 1234, 1_000_000].map(thousands), ["7", "1,234", "1,000,000"]);
    }
}
