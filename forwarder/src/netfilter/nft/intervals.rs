//! Ordered search: the greatest boundary that is not above a key.
//!
//! Sorted boundaries with levels of index above them: each level has every n-th boundary of the level
//! below, where n boundaries fill a cache line. A search reads one line per level: two for 100 intervals of
//! IPv4 addresses, five for 100,000.

use std::fmt;

/// Octets of a block: a cache line.
const BLOCK: usize = 64;

/// Boundaries of keys of up to 16 octets, compared as numbers in network byte order.
#[derive(Debug)]
pub(super) enum Boundaries {
    /// Keys of up to 4 octets.
    Short(Levels<u32, { BLOCK / 4 }>),
    /// Keys of up to 8 octets.
    Medium(Levels<u64, { BLOCK / 8 }>),
    /// Keys of up to 16 octets.
    Long(Levels<u128, { BLOCK / 16 }>),
}

impl Boundaries {
    /// `sorted`: keys of `key_len` octets as numbers, ascending. `None`: keys are too long.
    pub(super) fn new(key_len: usize, sorted: &[u128]) -> Option<Boundaries> {
        match key_len {
            0..=4 => {
                let keys = sorted.iter().map(|key| *key as u32);
                Some(Boundaries::Short(Levels::new(keys.collect(), u32::MAX)))
            }
            5..=8 => {
                let keys = sorted.iter().map(|key| *key as u64);
                Some(Boundaries::Medium(Levels::new(keys.collect(), u64::MAX)))
            }
            9..=16 => Some(Boundaries::Long(Levels::new(sorted.to_vec(), u128::MAX))),
            _ => None,
        }
    }

    /// Position of the last boundary that is not above `key`.
    #[inline]
    pub(super) fn find(&self, key: u128) -> Option<usize> {
        match self {
            Boundaries::Short(levels) => levels.find(key as u32),
            Boundaries::Medium(levels) => levels.find(key as u64),
            Boundaries::Long(levels) => levels.find(key),
        }
    }
}

/// The levels, each filled up to a multiple of `N` with the greatest key.
pub(super) struct Levels<K, const N: usize> {
    /// All levels one after the other, top level first.
    blocks: Vec<[K; N]>,
    /// The first block of each level and its number of boundaries, top level first.
    levels: Vec<(usize, usize)>,
}

impl<K, const N: usize> fmt::Debug for Levels<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Levels").field("levels", &self.levels).finish_non_exhaustive()
    }
}

impl<K: Copy + Ord, const N: usize> Levels<K, N> {
    fn new(sorted: Vec<K>, max: K) -> Self {
        let mut all = vec![sorted];
        while let Some(last) = all.last()
            && last.len() > N
        {
            let above = last.iter().copied().step_by(N).collect();
            all.push(above);
        }
        let (mut blocks, mut levels) = (Vec::new(), Vec::new());
        for level in all.iter().rev() {
            levels.push((blocks.len(), level.len()));
            blocks.extend(level.chunks(N).map(|chunk| {
                let mut block = [max; N];
                block[..chunk.len()].copy_from_slice(chunk);
                block
            }));
        }
        Levels { blocks, levels }
    }

    #[inline]
    fn find(&self, key: K) -> Option<usize> {
        let mut at = 0;
        for (start, len) in &self.levels {
            let block = self.blocks.get(start + at)?;
            let not_above: usize = block.iter().map(|boundary| usize::from(*boundary <= key)).sum();
            // 0 in the first block of a level only: later blocks begin with a boundary that was found.
            at = (at * N + not_above).checked_sub(1)?;
            // Filling is not above the greatest key.
            at = at.min(len - 1);
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_boundary_not_above_the_key_is_found() {
        for len in [0usize, 1, 2, 15, 16, 17, 255, 256, 257, 300, 4096, 5000] {
            for key_len in [2, 4, 8, 16] {
                let sorted: Vec<u128> = (0..len as u128).map(|n| n * 3 + 3).collect();
                let boundaries = Boundaries::new(key_len, &sorted).unwrap();
                for key in (0..len as u128 * 3 + 9).chain([u128::MAX >> (128 - 8 * key_len)]) {
                    let expected = sorted.iter().rposition(|boundary| *boundary <= key);
                    assert_eq!(boundaries.find(key), expected, "{key} of {len}");
                }
            }
        }
    }

    #[test]
    fn the_greatest_key_is_a_boundary_like_others() {
        let sorted: Vec<u128> = (0..40).map(|n| u128::from(u32::MAX) - 39 + n).collect();
        let boundaries = Boundaries::new(4, &sorted).unwrap();
        assert_eq!(boundaries.find(u128::from(u32::MAX)), Some(39));
        assert_eq!(boundaries.find(u128::from(u32::MAX) - 1), Some(38));
        assert!(Boundaries::new(17, &[]).is_none());
    }
}
