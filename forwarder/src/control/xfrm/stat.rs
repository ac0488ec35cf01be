//! The kernel's IPsec counters.

/// The file with them, of the calling thread's network namespace; only with CONFIG_XFRM_STATISTICS.
pub const PATH: &str = "/proc/thread-self/net/xfrm_stat";

/// Line, name and value of each counter.
pub fn counters(file: &str) -> impl Iterator<Item = (&str, &str, u64)> {
    file.lines().filter_map(|line| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        Some((line, name, count.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_kernels_lines() {
        let file = "XfrmInError             \t0\nXfrmInNoStates          \t12\nodd\n";
        let found: Vec<_> = counters(file).map(|(_, name, count)| (name, count)).collect();
        assert_eq!(found, [("XfrmInError", 0), ("XfrmInNoStates", 12)]);
    }
}
