//! Names of the kernel's numbers, as iproute2 has them: protocols, modes, flags, addresses, times, interfaces.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::net::if_::if_indextoname;

use crate::control::netlink::message::string;
pub use crate::control::xfrm::names::{EXTRA_FLAGS, POLICY_FLAGS, STATE_FLAGS};

/// The names of flags; a number in hexadecimal stands for those that have no name.
pub fn flags(value: u32, names: &[(u32, &str)]) -> Vec<String> {
    let known = names.iter().filter(|(flag, _)| value & flag != 0);
    let rest = names.iter().fold(value, |rest, (flag, _)| rest & !flag);
    let mut found: Vec<String> = known.map(|(_, name)| (*name).to_owned()).collect();
    if rest != 0 {
        found.push(format!("{rest:x}"));
    }
    found
}

/// The protocol of an SA: IPPROTO_*.
pub fn xfrm_protocol(number: u8) -> String {
    let name = match number {
        50 => "esp",
        51 => "ah",
        108 => "comp",
        43 => "route2",
        60 => "hao",
        255 => "ipsec-any",
        _ => return number.to_string(),
    };
    name.to_owned()
}

/// The protocol of a selector, as /etc/protocols names it.
pub fn protocol(number: u8) -> String {
    static NAMES: LazyLock<Vec<(u8, String)>> =
        LazyLock::new(|| protocols(&fs::read_to_string("/etc/protocols").unwrap_or_default()));
    let name = NAMES.iter().find(|(known, _)| *known == number);
    name.map_or_else(|| number.to_string(), |(_, name)| name.clone())
}

/// The numbers and names of protocols(5).
fn protocols(file: &str) -> Vec<(u8, String)> {
    let entry = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let name = words.next()?;
        Some((words.next()?.parse().ok()?, name.to_owned()))
    };
    file.lines().filter_map(entry).collect()
}

/// XFRM_MODE_*.
pub fn mode(number: u8) -> String {
    const NAMES: [&str; 6] = ["transport", "tunnel", "ro", "in_trigger", "beet", "iptfs"];
    let name = NAMES.get(usize::from(number));
    name.map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// XFRM_SHARE_*.
pub fn share(number: u8) -> String {
    const NAMES: [&str; 4] = ["any", "session", "user", "unique"];
    let name = NAMES.get(usize::from(number));
    name.map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// XFRM_POLICY_TYPE_*.
pub fn policy_type(number: u8) -> String {
    match number {
        0 => "main".to_owned(),
        1 => "sub".to_owned(),
        other => other.to_string(),
    }
}

/// UDP_ENCAP_* and TCP_ENCAP_ESPINTCP.
pub fn encap(number: u16) -> String {
    match number {
        1 => "espinudp-nonike".to_owned(),
        2 => "espinudp".to_owned(),
        7 => "espintcp".to_owned(),
        other => other.to_string(),
    }
}

/// XFRM_SA_DIR_*.
pub fn direction(number: u8) -> String {
    match number {
        1 => "in".to_owned(),
        2 => "out".to_owned(),
        other => format!("other ({other})"),
    }
}

/// An address of an AF_* family, as inet_ntop(3) writes it: unlike in Rust, IPv4-compatible ones have an IPv4 address.
pub fn address(octets: [u8; 16], family: u16) -> String {
    let [a, b, c, d, ..] = octets;
    match i32::from(family) {
        libc::AF_INET => Ipv4Addr::from([a, b, c, d]).to_string(),
        libc::AF_INET6 => match octets {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] if (a, b) != (0, 0) => {
                format!("::{a}.{b}.{c}.{d}")
            }
            _ => Ipv6Addr::from(octets).to_string(),
        },
        _ => "???".to_owned(),
    }
}

/// A time in seconds since 1970, in the local time zone; `-` for none.
pub fn time(time_s: u64) -> String {
    static ZONE: LazyLock<TimeZone> = LazyLock::new(TimeZone::system);
    if time_s == 0 {
        return "-".to_owned();
    }
    match i64::try_from(time_s).map(Timestamp::from_second) {
        Ok(Ok(time)) => {
            time.to_zoned_datetime(ZONE.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
        }
        _ => format!("{time_s}(sec)"),
    }
}

/// The name of an interface, which has control characters.
pub fn interface(ifindex: u32) -> String {
    let name = if_indextoname(ifindex);
    name.map_or_else(|_| format!("if{ifindex}"), |name| string(name.as_bytes()))
}

/// A number in hexadecimal as C's `%#x` writes it, without `0x` for 0.
pub fn hex(number: u32) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_by_inet_ntop() {
        let v6 = |text: &str| address(text.parse::<Ipv6Addr>().unwrap().octets(), 10);
        for (text, expected) in [
            ("::", "::"),
            ("::1", "::1"),
            ("::1234", "::1234"),
            ("::1.2.3.4", "::1.2.3.4"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ("2001:db8:0:1::2", "2001:db8:0:1::2"),
            ("2001:db8:0:1:1:1:1:2", "2001:db8:0:1:1:1:1:2"),
        ] {
            assert_eq!(v6(text), expected);
        }
        assert_eq!(address([192, 0, 2, 1, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0], 2), "192.0.2.1");
        assert_eq!(address([0; 16], 0), "???");
    }

    #[test]
    fn flags_have_names_or_the_number_of_the_rest() {
        assert_eq!(flags(0x91, &STATE_FLAGS), ["noecn", "icmp", "esn"]);
        assert_eq!(flags(0x15, &EXTRA_FLAGS), ["dont-encap-dscp", "14"]);
        assert!(flags(0, &POLICY_FLAGS).is_empty());
    }

    #[test]
    fn protocols_are_read_as_in_protocols_5() {
        let file =
            "# comment\nip\t0\tIP\t\t# internet protocol\nmobility-header 135 Mobility\nbad\n";
        assert_eq!(protocols(file), [(0, "ip".to_owned()), (135, "mobility-header".to_owned())]);
    }

    #[test]
    fn times_that_cannot_be_are_shown() {
        assert_eq!(time(0), "-");
        assert_eq!(time(u64::MAX), format!("{}(sec)", u64::MAX));
        assert_eq!(time(1_700_000_000).len(), "2023-11-14 22:13:20".len());
    }
}
