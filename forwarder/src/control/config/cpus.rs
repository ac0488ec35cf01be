//! Lists of CPUs, in the format of `taskset -c`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// CPU numbers are below this: the kernel's largest NR_CPUS.
const CPUS_MAX: usize = 8192;

/// CPUs in the order given, each once; written as for `taskset -c`: `0-3,5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// The CPUs in the order given.
    pub fn cpus(&self) -> &[usize] {
        &self.0
    }

    fn new(cpus: Vec<usize>) -> Result<CpuList, String> {
        let mut seen = BTreeSet::new();
        if let Some(twice) = cpus.iter().find(|cpu| !seen.insert(**cpu)) {
            return Err(format!("CPU {twice} is named twice"));
        }
        match cpus.iter().find(|cpu| **cpu >= CPUS_MAX) {
            Some(cpu) => Err(format!("CPU {cpu} is too large, expected at most {}", CPUS_MAX - 1)),
            None if cpus.is_empty() => Err(format!("no CPU is named, expected {CPUS_EXPECTED}")),
            None => Ok(CpuList(cpus)),
        }
    }
}

const CPUS_EXPECTED: &str = "CPU numbers and ranges like 0-3,5";

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuList, String> {
        let wrong = |part: &str| format!("`{part}` in `{text}`: expected {CPUS_EXPECTED}");
        // parse() would accept a plus sign.
        let number = |part: &str| match part.as_bytes() {
            [] => Err(wrong(part)),
            digits if !digits.iter().all(u8::is_ascii_digit) => Err(wrong(part)),
            _ => part.parse::<usize>().map_err(|_| wrong(part)),
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cpus.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last || last >= CPUS_MAX {
                        return Err(wrong(part));
                    }
                    cpus.extend(first..=last);
                }
            }
        }
        CpuList::new(cpus)
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, cpu) in self.0.iter().enumerate() {
            write!(f, "{}{cpu}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CpuList, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = CpuList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{CPUS_EXPECTED}, as a string or an array of numbers")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CpuList, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<CpuList, A::Error> {
                let mut cpus = Vec::new();
                while let Some(cpu) = seq.next_element()? {
                    cpus.push(cpu);
                }
                CpuList::new(cpus).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_as_taskset_writes_them() {
        let cpus = |text: &str| text.parse::<CpuList>().map(|list| list.0);
        assert_eq!(cpus("0-3,5"), Ok(vec![0, 1, 2, 3, 5]));
        assert_eq!(cpus("7"), Ok(vec![7]));
        assert_eq!(cpus("2,0-1"), Ok(vec![2, 0, 1]));
        for wrong in
            ["", ",", "1,", "3-1", "1-", "-1", "+1", "a", "0-9999999", "1,1", "0-2,2", "1 "]
        {
            assert!(cpus(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!("2,0-1".parse::<CpuList>().expect("a list").to_string(), "2,0,1");
    }
}
