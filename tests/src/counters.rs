//! The kernel's own counters in a namespace: they show whether the kernel forwarded.

use std::fs;

use anyhow::{Context, Result};

use crate::Netns;

/// Packets forwarded by the kernel's stack in one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    /// `IpForwDatagrams` of nstat.
    pub v4: u64,
    /// `Ip6OutForwDatagrams` of nstat.
    pub v6: u64,
}

/// Reads both counters.
///
/// # Errors
/// When `/proc/net` cannot be read or has no such counter.
pub fn forwarded_by_kernel(namespace: &Netns) -> Result<Forwarded> {
    Ok(Forwarded {
        v4: snmp(namespace, "Ip", "ForwDatagrams")?,
        v6: snmp6(namespace, "Ip6OutForwDatagrams")?,
    })
}

/// A counter of `/proc/net/snmp`: a line of names, then a line of values.
///
/// # Errors
/// When the file cannot be read or has no such counter.
pub fn snmp(namespace: &Netns, group: &str, name: &str) -> Result<u64> {
    let text = read(namespace, "snmp")?;
    let mut lines = text.lines().filter(|line| line.split(':').next() == Some(group));
    let names = lines.next().context("no such group")?.split_whitespace();
    let values = lines.next().context("no values")?.split_whitespace();
    let value = names.zip(values).find(|(n, _)| *n == name).map(|(_, value)| value);
    Ok(value.with_context(|| format!("no {group}: {name}"))?.parse()?)
}

/// A counter of `/proc/net/snmp6`: one name and value per line.
///
/// # Errors
/// When the file cannot be read or has no such counter.
pub fn snmp6(namespace: &Netns, name: &str) -> Result<u64> {
    let text = read(namespace, "snmp6")?;
    let value = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()).flatten()
    });
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

fn read(namespace: &Netns, file: &str) -> Result<String> {
    namespace.enter(|| Ok(fs::read_to_string(format!("/proc/thread-self/net/{file}"))?))
}
