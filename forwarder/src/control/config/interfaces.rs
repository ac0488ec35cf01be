//! Interfaces as given to `-i` and in files: names, or patterns as in the shell (glob(7)): `*`, `?`,
//! `[0-3]`, `[!0]`. `[^0]` and `[[:digit:]]` are refused because they would have another meaning here.
//!
//! A named interface is to be a port in any case. A pattern selects interfaces that exist now or later,
//! except those that cannot be meant: see [`Interfaces::matching`].

use std::collections::BTreeSet;
use std::fmt;

use glob::Pattern;

use crate::control::config::check_ifname;
use crate::control::mirror::compile::links::RX_HANDLER_KINDS;
use crate::control::mirror::state::{ARPHRD_ETHER, IFF_LOOPBACK, LinkState};
use crate::control::netdev::nic::Nic;
use crate::control::steering::punt;

/// The named interfaces and the patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    named: Vec<String>,
    patterns: Vec<Pattern>,
}

impl Interfaces {
    /// Parses words such as `eth0` and `eth*`, each given once.
    ///
    /// # Errors
    /// For the first word that is neither name nor pattern, or is given twice.
    pub fn parse<W: AsRef<str>>(words: &[W]) -> Result<Interfaces, String> {
        let mut interfaces = Interfaces::default();
        let mut seen = BTreeSet::new();
        for word in words.iter().map(AsRef::as_ref) {
            match check_word(word)? {
                Some(pattern) => interfaces.patterns.push(pattern),
                None => interfaces.named.push(word.to_owned()),
            }
            if !seen.insert(word) {
                return Err(format!("interface {word} is named twice; name each port once"));
            }
        }
        Ok(interfaces)
    }

    /// The named interfaces, in order.
    pub fn named(&self) -> &[String] {
        &self.named
    }

    /// Names and patterns as they were given, names first.
    pub fn words(&self) -> Vec<&str> {
        let patterns = self.patterns.iter().map(Pattern::as_str);
        self.named.iter().map(String::as_str).chain(patterns).collect()
    }

    /// Whether there is neither a name nor a pattern.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.patterns.is_empty()
    }

    /// Whether there are patterns.
    pub fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The patterns, for a message.
    pub fn patterns(&self) -> String {
        let patterns: Vec<&str> = self.patterns.iter().map(Pattern::as_str).collect();
        patterns.join(", ")
    }

    /// The interfaces of `all` that a pattern selects. Not named ones; not lo or interfaces without
    /// Ethernet frames; not Ferroute's own TAP device; not VLANs, which are served with their lower
    /// interface; not interfaces that belong to a bridge, bond or VRF or have a macvlan, which take the
    /// packets.
    pub fn matching<'a>(&self, all: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
        let takes = |upper: &&Candidate<'_>| {
            upper.kind.is_some_and(|kind| RX_HANDLER_KINDS.contains(&kind))
        };
        let taken: BTreeSet<u32> = all.iter().filter(takes).filter_map(|c| c.lower).collect();
        let fits = |candidate: &&Candidate<'_>| {
            candidate.is_ethernet
                && !candidate.has_master
                && candidate.kind != Some("vlan")
                && !taken.contains(&candidate.ifindex)
                && !punt::is_own(candidate.name)
                && self.patterns.iter().any(|pattern| pattern.matches(candidate.name))
                && !self.named.iter().any(|name| name == candidate.name)
        };
        all.iter().filter(fits).copied().collect()
    }
}

/// In the form given.
impl fmt::Display for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(", "))
    }
}

/// Checks a word given to `-i`: a name (`None`) or a pattern.
///
/// # Errors
/// What is wrong with the word.
pub fn check_word(word: &str) -> Result<Option<Pattern>, String> {
    // A word with control characters is taken as an interface name, not as a pattern.
    if !word.contains(['*', '?', '[']) || word.contains(char::is_control) {
        return check_ifname(word).map(|()| None);
    }
    if word.contains("[^") {
        return Err(format!("`{word}`: to exclude characters write `[!`, not `[^`"));
    }
    if ["[:", "[=", "[."].iter().any(|class| word.contains(class)) {
        return Err(format!(
            "`{word}`: classes such as `[:digit:]` are not supported; write `[0-9]`"
        ));
    }
    if word.contains('\\') {
        return Err(format!(
            "`{word}`: `\\` does not escape characters here; write `[*]` for a `*`"
        ));
    }
    if word.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(format!("`{word}` matches no interface: none has `/`, `:` or spaces in it"));
    }
    let pattern = Pattern::new(word);
    pattern.map(Some).map_err(|error| format!("`{word}` is not a valid pattern: {}", error.msg))
}

/// The properties of an interface that decide whether a pattern selects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The interface's ifindex.
    pub ifindex: u32,
    /// Its name.
    pub name: &'a str,
    /// It carries Ethernet frames, and is not lo.
    pub is_ethernet: bool,
    /// `veth`, `vlan`, `bridge`, …; none: a NIC.
    pub kind: Option<&'a str>,
    /// IFF_UP.
    pub is_up: bool,
    /// It belongs to a bridge, bond or VRF.
    pub has_master: bool,
    /// ifindex of its lower interface, if that is in this namespace.
    pub lower: Option<u32>,
}

impl<'a> From<&'a Nic> for Candidate<'a> {
    fn from(nic: &'a Nic) -> Candidate<'a> {
        Candidate {
            ifindex: nic.ifindex,
            name: &nic.name,
            is_ethernet: nic.is_ethernet(),
            kind: nic.kind.as_deref(),
            is_up: nic.is_up(),
            has_master: nic.master.is_some(),
            lower: nic.lower,
        }
    }
}

impl<'a> From<&'a LinkState> for Candidate<'a> {
    fn from(link: &'a LinkState) -> Candidate<'a> {
        Candidate {
            ifindex: link.ifindex,
            name: &link.name,
            is_ethernet: link.arphrd == ARPHRD_ETHER && link.flags & IFF_LOOPBACK == 0,
            kind: link.kind.as_deref(),
            is_up: link.is_up(),
            has_master: link.master.is_some(),
            lower: link.link.filter(|_| link.link_netnsid.is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(ifindex: u32, name: &str) -> Candidate<'_> {
        Candidate {
            ifindex,
            name,
            is_ethernet: true,
            kind: None,
            is_up: true,
            has_master: false,
            lower: None,
        }
    }

    fn matching(words: &[&str], all: &[Candidate<'_>]) -> Vec<String> {
        let interfaces = Interfaces::parse(words).expect("sound");
        interfaces.matching(all).iter().map(|found| found.name.to_owned()).collect()
    }

    #[test]
    fn names_match_as_the_shell_matches_files() {
        let all = ["eth0", "eth1", "eth10", "wan0", "Eth2", "eth"];
        let all: Vec<Candidate<'_>> = (1..).zip(all).map(|(n, name)| candidate(n, name)).collect();
        for (pattern, expected) in [
            ("eth*", &["eth0", "eth1", "eth10", "eth"][..]),
            ("eth?", &["eth0", "eth1"]),
            ("eth[1-9]*", &["eth1", "eth10"]),
            ("eth[!0]", &["eth1"]),
            ("*0", &["eth0", "eth10", "wan0"]),
            ("[w]an0", &["wan0"]),
            ("dsl*", &[]),
        ] {
            assert_eq!(matching(&[pattern], &all), expected, "{pattern}");
        }
        assert_eq!(matching(&["eth?", "wan*"], &all), ["eth0", "eth1", "wan0"]);
        // A named interface is not selected by a pattern, too.
        assert_eq!(matching(&["eth?", "eth1"], &all), ["eth0"]);
    }

    #[test]
    fn interfaces_that_cannot_be_meant_are_not_selected() {
        let nic = candidate(2, "eth0");
        let all = [
            Candidate { is_ethernet: false, ..candidate(1, "lo") },
            nic,
            Candidate { has_master: true, ..candidate(3, "eth1") },
            Candidate { kind: Some("vlan"), lower: Some(2), ..candidate(4, "eth0.5") },
            candidate(5, "ferroute0"),
            candidate(6, "eth2"),
            Candidate { kind: Some("macvlan"), lower: Some(6), ..candidate(7, "mac0") },
            Candidate { kind: Some("veth"), lower: Some(2), ..candidate(8, "veth0") },
            candidate(9, "ferroute"),
            Candidate { is_ethernet: false, ..candidate(10, "wg0") },
        ];
        assert_eq!(matching(&["*"], &all), ["eth0", "mac0", "veth0", "ferroute"]);
    }

    #[test]
    fn words_are_names_or_patterns_or_refused() {
        let parsed = Interfaces::parse(&["wan0", "eth*", "lan0"]).expect("sound");
        assert_eq!(parsed.named(), ["wan0", "lan0"]);
        assert!(parsed.has_patterns());
        assert_eq!(
            (parsed.patterns(), parsed.to_string()),
            ("eth*".into(), "wan0, lan0, eth*".into())
        );
        assert!(!Interfaces::parse(&["eth0"]).expect("sound").has_patterns());
        let odd = Interfaces::parse(&["a\x1b[31mb", "\x01*"]).expect("names");
        assert_eq!(odd.named(), ["a\x1b[31mb", "\x01*"]);
        assert!(Interfaces::parse(&["a\x0bb"]).is_err(), "a blank");
        for (words, expected) in [
            (&["eth*", "eth*"][..], "named twice"),
            (&["a", "a"], "named twice"),
            (&["eth["], "`eth[` is not a valid pattern"),
            (&["eth**"], "`eth**` is not a valid pattern"),
            (&["a*/b"], "matches no interface"),
            (&["eth[^0]"], "write `[!`"),
            (&["eth\\*"], "write `[*]`"),
            (&["eth[[:digit:]]"], "write `[0-9]`"),
            (&["a* "], "matches no interface"),
            (&["an-interface-name"], "not an interface name"),
        ] {
            let error = Interfaces::parse(words).expect_err("is wrong");
            assert!(error.contains(expected), "{error}");
        }
    }
}
